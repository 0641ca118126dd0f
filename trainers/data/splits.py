"""Fixed splits: they depend on the labels and on SEED, on nothing else, so that results of all studies compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spaces.errors import BadInput
from trainers.data.dataset import Dataset, Split

if TYPE_CHECKING:
    from torch import Tensor

SEED = 0
VALIDATION_SHARE = 0.1  # of the train split, where a data set comes without a validation split
TEST_SHARE = 0.2  # of everything, where it comes without a test split
FEW = 200
"""Of fewer validation images it is said how little they tell: an accuracy is then uncertain by 0.07 and more."""
SHOWN = 3
"""How many of many things a message names."""
MOST_LISTED = 100
"""How many of what must be put right, so that few need a second look."""
WAY_OUT = "add images, or folders for the splits that are missing"


def split_off(whole: Split, taken: float, name: str) -> tuple[Split, Split]:
    """Parts `whole` into (rest, taken), each class in proportion, each part in an order drawn with SEED.

    Args:
        whole: N images.
        taken: how many to take: a share of N as a float (ceil(taken * N) images), or a number of images as an int.
        name: the data set, for the message.

    Raises:
        BadInput: if there are too few images to part each class.
    """
    rest, held_out = parted(whole.labels, taken, name)
    return Split(whole.images[rest], whole.labels[rest]), Split(whole.images[held_out], whole.labels[held_out])


def parted(
    labels: Tensor, taken: float, name: str, class_names: Sequence[str] = (), way_out: str = WAY_OUT
) -> tuple[Tensor, Tensor]:
    """The same for numbers of images: (rest, taken), both int64.

    Args:
        labels: (N,) int64.
        taken: as `split_off` takes it.
        name: the data set, for the message; so are all that follow.
        class_names: of labels 0, 1, ...; empty: they are called by their numbers.
        way_out: what the user can do.

    Raises:
        BadInput: if there are too few images to part each class.
    """
    import torch  # here, as the next one: they take seconds to import
    from sklearn.model_selection import train_test_split

    total = len(labels)
    count = taken if isinstance(taken, int) else math.ceil(taken * total)
    classes, sizes = torch.unique(labels, return_counts=True)
    why = ""  # scikit-learn has the same rules, in words about its own arguments
    if single := classes[sizes < 2].tolist():
        names = shortlist([class_names[label] if class_names else str(label) for label in single])
        why = f"{len(single)} of {len(classes)} classes have one image: {names}"
    elif count < len(classes) or total - count < len(classes):
        why = (
            f"of {total} images {count} would be taken and {total - count} kept, fewer than the {len(classes)} classes"
        )
    if why or not total:
        raise BadInput(
            f"{name} must have images enough that a part of them, split off, has some of each class and leaves some, "
            f"but {why or 'it has none'}; {way_out}"
        )
    parts: list[np.ndarray] = train_test_split(
        np.arange(total), test_size=taken, stratify=labels.numpy(), random_state=SEED
    )
    rest, held_out = (torch.from_numpy(part) for part in parts)
    return rest, held_out


def limit_train(dataset: Dataset, train_limit: int) -> Dataset:
    """The data set with `train_limit` of its train images, in the same proportions of classes; the rest is as it was.

    The one image of a class that has one is kept.

    Raises:
        BadInput: if fewer images than classes would be on either side of the cut, or too few to part each class.
    """
    whole = dataset.train
    kept = _limited(whole.labels, train_limit, dataset.name, dataset.class_names)
    return replace(dataset, train=Split(whole.images[kept], whole.labels[kept]))


def _limited(labels: Tensor, train_limit: int, name: str, class_names: Sequence[str]) -> Tensor:
    """Which train images are kept."""
    total, classes = len(labels), len(class_names)
    if not classes <= train_limit <= total - classes:
        raise BadInput(
            f"{classes} <= task.train_limit <= {total - classes} must hold for {name} "
            f"({classes} classes, {total} train images), but got {train_limit}; leave it out to train on all"
        )
    import torch  # here, since it takes seconds to import

    way_out = "add images, or leave task.train_limit out to train on all"
    alone = torch.bincount(labels, minlength=classes)[labels] == 1
    single, several = alone.nonzero().flatten(), (~alone).nonzero().flatten()
    kept, _ = parted(labels[several], total - train_limit, name, class_names, way_out)
    return torch.cat([several[kept], single])


@dataclass(frozen=True)
class Rows:
    """Where the images of a split come from."""

    given: str
    """The split that the source has."""
    numbers: Tensor
    """Of its images, (N,) int64."""

    def __len__(self) -> int:
        return len(self.numbers)


def planned(
    labels: Mapping[str, Tensor], name: str, source: str, class_names: Sequence[str], train_limit: int | None
) -> dict[str, Rows]:
    """Which images are in train, validation and test: those that are given, or drawn from train.

    Without a test split TEST_SHARE of train is split off, then without a validation split VALIDATION_SHARE of the rest.

    Args:
        labels: (N,) int64 of each split that is given; train is among them.
        name: of the data set, for messages; so are the next two.
        source: where it is.
        class_names: of labels 0, 1, ...
        train_limit: number of train images kept; None keeps all.

    Raises:
        BadInput: if there are too few images.
    """
    import torch

    rows = {split: Rows(split, torch.arange(len(of))) for split, of in labels.items()}
    for split, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
        if split not in rows:
            train = rows["train"].numbers
            rest, taken = parted(labels["train"][train], share, f"{name} ({source})", class_names)
            rows["train"], rows[split] = Rows("train", train[rest]), Rows("train", train[taken])
    if train_limit is not None:
        train = rows["train"].numbers
        rows["train"] = Rows("train", train[_limited(labels["train"][train], train_limit, name, class_names)])
    return {split: rows[split] for split in ("train", "validation", "test")}


def split_notes(dataset: Dataset) -> tuple[str, ...]:
    """What the sizes of the splits mean for what is measured, where they are small."""
    notes = []
    for split, part in dataset.splits().items():
        there = set(part.labels.tolist())
        missing = [name for label, name in enumerate(dataset.class_names) if label not in there]
        if missing:
            notes.append(
                f"the {split} split has no image of {len(missing)} of {dataset.classes} classes: {shortlist(missing)}"
            )
    images = len(dataset.validation)
    if 0 < images < FEW:
        low, high = wilson(0.5, images)
        notes.append(
            f"the validation split has {counted(images, 'image')} only: an accuracy measured with so few is uncertain "
            f"by up to ±{(high - low) / 2:.2f} (95 %)"
        )
    return tuple(notes)


def wilson(share: float, images: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of so many images, such as an accuracy.

    E. B. Wilson: Probable inference, the law of succession, and statistical inference, JASA 1927. It holds for one
    network; that of the best of many is too high.
    """
    z = 1.959963984540054  # the normal distribution's 97.5th percentile
    middle = share + z**2 / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    low, high = ((end / (1 + z**2 / images)) for end in (middle - half, middle + half))
    return max(0.0, low), min(1.0, high)  # they are never outside but for rounding


def shortlist(names: Sequence[str], most: int = SHOWN) -> str:
    """The first few, in one line that any terminal can show, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:most]) + more


def listed(names: Sequence[str]) -> str:
    """The same of what is to be put right: next to all of them."""
    return shortlist(names, MOST_LISTED)


def counted(number: int, thing: str) -> str:
    """1 picture, 2 pictures."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
