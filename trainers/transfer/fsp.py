"""FSP: before training, the student learns how the teacher gets from one layer to the next.

J. Yim, D. Joo, J. Bae, J. Kim: A gift from knowledge distillation: fast optimization, network minimization and transfer
learning, CVPR 2017 (openaccess.thecvf.com), equations 1 and 2. The flow of solution procedure between two maps of one
size, (m, H, W) and (n, H, W):

    G(i, j) = 1/(H W) sum over pixels of F1_i F2_j,
    L_FSP = sum over flows of  mean over batch and elements of (G_S - G_T)^2

This is a separate stage, the student's first `pretraining_epochs`, with the recipe's optimiser and learning rate; then
the student learns from the labels, and optionally from soft labels. The flows are those from one tap to the next (in
the paper, from the first layer of a group to its last), with the shallower map average-pooled to the deeper one's size,
as in RepDistiller. Its 30 epochs before 240 correspond to our 4 before a recipe's 30.

Where we differ: the dimensions of G are the networks' channels, so the paper's student and teacher must be equally
wide; here, if they are not, a learned 1x1 convolution maps the student's channels to the teacher's, and is later
discarded.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spaces import BadInput
from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, pairs, same_size
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import TeacherSignals


class FSPOptions(FeatureOptions):
    """Parameters of `fsp`."""

    weight: float = Field(default=1.0, ge=0.0, json_schema_extra={"search": {"low": 0.1, "high": 100.0, "log": True}})
    """Weight of the mean squared difference of flows, at the recipe's learning rate."""
    pretraining_epochs: int = Field(default=4, ge=1, json_schema_extra={"search": {"low": 1, "high": 8, "step": 1}})
    """Epochs on the flows alone, before the recipe's epochs."""


class FSP(FeatureMethod):
    """L = w sum mean (G_S - G_T)^2, then CE."""

    name = "fsp"
    abbreviation = "FSP"
    paper = Paper(
        "Yim, Joo, Bae, Kim",
        "A gift from knowledge distillation: fast optimization, network minimization and transfer learning",
        "CVPR 2017",
        "doi:10.1109/CVPR.2017.754",
    )
    Options = FSPOptions

    @classmethod
    def check(cls, options: Any, shapes: Shapes) -> None:
        """There must be a flow."""
        super().check(options, shapes)
        if len(pairs(shapes.student, shapes.teacher)) < 2:
            raise BadInput(
                "`fsp` must have two features or more on both sides, but a network has only one; an mlp "
                "of depth 3 has two"
            )

    def __init__(self, options: FSPOptions, shapes: Shapes) -> None:
        """A convolution for each tap with different widths."""
        super().__init__(options, shapes)
        self.adapters = nn.ModuleList(
            nn.Identity() if ours[0] == theirs[0] else nn.Conv2d(ours[0], theirs[0], 1, bias=False)
            for ours, theirs in pairs(shapes.student, shapes.teacher)
        )

    @classmethod
    def pretraining_epochs(cls, options: FSPOptions) -> int:
        """As given in the options."""
        return options.pretraining_epochs

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The sum over the flows."""
        both = pairs(student.maps, teacher.maps)
        ours = flows([adapter(maps) for adapter, (maps, _) in zip(self.adapters, both, strict=True)])
        theirs = flows([maps for _, maps in both])
        return torch.stack([F.mse_loss(a, b) for a, b in zip(ours, theirs, strict=True)]).sum()


def flows(maps: list[Tensor]) -> list[Tensor]:
    """G of each map and the next, (B, m, n)."""
    matrices = []
    for shallow, deep in pairwise(maps):
        F1, F2 = (m.flatten(2) for m in same_size(shallow, deep))
        matrices.append(F1 @ F2.transpose(1, 2) / F1.shape[2])
    return matrices
