import hashlib
import pickle
import socket
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy._core.multiarray import _reconstruct
from torchvision.datasets import CIFAR10, CIFAR100

from spaces.errors import BadInput
from trainers.data import Dataset, check_dataset, cifar, load_dataset

READERS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
SIZES = {"cifar10": (20, 20), "cifar100": (1000, 200)}  # images in each train file and in the test file


class OldDtype:
    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)


class OldArray:
    """A uint8 array as Python 2 pickled it, which is what the published files hold: 0 and 1 for False and True."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        state = (1, self.array.shape, OldDtype(), False, self.array.tobytes().decode("latin1"))
        return _reconstruct, (np.ndarray, (0,), "b"), state


def old_pickle(content: dict[str, Any]) -> bytes:
    return pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


class Written:
    """Small files in the published layout, their checksums told to torchvision's reader."""

    def __init__(self, name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.root, reader = name, root, READERS[name]
        self.folder = root / reader.base_folder
        self.folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        key, classes = ("labels", 10) if name == "cifar10" else ("fine_labels", 100)

        def half(files: list[list[str]], size: int) -> tuple[np.ndarray, list[int]]:
            images, labels = [], []
            for file, _ in files:
                rows = rng.integers(256, size=(size, 3072), dtype=np.uint8)
                targets = [(7 * i) % classes for i in range(size)]
                content = {"batch_label": "x", key: targets, "coarse_labels": [0] * size, "data": OldArray(rows)}
                (self.folder / file).write_bytes(old_pickle(content))
                images.append(rows)
                labels += targets
            return np.concatenate(images).reshape(-1, 3, 32, 32), labels

        self.train = half(reader.train_list, SIZES[name][0])
        self.test = half(reader.test_list, SIZES[name][1])
        meta = {reader.meta["key"]: [f"class {i}" for i in range(classes)]}
        (self.folder / reader.meta["filename"]).write_bytes(old_pickle(meta))
        for half_name in ("train_list", "test_list"):
            files = [[file, self.md5(file)] for file, _ in getattr(reader, half_name)]
            monkeypatch.setattr(reader, half_name, files)
        monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": self.md5(reader.meta["filename"])})
        self.files = [file for file, _ in (*reader.train_list, *reader.test_list)] + [reader.meta["filename"]]

    def md5(self, file: str) -> str:
        return hashlib.md5((self.folder / file).read_bytes()).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(request.param, tmp_path / "root", monkeypatch)


def assert_is_what_was_written(dataset: Dataset, written: Written) -> None:
    classes = {"cifar10": 10, "cifar100": 100}[written.name]
    assert (dataset.name, dataset.classes, dataset.image_shape) == (written.name, classes, (3, 32, 32))
    images, labels = written.test
    np.testing.assert_array_equal(dataset.test.images, images)
    assert dataset.test.labels.tolist() == labels
    images, labels = written.train
    results = [
        (image.numpy().tobytes(), label)
        for split in (dataset.train, dataset.validation)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    ]
    assert sorted(results) == sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))
    assert torch.bincount(dataset.validation.labels).tolist() == [len(labels) // 10 // classes] * classes


def test_the_published_format_is_read_and_a_tenth_of_train_becomes_validation(written: Written) -> None:
    check_dataset(written.name, root=written.root)
    assert_is_what_was_written(load_dataset(written.name, root=written.root), written)


def test_images_are_contiguous_so_that_workers_can_share_them(written: Written) -> None:
    dataset = load_dataset(written.name, root=written.root)
    assert all(array.flags.c_contiguous for array in dataset.arrays().values())


def test_the_same_call_gives_the_same_tensors(written: Written) -> None:
    first = load_dataset(written.name, root=written.root).arrays()
    torch.manual_seed(9)
    np.random.seed(9)
    for key, array in load_dataset(written.name, root=written.root).arrays().items():
        np.testing.assert_array_equal(array, first[key])


def test_every_missing_file_is_named(written: Written) -> None:
    for file in written.files:
        path = written.folder / file
        content = path.read_bytes()
        path.unlink()
        message = (
            rf"^{written.name} needs {path}, which is not there; set task.root to the folder that holds "
            rf"{written.folder.name}, or task.download: true to fetch it there$"
        )
        with pytest.raises(BadInput, match=message):
            check_dataset(written.name, root=written.root)
        path.write_bytes(content)


def test_every_broken_file_is_named(written: Written) -> None:
    for file in written.files:
        path = written.folder / file
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        message = rf"^{path} must have the MD5 checksum [0-9a-f]{{32}}, but is broken; get it anew$"
        with pytest.raises(BadInput, match=message):
            load_dataset(written.name, root=written.root)
        path.write_bytes(content)


def test_missing_files_are_fetched_once(
    written: Written, tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    reader = READERS[written.name]
    with tarfile.open(folder / reader.filename, "w:gz") as archive:
        archive.add(written.folder, reader.base_folder)
    monkeypatch.setattr(reader, "url", f"{address}/{reader.filename}")
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5((folder / reader.filename).read_bytes()).hexdigest())
    root = tmp_path / "new"
    check_dataset(written.name, root=root, download=True)
    assert not root.exists()
    assert_is_what_was_written(load_dataset(written.name, root=root, download=True), written)
    (folder / reader.filename).unlink()
    assert_is_what_was_written(load_dataset(written.name, root=root, download=True), written)


def test_a_download_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/{CIFAR10.filename}")
        with pytest.raises(BadInput, match=r"^task.download: true must find .* but fetching cifar10 failed: .*refused"):
            load_dataset("cifar10", root=tmp_path, download=True)


def test_a_download_of_something_else_says_so(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    (folder / CIFAR10.filename).write_text("<html>404 not found</html>")
    monkeypatch.setattr(CIFAR10, "url", f"{address}/{CIFAR10.filename}")
    with pytest.raises(BadInput, match=r"fetching cifar10 failed: File not found or corrupted.; try again, or put the"):
        load_dataset("cifar10", root=tmp_path, download=True)


@pytest.mark.parametrize("name", READERS)
def test_the_files_are_those_that_torchvision_reads(name: str) -> None:
    reader = READERS[name]
    files = (*(file for file, _ in (*reader.train_list, *reader.test_list)), reader.meta["filename"])
    assert cifar.FILES[name] == (reader.base_folder, *files)
