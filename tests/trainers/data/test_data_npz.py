import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from spaces.errors import BadInput
from trainers.data import check_dataset, load_dataset

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(256, size=(60, 5, 6, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3


def saved(folder: Path, *, compressed: bool = False, **arrays: object) -> Path:
    path = folder / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)  # type: ignore[arg-type]
    return path


def whole(path: Path, **options: object) -> dict[str, np.ndarray]:
    return load_dataset("npz", root=path, **options).arrays()  # type: ignore[arg-type]


NAMINGS = [
    ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_valid", "y_valid", "x_test", "y_test"),
    ("images", "labels", "Validation.images", "Validation.labels", "testing-x", "testing-targets"),
]


@pytest.mark.parametrize("names", NAMINGS)
def test_arrays_are_splits_by_their_names(names: tuple[str, ...], tmp_path: Path) -> None:
    parts = [slice(0, 40), slice(40, 50), slice(50, 60)]
    arrays = [of[part] for part in parts for of in (IMAGES, LABELS)]
    dataset = load_dataset("npz", root=saved(tmp_path, **dict(zip(names, arrays, strict=True))))
    assert (dataset.class_names, dataset.image_shape) == (("0", "1", "2"), (3, 5, 6))
    for split, part in zip(dataset.splits().values(), parts, strict=True):
        np.testing.assert_array_equal(split.images.permute(0, 2, 3, 1), IMAGES[part])
        assert split.labels.tolist() == LABELS[part].tolist()


@pytest.mark.parametrize("compressed", [False, True])
def test_without_names_of_splits_they_are_drawn_and_all_forms_of_images_are_one(
    compressed: bool, tmp_path: Path
) -> None:
    forms = (IMAGES, IMAGES.transpose(0, 3, 1, 2), IMAGES / 255, (IMAGES / np.float32(255)).astype(np.float32))
    loaded = [whole(saved(tmp_path, images=form, labels=LABELS, compressed=compressed)) for form in forms]
    assert [len(loaded[0][f"{split}.labels"]) for split in ("train", "validation", "test")] == [43, 5, 12]
    for other in loaded[1:]:
        for name, array in other.items():
            np.testing.assert_array_equal(array, loaded[0][name])
    rows = sorted(image.tobytes() for name, of in loaded[0].items() if "images" in name for image in of)
    assert rows == sorted(image.tobytes() for image in IMAGES.transpose(0, 3, 1, 2))


def test_grey_images_labels_in_a_column_and_names_of_classes(tmp_path: Path) -> None:
    path = saved(tmp_path, images=IMAGES[..., 0], labels=LABELS[:, None], class_names=["ant", "bee", "cat"], extra=1)
    dataset = load_dataset("npz", root=path, image_size=(4, 8))
    assert (dataset.image_shape, dataset.class_names) == ((1, 4, 8), ("ant", "bee", "cat"))
    assert dataset.notes[0] == "arrays left out, called neither images nor labels of a split: extra"
    assert set(dataset.files) == {"data.npz"}


def test_labels_may_be_names_or_begin_at_one(tmp_path: Path) -> None:
    names = np.array(["bee", "ant", "cat"])[LABELS]
    dataset = load_dataset("npz", root=saved(tmp_path, images=IMAGES, labels=names))
    assert dataset.class_names == ("ant", "bee", "cat")
    counted = load_dataset("npz", root=saved(tmp_path, images=IMAGES, labels=LABELS * 2 + 1))
    assert counted.class_names == ("1", "3", "5")
    assert counted.notes[0] == (
        "classes are numbered in the order of the labels that occur: class 0 is 1, class 1 is 3, class 2 is 5"
    )


def test_labels_and_names_may_be_bytes_and_numbers_of_either_sign(tmp_path: Path) -> None:
    names = np.array(["bär", "ant", "cat"])
    encoded = np.char.encode(names, "utf-8")
    for labels, class_names in ((encoded[LABELS], encoded), (names[LABELS], encoded), (LABELS, encoded)):
        dataset = load_dataset("npz", root=saved(tmp_path, images=IMAGES, labels=labels, names=class_names))
        assert dataset.class_names == tuple(names)
        assert dataset.train.labels.unique().tolist() == [0, 1, 2]
    alone = load_dataset("npz", root=saved(tmp_path, images=IMAGES, labels=encoded[LABELS]))
    assert alone.class_names == ("ant", "bär", "cat")
    splits = {"train_x": IMAGES, "train_y": LABELS.astype(np.uint64), "test_x": IMAGES, "test_y": LABELS}
    assert load_dataset("npz", root=saved(tmp_path, **splits)).class_names == ("0", "1", "2")


BAD = {
    "no labels": ({"images": IMAGES}, r"but .*data.npz holds images; rename its arrays"),
    "labels of another split": (
        {"images": IMAGES, "labels": LABELS, "val_images": IMAGES},
        r"holds images, labels, val_images; rename its arrays",
    ),
    "twice": ({"images": IMAGES, "x": IMAGES, "y": LABELS}, r"must not hold both `images` and `x`; remove one"),
    "4 channels": ({"x": np.zeros((6, 5, 6, 4), np.uint8), "y": LABELS}, r"with 1 or 3 channels, but are \(6, 5, 6, 4"),
    "flat": ({"x": np.zeros((6, 5), np.uint8), "y": LABELS}, r"must be \(N, H, W\).* but are \(6, 5\)"),
    "whole numbers": ({"x": IMAGES.astype(int), "y": LABELS}, r"must be uint8 or floats in \[0, 1\], but are int64"),
    "objects": ({"x": IMAGES, "y": np.array([None] * 60)}, r"Object arrays cannot be loaded"),
    "fewer labels": ({"x": IMAGES, "y": LABELS[:9]}, r"a label for each image, but `x` are 60 and `y` 9"),
    "one-hot": (
        {"x": IMAGES, "y": np.eye(3)[LABELS]},
        r"must be whole numbers or names, .* \(60, 3\) float64; take the",
    ),
    "one class": ({"x": IMAGES, "y": LABELS * 0}, r"must be of two classes or more, but are of 1"),
    "class without a name": (
        {"x": IMAGES, "y": LABELS, "names": ["ant", "bee"]},
        r"must be of the 2 classes, but 20 labels are not: 2; correct them",
    ),
    "class without images": (
        {"x": IMAGES, "y": LABELS, "names": ["ant", "bee", "cat", "dog"]},
        r"must have all 4 classes, but lack dog; add images, or remove the classes",
    ),
    "no pixels": ({"x": np.zeros((60, 0, 4), np.float32), "y": LABELS}, r"x\[0\] \(without pixels\)"),
    "floats out of range": (
        {"x": np.where(np.arange(60)[:, None, None] < 2, 1.5, np.ones((60, 4, 4))), "y": LABELS},
        r"but 2 of 60 are not: x\[0\] \(floats that are not in \[0, 1\]\), x\[1\] \(floats",
    ),
    "all floats out of range": (
        {"x": np.full((300, 4, 4), np.nan), "y": np.arange(300) % 3},
        r"but 300 of 300 are not: 300 \(floats that are not in \[0, 1\]; x\[0\], x\[1\], x\[2\] and 297 more\); get",
    ),
}


@pytest.mark.parametrize("mistake", BAD)
def test_what_is_wrong_with_the_arrays_is_one_line(mistake: str, tmp_path: Path) -> None:
    arrays, message = BAD[mistake]
    with pytest.raises(BadInput, match=message):
        load_dataset("npz", root=saved(tmp_path, **arrays))  # type: ignore[arg-type]


def test_two_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = saved(tmp_path, train_images=IMAGES.astype(int), test_images=IMAGES, train_labels=LABELS)
    with pytest.raises(BadInput) as raised:
        check_dataset("npz", root=path)
    assert len(raised.value.problems) == 2


@pytest.mark.parametrize("compressed", [False, True])
def test_a_broken_file_is_refused(compressed: bool, tmp_path: Path) -> None:
    path = saved(tmp_path, images=IMAGES, labels=LABELS, compressed=compressed)
    content = path.read_bytes()
    for broken in (content[:1000], content[:2000] + bytes(90) + content[2090:], b"no archive"):
        path.write_bytes(broken)
        with pytest.raises(BadInput, match=r"data.npz: .+; write it with numpy.savez$"):
            load_dataset("npz", root=path)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(BadInput, match=r"task.root must be a file of NumPy's with `images` and `labels`, .*write it"):
        check_dataset("npz", root=tmp_path / "data.npz")
    with pytest.raises(BadInput, match=r"^task.root must be a file that exists, but got .*; correct it$"):
        check_dataset("npz", root=tmp_path)


def test_a_train_limit_reads_these_images_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, images=IMAGES, labels=LABELS)
    limited, full = load_dataset("npz", root=path, train_limit=12), load_dataset("npz", root=path)
    assert torch.bincount(limited.train.labels).tolist() == [4, 4, 4]
    assert torch.equal(limited.test.images, full.test.images)
    rows = {image.numpy().tobytes() for image in full.train.images}
    assert all(image.numpy().tobytes() in rows for image in limited.train.images)
