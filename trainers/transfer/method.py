"""What a transfer method is: it declares which signals of the teacher it needs, and makes them the student's loss."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from spaces import BadInput, Scalar
from spaces.errors import one_line
from spaces.recipe import Part
from trainers.families import Features
from trainers.seeding import seeded
from trainers.transfer.perturbation import Perturbation


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
    """(C, H, W) of every tap, from shallow to deep, of the student and of the teacher; and the training images."""

    student: tuple[tuple[int, int, int], ...]
    teacher: tuple[tuple[int, int, int], ...]
    labels: Tensor | None = field(default=None, compare=False)
    """(N,) int64: the class of each training image, by row; for methods that remember every image."""


Taps: TypeAlias = tuple[int, ...] | Literal["all"]
"""Taps by position, negative from the deep end; `all`, however many the teacher has."""


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
    maps: Taps = ()
    before_relu: Taps = ()
    """Taps whose maps are handed over as they are before their ReLU."""
    rows: bool = False
    """Which training images the batch consists of."""
    members: bool = False
    """The outputs of every member of the teacher."""
    perturbation: Perturbation | None = None
    """The members' outputs are those for images moved so; the student is shown the same images."""
    stage: Stage | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherSignals:
    """What was asked for, for one batch, detached; None or () for what was not."""

    logits: Tensor | None = None
    """(B, classes)."""
    maps: tuple[Tensor, ...] = ()
    """One (B, C_i, H_i, W_i) for each tap asked for."""
    before_relu: tuple[Tensor, ...] = ()
    """The same before the ReLU, for each tap asked for."""
    rows: Tensor | None = None
    """(B,) int64, rows of the training split."""
    staged: Tensor | None = None
    """The stage's output, (B, ...)."""
    members: Tensor | None = None
    """Logits (M, B, classes) of the teacher's members."""
    perturbed: Tensor | None = None
    """The images (B, C, H, W) that `members` are for, where they are not the batch's own."""

    def repeated(self, times: int) -> Self:
        """As a student of so many members is shown them: all but the teacher's members, once for each of its own."""

        def repeat(signal: Tensor) -> Tensor:
            return signal.repeat(times, *(1,) * (signal.dim() - 1))

        return replace(
            self,
            **{name: repeat(s) for name in ("logits", "rows", "staged") if (s := getattr(self, name)) is not None},
            maps=tuple(map(repeat, self.maps)),
            before_relu=tuple(map(repeat, self.before_relu)),
        )


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
    def check(cls, shapes: Shapes) -> None:
        """Raise BadInput where the method cannot work with such a student and teacher; most work with any."""

    @classmethod
    def check_members(cls, options: Any, student: int, teacher: int) -> None:
        """Raise BadInput where the method cannot work with so many members of a student and of a teacher."""
        needs = cls.needs(options)
        if teacher > 1 and (needs.maps or needs.before_relu or needs.stage):
            raise BadInput(
                f"`{cls.name}` learns the features of one network, but `task.teacher.members` is {teacher}; draw "
                "`ensemble`, or a method on outputs such as `kd`"
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
        cls.check(shapes)
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
