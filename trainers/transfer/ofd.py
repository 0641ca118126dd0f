"""Overhaul of feature distillation: features before the ReLU match the teacher's, except where both are inactive.

B. Heo, J. Kim, S. Yun, H. Park, N. Kwak, J. Y. Choi: A comprehensive overhaul of feature distillation, ICCV 2019 (arXiv
1904.01866). With t the teacher's map before its ReLU, r a 1x1 convolution and batch norm of the student's s, and m_c <
0 a margin, the mean of channel c's negative values:

    sigma(t) = max(t, m_c),     d_p(sigma(t), r(s)) = sum over elements of
        0 where r(s) <= sigma(t) <= 0,   (sigma(t) - r(s))^2 elsewhere

    L = CE + w sum over taps i of n of 2^(i - n) d_p   (the deepest has weight 1), mean over the batch

w = 1/1000 is the authors'. A sum over elements grows with the map: for sizes other than theirs, search w.

Where we differ: the margin follows its definition, the mean over all negative values on the training images, here on
those seen so far (exact from the second epoch on); the authors compute it from the last batch norm's parameters, which
ignores the shortcut of a residual block. A channel that was never negative has margin 0. Their teacher's batch norms
use batch statistics; ours is in eval mode. If resolutions differ, the larger map is average-pooled.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, connector, pairs, same_size
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import Needs, TeacherSignals


class OFDOptions(FeatureOptions):
    """Parameters of `ofd`."""

    weight: float = Field(default=1e-3, ge=0.0, json_schema_extra={"search": {"low": 1e-5, "high": 1e-1, "log": True}})
    """Weight of the sum over all elements of an image's maps."""


class OFD(FeatureMethod):
    """L = CE + w sum 2^(i - n) d_p(sigma(t), r(s))."""

    name = "ofd"
    abbreviation = "OFD"
    paper = Paper(
        "Heo, Kim, Yun, Park, Kwak, Choi",
        "A comprehensive overhaul of feature distillation",
        "ICCV 2019",
        "arXiv:1904.01866",
    )
    Options = OFDOptions
    features = Needs(before_relu="all")
    minimum_batch = 2  # batch norm has nothing to average over in one image with one pixel

    def __init__(self, options: OFDOptions, shapes: Shapes) -> None:
        """A connector and a margin for each pair of taps."""
        super().__init__(options, shapes)
        both = pairs(shapes.student, shapes.teacher)
        self.connectors = nn.ModuleList(connector(ours[0], theirs[0]) for ours, theirs in both)
        self.margins = nn.ModuleList(Margin(theirs[0]) for _, theirs in both)

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The sum over the taps."""
        both = pairs(student.before_relu, teacher.before_relu)
        distances = []
        for position, (connect, margin, maps) in enumerate(zip(self.connectors, self.margins, both, strict=True)):
            s, t = same_size(*maps)
            distances.append(
                partial_distance(connect(s), torch.maximum(t, margin(t))) / 2 ** (len(both) - 1 - position)
            )
        return torch.stack(distances).sum()


class Margin(nn.Module):
    """m_c: the mean of each channel's negative values over everything seen in training."""

    total: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        """channels: C of the teacher's map."""
        super().__init__()
        self.register_buffer("total", torch.zeros(channels))
        self.register_buffer("count", torch.zeros(channels))

    def forward(self, t: Tensor) -> Tensor:
        """t: (B, C, H, W), added to the mean in training mode; returns (1, C, 1, 1)."""
        if self.training:
            self.total += t.clamp_max(0.0).sum(dim=(0, 2, 3))
            self.count += (t < 0).sum(dim=(0, 2, 3))
        return (self.total / self.count.clamp_min(1.0)).view(1, -1, 1, 1)


def partial_distance(ours: Tensor, target: Tensor) -> Tensor:
    """d_p of maps (B, C, H, W): the sum over an image's elements, mean over the batch, ()."""
    counts = (ours > target) | (target > 0)
    return torch.where(counts, (ours - target).square(), 0.0).flatten(1).sum(dim=1).mean()
