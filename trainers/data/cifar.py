"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, technical report, University of Toronto, 2009): 32x32 colour images.

50,000 train images, a tenth of which is split off for validation, and 10,000 of test. CIFAR-100 has its fine labels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spaces.errors import BadInput
from trainers.data.dataset import Dataset, Split
from trainers.data.fetching import fetching, fingerprints
from trainers.data.splits import VALIDATION_SHARE, split_off

FILES = {
    "cifar10": ("cifar-10-batches-py", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    "cifar100": ("cifar-100-python", "train", "test", "meta"),
}
"""Folder and files, as torchvision has them; here, so that one that is missing is told without importing that."""


def check(name: str, root: Path, download: bool) -> None:
    """Raises BadInput if a file is missing and shall not be fetched; opens none."""
    folder, *files = FILES[name]
    for path in () if download else (root / folder / file for file in files):
        if not path.is_file():
            raise BadInput(
                f"{name} needs {path}, which is not there; set task.root to the folder that holds {path.parent.name}, "
                "or task.download: true to fetch it there"
            )


def load(name: str, root: Path, download: bool) -> Dataset:
    """Reads the Python version of the data set, in torchvision's layout, after comparing the files' checksums.

    Args:
        name: cifar10 or cifar100.
        root: the folder that holds (or shall hold) cifar-10-batches-py or cifar-100-python.
        download: has torchvision fetch the files if one of them is missing or broken.

    Raises:
        BadInput: if a file is broken or cannot be fetched.
    """
    from torchvision.datasets.utils import check_integrity

    reader = _reader(name)
    if download:
        with fetching(name, root):
            reader(root, download=True)
    for path, md5 in _files(name, root):
        if not check_integrity(path, md5):  # torchvision would not say which file it is
            raise BadInput(f"{path} must have the MD5 checksum {md5}, but is broken; get it anew")
    whole, test = reader(root, train=True), reader(root, train=False)
    train, validation = split_off(_split(whole), VALIDATION_SHARE, name)
    files = fingerprints(root, (path for path, _ in _files(name, root)))
    return Dataset(name, tuple(whole.classes), train, validation, _split(test), files=files)


def _reader(name: str) -> Any:
    from torchvision.datasets import CIFAR10, CIFAR100  # here, since it takes seconds to import

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]


def _files(name: str, root: Path) -> Iterator[tuple[Path, str]]:
    """Each file that torchvision's reader opens, and its MD5 checksum."""
    reader = _reader(name)
    for file, md5 in (*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])):
        yield root / reader.base_folder / file, md5


def _split(half: Any) -> Split:
    import torch

    images = torch.from_numpy(half.data).permute(0, 3, 1, 2)  # torchvision holds (N, H, W, C)
    return Split(images, torch.tensor(half.targets))
