"""Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747): 28x28 grey images of 10 kinds of clothes.

60,000 train images, a tenth of which is split off for validation, and 10,000 of test.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from spaces.errors import BadInput
from trainers.data.dataset import Dataset, Split
from trainers.data.fetching import fetching, fingerprints, one_line
from trainers.data.splits import VALIDATION_SHARE, split_off
from trainers.files import scratch_folder

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts the files
TRAIN_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
WAYS_OUT = (
    "install Debian's dataset-fashion-mnist, or set task.root to a folder that holds the files, "
    "or set task.root and task.download: true to fetch them there"
)

# What gzip, torchvision's IDX reader and torch raise on a file that is cut short or holds something else.
BROKEN = (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AssertionError, RuntimeError)


def check(root: Path | None, download: bool) -> None:
    """Raises BadInput if a file is missing and shall not be fetched; opens none."""
    if root is None and not DEBIAN_FOLDER.is_dir():
        raise BadInput(f"fashion_mnist needs task.root where {DEBIAN_FOLDER} does not exist; {WAYS_OUT}")
    if not download:
        for stem in (*TRAIN_FILES, *TEST_FILES):
            _path(root or DEBIAN_FOLDER, stem)


def load(root: Path | None, download: bool) -> Dataset:
    """Reads the IDX files, plain or gzipped, from `root` itself or from where torchvision keeps them below it.

    Args:
        root: DEBIAN_FOLDER if None.
        download: has torchvision fetch the files if one of them is missing.

    Raises:
        BadInput: if a file is missing or broken, or cannot be fetched.
    """
    folder = root or DEBIAN_FOLDER
    if download and not all(_find(folder, stem) for stem in (*TRAIN_FILES, *TEST_FILES)):
        from torchvision.datasets import FashionMNIST  # here, since it takes seconds to import

        with fetching("fashion_mnist", folder):
            FashionMNIST(folder, download=True)
    train, validation = split_off(_split(folder, *TRAIN_FILES), VALIDATION_SHARE, "fashion_mnist")
    files = fingerprints(folder, (_path(folder, stem) for stem in (*TRAIN_FILES, *TEST_FILES)))
    return Dataset("fashion_mnist", CLASSES, train, validation, _split(folder, *TEST_FILES), files=files)


def _find(folder: Path, stem: str) -> Path | None:
    raw = folder / "FashionMNIST" / "raw"  # torchvision's own layout
    candidates = (place / name for place in (folder, raw) for name in (stem, f"{stem}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _path(folder: Path, stem: str) -> Path:
    path = _find(folder, stem)
    if path is None:
        raise BadInput(f"fashion_mnist needs {stem} or {stem}.gz, but {folder} does not hold it; {WAYS_OUT}")
    return path


def _split(folder: Path, images_stem: str, labels_stem: str) -> Split:
    from torchvision.datasets.mnist import read_image_file, read_label_file  # here, since it takes seconds to import

    images_path, labels_path = _path(folder, images_stem), _path(folder, labels_stem)
    images, labels = _read(images_path, read_image_file), _read(labels_path, read_label_file)
    too_high = int((labels >= len(CLASSES)).sum())
    if len(images) != len(labels) or too_high:
        raise BadInput(
            f"{labels_path} must hold a label in 0..{len(CLASSES) - 1} for each of the {len(images)} images of "
            f"{images_path.name}, but holds {len(labels)} labels, {too_high} of them too high; get both files anew"
        )
    return Split(images.unsqueeze(1), labels)


def _read(path: Path, reader: Callable[[str], Tensor]) -> Tensor:
    """The file through torchvision's reader, which reads plain files only."""
    from torchvision.datasets.utils import extract_archive

    try:
        if path.suffix != ".gz":
            return reader(str(path))
        with scratch_folder() as folder:
            return reader(extract_archive(str(path), str(folder)))
    except BROKEN as error:
        raise BadInput(f"{path} must be a whole IDX file, but: {one_line(error)}; get it anew") from error
