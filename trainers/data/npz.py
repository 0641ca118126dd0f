"""Arrays in one file of NumPy's: images and labels, of each split or of all images together.

The names of arrays say what they hold, in any order and case, joined by anything but letters and digits: `images` (or
`x`, `data`) and `labels` (`y`, `targets`), with the split where it is one (`train_images`, `x_train`, `y_val`);
`class_names`, if there are any. Without a split's name they are train, from which the others are drawn.

Images are (N, H, W), (N, H, W, C) or (N, C, H, W) of 1 or 3 channels: uint8, or floats in [0, 1], which are rounded to
256 levels. They are read one by one, so that the file may be larger than the memory.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from spaces.errors import BadInput
from trainers.data.fetching import fingerprints, one_line
from trainers.data.labels import decoded, numbered, split_called, tokens
from trainers.data.pictures import Picture, Size, from_array, preparation
from trainers.data.splits import shortlist
from trainers.data.unread import Unread

IMAGES = ("images", "image", "imgs", "x", "data")
LABELS = ("labels", "label", "y", "targets", "target")
CLASSES = (["class", "names"], ["classes"], ["names"])
LAYOUT = "task.root must be a file of NumPy's with `images` and `labels`, or `train_images`, `train_labels` and so on"


@dataclass(frozen=True)
class _Member:
    """An array in the file, by its head."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


def check(root: Path, image_size: Size | None) -> None:
    """Raises BadInput if the file lacks images or labels; reads heads of arrays alone."""
    _sorted(root, _members(root))


def load(root: Path, image_size: Size | None) -> Unread:
    """What the file has; raises BadInput if it is broken.

    Args:
        root: the file described above.
        image_size: as `pictures.fitted` takes it.
    """
    images, labels, names, others = _sorted(root, _members(root))
    with _sound(root), zipfile.ZipFile(root) as archive:
        if (broken := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{broken} is broken")
    with _sound(root), np.load(root, allow_pickle=False) as file:
        values = {split: _flat(file[member.name]) for split, member in labels.items()}
        class_names = [str(name) for name in decoded(file[names.name]).ravel()] if names is not None else []
    called = {split: f"`{member.name}` of {root}" for split, member in labels.items()}
    classes = numbered(values, called, dict.fromkeys(values, class_names))
    problems = list(classes.problems)
    for split, member in images.items():
        if len(values[split]) != member.shape[0]:
            problems.append(
                f"{root} must have a label for each image, but `{member.name}` are {member.shape[0]} and "
                f"`{labels[split].name}` {len(values[split])}"
            )
    if problems:
        raise BadInput(*problems)
    files = fingerprints(root.parent, [root])
    notes = [*classes.notes]
    if others:
        notes.append(f"arrays left out, called neither images nor labels of a split: {shortlist(others)}")
    if any(member.dtype.kind == "f" for member in images.values()):
        notes.append("images are floats, rounded to 256 levels")
    return Unread(
        name="npz",
        source=str(root),
        class_names=classes.class_names,
        labels=classes.labels,
        channels=max(_channels(member) for member in images.values()),
        size=image_size,
        pictures=lambda split, numbers: _pictures(root, images[split], numbers, image_size),
        called=lambda split, number: f"{images[split].name}[{number}]",
        preparation=preparation(image_size, "as they are in the file, [0, 1] in 256 levels"),
        notes=tuple(notes),
        files=files,
    )


def _members(root: Path) -> list[_Member]:
    """Every array of the file."""
    found = []
    with _sound(root), zipfile.ZipFile(root) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as file:
                shape, fortran, dtype = _head(file)
            found.append(_Member(entry.removesuffix(".npy"), shape, dtype, fortran))
    return found


@contextmanager
def _sound(root: Path) -> Iterator[None]:
    """Around what opens the file: that it is none of NumPy's, or broken, becomes BadInput."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError) as error:
        raise BadInput(f"{LAYOUT}, but {root}: {one_line(error)}; write it with numpy.savez") from None


def _head(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, type; the file is then where the numbers begin."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(file)


def _sorted(
    root: Path, members: Sequence[_Member]
) -> tuple[dict[str, _Member], dict[str, _Member], _Member | None, list[str]]:
    """Images and labels by their splits; the classes' names; the names of arrays that are none of these.

    Raises:
        BadInput: for all that is wrong with them by their heads.
    """
    images: dict[str, _Member] = {}
    labels: dict[str, _Member] = {}
    names, others, problems = None, [], []
    for member in members:
        words = tokens(member.name)
        splits = [split for word in words if (split := split_called(word)) is not None]
        rest = [word for word in words if split_called(word) is None]
        if words in CLASSES:
            names = member
        elif len(splits) > 1 or len(rest) != 1 or rest[0] not in (*IMAGES, *LABELS):
            others.append(member.name)
        else:
            kind, split = (images if rest[0] in IMAGES else labels), (splits or ["train"])[0]
            if split in kind:
                problems.append(f"{root} must not hold both `{kind[split].name}` and `{member.name}`; remove one")
            kind.setdefault(split, member)
    if "train" not in images or images.keys() != labels.keys():
        there = shortlist([member.name for member in members]) or "nothing"
        problems.append(f"{LAYOUT}, but {root} holds {there}; rename its arrays")
    for member in images.values():
        if len(member.shape) not in (3, 4) or not member.shape[0] or _channels(member) not in (1, 3):
            problems.append(
                f"`{member.name}` of {root} must be (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, but "
                f"are {member.shape}"
            )
        if member.dtype != np.uint8 and member.dtype.kind != "f":
            problems.append(
                f"`{member.name}` of {root} must be uint8 or floats in [0, 1], but are {member.dtype}; convert them"
            )
        if member.fortran:
            problems.append(
                f"`{member.name}` of {root} must be in C's order, but are in Fortran's; use numpy.ascontiguousarray"
            )
    if problems:
        raise BadInput(*problems)
    return images, labels, names, others


def _channels(member: _Member) -> int:
    """Of images of three or four dimensions; the last one if it can be, else the second."""
    if len(member.shape) != 4:
        return 1
    return member.shape[3] if member.shape[3] in (1, 3) else member.shape[1]


def _flat(labels: np.ndarray) -> np.ndarray:
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _pictures(root: Path, member: _Member, numbers: Sequence[int], size: Size | None) -> Iterator[Picture]:
    """Of these numbers, which ascend; what is between them is read over."""
    bytes_each = int(np.prod(member.shape[1:])) * member.dtype.itemsize
    with zipfile.ZipFile(root) as archive, archive.open(f"{member.name}.npy") as file:
        _head(file)
        begin = file.tell()
        for number in numbers:
            file.seek(begin + number * bytes_each)
            values = np.frombuffer(file.read(bytes_each), member.dtype)
            yield from_array(values.reshape(member.shape[1:]), size)
