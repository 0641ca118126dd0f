"""A folder that the library `datasets` of Hugging Face wrote by `save_to_disk`: splits, or one set that is train.

Images are the column of `Image` features, read as `pictures` says. Labels are the column of `ClassLabel`, or else the
one that is called `label`, of whole numbers or texts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spaces.errors import BadInput
from trainers.data.fetching import fingerprints, one_line
from trainers.data.labels import numbered, split_called
from trainers.data.pictures import Picture, Size, content_of, decoded, glanced, preparation, why_not
from trainers.data.splits import shortlist
from trainers.data.unread import Unread, in_order

LABELS = ("label", "labels", "target", "y", "class")


def check(root: Path, image_size: Size | None) -> None:
    """Raises BadInput if it is no such folder, or the library that reads it is not installed; reads no image."""
    if not any((root / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        raise BadInput(
            f"task.root must be a folder that `datasets` wrote by save_to_disk, but {root} holds neither "
            "dataset_dict.json nor dataset_info.json; save the data set there"
        )
    if not _is_installed():
        raise BadInput(
            "task.dataset: huggingface needs the library `datasets`, which is not installed; "
            "`pip install 'dux-search[huggingface]'` installs it"
        )


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("datasets") is not None
    except ValueError:  # it was tried before
        return False


def load(root: Path, image_size: Size | None) -> Unread:
    """What the folder has; raises BadInput for columns that are missing or of another kind.

    Args:
        root: the folder described above.
        image_size: as `pictures.fitted` takes it.
    """
    splits, others = _splits(root)
    columns = {split: _columns(root, given) for split, given in splits.items()}
    images = {split: _Encoded(given, columns[split][0]) for split, given in splits.items()}
    values, called, names = {}, {}, {}
    for split, given in splits.items():
        column = columns[split][1]
        values[split] = np.asarray(given.with_format(None)[column][:])
        called[split] = f"`{column}` of the {split} split of {root}"
        names[split] = list(getattr(given.features[column], "names", ()))
    classes = numbered(values, called, names)
    heads = {split: list(in_order(_head, (of[number] for number in range(len(of))))) for split, of in images.items()}
    greys = [grey for of in heads.values() for _, grey in of if grey is not None]
    left_out = (f"splits left out, called neither train nor validation nor test: {shortlist(others)}",)
    return Unread(
        name="huggingface",
        source=str(root),
        class_names=classes.class_names,
        labels=classes.labels,
        channels=1 if all(greys) else 3,
        size=image_size,
        pictures=lambda split, numbers: in_order(
            lambda image: _picture(image, image_size), (images[split][number] for number in numbers)
        ),
        called=lambda split, number: f"{split}[{number}]",
        contents={split: [mark for mark, _ in of] for split, of in heads.items()},
        preparation=preparation(image_size),
        notes=(*classes.notes, *(left_out if others else ())),
        problems=classes.problems,
        files=fingerprints(root, (path for path in sorted(root.rglob("*")) if path.is_file())),
    )


def _splits(root: Path) -> tuple[dict[str, Any], list[str]]:
    """The set of each split, and the names of those that are none."""
    from datasets import load_from_disk  # here, since it takes seconds to import

    try:
        whole = load_from_disk(str(root))
    except Exception as error:  # of Arrow's, of JSON's, ...
        raise BadInput(f"{root} must be a folder that `datasets` reads, but: {one_line(error)}; save it anew") from None
    if not isinstance(whole, Mapping):
        return {"train": whole}, []
    found = {split: given for name, given in whole.items() if (split := split_called(name)) is not None}
    others = [name for name in whole if split_called(name) is None]
    if "train" not in found:
        raise BadInput(f"{root} must have a split called train, but has {shortlist(list(whole)) or 'none'}; rename one")
    return {split: found[split] for split in ("train", "validation", "test") if split in found}, others


def _columns(root: Path, given: Any) -> tuple[str, str]:
    """The names of the columns of images and labels."""
    from datasets import ClassLabel, Image

    images = [name for name, kind in given.features.items() if isinstance(kind, Image)]
    labels = [name for name, kind in given.features.items() if isinstance(kind, ClassLabel)]
    labels = labels or [name for name in given.features if name.lower() in LABELS]
    problems = [
        f"{root} must have one column of {what}, but has {shortlist(found) if found else 'none'} "
        f"(of {shortlist(list(given.features), 20)}); {way_out}"
        for what, found, way_out in (
            ("images (`datasets.Image`)", images, "cast it, or remove the others (remove_columns)"),
            ("labels (`datasets.ClassLabel`, or called `label`)", labels, "rename it, or remove the others"),
        )
        if len(found) != 1
    ]
    if problems:
        raise BadInput(*problems)
    return images[0], labels[0]


class _Encoded:
    """The files of a set's images, as they were saved."""

    def __init__(self, given: Any, column: str) -> None:
        from datasets import Image

        self._rows = given.with_format(None).select_columns([column]).cast_column(column, Image(decode=False))
        self._column = column

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        """`bytes`, or the `path` of a file."""
        return self._rows[number][self._column] or {"bytes": None, "path": None}


def _content(image: Mapping[str, Any]) -> bytes:
    """Of the image's file; raises ValueError or OSError where there is none."""
    if image["bytes"]:
        return bytes(image["bytes"])
    if not image["path"]:
        raise ValueError("empty")
    return content_of(Path(image["path"]))


def _head(image: Mapping[str, Any]) -> tuple[tuple[int, str] | None, bool | None]:
    try:
        return glanced(_content(image))
    except (OSError, ValueError):
        return None, None


def _picture(image: Mapping[str, Any], size: Size | None) -> Picture:
    try:
        return decoded(_content(image), size)
    except (OSError, ValueError) as error:
        return Picture(None, why_not(error, Path(image["path"] or "")))
