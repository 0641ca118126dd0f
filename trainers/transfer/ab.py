"""Activation boundaries: before training, the student learns which of the teacher's neurons are on and which are off.

B. Heo, M. Lee, S. Yun, J. Y. Choi: Knowledge transfer via distillation of activation boundaries formed by hidden
neurons, AAAI 2019 (arXiv 1811.03233). With t the teacher's map before its ReLU, s the student's through a 1x1
convolution and batch norm, and a margin mu = 1 instead of the step function, which has no gradient:

    L_AB = sum over taps i of n of 2^(i - n) sum over elements of
        (s + mu)^2 where t <= 0 and s > -mu,   (s - mu)^2 where t > 0 and s <= mu,   mean over the batch

This is a separate stage, the student's first `pretraining_epochs`, with the recipe's optimiser and learning rate; then
the student learns from the labels, and optionally from soft labels. w = 3/1000 and the margin are the authors'; the
stage has RepDistiller's length: its 30 epochs before 240 correspond to our 4 before a recipe's 30.

Where we differ: after the stage the authors' code for CIFAR-10 distils only soft labels (temperature 3), no hard ones;
here `soft_labels` are added to the hard ones, with weight 0 by default as in RepDistiller. The teacher is in eval mode.
If resolutions differ, the larger map is average-pooled.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, connector, pairs, same_size
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import Needs, TeacherSignals


class ABOptions(FeatureOptions):
    """Parameters of `ab`."""

    weight: float = Field(default=3e-3, ge=0.0, json_schema_extra={"search": {"low": 3e-5, "high": 3e-1, "log": True}})
    """Weight of the sum over all elements of an image's maps."""
    margin: float = Field(default=1.0, gt=0.0, json_schema_extra={"search": [0.5, 1.0, 2.0]})
    """mu: how far on its side of the boundary a neuron should be."""
    pretraining_epochs: int = Field(default=4, ge=1, json_schema_extra={"search": {"low": 1, "high": 8, "step": 1}})
    """Epochs on the boundaries alone, before the recipe's epochs."""


class AB(FeatureMethod):
    """L = w sum 2^(i - n) (hinge of the teacher's signs)^2, then CE."""

    name = "ab"
    abbreviation = "AB"
    paper = Paper(
        "Heo, Lee, Yun, Choi",
        "Knowledge transfer via distillation of activation boundaries formed by hidden neurons",
        "AAAI 2019",
        "arXiv:1811.03233",
    )
    Options = ABOptions
    features = Needs(before_relu="all")
    minimum_batch = 2  # batch norm has nothing to average over in one image with one pixel

    def __init__(self, options: ABOptions, shapes: Shapes) -> None:
        """A connector for each pair of taps."""
        super().__init__(options, shapes)
        self.margin = options.margin
        self.connectors = nn.ModuleList(
            connector(ours[0], theirs[0]) for ours, theirs in pairs(shapes.student, shapes.teacher)
        )

    @classmethod
    def pretraining_epochs(cls, options: ABOptions) -> int:
        """As given in the options."""
        return options.pretraining_epochs

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The sum over the taps."""
        both = pairs(student.before_relu, teacher.before_relu)
        distances = []
        for position, (connect, maps) in enumerate(zip(self.connectors, both, strict=True)):
            s, t = same_size(*maps)
            distances.append(boundary_distance(connect(s), t, self.margin) / 2 ** (len(both) - 1 - position))
        return torch.stack(distances).sum()


def boundary_distance(s: Tensor, t: Tensor, margin: float) -> Tensor:
    """L_AB of one pair of maps (B, C, H, W), ()."""
    # on the wrong side, or on the right one but not by the margin
    missing = margin - torch.where(t > 0, s, -s)
    return missing.clamp_min(0.0).square().flatten(1).sum(dim=1).mean()
