"""Hints: the student's middle layer, through a regressor, predicts the teacher's.

A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio: FitNets: hints for thin deep nets, ICLR 2015 (arXiv
1412.6550), equation 3. With v_h the teacher's hint layer, v_g the student's guided one, r the regressor:

    L_HT = 1/2 || v_h(x) - r(v_g(x)) ||^2

The mean over batch and elements replaces the norm, and the weight is 100, as in Tian et al. (RepDistiller), whose
numbers the field compares with; r is their 1x1 convolution, batch norm and ReLU.

Where we differ: the authors train the student up to v_g on hints alone, then all of it by distillation; RepDistiller
and we add the hint to the loss from the start. Hint and guided layer are the middle one of the taps that both networks
have (of two, the shallower). If resolutions differ, the larger map is average-pooled (RepDistiller: strided or
transposed convolutions, for some ratios).
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, connector, pairs, same_size
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import TeacherSignals


class FitNetOptions(FeatureOptions):
    """Parameters of `fitnet`."""

    weight: float = Field(
        default=100.0, ge=0.0, json_schema_extra={"search": {"low": 1.0, "high": 1000.0, "log": True}}
    )
    """Weight of the mean squared difference."""


class FitNet(FeatureMethod):
    """L = CE + w mean (v_h - r(v_g))^2."""

    name = "fitnet"
    abbreviation = "FitNet"
    paper = Paper(
        "Romero, Ballas, Kahou, Chassang, Gatta, Bengio",
        "FitNets: hints for thin deep nets",
        "ICLR 2015",
        "arXiv:1412.6550",
    )
    Options = FitNetOptions
    minimum_batch = 2  # batch norm has nothing to average over in one image with one pixel

    def __init__(self, options: FitNetOptions, shapes: Shapes) -> None:
        """The regressor, from the guided layer's channels to the hint's."""
        super().__init__(options, shapes)
        both = pairs(shapes.student, shapes.teacher)
        self.middle = (len(both) - 1) // 2
        ours, theirs = both[self.middle]
        self.regressor = nn.Sequential(connector(ours[0], theirs[0]), nn.ReLU())

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """Mean squared difference between the hint and the regressor's prediction."""
        guided, hint = same_size(*pairs(student.maps, teacher.maps)[self.middle])
        return F.mse_loss(self.regressor(guided), hint)
