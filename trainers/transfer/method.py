"""The interface of transfer methods: each declares the teacher's signals it needs, and computes the student's loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from spaces import BadInput, Scalar
from spaces.errors import one_line
from spaces.recipe import Part
from trainers.class_weights import label_loss
from trainers.families import Features
from trainers.seeding import seeded
from trainers.transfer.signals import Needs, TeacherSignals


class Options(Part):
    """Base class of a method's own parameters: a frozen, strictly typed value with defaults."""


AnyOptions: TypeAlias = Options
"""`Options`, where `Method.Options` hides that name."""


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    authors: str
    title: str
    venue: str
    link: str


@dataclass(frozen=True)
class Shapes:
    """What a method is built for: (C, H, W) of every tap, from shallow to deep, of student and teacher; and more."""

    student: tuple[tuple[int, int, int], ...]
    teacher: tuple[tuple[int, int, int], ...]
    labels: Tensor | None = field(default=None, compare=False)
    """(N,) int64: the class of each training image, by row; for methods that store something for every image."""
    student_members: int = 1
    teacher_members: int = 1
    class_weights: Tensor | None = field(default=None, compare=False)
    """(classes,): how much an image of each class counts in the labels' loss; None if all count the same."""


class Method(nn.Module, ABC):
    """A transfer method with its adapters as registered submodules: `parameters()` is all that the optimiser needs.

    `state_dict()` is all that the trial's checkpoint needs: anything else that changes in training is a buffer, or a
    tensor in `get_extra_state`.
    """

    name: ClassVar[str]
    abbreviation: ClassVar[str]
    paper: ClassVar[Paper]
    Options: ClassVar[type[Options]] = Options
    minimum_batch: ClassVar[int] = 1
    """Minimum number of images in a batch."""

    class_weights: Tensor | None
    progress: float = 1.0
    """Share of the training's epochs that have begun, including the current one; the loop keeps it up to date."""

    @classmethod
    def parse(cls, options: Mapping[str, Scalar], *, called: str | None = None) -> AnyOptions:
        """The method's parameters, with defaults filled in.

        Args:
            options: by their names without the method's.
            called: the method's name in errors, if it is not `name`.

        Raises:
            BadInput: an unknown name, or a value out of range.
        """
        try:
            return cls.Options.model_validate(dict(options))
        except ValidationError as error:
            raise BadInput(one_line(error, cls.Options, prefix=called or cls.name)) from None

    @classmethod
    def pretraining_epochs(cls, options: Any) -> int:
        """Epochs on `pretraining_loss` alone, before a student's training; none in fine-tuning."""
        return 0

    @classmethod
    def check(cls, options: Any, shapes: Shapes) -> None:
        """Raise BadInput if the method cannot work with such a student and teacher; this is checked only here.

        Most methods work with any pair of single networks. Overriding methods call this one first.
        """
        if shapes.teacher_members > 1 and cls.needs(options).of_features:
            raise BadInput(
                f"`{cls.name}` learns the features of one network, but `task.teacher.members` is "
                f"{shapes.teacher_members}; use `ensemble`, or a method on outputs such as `kd`"
            )

    @classmethod
    @abstractmethod
    def needs(cls, options: Any) -> Needs:
        """Which signals of the teacher `forward` gets; options: an instance of `cls.Options`."""

    @classmethod
    def make(cls, options: Any, shapes: Shapes, *, generator: torch.Generator) -> Self:
        """A method for one student, its adapters initialised from `generator`.

        Raises:
            BadInput: the method cannot work with such a student and teacher.
        """
        cls.check(options, shapes)
        with seeded(generator):
            return cls(options, shapes)

    @abstractmethod
    def __init__(self, options: Any, shapes: Shapes) -> None:
        """Build the adapters."""
        super().__init__()
        self.register_buffer("class_weights", shapes.class_weights, persistent=False)  # it never changes

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of logits (B, classes) with labels (B,), (); weighted by class if the study asks for it."""
        return label_loss(logits, labels, self.class_weights)

    @abstractmethod
    def forward(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The student's whole loss, that of the labels (`label_loss`) included.

        Args:
            student: logits (B, classes) and maps (B, C_i, H_i, W_i) with gradient.
            teacher: the signals that `needs` names.
            labels: (B,) int64.

        Returns:
            a scalar, ().
        """

    def pretraining_loss(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The loss in the `pretraining_epochs`; the same arguments as `forward`, returns ().

        Never called for a method without such epochs.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` has pretraining epochs, and so must have a pretraining_loss"
        )
