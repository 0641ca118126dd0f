"""What feature methods share: their place in the loss, additional soft labels, pairs and sizes of maps.

    L = CE(z_S, y) + weight * distance + soft_labels * tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau))

as in the "X + KD" tables of the papers (Tian, Krishnan, Isola, ICLR 2020, appendix; RepDistiller's `-r 1 -a soft_labels
-b weight`). A method with pretraining epochs uses its distance there, and not in training.

Taps are paired starting from the deepest: a student with two hidden layers and a teacher with three groups have two
pairs.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from trainers.families import Features
from trainers.transfer.kd import soft_label_loss
from trainers.transfer.method import Method, Options, Shapes
from trainers.transfer.signals import Needs, TeacherSignals

T = TypeVar("T")


class FeatureOptions(Options):
    """Parameters that all feature methods have."""

    weight: float = Field(default=1.0, ge=0.0)
    """Weight of the distance between the features."""
    soft_labels: float = Field(default=0.0, ge=0.0, json_schema_extra={"search": [0.0, 0.9]})
    """Weight of the teacher's soft labels besides the features; 0 leaves them out."""
    temperature: float = Field(default=4.0, gt=0.0, json_schema_extra={"search": {"low": 1.0, "high": 8.0}})
    """tau: temperature of these soft labels."""


class FeatureMethod(Method):
    """A method defined by a distance between features."""

    Options = FeatureOptions
    features: ClassVar[Needs] = Needs(maps="all")
    """What the distance needs from the teacher."""

    def __init__(self, options: FeatureOptions, shapes: Shapes) -> None:
        """No adapters yet; `shapes` has passed `check`."""
        super().__init__(options, shapes)
        self.weight, self.soft_labels, self.temperature = options.weight, options.soft_labels, options.temperature
        self.pretrains = self.pretraining_epochs(options) > 0

    @classmethod
    def needs(cls, options: Any) -> Needs:
        """The features, and the logits if soft labels are used."""
        return replace(cls.features, logits=options.soft_labels > 0)

    @abstractmethod
    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The method's distance; arguments as in `forward`, returns ()."""

    def forward(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The labels, the features, and the soft labels."""
        loss = self.label_loss(student.logits, labels)
        if not self.pretrains:
            loss = loss + self.weight * self._distance(student, teacher, labels)
        if self.soft_labels > 0:
            assert teacher.logits is not None
            loss = loss + self.soft_labels * soft_label_loss(student.logits, teacher.logits, self.temperature)
        return loss

    def pretraining_loss(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The features alone."""
        return self.weight * self._distance(student, teacher, labels)

    def _distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        if len(labels) < self.minimum_batch:
            raise ValueError(f"{self.name} needs batches of at least {self.minimum_batch}, but got {len(labels)}")
        return self.distance(student, teacher, labels)


def pairs(student: Sequence[T], teacher: Sequence[T]) -> list[tuple[T, T]]:
    """(student's, teacher's) of each tap that both have, paired from the deepest; in order from shallow to deep."""
    count = min(len(student), len(teacher))
    return list(zip(student[len(student) - count :], teacher[len(teacher) - count :], strict=True))


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W), the larger average-pooled to the smaller, separately in height and width."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)


def pooled(maps: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C): what a residual network's classifier sees."""
    return maps.mean(dim=(2, 3))


def connector(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution and batch norm from the student's channels to the teacher's."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def spatial_pairs(shapes: Shapes) -> list[int]:
    """Positions in `pairs` of the pairs whose maps have more than one pixel, even at the smaller size."""
    return [
        index
        for index, (ours, theirs) in enumerate(pairs(shapes.student, shapes.teacher))
        if min(ours[1], theirs[1]) * min(ours[2], theirs[2]) > 1
    ]
