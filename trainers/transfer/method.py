"""What a transfer method is: it declares which signals of the teacher it needs, and makes them the student's loss."""

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
from trainers.families import Features
from trainers.seeding import seeded
from trainers.transfer.signals import Needs, TeacherSignals


class Options(Part):
    """Base of a method's own parameters: a frozen, strictly typed value with the defaults."""


AnyOptions: TypeAlias = Options
"""`Options` where `Method.Options` hides the name."""


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    authors: str
    title: str
    venue: str
    link: str


@dataclass(frozen=True)
class Shapes:
    """What a method is made for: (C, H, W) of every tap, from shallow to deep, of a student and a teacher; and more."""

    student: tuple[tuple[int, int, int], ...]
    teacher: tuple[tuple[int, int, int], ...]
    labels: Tensor | None = field(default=None, compare=False)
    """(N,) int64: the class of each training image, by row; for methods that remember every image."""
    student_members: int = 1
    teacher_members: int = 1


class Method(nn.Module, ABC):
    """A transfer method with its adapters as registered submodules: `parameters()` is all that the optimiser needs.

    `state_dict()` is all that a checkpoint of the trial needs: what else changes in training is a buffer, or a tensor
    of `get_extra_state`.
    """

    name: ClassVar[str]
    abbreviation: ClassVar[str]
    paper: ClassVar[Paper]
    Options: ClassVar[type[Options]] = Options
    minimum_batch: ClassVar[int] = 1
    """Images that a batch must have for the method to say anything."""

    progress: float = 1.0
    """Share of the training's epochs that have begun, the present one included; the loop keeps it up to date."""

    @classmethod
    def parse(cls, options: Mapping[str, Scalar], *, called: str | None = None) -> AnyOptions:
        """The method's parameters, defaults filled in.

        Args:
            options: by their names without the method's.
            called: what the method is called in errors, where that is not its name.

        Raises:
            BadInput: an unknown name, or a value out of range.
        """
        try:
            return cls.Options.model_validate(dict(options))
        except ValidationError as error:
            raise BadInput(one_line(error, cls.Options, prefix=called or cls.name)) from None

    @classmethod
    def pretraining_epochs(cls, options: Any) -> int:
        """Epochs of `pretraining_loss` alone that the loop gives a student before its training, none in fine-tuning."""
        return 0

    @classmethod
    def check(cls, options: Any, shapes: Shapes) -> None:
        """Raise BadInput where the method cannot work with such a student and teacher; this is asked nowhere else.

        Most work with any pair of single networks. One that overrides this calls it first.
        """
        if shapes.teacher_members > 1 and cls.needs(options).of_features:
            raise BadInput(
                f"`{cls.name}` learns the features of one network, but `task.teacher.members` is "
                f"{shapes.teacher_members}; draw `ensemble`, or a method on outputs such as `kd`"
            )

    @classmethod
    @abstractmethod
    def needs(cls, options: Any) -> Needs:
        """Which signals of the teacher `forward` is handed; options: an instance of `cls.Options`."""

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

    @abstractmethod
    def forward(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The student's whole loss, labels included.

        Args:
            student: logits (B, classes) and maps (B, C_i, H_i, W_i) with gradient.
            teacher: what `needs` asked for.
            labels: (B,) int64.

        Returns:
            a scalar, ().
        """

    def pretraining_loss(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """What the student learns in the `pretraining_epochs`; the same arguments as `forward`, returns ().

        A method without such epochs is never asked.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` has pretraining epochs, and so must have a pretraining_loss"
        )
