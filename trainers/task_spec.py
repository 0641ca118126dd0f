"""The task as a study file writes it: which data, which teacher. Without torch, so that a mistake is told at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from spaces import BadInput
from spaces.errors import Problems, known, shown
from spaces.quantities import as_quantity
from spaces.recipe import Part
from trainers.data import AUGMENTATIONS, STEPS, Room, check_dataset, load_dataset, source_of, stand_in
from trainers.data.pictures import Size
from trainers.machine import usable_memory
from trainers.teacher_spec import Sides, TeacherSpec, beside

if TYPE_CHECKING:
    from trainers.data.dataset import Dataset


MEMORY_SHARE = 0.25
"""Of the machine's memory, for images. Where Ray carries trials out it has them a second time, for all workers."""


def _as_policy(raw: object) -> object:
    """[flip, crop] as crop_flip; anything but a list as it is."""
    if not isinstance(raw, list):
        return raw
    policy = "_".join(step for step in STEPS if step in raw)
    if len(raw) != len(AUGMENTATIONS.get(policy, ())) or not raw:
        raise ValueError("must be `none`, or a list of some of `crop` or `resized_crop`, `flip`, `color`")
    return policy


class TaskSpec(Part):
    """A task as a study file writes it."""

    dataset: str = "digits"
    root: str | None = None
    """The folder of the data set's files, where it needs one."""
    download: bool = False
    """Whether a missing data set may be fetched from its home on the internet."""
    train_limit: int | None = Field(default=None, ge=1, le=10**9)
    """Train on this many images only, drawn evenly over the classes."""
    image_size: Sides = None
    """Side, or height and width, to which images of a folder are scaled and cropped."""
    memory: Annotated[Annotated[float, Field(gt=0.0)] | None, BeforeValidator(as_quantity)] = None
    """Bytes of pixels, of all splits together, that may be held in memory; what is larger goes into files. Left out:
    MEMORY_SHARE of the machine's."""
    augment: Annotated[str | None, BeforeValidator(_as_policy)] = None
    """One of AUGMENTATIONS, or a list of its steps; left out, the data set's own."""
    class_weights: Literal["none", "balanced"] = "none"
    """How much images count in the labels' loss: all the same, or each class as a whole the same."""
    classes: str | None = None
    """A file with the names of the classes, one a line, in the order of the teacher's outputs; left out, the data's."""
    teacher: TeacherSpec = TeacherSpec()

    def check(self) -> None:
        """Raise BadInput, with all that is wrong, where the data or the teacher cannot be; cheap, reads no images."""
        problems = Problems()
        for check in (self._check_data, self._check_classes, self.teacher.check):
            with problems.noted():
                check()
        problems.check()

    def _check_data(self) -> None:
        check_dataset(self.dataset, **self._where)
        if self.augment is not None and self.augment not in AUGMENTATIONS:
            way_out = known(AUGMENTATIONS, self.augment)
            raise BadInput(f"`task.augment` must be a known policy, but got {shown(self.augment)}; {way_out}")

    def _check_classes(self) -> None:
        if self.classes is not None and not Path(self.classes).is_file():
            raise BadInput(f"`task.classes` must be a file with a name of a class a line, but {self.classes} is none")
        if self.classes is not None and any(member.network is None for member in self.teacher.each):
            raise BadInput(
                "`task.classes` must be of teachers that were trained elsewhere, but `task.teacher` is trained by Dux, "
                "in the data's order; leave it out"
            )

    @property
    def _where(self) -> dict[str, Any]:
        """What the data set is called with."""
        root = None if self.root is None else Path(self.root)
        return {"root": root, "download": self.download, "image_size": self.side}

    def load_data(
        self, home: Path | None = None, told: Callable[[int, int], object] = lambda done, total: None
    ) -> Dataset:
        """The data set.

        Args:
            home: under which images that are larger than `memory` are put into files; without it all are held in
                memory.
            told: called as images of the user's own are read: how many were, of how many.

        Raises:
            BadInput: its files are not there, or broken, or too few for `train_limit`; or the disk has no room.
        """
        memory = MEMORY_SHARE * usable_memory() if self.memory is None else self.memory
        room = Room(memory, None if home is None else home / "images", told)
        return load_dataset(self.dataset, train_limit=self.train_limit, room=room, **self._where)

    def stand_in(self) -> Dataset | None:
        """Black images of the data's classes and size, where the data themselves are not as they must be.

        None where so much is not known of them; BadInput where nothing is.
        """
        return stand_in(self.dataset, **self._where)

    def is_as(self, other: TaskSpec) -> bool:
        """Whether they are the same task, wherever its images are held."""
        return self.model_copy(update={"memory": None}) == other.model_copy(update={"memory": None})

    @property
    def side(self) -> Size | None:
        """To which images of a folder are scaled: `image_size`, else what the teacher was trained on."""
        sizes = [member.input.size for member in self.teacher.each if "image_size" in source_of(self.dataset).options]
        return self.image_size or next((size for size in sizes if size is not None), None)

    def beside(self, folder: Path) -> TaskSpec:
        """The same, files and folders that are named by a relative path looked for in `folder`."""
        named = {name: path for name in ("root", "classes") if (path := getattr(self, name)) is not None}
        paths = {name: beside(folder, path) for name, path in named.items()}
        return self.model_copy(update={**paths, "teacher": self.teacher.beside(folder)})

    @property
    def policy(self) -> str:
        """The augmentation that holds."""
        return self.augment or source_of(self.dataset).augmentation
