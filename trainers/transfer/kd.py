"""Knowledge distillation: the student learns the teacher's softened outputs.

G. Hinton, O. Vinyals, J. Dean: Distilling the knowledge in a neural network, NIPS deep learning workshop 2014
(arXiv 1503.02531), section 2:

    L = (1 - alpha) CE(z_S, y) + alpha tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau))

The KL is the mean over the batch of the sum over classes; tau^2 keeps its gradient's size independent of tau.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trainers.families import Features
from trainers.transfer.method import Method, Options, Paper, Shapes
from trainers.transfer.signals import Needs, TeacherSignals


class KDOptions(Options):
    """Parameters of `kd`."""

    temperature: float = Field(default=4.0, gt=0.0, json_schema_extra={"search": {"low": 1.0, "high": 8.0}})
    """tau: temperature of the outputs."""
    weight: float = Field(default=0.9, ge=0.0, le=1.0, json_schema_extra={"search": {"low": 0.1, "high": 1.0}})
    """alpha: the teacher's share of the loss; the rest is the labels'."""


def soft_label_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(teacher || student) of logits (B, classes), mean over the batch, ()."""
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


class KD(Method):
    """L = (1 - alpha) CE + alpha tau^2 KL(teacher || student)."""

    name = "kd"
    abbreviation = "KD"
    paper = Paper(
        "Hinton, Vinyals, Dean",
        "Distilling the knowledge in a neural network",
        "NIPS deep learning workshop 2014",
        "arXiv:1503.02531",
    )
    Options = KDOptions

    def __init__(self, options: KDOptions, shapes: Shapes) -> None:
        """No adapters: the logits have the same shape on both sides."""
        super().__init__(options, shapes)
        self.temperature, self.weight = options.temperature, options.weight

    @classmethod
    def needs(cls, options: KDOptions) -> Needs:
        """The teacher's logits."""
        return Needs(logits=True)

    def forward(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The weighted sum of the losses on labels and soft labels."""
        assert teacher.logits is not None
        soft = soft_label_loss(student.logits, teacher.logits, self.temperature)
        return (1.0 - self.weight) * self.label_loss(student.logits, labels) + self.weight * soft
