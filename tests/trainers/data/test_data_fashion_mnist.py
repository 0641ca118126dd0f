import gzip
import hashlib
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import FashionMNIST

from spaces.errors import BadInput
from trainers.data import Dataset, check_dataset, fashion_mnist, load_dataset

STEMS = (*fashion_mnist.TRAIN_FILES, *fashion_mnist.TEST_FILES)


def idx(array: np.ndarray) -> bytes:
    """The IDX format of uint8: magic number (8 for the type, then the rank), sizes, all big-endian, then the bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def contents(train: int = 100, test: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(256, size=(train, 5, 4), dtype=np.uint8),
        "train-labels-idx1-ubyte": (np.arange(train) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(256, size=(test, 5, 4), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": (np.arange(test) % 10).astype(np.uint8),
    }


def write(folder: Path, zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in contents().items():
        if zipped:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / stem).write_bytes(idx(array))
    return folder


def assert_is_what_was_written(dataset: Dataset) -> None:
    written = contents()
    assert (dataset.name, dataset.classes, dataset.image_shape) == ("fashion_mnist", 10, (1, 5, 4))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (90, 10, 20)
    np.testing.assert_array_equal(dataset.test.images[:, 0], written["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(dataset.test.labels, written["t10k-labels-idx1-ubyte"])
    results = [
        (image.numpy().tobytes(), label)
        for split in (dataset.train, dataset.validation)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    ]
    pairs = zip(written["train-images-idx3-ubyte"], written["train-labels-idx1-ubyte"].tolist(), strict=True)
    assert sorted(results) == sorted((image.tobytes(), label) for image, label in pairs)
    assert torch.bincount(dataset.validation.labels).tolist() == [1] * 10


# The real files


@pytest.fixture(scope="module")
def real() -> Dataset:
    if not fashion_mnist.DEBIAN_FOLDER.is_dir():
        pytest.fail(f"these tests need Fashion-MNIST in {fashion_mnist.DEBIAN_FOLDER}: install dataset-fashion-mnist")
    return load_dataset("fashion_mnist")


def raw(name: str, head: int) -> np.ndarray:
    with gzip.open(fashion_mnist.DEBIAN_FOLDER / f"{name}.gz") as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=head)


def test_the_real_data_have_54000_train_6000_validation_and_10000_test_images(real: Dataset) -> None:
    assert (len(real.train), len(real.validation), len(real.test)) == (54_000, 6_000, 10_000)
    assert (real.classes, real.image_shape) == (10, (1, 28, 28))


def test_the_real_classes_are_balanced_in_each_split(real: Dataset) -> None:
    for split, each in ((real.train, 5_400), (real.validation, 600), (real.test, 1_000)):
        assert torch.bincount(split.labels).tolist() == [each] * 10


def test_the_real_test_split_is_the_official_one_in_its_order(real: Dataset) -> None:
    np.testing.assert_array_equal(real.test.images.numpy().reshape(-1), raw("t10k-images-idx3-ubyte", 16))
    np.testing.assert_array_equal(real.test.labels.numpy(), raw("t10k-labels-idx1-ubyte", 8))


def test_the_real_train_and_validation_splits_are_a_partition_of_the_official_train_images(real: Dataset) -> None:
    official = raw("train-images-idx3-ubyte", 16).reshape(-1, 784), raw("train-labels-idx1-ubyte", 8)
    expected = Counter((image.tobytes(), int(label)) for image, label in zip(*official, strict=True))
    actual: Counter[tuple[bytes, int]] = Counter()
    for split in (real.train, real.validation):
        actual.update(
            (i.tobytes(), label) for i, label in zip(split.images.numpy(), split.labels.tolist(), strict=True)
        )
    assert actual == expected


def test_the_real_mean_and_deviation_are_the_well_known_ones(real: Dataset) -> None:
    mean, std = real.mean_std()
    # 0.2860 and 0.3530 are those of all 60,000 images; leaving a tenth out moves them by less than 0.001
    assert mean.item() == pytest.approx(0.2860, abs=1e-3)
    assert std.item() == pytest.approx(0.3530, abs=1e-3)


def test_the_real_split_is_the_one_that_all_published_numbers_stand_on(real: Dataset) -> None:
    """A change here (of ours or of scikit-learn's) makes old results incomparable with new ones."""
    digest = hashlib.sha256(real.validation.images.numpy().tobytes() + real.train.images[::100].numpy().tobytes())
    assert digest.hexdigest() == "71f63368c06eadcd4f3f43c4578f961e170ee4e647871552767d9018645fb469"


# Small files in the same format


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw"])
def test_files_are_read_from_the_root_itself_and_from_torchvisions_layout(
    tmp_path: Path, layout: str, zipped: bool
) -> None:
    write(tmp_path / layout, zipped)
    check_dataset("fashion_mnist", root=tmp_path)
    assert_is_what_was_written(load_dataset("fashion_mnist", root=tmp_path))


def test_a_root_may_start_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "clothes")
    assert_is_what_was_written(load_dataset("fashion_mnist", root=Path("~/clothes")))


def test_what_lies_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://nowhere.invalid/"])
    assert_is_what_was_written(load_dataset("fashion_mnist", root=write(tmp_path, zipped=True), download=True))


def test_missing_files_are_fetched_and_found_again(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    write(folder, zipped=True)
    md5s = [(f"{s}.gz", hashlib.md5((folder / f"{s}.gz").read_bytes()).hexdigest()) for s in STEMS]
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"{address}/"])
    monkeypatch.setattr(FashionMNIST, "resources", md5s)
    root = tmp_path / "new"
    check_dataset("fashion_mnist", root=root, download=True)
    assert not root.exists()
    assert_is_what_was_written(load_dataset("fashion_mnist", root=root, download=True))
    assert_is_what_was_written(load_dataset("fashion_mnist", root=root))


def test_a_download_that_fails_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        with pytest.raises(
            BadInput, match=r"^task.download: true must find the network .* fetching fashion_mnist fail"
        ):
            load_dataset("fashion_mnist", root=tmp_path, download=True)


def test_a_root_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"must find the network and write to .*file, but fetching fashion_mnist failed"):
        load_dataset("fashion_mnist", root=tmp_path / "file", download=True)


@pytest.mark.parametrize("stem", STEMS)
def test_a_missing_file_is_named_with_the_ways_out(tmp_path: Path, stem: str) -> None:
    (write(tmp_path) / stem).unlink()
    message = (
        rf"^fashion_mnist needs {stem} or {stem}.gz, but .* does not hold it; install Debian's dataset-fashion-mnist, "
        "or set task.root to a folder that holds the files, or set task.root and task.download: true"
    )
    for function in (check_dataset, load_dataset):
        with pytest.raises(BadInput, match=message):
            function("fashion_mnist", root=tmp_path)


def test_without_a_root_and_debians_folder_the_ways_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "absent")
    for download in (False, True):
        with pytest.raises(
            BadInput, match=r"^fashion_mnist needs task.root where .*absent does not exist; install Deb"
        ):
            check_dataset("fashion_mnist", download=download)


def test_without_a_root_debians_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", write(tmp_path, zipped=True))
    assert_is_what_was_written(load_dataset("fashion_mnist"))


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in the head": lambda data: data[:6],
    "cut after the head": lambda data: data[:12],
    "one byte short": lambda data: data[:-1],
    "one byte long": lambda data: data + b"\0",
    "of floats": lambda data: data[:2] + b"\x0d" + data[3:],
    "of an unknown type": lambda data: data[:2] + b"\x0a" + data[3:],
    "of another rank": lambda data: data[:3] + b"\x02" + data[4:],
    "text": lambda data: b"<html>404 not found</html>",
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("stem", STEMS)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, stem: str, damage: str, zipped: bool) -> None:
    path = write(tmp_path, zipped) / (f"{stem}.gz" if zipped else stem)
    data = BROKEN[damage](idx(contents()[stem]))
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(BadInput, match=rf"^{path} must be a whole IDX file, but: .+; get it anew$") as caught:
        load_dataset("fashion_mnist", root=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_gzipped_file_that_is_cut_short_is_named(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, zipped=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=rf"^{path} must be a whole IDX file, but: .+; get it anew$"):
        load_dataset("fashion_mnist", root=tmp_path)


def test_a_gzipped_file_with_a_flipped_bit_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, zipped=True) / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match=rf"^{path} must be a whole IDX file, but: .+; get it anew$"):
        load_dataset("fashion_mnist", root=tmp_path)


def test_labels_that_do_not_fit_the_images_are_named(tmp_path: Path) -> None:
    path = write(tmp_path) / "t10k-labels-idx1-ubyte"
    too_high = np.array([0] * 17 + [9, 10, 255], np.uint8)
    for labels, said in (
        (np.zeros(19, np.uint8), "19 labels, 0 of them too high"),
        (too_high, "20 labels, 2 of them too high"),
    ):
        path.write_bytes(idx(labels))
        message = (
            rf"^{path} must hold a label in 0\.\.9 for each of the 20 images of t10k-images-.*, but holds {said}; "
        )
        with pytest.raises(BadInput, match=message):
            load_dataset("fashion_mnist", root=tmp_path)
