"""The task as a study file writes it: which data, which teacher. Without torch, so that a mistake is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PlainSerializer, PlainValidator

from spaces import BadInput, Student
from spaces.errors import known, shown
from spaces.recipe import Part
from trainers.data import AUGMENTATIONS, check_dataset, load_dataset, source_of
from trainers.data.pictures import Size
from trainers.depths import check_student

if TYPE_CHECKING:
    from trainers.data.dataset import Dataset


LARGEST_SIDE = 4096
"""Of images, in pixels."""


class TeacherSpec(Part):
    """The network to compress, and how it is trained."""

    family: str = "resnet"
    depth: int = Field(default=20, ge=2, le=10_000)
    width: float = Field(default=1.0, gt=0.0, le=64.0)
    epochs: int = Field(default=30, ge=1, le=100_000)
    batch_size: int = Field(default=64, ge=2, le=1_000_000)
    learning_rate: float = Field(default=0.1, gt=0.0)
    weight_decay: float = Field(default=5e-4, ge=0.0)
    members: int = Field(default=1, ge=1, le=64)
    """Networks of an ensemble, each trained on its own from a seed of its own; their probabilities are averaged."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    threads: int = Field(default=1, ge=1, le=1024)
    """Torch threads that it, and what is learned of it, are computed with; the last digits depend on their number."""

    @property
    def student(self) -> Student:
        """One member's shape in the words of a recipe."""
        return Student(family=self.family, depth=self.depth, width=self.width)


def _as_size(raw: object) -> object:
    sides = raw if isinstance(raw, list | tuple) else [raw, raw]
    whole = all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= LARGEST_SIDE for side in sides)
    if raw is not None and not (whole and len(sides) == 2):
        raise ValueError(f"must be a side or [height, width], of 1 to {LARGEST_SIDE} pixels")
    return tuple(sides) if isinstance(raw, list) else raw


class TaskSpec(Part):
    """A task as a study file writes it."""

    dataset: str = "digits"
    root: str | None = None
    """The folder of the data set's files, where it needs one."""
    download: bool = False
    """Whether a missing data set may be fetched from its home on the internet."""
    train_limit: int | None = Field(default=None, ge=1, le=10**9)
    """Train on this many images only, drawn evenly over the classes."""
    image_size: Annotated[Size | None, PlainValidator(_as_size), PlainSerializer(lambda size: size)] = None
    """Side, or height and width, to which images of a folder are scaled and cropped."""
    augment: str | None = None
    """`none`, `crop` or `crop_flip`; left out, the data set's own."""
    teacher: TeacherSpec = TeacherSpec()

    def check(self) -> None:
        """Raise BadInput where the data or the teacher cannot be; cheap, reads no images."""
        check_dataset(
            self.dataset,
            root=None if self.root is None else Path(self.root),
            download=self.download,
            image_size=self.image_size,
        )
        if self.augment is not None and self.augment not in AUGMENTATIONS:
            way_out = known(AUGMENTATIONS, self.augment)
            raise BadInput(f"`task.augment` must be a known policy, but got {shown(self.augment)}; {way_out}")
        check_student(self.teacher.student)

    def load_data(self) -> Dataset:
        """The data set, read into memory.

        Raises:
            BadInput: its files are not there, or broken, or too few for `train_limit`.
        """
        return load_dataset(
            self.dataset,
            root=None if self.root is None else Path(self.root),
            download=self.download,
            train_limit=self.train_limit,
            image_size=self.image_size,
        )

    @property
    def policy(self) -> str:
        """The augmentation that holds."""
        return self.augment or source_of(self.dataset).augmentation
