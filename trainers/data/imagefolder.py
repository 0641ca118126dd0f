"""A user's own images: ROOT/train/CLASS/IMAGE, and the same below ROOT/val and ROOT/test.

Where ROOT/test is missing, a fifth of the train images is split off; then, where ROOT/val is missing, a tenth of
what is left. SPELLINGS has the other names that the three may have, in any case.

Classes are numbered in the order of their names; where all names are whole numbers, in the order of these. Two names
are one where Unicode has the same letters in two ways (NFC and NFD), as file systems do.

Images are read as `pictures` says. Hidden files and folders are none of the data. What else is left out, or may
surprise, is in `Dataset.notes`; all that is wrong is told at once, a line for each kind.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

import numpy as np

from spaces.errors import BadInput
from trainers.data.labels import SPELLINGS
from trainers.data.pictures import ENDINGS, Picture, Size, content_of, decoded, formats, glanced, preparation, why_not
from trainers.data.splits import SHOWN, counted, listed, shortlist
from trainers.data.unread import Unread, in_order

LAYOUT = "task.root must hold train/CLASS/IMAGE (and may hold val/CLASS/IMAGE and test/CLASS/IMAGE)"
HIDDEN = ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found")
LITTER = ("thumbs.db", "desktop.ini", "icon\r")  # of file managers


@dataclass
class _Folders:
    """What the names of folders say."""

    of: dict[str, Path] = field(default_factory=dict)
    """Split -> its folder."""
    classes: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Split -> the folder of each class, by its name in NFC."""
    problems: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        """In the order of their labels; as train spells them."""
        names = [path.name for path in self.classes["train"].values()]
        others = {name for of in self.classes.values() for name in of} - self.classes["train"].keys()
        names += sorted(others)  # which are a problem, but their images are looked at
        if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
            names.sort(key=lambda name: (int(name), name))
        return names


@dataclass
class _Listing:
    """What lies in the folders, by a look at names alone."""

    samples: dict[str, list[tuple[Path, int]]] = field(default_factory=dict)
    """Split -> image files and their classes."""
    hidden: list[Path] = field(default_factory=list)
    """Images in hidden places."""
    unread: list[Path] = field(default_factory=list)
    """Files with other endings."""
    loose: list[Path] = field(default_factory=list)
    """Images in no class folder."""
    problems: list[str] = field(default_factory=list)


def check(root: Path, image_size: Size | None) -> None:
    """Raises BadInput if folders are missing or do not name the same classes. Opens no image, unless there is such a
    mistake: then all others are looked for, too."""
    for side in (image_size,) if isinstance(image_size, int) else image_size or ():
        if side < 1:
            raise BadInput(f"task.image_size >= 1 must hold, but got {side}; leave it out to keep the images' own size")
    folders = _folders(root)
    if folders.problems:
        _unread(root, folders, image_size).read()


def load(root: Path, image_size: Size | None) -> Unread:
    """One channel if all images are grey, three otherwise.

    Args:
        root: the folder described above.
        image_size: as `pictures.fitted` takes it; without it all images must be of one size.
    """
    return _unread(root, _folders(root), image_size)


def _folders(root: Path) -> _Folders:
    """The folders of splits and classes; raises BadInput if there are none to train on."""
    found = _Folders()
    for path in _entries(root, found.problems):
        for split, spellings in SPELLINGS.items():
            if path.name.lower() not in spellings or not _is_folder(path, found.problems):
                continue
            if split in found.of:
                found.problems.append(
                    f"{root} must not hold both {found.of[split].name} and {path.name}; "
                    "move the images of one into the other"
                )
            found.of.setdefault(split, path)
    if "train" not in found.of:
        raise BadInput(
            *found.problems, f"{LAYOUT}, but {root / 'train'} is not there; move the images, or correct task.root"
        )
    for split in (split for split in SPELLINGS if split in found.of):
        found.classes[split] = _classes(found.of[split], found.problems)
    train, classes = found.of["train"], found.classes["train"]
    if len(classes) < 2:
        found.problems.append(f"{LAYOUT} with two classes or more, but {train} has {len(classes)}; add folders to it")
    for split, folders in found.classes.items():
        if unlike := sorted(folders.keys() ^ classes.keys()):
            found.problems.append(
                f"{found.of[split]} must hold the same class folders as {train}, but they differ in "
                f"{listed(unlike)}; add or remove folders"
            )
    return found


def _classes(folder: Path, problems: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _entries(folder, problems):
        if _is_hidden(path.name) or not _is_folder(path, problems):
            continue
        name = normalize("NFC", path.name)
        if name in found:
            problems.append(
                f"{folder} must hold one folder of a class, but has two of {name}, which Unicode spells in two ways; "
                "move the images of one into the other"
            )
        found.setdefault(name, path)
    return found


def _entries(folder: Path, problems: list[str]) -> list[Path]:
    """What a folder holds, in the order of names."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        problems.append(f"{folder} must be a folder that can be read, but: {error.strerror}; correct it")
        return []


def _is_folder(path: Path, problems: list[str]) -> bool:
    """Whether it is a folder; what was one, and is not any more, is no mere file."""
    if path.is_symlink() and not path.exists() and path.suffix.lower() not in ENDINGS:
        problems.append(f"{path} must be a folder, but is a link to nothing; mend or remove it")
    return path.is_dir()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in HIDDEN


def _unread(root: Path, folders: _Folders, image_size: Size | None) -> Unread:
    class_names, listing = tuple(folders.class_names), _listed(folders)
    samples = listing.samples
    contents: dict[str, list[tuple[int, str] | None]] = {}
    greys: list[bool] = []
    for split, part in samples.items():
        heads = list(in_order(_head, (path for path, _ in part)))
        contents[split] = [mark for mark, _ in heads]
        greys += [grey for _, grey in heads if grey is not None]

    def pictures(split: str, numbers: Sequence[int]) -> Iterator[Picture]:
        return in_order(lambda number: _picture(samples[split][number][0], image_size), numbers)

    marks = {
        path: mark for split, part in samples.items() for (path, _), mark in zip(part, contents[split], strict=True)
    }
    return Unread(
        name="imagefolder",
        source=str(root),
        class_names=class_names,
        labels={split: np.array([label for _, label in part], np.int64) for split, part in samples.items()},
        channels=1 if all(greys) else 3,
        pictures=pictures,
        called=lambda split, number: _shown(root, samples[split][number][0]),
        contents=contents,
        preparation=preparation(image_size),
        notes=tuple(_notes(root, folders, listing)),
        problems=(*folders.problems, *listing.problems),
        files={path.relative_to(root).as_posix(): mark for path, mark in marks.items() if mark is not None},
    )


def _head(path: Path) -> tuple[tuple[int, str] | None, bool | None]:
    """As `glanced`; None where the file cannot be read."""
    try:
        return glanced(content_of(path))
    except (OSError, ValueError):
        return None, None


def _picture(path: Path, size: Size | None) -> Picture:
    try:
        content = content_of(path)
    except (OSError, ValueError) as error:
        return Picture(None, why_not(error, path))
    return decoded(content, size)


def _listed(folders: _Folders) -> _Listing:
    listing, class_names = _Listing(), folders.class_names
    for split, classes in folders.classes.items():
        folder, samples, empty, before = folders.of[split], list[tuple[Path, int]](), [], len(listing.unread)
        for label, name in enumerate(class_names):
            if (place := classes.get(normalize("NFC", name))) is None:
                continue
            files = _below(place, listing.problems, listing.hidden)
            images = [path for path in files if path.suffix.lower() in formats()]
            samples += [(path, label) for path in images]
            others = [path for path in files if path.suffix.lower() not in formats()]
            listing.unread += [path for path in others if path.name.lower() not in LITTER]
            if not images:
                empty.append(name)
        listing.samples[split] = samples
        for path in _entries(folder, []):
            if _is_hidden(path.name):
                below = _below(path, []) if path.is_dir() else [path]
                listing.hidden += [file for file in below if file.suffix.lower() in formats()]
            elif not path.is_dir() and path.suffix.lower() in formats():
                listing.loose.append(path)
        if empty:
            unread = listing.unread[before:]
            others_there = f" (files there end in {_by_ending(unread)}, which are not read)" if unread else ""
            listing.problems.append(
                f"{folder} must hold images in each class folder, but {len(empty)} of {len(classes)} hold "
                f"none: {listed(empty)}{others_there}; add some, or remove the folders"
            )
    return listing


def _below(folder: Path, problems: list[str], hidden: list[Path] | None = None) -> list[Path]:
    """All files below a folder, folder by folder. Links are followed, but not back to where they are met.

    Args:
        folder: where to look.
        problems: is told of folders that cannot be read.
        hidden: gets the images in hidden places, which are left out then; None leaves nothing out.
    """
    found: list[tuple[str, list[Path]]] = []
    left: list[tuple[Path, frozenset[str], bool]] = [(folder, frozenset(), False)]
    while left:
        here, above, is_hidden = left.pop()
        real = os.path.realpath(here)
        if real in above:
            continue
        files = []
        for path in _entries(here, problems):
            out = hidden is not None and (is_hidden or _is_hidden(path.name))
            if path.is_dir():
                left.append((path, above | {real}, out))
            elif not out:
                files.append(path)
            elif hidden is not None and path.suffix.lower() in formats():
                hidden.append(path)
        found.append((str(here), files))
    return [path for _, files in sorted(found) for path in files]


def _notes(root: Path, folders: _Folders, listing: _Listing) -> list[str]:
    """What was left out, and what was read otherwise than it may have been meant."""
    notes = []
    names = folders.class_names
    if sorted(names) != list(names):
        order = ", ".join(f"{label} is {name}" for label, name in enumerate(names[:SHOWN]))
        more = ", ..." if len(names) > SHOWN else ""
        notes.append(f"class folders are numbered in the order of their numbers: label {order}{more}")
    others = [path.name for path in _entries(root, []) if path.is_dir() and not _is_hidden(path.name)]
    if others := [name for name in others if root / name not in folders.of.values()]:
        notes.append(
            f"{counted(len(others), 'folder')} left out, called neither train nor val nor test: {shortlist(others)}"
        )

    def note(paths: Sequence[Path], thing: str, what: str) -> None:
        if paths:
            shown = shortlist([_shown(root, path) for path in paths])
            notes.append(f"{counted(len(paths), thing)} {what}: {shown}")

    note(listing.hidden, "image", "left out, in hidden folders or hidden themselves")
    outside = [path for path in _entries(root, []) if path.is_file() and path.suffix.lower() in formats()]
    note([*outside, *listing.loose], "image", "left out, in no class folder")
    note(listing.unread, "file", f"left out, with endings that are not read ({_by_ending(listing.unread)})")
    return notes


def _by_ending(paths: Sequence[Path]) -> str:
    """How many files have which ending, the most frequent first."""
    count = Counter(path.suffix.lower() or "no ending" for path in paths)
    return shortlist([f"{number:,} {ending}" for ending, number in count.most_common()])


def _shown(root: Path, path: Path) -> str:
    """Its place below `root`, for a message."""
    text = path.relative_to(root).as_posix()
    return text if text.isprintable() else ascii(text)
