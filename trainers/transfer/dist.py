"""DIST: the student's outputs correlate with a strong teacher's, within images and within classes.

T. Huang, S. You, F. Wang, C. Qian, C. Xu: Knowledge distillation from a stronger teacher, NeurIPS 2022 (arXiv
2205.10536). With Y = softmax(z / tau), (B, classes), and rho Pearson's correlation:

    L_inter = tau^2 (1 - mean over rows of rho(Y_S, Y_T)),   L_intra = tau^2 (1 - mean over columns of rho(Y_S, Y_T)),
    L = CE + beta L_inter + gamma L_intra

beta = gamma = tau = 1 are the defaults of the authors' class (2, 2 and 4 are used for CIFAR). tau^2 is in their code
for classification. No known differences.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trainers.families import Features
from trainers.transfer.method import Method, Options, Paper, Shapes
from trainers.transfer.signals import Needs, TeacherSignals


class DISTOptions(Options):
    """Parameters of `dist`."""

    beta: float = Field(default=1.0, ge=0.0, json_schema_extra={"search": {"low": 0.1, "high": 4.0, "log": True}})
    """Weight of the relations between classes, within an image."""
    gamma: float = Field(default=1.0, ge=0.0, json_schema_extra={"search": {"low": 0.1, "high": 4.0, "log": True}})
    """Weight of the relations between images, within a class."""
    temperature: float = Field(default=1.0, gt=0.0, json_schema_extra={"search": {"low": 1.0, "high": 4.0}})
    """tau: temperature of the outputs."""


class DIST(Method):
    """L = CE + beta L_inter + gamma L_intra."""

    name = "dist"
    abbreviation = "DIST"
    paper = Paper(
        "Huang, You, Wang, Qian, Xu",
        "Knowledge distillation from a stronger teacher",
        "NeurIPS 2022",
        "arXiv:2205.10536",
    )
    Options = DISTOptions

    def __init__(self, options: DISTOptions, shapes: Shapes) -> None:
        """No adapters: the logits have the same shape on both sides."""
        super().__init__(options, shapes)
        self.beta, self.gamma, self.temperature = options.beta, options.gamma, options.temperature

    @classmethod
    def needs(cls, options: DISTOptions) -> Needs:
        """The teacher's logits."""
        return Needs(logits=True)

    def forward(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The labels and both relations."""
        assert teacher.logits is not None
        tau = self.temperature
        ours, theirs = F.softmax(student.logits / tau, dim=1), F.softmax(teacher.logits / tau, dim=1)
        inter, intra = uncorrelated(ours, theirs), uncorrelated(ours.T, theirs.T)
        return self.label_loss(student.logits, labels) + tau**2 * (self.beta * inter + self.gamma * intra)


def uncorrelated(a: Tensor, b: Tensor) -> Tensor:
    """1 minus the mean over rows of Pearson's correlation of (rows, columns), (); for constant rows it counts as 0."""
    a, b = (F.normalize(x - x.mean(dim=1, keepdim=True), dim=1, eps=1e-8) for x in (a, b))
    return 1.0 - (a * b).sum(dim=1).mean()
