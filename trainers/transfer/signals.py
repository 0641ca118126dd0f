"""The teacher's signals for a batch of images: what a method asks for (`Needs`) and what it gets (`TeacherSignals`).

A new signal is added only here: its class, its field in `Needs` with a line in `Needs.signals`, and the field of
`TeacherSignals` that holds it. `trainers.knowledge` caches or computes any signal.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypeAlias

from torch import Tensor, nn

from trainers.families import Features, by_member, combined
from trainers.transfer.perturbation import Perturbation

Taps: TypeAlias = tuple[int, ...] | Literal["all"]
"""Taps by position, negative from the deepest; `all` are all that the teacher has."""


class Stage(ABC):
    """A module trained on the teacher alone, before any student, and shared by all trials (such as a paraphraser).

    Subclasses are frozen dataclasses; their fields are the stage's identity.
    """

    tap: ClassVar[int] = -1
    """The teacher's tap that it reads."""

    @property
    def key(self) -> str:
        """A name for its files: equal stages have equal keys."""
        fields = json.dumps(asdict(self), sort_keys=True)  # type: ignore[call-overload]
        return f"{type(self).__name__.lower()}-" + "".join(
            c if c.isalnum() or c in ".-" else "_" for c in fields
        ).strip("_")

    @abstractmethod
    def build(self, shape: tuple[int, int, int]) -> nn.Module:
        """The untrained module for maps of this (C, H, W); initialised from PyTorch's global generator."""

    @abstractmethod
    def train(self, module: nn.Module, maps: Callable[[], Iterator[Tensor]]) -> dict[str, float]:
        """Train `module` in place on teacher maps (B, C, H, W); each call of `maps()` is one shuffled pass.

        Returns:
            values worth recording.

        Raises:
            StageFailed: the module did not learn what students need from it.
        """

    @abstractmethod
    def apply(self, module: nn.Module, maps: Tensor) -> Tensor:
        """The students' signal: maps (B, C, H, W) to any shape that begins with B."""


class StageFailed(RuntimeError):
    """A stage did not reach what its method needs."""


@dataclass(frozen=True)
class Pass:
    """The teacher's forward pass on some images, from which signals are computed."""

    features: Features
    members: int
    trained: Callable[[Stage], nn.Module]
    """Returns the trained module of a stage, on the images' device."""


class Signal(ABC):
    """One tensor for each image. Subclasses are frozen dataclasses."""

    stage: Stage | None = None
    """The stage that must be trained before it can be computed."""
    of_perturbed: ClassVar[bool] = False
    """Whether it is computed for the perturbed images, if a method asks for them."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of its cache: equal signals have equal names."""

    @abstractmethod
    def compute(self, seen: Pass) -> Tensor:
        """(B, ...), by image, in the form in which it is cached."""

    def handed(self, tensor: Tensor) -> Tensor:
        """The result of `compute` in the form in which the method gets it."""
        return tensor


@dataclass(frozen=True)
class Logits(Signal):
    """The prediction of all members, (B, classes)."""

    name = "logits"

    def compute(self, seen: Pass) -> Tensor:
        """`trainers.families.combined`."""
        return combined(seen.features.logits, seen.members)


@dataclass(frozen=True)
class Members(Signal):
    """Every member's logits, (B, M, classes)."""

    name = "members"
    of_perturbed = True

    def compute(self, seen: Pass) -> Tensor:
        """By image."""
        return by_member(seen.features.logits, seen.members).transpose(0, 1)

    def handed(self, tensor: Tensor) -> Tensor:
        """By member, (M, B, classes)."""
        return tensor.transpose(0, 1)


@dataclass(frozen=True)
class Map(Signal):
    """A tap's output, (B, C, H, W)."""

    tap: int

    @property
    def name(self) -> str:
        """`map0` is the shallowest."""
        return f"map{self.tap}"

    def compute(self, seen: Pass) -> Tensor:
        """After the ReLU."""
        return seen.features.maps[self.tap]


@dataclass(frozen=True)
class BeforeReLU(Signal):
    """A tap's output before the ReLU that it ends in, (B, C, H, W)."""

    tap: int

    @property
    def name(self) -> str:
        """`before_relu0` is the shallowest."""
        return f"before_relu{self.tap}"

    def compute(self, seen: Pass) -> Tensor:
        """Before the ReLU."""
        return seen.features.before_relu[self.tap]


@dataclass(frozen=True)
class Staged(Signal):
    """A stage's result for a tap's output, (B, ...)."""

    stage: Stage

    @property
    def name(self) -> str:
        """The stage's."""
        return self.stage.key

    def compute(self, seen: Pass) -> Tensor:
        """By the trained stage."""
        return self.stage.apply(seen.trained(self.stage), seen.features.maps[self.stage.tap])


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method needs; the fields of `TeacherSignals` have the same names."""

    logits: bool = False
    maps: Taps = ()
    before_relu: Taps = ()
    """Taps whose maps are needed before their ReLU."""
    rows: bool = False
    """The rows of the batch's training images."""
    members: bool = False
    """The outputs of every member of the teacher."""
    perturbation: Perturbation | None = None
    """The members' outputs are for images perturbed in this way; the student gets the same images."""
    stage: Stage | None = None

    def signals(self, taps: int) -> "dict[str, Signal | tuple[Signal, ...]]":
        """The signals by the field of `TeacherSignals` that holds them.

        Args:
            taps: how many the teacher has. A signal has the same name, from whichever end its tap is counted.
        """
        asked: dict[str, Signal | tuple[Signal, ...]] = {
            "maps": tuple(Map(tap) for tap in _positions(self.maps, taps)),
            "before_relu": tuple(BeforeReLU(tap) for tap in _positions(self.before_relu, taps)),
        }
        if self.logits:
            asked["logits"] = Logits()
        if self.members:
            asked["members"] = Members()
        if self.stage is not None:
            asked["staged"] = Staged(self.stage)
        return asked

    def gather(
        self,
        taps: int,
        tensor_of: Callable[[Signal], Tensor],
        *,
        rows: Tensor | None = None,
        perturbed: Tensor | None = None,
    ) -> "TeacherSignals":
        """The signals in the form in which the method gets them.

        Args:
            taps: how many the teacher has.
            tensor_of: each signal as its `compute` returns it.
            rows: as in `TeacherSignals`.
            perturbed: as in `TeacherSignals`.
        """

        def handed(signal: Signal) -> Tensor:
            return signal.handed(tensor_of(signal))

        fields: dict[str, Any] = {
            name: tuple(map(handed, asked)) if isinstance(asked, tuple) else handed(asked)
            for name, asked in self.signals(taps).items()
        }
        return TeacherSignals(rows=rows, perturbed=perturbed, **fields)

    @property
    def of_features(self) -> bool:
        """Whether features are needed, not only outputs."""
        return bool(self.maps or self.before_relu or self.stage)


def _positions(asked: Taps, taps: int) -> list[int]:
    return [tap % taps for tap in (range(taps) if asked == "all" else asked)]


@dataclass(frozen=True, kw_only=True)
class TeacherSignals:
    """The requested signals for one batch, detached; None or () for others."""

    logits: Tensor | None = None
    """(B, classes)."""
    maps: tuple[Tensor, ...] = ()
    """One (B, C_i, H_i, W_i) for each requested tap."""
    before_relu: tuple[Tensor, ...] = ()
    """The same before the ReLU, for each requested tap."""
    rows: Tensor | None = None
    """(B,) int64, rows of the training split."""
    staged: Tensor | None = None
    """The stage's output, (B, ...)."""
    members: Tensor | None = None
    """Logits (M, B, classes) of the teacher's members."""
    perturbed: Tensor | None = None
    """The images (B, C, H, W) of `members`, if they are not the batch's own."""

    def repeated(self, times: int) -> Self:
        """The signals for a student with so many members: all but `members`, repeated for each of the student's."""

        def repeat(signal: Tensor) -> Tensor:
            return signal.repeat(times, *(1,) * (signal.dim() - 1))

        repeated: dict[str, Any] = {
            name: tuple(map(repeat, value)) if isinstance(value, tuple) else repeat(value)
            for name, value in vars(self).items()
            if value is not None and name not in ("members", "perturbed")
        }
        return replace(self, **repeated)
