"""A user's own images: ROOT/train/CLASS/IMAGE, and the same below ROOT/val and ROOT/test.

Where ROOT/test is missing, a fifth of the train images is split off; then, where ROOT/val is missing, a tenth of
what is left. SPELLINGS has the other names that the three may have, in any case.

Classes are numbered in the order of their names; where all names are whole numbers, in the order of these.

Images are as a person sees them: turned as their EXIF says, transparent ones on white, 16 bits of grey scaled to 8, of
several frames the first. Hidden files and folders are none of the data. What else is left out, or may surprise, is in
`Dataset.notes`; what cannot be read is refused, all of it in one line.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from spaces.errors import BadInput
from trainers.data.dataset import Dataset, Split
from trainers.data.fetching import fingerprint, one_line
from trainers.data.splits import SHOWN, TEST_SHARE, VALIDATION_SHARE, counted, parted, shortlist

if TYPE_CHECKING:
    from torch import Tensor

LAYOUT = "task.root must hold train/CLASS/IMAGE (and may hold val/CLASS/IMAGE and test/CLASS/IMAGE)"
SPELLINGS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
HIDDEN = ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found")
LITTER = ("thumbs.db", "desktop.ini")  # of file managers
ENDINGS = (
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
    *(".jpf", ".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp"),
)
"""Of images, where this machine's Pillow reads them. Not among them: what needs another program (PostScript), what any
file may pass for (TGA), and what holds no 8 bits a channel."""
DEEP = 65535  # white, in 16 bits
_NOTHING = np.empty((0, 0), np.uint8)
LARGEST = 2 * 89_478_485  # pixels; Pillow refuses to read larger images


@dataclass
class _Listing:
    """What lies in the folders, by a look at names alone."""

    class_names: tuple[str, ...]
    samples: dict[str, list[tuple[Path, int]]] = field(default_factory=dict)
    """Split -> image files and their classes."""
    hidden: list[Path] = field(default_factory=list)
    """Images in hidden places."""
    unread: list[Path] = field(default_factory=list)
    """Files with other endings."""
    loose: list[Path] = field(default_factory=list)
    """Images in no class folder."""


@dataclass
class _Seen:
    """What was noticed while images were read."""

    bad: list[tuple[Path, str]] = field(default_factory=list)
    """What cannot be read, and why."""
    files: dict[Path, tuple[int, str]] = field(default_factory=dict)
    """Size and hash of what can."""
    transparent: list[Path] = field(default_factory=list)
    deep: list[Path] = field(default_factory=list)
    """With 16 bits of grey."""
    brightest: int = 0
    """The largest value in those, of 65535."""
    frames: list[Path] = field(default_factory=list)
    """With more than one frame or page."""


def check(root: Path, image_size: int | None) -> None:
    """Raises BadInput if folders are missing or do not name the same classes; opens no image."""
    if image_size is not None and image_size < 1:
        raise BadInput(
            f"task.image_size >= 1 must hold, but got {image_size}; leave it out to keep the images' own size"
        )
    folders = _folders(root)
    if "train" not in folders:
        raise BadInput(f"{LAYOUT}, but {root / 'train'} is not there; move the images, or correct task.root")
    classes = set(_class_names(folders["train"]))
    if len(classes) < 2:
        raise BadInput(
            f"{LAYOUT} with two classes or more, but {folders['train']} has {len(classes)}; add folders to it"
        )
    for folder in folders.values():
        if unlike := sorted(set(_class_names(folder)) ^ classes):
            raise BadInput(
                f"{folder} must hold the same class folders as {folders['train']}, but they differ in "
                f"{shortlist(unlike)}; add or remove folders"
            )


def load(root: Path, image_size: int | None) -> Dataset:
    """Reads every image into memory: one channel if all are grey (black and white, 8 or 16 bits), three otherwise.

    Args:
        root: the folder described above.
        image_size: shrinks or grows the shorter side to this many pixels and cuts the middle square out; without it
            all images must be of one size.

    Raises:
        BadInput: if an image cannot be read or differs in size, or if there are too few to split off a part.
    """
    import torch  # here, since it takes seconds to import

    folders = _folders(root)
    listing, seen = _listed(folders), _Seen()
    given = {split: _read(root, part, image_size, seen) for split, part in listing.samples.items()}
    if seen.bad:
        total = sum(map(len, listing.samples.values()))
        which = shortlist([f"{_shown(root, path)} ({why})" for path, why in seen.bad])
        raise BadInput(
            f"all images of {root} must be readable, but {len(seen.bad)} of {total:,} are not: {which}; "
            "get them anew or remove them"
        )
    samples, images = dict(listing.samples), _stacked(root, given)
    labels = {split: torch.tensor([label for _, label in part]) for split, part in samples.items()}
    for split, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
        if split not in samples:
            whole = samples["train"], images["train"], labels["train"]
            rest, taken = parted(whole[2], share, f"imagefolder ({root})", listing.class_names)
            for name, chosen in (("train", rest), (split, taken)):
                samples[name] = [whole[0][i] for i in chosen.tolist()]
                images[name], labels[name] = whole[1][chosen], whole[2][chosen]
    parts = {split: Split(images[split], labels[split]) for split in images}
    notes = [*_notes(root, folders, listing, seen), *_doubles(root, samples, seen.files)]
    size = "; as large as in the files"
    if image_size is not None:
        size = (
            f"; shorter side scaled to {image_size} pixels (bilinear, antialiased), the middle {image_size} x "
            f"{image_size} cut out"
        )
    return Dataset(
        "imagefolder",
        listing.class_names,
        parts["train"],
        parts["validation"],
        parts["test"],
        preparation=f"turned by EXIF orientation; transparent pixels on white; 16 bits of grey divided by 257{size}",
        notes=tuple(notes),
        files={path.relative_to(root).as_posix(): mark for path, mark in seen.files.items()},
    )


def _folders(root: Path) -> dict[str, Path]:
    """The folder of each split that is there."""
    found: dict[str, Path] = {}
    for path in _entries(root):
        for split, spellings in SPELLINGS.items():
            if path.name.lower() not in spellings or not _is_folder(path):
                continue
            if split in found:
                raise BadInput(
                    f"{root} must not hold both {found[split].name} and {path.name}; "
                    "move the images of one into the other"
                )
            found[split] = path
    return {split: found[split] for split in SPELLINGS if split in found}


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, in the order of names."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise BadInput(f"{folder} must be a folder that can be read, but: {error.strerror}; correct it") from error


def _is_folder(path: Path) -> bool:
    """Whether it is a folder; what was one, and is not any more, is no mere file."""
    if path.is_symlink() and not path.exists() and path.suffix.lower() not in ENDINGS:
        raise BadInput(f"{path} must be a folder, but is a link to nothing; mend or remove it")
    return path.is_dir()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in HIDDEN


def _class_names(folder: Path) -> list[str]:
    """In the order of their labels."""
    names = [path.name for path in _entries(folder) if not _is_hidden(path.name) and _is_folder(path)]
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
        names.sort(key=lambda name: (int(name), name))
    return names


def _listed(folders: Mapping[str, Path]) -> _Listing:
    listing = _Listing(tuple(_class_names(folders["train"])))
    for split, folder in folders.items():
        samples = listing.samples[split] = []
        before = len(listing.unread)
        for label, name in enumerate(listing.class_names):
            for path in _below(folder / name, listing.hidden):
                if path.suffix.lower() in _formats():
                    samples.append((path, label))
                elif path.name.lower() not in LITTER:
                    listing.unread.append(path)
        for path in _entries(folder):
            if _is_hidden(path.name):
                below = _below(path) if path.is_dir() else [path]
                listing.hidden += [file for file in below if file.suffix.lower() in _formats()]
            elif not path.is_dir() and path.suffix.lower() in _formats():
                listing.loose.append(path)
        there = {label for _, label in samples}
        if empty := [name for label, name in enumerate(listing.class_names) if label not in there]:
            unread = listing.unread[before:]
            others = f" (files there end in {_by_ending(unread)}, which are not read)" if unread else ""
            raise BadInput(
                f"{folder} must hold images in each class folder, but {len(empty)} of {len(listing.class_names)} hold "
                f"none: {shortlist(empty)}{others}; add some, or remove the folders"
            )
    return listing


def _below(folder: Path, hidden: list[Path] | None = None) -> list[Path]:
    """All files below a folder, folder by folder. Links are followed, but not back to where they are met.

    Args:
        folder: where to look.
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
        for path in _entries(here):
            out = hidden is not None and (is_hidden or _is_hidden(path.name))
            if path.is_dir():
                left.append((path, above | {real}, out))
            elif not out:
                files.append(path)
            elif hidden is not None and path.suffix.lower() in _formats():
                hidden.append(path)
        found.append((str(here), files))
    return [path for _, files in sorted(found) for path in files]


@cache
def _formats() -> dict[str, str]:
    """Ending -> what Pillow calls the format, of the endings that this machine's Pillow reads."""
    Image.init()
    return {ending: name for ending, name in Image.registered_extensions().items() if ending in ENDINGS}


def _read(
    root: Path, samples: Iterable[tuple[Path, int]], image_size: int | None, seen: _Seen
) -> list[tuple[Path, np.ndarray]]:
    """Each image as (H, W) uint8 if it is grey, else (H, W, 3)."""
    from torchvision.transforms.v2 import functional  # here, since it takes seconds to import

    images = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of images that it reads all the same
        for path, _ in samples:
            try:
                picture = _opened(path, seen)
                short, long = sorted(picture.size)
                if image_size is not None and long * image_size**2 > LARGEST * short:
                    raise ValueError(f"{picture.width}x{picture.height} is too narrow for task.image_size {image_size}")
            # whatever Pillow's readers raise on a broken file: OSError, SyntaxError, struct.error, OverflowError, ...
            except Exception as error:
                seen.bad.append((path, _why(path, error)))
                continue
            if seen.bad:
                continue  # it only looks for others of that kind now
            if image_size is not None:
                picture = functional.center_crop(functional.resize(picture, [image_size]), [image_size])
            images.append((path, np.asarray(picture)))
    return images


def _opened(path: Path, seen: _Seen) -> Image.Image:
    """The image as a person sees it, in mode L or RGB."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("no file, but a pipe, a socket, a device or a folder")  # to open it might take for ever
    if not status.st_size:
        raise ValueError("empty")
    with path.open("rb") as file:
        # JPEG's reader makes MPO of some
        image: Image.Image = Image.open(file, formats=list(dict.fromkeys((*_formats().values(), "MPO"))))
        if getattr(image, "is_animated", False) and image.format != "MPO":  # which is a photograph and its copies
            seen.frames.append(path)
        kind = image.format
        image.load()
        seen.files[path] = fingerprint(file)
    with suppress(Exception):  # EXIF that is broken says nothing; the pixels are sound
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PPM", "PNG")):
        values = np.asarray(image).astype(np.int64)
        seen.deep.append(path)
        seen.brightest = max(seen.brightest, int(values.max()))
        return Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))  # 65535 / 255 is 257
    if image.mode in ("I", "F"):
        raise ValueError(f"32 bits a pixel, mode {image.mode}; nothing says which value is white")
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        if np.asarray(layered)[:, :, 3].min() < 255:
            seen.transparent.append(path)
            return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert(mode)
    return image.convert(mode)


def _why(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "a link to nothing" if path.is_symlink() else "gone"
    if isinstance(error, UnidentifiedImageError):
        return "no image, or its head is broken"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = one_line(error)
    return text if len(text) <= 80 else text[:79] + "…"


def _stacked(root: Path, given: Mapping[str, list[tuple[Path, np.ndarray]]]) -> dict[str, Tensor]:
    """The images of each split, (N, C, H, W); the arrays are given up one by one, as they are copied."""
    import torch

    seen: dict[tuple[int, ...], Path] = {}  # (H, W), and the first file of that size
    for path, array in itertools.chain(*given.values()):
        seen.setdefault(array.shape[:2], path)
    if len(seen) > 1:
        (size, path), (other_size, other_path), *_ = seen.items()
        raise BadInput(
            f"all images must be of one size, but {path} is {size[1]}x{size[0]} and {other_path} is "
            f"{other_size[1]}x{other_size[0]} (width x height); set task.image_size to resize and crop them"
        )
    [(height, width)] = seen
    channels = 1 if all(array.ndim == 2 for _, array in itertools.chain(*given.values())) else 3
    stacked = {}
    for split, part in given.items():
        images = stacked[split] = torch.empty((len(part), channels, height, width), dtype=torch.uint8)
        for i in range(len(part)):
            image = torch.from_numpy(part[i][1].copy())  # Pillow's memory is read-only
            images[i] = image if image.ndim == 2 else image.permute(2, 0, 1)
            part[i] = part[i][0], _NOTHING
    return stacked


def _notes(root: Path, folders: Mapping[str, Path], listing: _Listing, seen: _Seen) -> list[str]:
    """What was left out, and what was read otherwise than it may have been meant."""
    notes = []
    names = listing.class_names
    if sorted(names) != list(names):
        order = ", ".join(f"{label} is {name}" for label, name in enumerate(names[:SHOWN]))
        more = ", ..." if len(names) > SHOWN else ""
        notes.append(f"class folders are numbered in the order of their numbers: label {order}{more}")
    others = [path.name for path in _entries(root) if path.is_dir() and not _is_hidden(path.name)]
    if others := [name for name in others if root / name not in folders.values()]:
        notes.append(
            f"{counted(len(others), 'folder')} left out, called neither train nor val nor test: {shortlist(others)}"
        )

    def note(paths: Sequence[Path], thing: str, what: str) -> None:
        if paths:
            shown = shortlist([_shown(root, path) for path in paths])
            notes.append(f"{counted(len(paths), thing)} {what}: {shown}")

    note(listing.hidden, "image", "left out, in hidden folders or hidden themselves")
    outside = [path for path in _entries(root) if path.is_file() and path.suffix.lower() in _formats()]
    note([*outside, *listing.loose], "image", "left out, in no class folder")
    note(listing.unread, "file", f"left out, with endings that are not read ({_by_ending(listing.unread)})")
    note(seen.transparent, "image", "with transparent pixels, put on white")
    note(seen.deep, "image", f"with 16 bits of grey, scaled to 8 (the brightest value is {seen.brightest} of {DEEP})")
    note(seen.frames, "image", "of several frames or pages, of which the first is read")
    return notes


def _doubles(
    root: Path, samples: Mapping[str, Sequence[tuple[Path, int]]], files: Mapping[Path, tuple[int, str]]
) -> list[str]:
    """What is measured with images that were learned, and what is learned with two labels."""
    notes = []
    first: dict[tuple[int, str], tuple[str, Path]] = {}
    """Split and path of each content; an image of train is looked for first."""
    for split, part in samples.items():
        doubles = [(path, first[files[path]]) for path, _ in part if files[path] in first]
        for other in samples:
            if which := [(path, twin) for path, (where, twin) in doubles if where == other]:
                (path, twin), *_ = which
                notes.append(
                    f"{len(which)} of {counted(len(part), split + ' image')} are {other} images, too, to the byte: "
                    f"{_shown(root, path)} is {_shown(root, twin)}"
                )
        for path, _ in part:
            first.setdefault(files[path], (split, path))
    labels: dict[tuple[int, str], set[int]] = {}
    for path, label in itertools.chain(*samples.values()):
        labels.setdefault(files[path], set()).add(label)
    two = [path for path, _ in itertools.chain(*samples.values()) if len(labels[files[path]]) > 1]
    if two:
        shown = shortlist([_shown(root, path) for path in two])
        notes.append(f"{counted(len(two), 'image')} in more than one class, to the byte: {shown}")
    return notes


def _by_ending(paths: Sequence[Path]) -> str:
    """How many files have which ending, the most frequent first."""
    count = Counter(path.suffix.lower() or "no ending" for path in paths)
    return shortlist([f"{number:,} {ending}" for ending, number in count.most_common()])


def _shown(root: Path, path: Path) -> str:
    """Its place below `root`, for a message."""
    text = path.relative_to(root).as_posix()
    return text if text.isprintable() else ascii(text)
