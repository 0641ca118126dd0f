"""What a transfer method is: it declares which signals of the teacher it needs, and makes them the student's loss."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from spaces import BadInput, Scalar
from spaces.errors import one_line
from spaces.recipe import Part
from trainers.families import Features
from trainers.seeding import seeded


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
    """(C, H, W) of every tap, from shallow to deep, of the student and of the teacher."""

    student: tuple[tuple[int, int, int], ...]
    teacher: tuple[tuple[int, int, int], ...]


class Stage(ABC):
    """Something learned from the teacher alone, before any student, and shared by all trials (a paraphraser, say).

    Subclasses are frozen dataclasses; their fields are the stage's identity.
    """

    tap: ClassVar[int] = -1
    """Which of the teacher's taps it reads."""

    @property
    def key(self) -> str:
        """A name for files: equal stages have equal keys."""
        fields = json.dumps(asdict(self), sort_keys=True)  # type: ignore[call-overload]
        return f"{type(self).__name__.lower()}-" + "".join(
            c if c.isalnum() or c in ".-" else "_" for c in fields
        ).strip("_")

    @abstractmethod
    def build(self, shape: tuple[int, int, int]) -> nn.Module:
        """The untrained module for maps of this (C, H, W); initialised from PyTorch's global generator."""

    @abstractmethod
    def train(self, module: nn.Module, maps: Callable[[], Iterator[Tensor]]) -> dict[str, float]:
        """Train `module` in place on teacher maps (B, C, H, W); `maps()` is one shuffled pass, as often as asked for.

        Returns:
            what is worth recording.

        Raises:
            StageFailed: the module did not learn what students need of it.
        """

    @abstractmethod
    def apply(self, module: nn.Module, maps: Tensor) -> Tensor:
        """What students are handed: (B, C, H, W) to any shape that begins with B."""


class StageFailed(RuntimeError):
    """A stage before the student did not reach what its method needs."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The signals of the teacher that a method is handed."""

    logits: bool = False
    maps: tuple[int, ...] = ()
    """Taps by position, negative from the deep end."""
    stage: Stage | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherSignals:
    """What was asked for, for one batch, detached; None or () for what was not."""

    logits: Tensor | None = None
    """(B, classes)."""
    maps: tuple[Tensor, ...] = ()
    """One (B, C_i, H_i, W_i) for each tap asked for."""
    staged: Tensor | None = None
    """The stage's output, (B, ...)."""


class Method(nn.Module, ABC):
    """A transfer method with its adapters as registered submodules: `parameters()` is all that the optimiser needs."""

    name: ClassVar[str]
    abbreviation: ClassVar[str]
    paper: ClassVar[Paper]
    Options: ClassVar[type[Options]] = Options

    @classmethod
    def parse(cls, options: Mapping[str, Scalar]) -> AnyOptions:
        """The method's parameters, defaults filled in.

        Raises:
            BadInput: an unknown name, or a value out of range.
        """
        try:
            return cls.Options.model_validate(dict(options))
        except ValidationError as error:
            raise BadInput(one_line(error, cls.Options, prefix=cls.name)) from None

    @classmethod
    @abstractmethod
    def needs(cls, options: Any) -> Needs:
        """Which signals of the teacher `forward` is handed; options: an instance of `cls.Options`."""

    @classmethod
    def make(cls, options: Any, shapes: Shapes, *, generator: torch.Generator) -> Self:
        """A method for one student, its adapters initialised from `generator`."""
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
