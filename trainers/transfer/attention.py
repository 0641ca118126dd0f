"""Attention transfer: the student looks where the teacher looks.

S. Zagoruyko, N. Komodakis: Paying more attention to attention: improving the performance of convolutional neural
networks via attention transfer, ICLR 2017 (arXiv 1612.03928), equation 2. A map's attention is the mean over its
channels of its squares, Q(F) = mean_c F_c^2, as one vector over the pixels:

    L_AT = sum over taps of  mean over batch and pixels of ( Q_S/||Q_S||_2 - Q_T/||Q_T||_2 )^2

with weight 1,000, both as in the authors' code (the paper has the norm itself, and beta / 2). If resolutions differ,
the larger map is average-pooled; the authors resize the teacher's. Maps with one pixel have no attention: their pair is
skipped, and a student and teacher without any other pair are refused.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from spaces import BadInput
from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, pairs, same_size, spatial_pairs
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import TeacherSignals


class AttentionOptions(FeatureOptions):
    """Parameters of `attention`."""

    weight: float = Field(
        default=1000.0, ge=0.0, json_schema_extra={"search": {"low": 10.0, "high": 10000.0, "log": True}}
    )
    """beta: weight of the mean squared difference of normalised attention."""


class Attention(FeatureMethod):
    """L = CE + beta sum mean (Q_S/||Q_S|| - Q_T/||Q_T||)^2."""

    name = "attention"
    abbreviation = "AT"
    paper = Paper(
        "Zagoruyko, Komodakis",
        "Paying more attention to attention: improving the performance of convolutional neural networks via "
        "attention transfer",
        "ICLR 2017",
        "arXiv:1612.03928",
    )
    Options = AttentionOptions

    @classmethod
    def check(cls, options: Any, shapes: Shapes) -> None:
        """Some pair of maps must have more than one pixel."""
        super().check(options, shapes)
        if not spatial_pairs(shapes):
            raise BadInput(
                "`attention` must have maps of more than one pixel on both sides, but one network's are flat; use "
                "resnet for both, or another method"
            )

    def __init__(self, options: AttentionOptions, shapes: Shapes) -> None:
        """No adapters: attention does not depend on channels."""
        super().__init__(options, shapes)
        self.used = spatial_pairs(shapes)

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The sum over the taps."""
        both = pairs(student.maps, teacher.maps)
        return torch.stack([attention_distance(*both[index]) for index in self.used]).sum()


def attention_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of the attention of two maps (B, C, H, W), ()."""
    ours, theirs = same_size(ours, theirs)
    return (attention(ours) - attention(theirs)).square().mean()


def attention(maps: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H W), a unit vector for each image."""
    return F.normalize(maps.square().mean(dim=1).flatten(1), dim=1)
