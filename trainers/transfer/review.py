"""ReviewKD: each of the student's layers, with all deeper ones fused into it, predicts the teacher's layer.

P. Chen, S. Liu, H. Zhao, J. Jia: Distilling knowledge via knowledge review, CVPR 2021 (arXiv 2104.09044). From the
deepest level to the shallowest, with F_i the student's map through a 1x1 convolution, R the residual from the deeper
level (enlarged to F_i's size), a_1, a_2 attention maps from a 1x1 convolution of both:

    R <- a_1 F_i + a_2 R   (the deepest: R <- F_i),      prediction_i = conv3x3(R)

    L = CE + ramp w sum over levels of HCL(prediction_i, teacher_i),
    HCL = weighted mean of the mean squared difference at full size (weight 1) and average-pooled to 4, 2 and 1
          pixels a side (weights 1/2, 1/4, 1/8), for sizes smaller than the map

The levels are the taps and, above them, the last map pooled to one pixel; the student's maps are taken after ReLU, the
teacher's before, as in the authors' code. The number of inner channels is that of the student's deepest map, at most
512. w = 1 is the default of mdistiller (the authors set it for each pair of networks, from 0.6 to 8); `ramp` rises to 1
over the first epochs, 20 of their 240.

Where we differ: height and width are scaled separately, and a level's weights apply to sizes smaller than its shorter
side.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from trainers.families import Features
from trainers.transfer.dkd import ramped
from trainers.transfer.feature import FeatureMethod, FeatureOptions, pairs
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import Needs, TeacherSignals


class ReviewOptions(FeatureOptions):
    """Parameters of `review`."""

    weight: float = Field(default=1.0, ge=0.0, json_schema_extra={"search": {"low": 0.1, "high": 10.0, "log": True}})
    """Weight of the hierarchical context loss."""
    warm_up: float = Field(default=20 / 240, ge=0.0, le=1.0, json_schema_extra={"search": [0.0, 20 / 240]})
    """Share of the epochs over which the weight rises to its full value."""


class Review(FeatureMethod):
    """L = CE + ramp w sum HCL(fused student, teacher)."""

    name = "review"
    abbreviation = "ReviewKD"
    paper = Paper("Chen, Liu, Zhao, Jia", "Distilling knowledge via knowledge review", "CVPR 2021", "arXiv:2104.09044")
    Options = ReviewOptions
    features = Needs(maps=(-1,), before_relu="all")
    minimum_batch = 2  # batch norm has nothing to average over in one image with one pixel

    def __init__(self, options: ReviewOptions, shapes: Shapes) -> None:
        """A fusion for each level, from the deepest, the pooled one, to the shallowest."""
        super().__init__(options, shapes)
        self.warm_up = options.warm_up
        levels = [(ours[0], theirs[0]) for ours, theirs in pairs(shapes.student, shapes.teacher)]
        levels.append(levels[-1])
        inner = min(512, levels[-1][0])
        self.fusions = nn.ModuleList(
            Fusion(ours, inner, theirs, deepest=depth == 0) for depth, (ours, theirs) in enumerate(reversed(levels))
        )

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The sum over the levels, with the current ramp."""
        levels = pairs(student.maps, teacher.before_relu)
        levels.append((_one_pixel(student.maps[-1]), _one_pixel(teacher.maps[0])))
        residual: Tensor | None = None
        distances = []
        for fusion, (ours, theirs) in zip(self.fusions, reversed(levels), strict=True):
            prediction, residual = fusion(ours, residual, theirs.shape[2:])
            distances.append(hierarchical(prediction, theirs))
        return ramped(self.progress, self.warm_up) * torch.stack(distances).sum()


class Fusion(nn.Module):
    """Attention-based fusion of one level."""

    def __init__(self, inputs: int, inner: int, outputs: int, *, deepest: bool) -> None:
        """inputs, outputs: channels of the student's and the teacher's map; inner: channels of the residual."""
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.leave = nn.Sequential(nn.Conv2d(inner, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.attention = None if deepest else nn.Conv2d(2 * inner, 2, 1)
        for layers in (self.enter, self.leave):
            convolution = layers[0]
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, maps: Tensor, residual: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """maps: (B, inputs, H, W); residual: (B, inner, any, any); size: of the teacher's map.

        Returns:
            the prediction (B, outputs, *size) and the residual (B, inner, *size) for the next level.
        """
        x: Tensor = self.enter(maps)
        if self.attention is not None:
            assert residual is not None
            residual = F.interpolate(residual, x.shape[2:], mode="nearest")
            a = torch.sigmoid(self.attention(torch.cat([x, residual], dim=1)))
            x = a[:, :1] * x + a[:, 1:] * residual
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.leave(x), x


def hierarchical(ours: Tensor, theirs: Tensor) -> Tensor:
    """HCL of two maps (B, C, H, W), ()."""
    values, weights = [F.mse_loss(ours, theirs)], [1.0]
    for side in (4, 2, 1):
        if side < min(ours.shape[2:]):
            values.append(F.mse_loss(F.adaptive_avg_pool2d(ours, side), F.adaptive_avg_pool2d(theirs, side)))
            weights.append(weights[-1] / 2)
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum() / sum(weights)


def _one_pixel(maps: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(maps, 1)
