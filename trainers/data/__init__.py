"""The catalogue of data sets. A new one is a file beside this one, a line in DATASETS, and a test.

A study file is checked against it, which is to take no seconds: torch is imported where images are read.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spaces.errors import BadInput
from trainers.data import cifar, digits, fashion_mnist, huggingface, imagefolder, npz, own
from trainers.data.dataset import Dataset, Split, pixels, shared_tensor
from trainers.data.mapped import Room
from trainers.data.pictures import Size
from trainers.data.splits import limit_train, split_notes
from trainers.data.unread import Unread

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "STEPS",
    "Dataset",
    "Room",
    "Source",
    "Split",
    "check_dataset",
    "load_dataset",
    "pixels",
    "shared_tensor",
    "source_of",
    "stand_in",
]


STEPS = ("crop", "resized_crop", "flip", "color")
"""What `trainers.data.augment` may do with training images, in the order in which it does."""
AUGMENTATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "_".join(steps) or "none": steps
        for chosen in itertools.product(("", "crop", "resized_crop"), ("", "flip"), ("", "color"))
        for steps in [tuple(filter(None, chosen))]
    }
)
"""Policy -> its steps: `none`, `crop`, `crop_flip`, `resized_crop_flip_color`, ..."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set comes from.

    Attributes:
        check: raises BadInput for what can be seen without opening a data file; called with `options` by name.
        load: reads the data set, the same for the same files, or what there is of it, its pixels still to be read;
            called with `options` by name, after `check`.
        options: which of task.root, task.download and task.image_size it takes.
        needs_root: whether task.root must be set.
        root_is_file: whether that is a file, and no folder.
        augmentation: the policy (of AUGMENTATIONS) its train images get unless told otherwise.
    """

    check: Callable[..., None]
    load: Callable[..., Dataset | Unread]
    options: tuple[str, ...]
    needs_root: bool
    augmentation: str
    root_is_file: bool = False


def _cifar(name: str) -> Source:
    check, load = partial(cifar.check, name), partial(cifar.load, name)
    return Source(check=check, load=load, options=("root", "download"), needs_root=True, augmentation="crop_flip")


def _of_the_users(source: Any, **more: Any) -> Source:
    options = ("root", "image_size")
    return Source(check=source.check, load=source.load, options=options, needs_root=True, augmentation="crop", **more)


DATASETS = {
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
    "digits": Source(check=digits.check, load=digits.load, options=(), needs_root=False, augmentation="crop"),
    "fashion_mnist": Source(
        check=fashion_mnist.check,
        load=fashion_mnist.load,
        options=("root", "download"),
        needs_root=False,
        augmentation="crop_flip",
    ),
    "imagefolder": _of_the_users(imagefolder),
    "npz": _of_the_users(npz, root_is_file=True),
    "huggingface": _of_the_users(huggingface),
}


def source_of(name: str) -> Source:
    """Where the data set of a name comes from: one of DATASETS, or a function `package.module:function`.

    Raises:
        BadInput: it is neither.
    """
    if ":" in name:
        check, load = partial(own.check, name), partial(own.load, name)
        return Source(check=check, load=load, options=("root", "image_size"), needs_root=False, augmentation="crop")
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; a function of your own is named `package.module:function`"
        raise BadInput(f"task.dataset must be one of {', '.join(DATASETS)}, but got {name!r}{hint}")
    return DATASETS[name]


def check_dataset(
    name: str, *, root: Path | None = None, download: bool = False, image_size: Size | None = None
) -> None:
    """Raises BadInput for what can be seen without opening a data file: names, options, missing folders and files."""
    _checked(name, root, download, image_size)


def load_dataset(
    name: str,
    *,
    root: Path | None = None,
    download: bool = False,
    image_size: Size | None = None,
    train_limit: int | None = None,
    room: Room = Room(),  # noqa: B008
) -> Dataset:
    """Reads a data set; the same call on the same files gives the same tensors.

    Args:
        name: one of DATASETS, or `package.module:function` of the user's.
        root: the folder that holds the files; each data set's own file says in which layout.
        download: has the files fetched into `root` if they are not there.
        image_size: the side, or height and width, that images are scaled and cropped to.
        train_limit: number of train images kept, in the same proportions of classes; validation and test stay whole.
        room: where the images of the user's own data may be held; the others are small, and held in memory.

    Raises:
        BadInput: for what `check_dataset` rejects, for broken files, for a failed download, for a bad `train_limit`;
            one of several problems has a line for each (`BadInput.problems`).
    """
    source, options = _checked(name, root, download, image_size)
    dataset = source.load(**options)
    if isinstance(dataset, Unread):
        dataset = dataset.read(train_limit, room)
    elif train_limit is not None:
        dataset = limit_train(dataset, train_limit)
    return replace(dataset, notes=dataset.notes + split_notes(dataset))


def stand_in(
    name: str, *, root: Path | None = None, download: bool = False, image_size: Size | None = None
) -> Dataset | None:
    """Black images in place of the user's own, of the same classes and shape: for who looks for what else is wrong.

    None where the data set is no folder or file of images, or none of them can be read.

    Args:
        name, root, download, image_size: as `load_dataset` takes them.
    """
    source = source_of(name)
    given = {"root": root, "download": download, "image_size": image_size}
    unread = source.load(**{option: given[option] for option in source.options})
    return unread.stand_in() if isinstance(unread, Unread) else None


def _checked(
    name: str, root: Path | None, download: bool, image_size: Size | None
) -> tuple[Source, dict[str, Path | bool | Size | None]]:
    """The source and the options to call it with."""
    source = source_of(name)
    root = root.expanduser() if root is not None else None
    given = {"root": root, "download": download, "image_size": image_size}
    for option, value in given.items():
        if option not in source.options and value is not None and value is not False:
            raise BadInput(f"{name} takes no task.{option}, but got {value}; leave it out")
    if root is None and source.needs_root:
        raise BadInput(f"{name} needs task.root, the folder of its files, but got none; set it")
    kind = "file" if source.root_is_file else "folder"
    is_there = root is not None and (root.is_file() if source.root_is_file else root.is_dir())
    if root is not None and not is_there and not download and not (":" in name and root.exists()):
        hint = ", or set task.download: true to have it made and filled" if "download" in source.options else ""
        raise BadInput(f"task.root must be a {kind} that exists, but got {root}; correct it{hint}")
    options = {option: given[option] for option in source.options}
    source.check(**options)
    return source, options
