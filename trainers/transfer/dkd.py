"""Decoupled knowledge distillation: the target class's probability, and the distribution over the others, separately.

B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang: Decoupled knowledge distillation, CVPR 2022 (arXiv 2203.08679). With t the
label, p_t the probability of t at temperature tau, and p^ the distribution over the other classes:

    TCKD = KL( (p_t, 1 - p_t)_T || (p_t, 1 - p_t)_S ),   NCKD = KL( p^_T || p^_S ),
    L = CE + ramp tau^2 (alpha TCKD + beta NCKD)

KD is the case alpha = 1, beta = 1 - p_t of the teacher. alpha 1, beta 8, tau 4 are the authors' defaults; `ramp` rises
to 1 over the first epochs, 20 of their 240. No known differences, except that the ramp is a share of the epochs.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trainers.families import Features
from trainers.transfer.method import Method, Options, Paper, Shapes
from trainers.transfer.signals import Needs, TeacherSignals


class DKDOptions(Options):
    """Parameters of `dkd`."""

    alpha: float = Field(default=1.0, ge=0.0, json_schema_extra={"search": {"low": 0.0, "high": 2.0}})
    """Weight of the target class's part."""
    beta: float = Field(default=8.0, ge=0.0, json_schema_extra={"search": {"low": 0.5, "high": 16.0, "log": True}})
    """Weight of the other classes' part."""
    temperature: float = Field(default=4.0, gt=0.0, json_schema_extra={"search": {"low": 1.0, "high": 8.0}})
    """tau: temperature of the outputs."""
    warm_up: float = Field(default=20 / 240, ge=0.0, le=1.0, json_schema_extra={"search": [0.0, 20 / 240]})
    """Share of the epochs over which the teacher's weight rises to its full value."""


class DKD(Method):
    """L = CE + ramp tau^2 (alpha TCKD + beta NCKD)."""

    name = "dkd"
    abbreviation = "DKD"
    paper = Paper("Zhao, Cui, Song, Qiu, Liang", "Decoupled knowledge distillation", "CVPR 2022", "arXiv:2203.08679")
    Options = DKDOptions

    def __init__(self, options: DKDOptions, shapes: Shapes) -> None:
        """No adapters: the logits have the same shape on both sides."""
        super().__init__(options, shapes)
        self.alpha, self.beta, self.temperature = options.alpha, options.beta, options.temperature
        self.warm_up = options.warm_up

    @classmethod
    def needs(cls, options: DKDOptions) -> Needs:
        """The teacher's logits."""
        return Needs(logits=True)

    def forward(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The labels and both parts of the soft labels."""
        assert teacher.logits is not None
        target, others = decoupled(student.logits, teacher.logits, labels, self.temperature)
        ramp = ramped(self.progress, self.warm_up)
        return self.label_loss(student.logits, labels) + ramp * (self.alpha * target + self.beta * others)


def ramped(progress: float, warm_up: float) -> float:
    """A term's current share of its full weight: 1 after `warm_up` of the epochs."""
    return min(1.0, progress / warm_up) if warm_up > 0 else 1.0


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """tau^2 TCKD and tau^2 NCKD of logits (B, classes), means over the batch."""
    right = F.one_hot(labels, student.shape[1]).bool()

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        """log of (p_t, 1 - p_t), (B, 2), and log of p^, (B, classes - 1)."""
        z = logits / temperature
        other = z[~right].view(len(z), -1)
        both = torch.stack([z[right], other.logsumexp(dim=1)], dim=1)
        return F.log_softmax(both, dim=1), F.log_softmax(other, dim=1)

    divergences = [
        temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        for ours, theirs in zip(split(student), split(teacher), strict=True)
    ]
    return divergences[0], divergences[1]
