"""Data sets that a function of the user's returns, `package.module:function`: torch data sets of images and labels.

The function returns them as a mapping with `train` and, if there are such, `validation` and `test`; or in this order;
or the one to train on. Each has a length and items (image, label), the same whenever they are read: an image of
Pillow's, or an array or a tensor as `pictures.from_array` takes it; a label that is a whole number or a name. Classes
have the names of the attribute `classes`, which must be the same for all data sets that have one.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spaces.errors import BadInput, brief, shown
from spaces.own import own_object
from trainers.data.labels import numbered, split_called
from trainers.data.pictures import Picture, Size, from_array, from_image, preparation, why_not
from trainers.data.unread import Unread


def check(reference: str, root: Path | None, image_size: Size | None) -> None:
    """Raises BadInput if there is no such function, or it does not take `root` where that is given; imports its module.

    Args:
        reference: `package.module:function`.
        root: is handed to it as `root`, if given.
        image_size: as `pictures.fitted` takes it.
    """
    function = own_object(reference, "task.dataset")
    if not callable(function):
        raise BadInput(
            f"`task.dataset: {reference}` must be a function that returns data sets, but is {shown(function)}"
        )
    if root is not None and "root" not in inspect.signature(function).parameters:
        raise BadInput(f"`task.dataset: {reference}` takes no `root`, but got task.root; leave it out")


def load(reference: str, root: Path | None, image_size: Size | None) -> Unread:
    """What the function returns; every item is read once to be known, and once more later.

    Args:
        reference: `package.module:function`.
        root: is handed to it as `root`, if given.
        image_size: as `pictures.fitted` takes it.
    """
    function = own_object(reference, "task.dataset")
    splits = _splits(reference, _called(reference, function, root))
    looks = {split: _Look(reference, split, given, image_size) for split, given in splits.items()}
    classes = numbered(
        {split: np.array(look.labels) for split, look in looks.items()},
        {split: f"labels of the {split} split of {reference}" for split in splits},
        {split: _class_names(given) for split, given in splits.items()},
    )
    channels = [each for look in looks.values() for each in look.channels]
    problems = [*classes.problems]
    if len({*channels}) > 1:
        problems.append(
            f"all images of {reference} must have as many channels, but {channels.count(1):,} have 1 and "
            f"{channels.count(3):,} have 3; convert them"
        )
    return Unread(
        name=reference,
        source=reference,
        class_names=classes.class_names,
        labels=classes.labels,
        channels=max(channels, default=1),
        size=image_size,
        pictures=lambda split, numbers: looks[split].again(numbers),
        called=lambda split, number: f"{split}[{number}]",
        contents={split: look.digests for split, look in looks.items()},
        preparation=preparation(image_size, f"as {reference} returns them"),
        notes=classes.notes,
        problems=tuple(problems),
    )


def _called(reference: str, function: Any, root: Path | None) -> Any:
    try:
        return function() if root is None else function(root=str(root))
    except (BadInput, KeyboardInterrupt):
        raise
    except BaseException as error:  # it may be a script that exits
        raise BadInput(
            f"`task.dataset: {reference}` must be a function that runs, but {brief(error)}; try it in Python"
        ) from None


def _splits(reference: str, returned: Any) -> dict[str, Any]:
    """The data set of each split."""
    order = ("train", "validation", "test")
    if isinstance(returned, Mapping):
        found = {split_called(str(name)) or str(name): given for name, given in returned.items()}
    elif isinstance(returned, tuple | list):
        found = dict(zip(order, returned, strict=False)) if len(returned) <= len(order) else {}
    else:
        found = {"train": returned}
    found = {split: given for split, given in found.items() if given is not None}
    if "train" not in found or found.keys() - {*order}:
        raise BadInput(
            f"`task.dataset: {reference}` must return data sets as (train, validation, test), as a mapping with these "
            f"names, or the one to train on, but returned {shown(returned)}"
        )
    for split, given in found.items():
        if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")) or not len(given):
            raise BadInput(
                f"the {split} split of {reference} must be a data set with a length and items, but is {shown(given)}"
            )
    return {split: found[split] for split in order if split in found}


def _class_names(given: Any) -> list[str]:
    """As torchvision's data sets have them, behind `Subset`, too."""
    while not hasattr(given, "classes") and hasattr(given, "dataset"):
        given = given.dataset
    names = getattr(given, "classes", ())
    return list(map(str, names)) if isinstance(names, list | tuple) else []


class _Look:
    """Every item of a data set, read once."""

    def __init__(self, reference: str, split: str, given: Any, size: Size | None) -> None:
        self._given, self._size = given, size
        self.labels: list[int | str] = []
        """Of items that cannot be read, one of the others'."""
        self.digests: list[str] = []
        """Of pixels."""
        self.channels: list[int] = []
        """Of items that can be read."""
        unknown = []
        for number in range(len(given)):
            picture, label = self._item(number)
            if picture.pixels is not None and label is None:
                raise BadInput(
                    f"items of {reference} must be (image, label) with a label that is a whole number or a name, but "
                    f"{split}[{number}] has none"
                )
            if label is None:
                unknown.append(number)
            self.labels.append(0 if label is None else label)
            self.digests.append(_digest(picture))
            if picture.pixels is not None:
                self.channels.append(1 if picture.pixels.ndim == 2 else 3)
        first = min({*range(len(self.labels))}.difference(unknown), default=0)
        for number in unknown:
            self.labels[number] = self.labels[first]

    def again(self, numbers: Sequence[int]) -> Iterator[Picture]:
        """Items read a second time, which must be the same."""
        for number in numbers:
            picture, label = self._item(number)
            if picture.pixels is not None and (_digest(picture), label) != (self.digests[number], self.labels[number]):
                picture = Picture(None, "another each time it is read; leave random transforms to task.augment")
            yield picture

    def _item(self, number: int) -> tuple[Picture, int | str | None]:
        """The picture, and the label; None where there is none."""
        try:
            item = self._given[number]
        except KeyboardInterrupt:
            raise
        except Exception as error:  # of whatever reads the user's files
            return Picture(None, why_not(error)), None
        if not isinstance(item, tuple | list) or len(item) < 2:
            return Picture(None, f"not (image, label), but {shown(item)}"), None
        image, label = item[0], _label(item[1])
        if isinstance(image, Image.Image):
            return from_image(image, self._size), label
        try:
            return from_array(np.asarray(image), self._size, channels_first=hasattr(image, "numpy")), label
        except (TypeError, ValueError) as error:
            return Picture(None, why_not(error)), label


def _label(value: object) -> int | str | None:
    """A whole number or a name, whatever array of one it is wrapped in."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuU":
        return None
    scalar = array.reshape(()).item()
    return scalar if isinstance(scalar, str) else int(scalar)


def _digest(picture: Picture) -> str:
    if picture.pixels is None:
        return ""
    return hashlib.blake2b(picture.pixels.tobytes(), digest_size=16, key=str(picture.pixels.shape).encode()).hexdigest()
