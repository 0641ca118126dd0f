"""Variational information distillation: the student's features are as informative as possible about the teacher's.

S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai: Variational information distillation for knowledge transfer, CVPR
2019  (arXiv 1904.05835). The mutual information of t and s is bounded from below by a Gaussian q(t | s) whose mean mu
is a small network of s and whose variance is learned for each channel c:

    - log q(t | s) = sum over c, h, w of  log sigma_c + (t - mu(s))^2 / (2 sigma_c^2)  + constant,
    sigma_c^2 = softplus(alpha_c) + 1e-5

The mean over batch and elements, summed over all taps; mu is three 1x1 convolutions without bias with ReLUs between
them, sigma^2 starts at 5, the weight is 1: all as in the authors' code, via RepDistiller. If resolutions differ, the
larger map is average-pooled. The loss may be negative, as is usual for densities.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, pairs, same_size
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import TeacherSignals

LEAST_VARIANCE = 1e-5


class VIDOptions(FeatureOptions):
    """Parameters of `vid`."""

    weight: float = Field(default=1.0, ge=0.0, json_schema_extra={"search": {"low": 0.01, "high": 10.0, "log": True}})
    """Weight of the negative log-likelihood."""
    initial_variance: float = Field(
        default=5.0, gt=LEAST_VARIANCE, json_schema_extra={"search": {"low": 0.5, "high": 10.0, "log": True}}
    )
    """sigma^2 of every channel at the start."""


class VID(FeatureMethod):
    """L = CE - w sum mean log q(t | s)."""

    name = "vid"
    abbreviation = "VID"
    paper = Paper(
        "Ahn, Hu, Damianou, Lawrence, Dai",
        "Variational information distillation for knowledge transfer",
        "CVPR 2019",
        "arXiv:1904.05835",
    )
    Options = VIDOptions

    def __init__(self, options: VIDOptions, shapes: Shapes) -> None:
        """q(t | s) for every pair of taps."""
        super().__init__(options, shapes)
        self.likelihoods = nn.ModuleList(
            Likelihood(ours[0], theirs[0], options.initial_variance)
            for ours, theirs in pairs(shapes.student, shapes.teacher)
        )

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The sum of the taps' mean negative log-likelihoods."""
        both = pairs(student.maps, teacher.maps)
        return torch.stack([q(*same_size(*maps)) for q, maps in zip(self.likelihoods, both, strict=True)]).sum()


class Likelihood(nn.Module):
    """q(t | s) for one tap."""

    def __init__(self, inputs: int, outputs: int, variance: float) -> None:
        """inputs, outputs: channels of s and t; variance: sigma^2 at the start."""
        super().__init__()
        self.mu = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
        )
        # the inverse of softplus, log(exp(v) - 1), for large v too
        v = variance - LEAST_VARIANCE
        self.alpha = nn.Parameter(torch.full((outputs,), v + math.log(-math.expm1(-v))))

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """s: (B, C_S, H, W), t: (B, C_T, H, W); returns the mean of -log q without its constant, ()."""
        variance = (F.softplus(self.alpha) + LEAST_VARIANCE).view(1, -1, 1, 1)
        loss: Tensor = (0.5 * ((t - self.mu(s)).square() / variance + variance.log())).mean()
        return loss
