"""Neuron selectivity transfer: the student's channels are distributed over the pixels as the teacher's are.

Z. Huang, N. Wang: Like what you like: knowledge distill via neuron selectivity transfer, 2017 (arXiv 1707.01219). With
f_i channel i of a map as a unit vector over the pixels, and the kernel k(x, y) = <x, y>^2 (the paper's polynomial
kernel, d = 2, c = 0), the squared maximum mean discrepancy of the two sets of channels:

    L_NST = sum over taps of  mean k(f_T, f_T') + mean k(f_S, f_S') - 2 mean k(f_S, f_T)

averaged over the batch; weight 50 as in Tian et al. (RepDistiller). If resolutions differ, the larger map is
average-pooled. The teacher's own term is a constant that makes the value a distance. With one pixel, channels select
nothing: such a pair of maps is skipped, and a student and teacher without any other pair are refused.
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


class NSTOptions(FeatureOptions):
    """Parameters of `nst`."""

    weight: float = Field(default=50.0, ge=0.0, json_schema_extra={"search": {"low": 1.0, "high": 500.0, "log": True}})
    """Weight of the squared discrepancy."""


class NST(FeatureMethod):
    """L = CE + w sum MMD^2(channels of S, channels of T)."""

    name = "nst"
    abbreviation = "NST"
    paper = Paper(
        "Huang, Wang",
        "Like what you like: knowledge distill via neuron selectivity transfer",
        "2017",
        "arXiv:1707.01219",
    )
    Options = NSTOptions

    @classmethod
    def check(cls, options: Any, shapes: Shapes) -> None:
        """Some pair of maps must have more than one pixel."""
        super().check(options, shapes)
        if not spatial_pairs(shapes):
            raise BadInput(
                "`nst` must have maps of more than one pixel on both sides, but one network's are flat; use resnet "
                "for both, or another method"
            )

    def __init__(self, options: NSTOptions, shapes: Shapes) -> None:
        """No adapters: any two sets of channels can be compared."""
        super().__init__(options, shapes)
        self.used = spatial_pairs(shapes)

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The sum over the taps."""
        both = pairs(student.maps, teacher.maps)
        return torch.stack([discrepancy(*same_size(*both[index])) for index in self.used]).sum()


def discrepancy(ours: Tensor, theirs: Tensor) -> Tensor:
    """MMD^2 of the channels of maps (B, C_S, H, W) and (B, C_T, H, W), mean over the batch, ()."""
    f_S, f_T = (F.normalize(maps.flatten(2), dim=2) for maps in (ours, theirs))

    def mean_kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.transpose(1, 2)).square().mean()

    return mean_kernel(f_T, f_T) + mean_kernel(f_S, f_S) - 2 * mean_kernel(f_S, f_T)
