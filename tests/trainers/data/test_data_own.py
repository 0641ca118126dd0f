import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import FakeData

from spaces.errors import BadInput
from trainers.data import check_dataset, load_dataset

IMAGES = torch.randint(256, (60, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3
WHOLE = TensorDataset(IMAGES, LABELS)


class Pictures(TorchDataset[tuple[Any, Any]]):
    """As torchvision's: pictures of Pillow's, and names of classes."""

    classes = ("ant", "bee", "cat")

    def __init__(self, picture: Any = lambda image: image, label: Any = int) -> None:
        self.picture, self.label = picture, label

    def __len__(self) -> int:
        return 60

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        image = Image.fromarray(IMAGES[number].permute(1, 2, 0).numpy())
        return self.picture(image), self.label(LABELS[number])


class Module:
    """What `my_data` is."""


@pytest.fixture
def my_data(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = Module()
    monkeypatch.setitem(sys.modules, "my_data", module)  # type: ignore[arg-type]
    return module


FORMS = {
    "one": lambda: WHOLE,
    "a tuple of one": lambda: (WHOLE,),
    "a mapping": lambda: {"training": WHOLE},
    "pictures": lambda: Pictures(),
    "arrays": lambda: Pictures(np.asarray, np.asarray),
    "floats": lambda: TensorDataset(IMAGES / 255, LABELS.to(torch.int32)),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_holds_the_same_images_is_the_same_data_set(form: str, my_data: Any) -> None:
    my_data.pets = FORMS[form]
    check_dataset("my_data:pets")
    dataset = load_dataset("my_data:pets")
    my_data.plain = FORMS["one"]
    for name, array in load_dataset("my_data:plain").arrays().items():
        np.testing.assert_array_equal(dataset.arrays()[name], array)
    assert [len(part) for part in dataset.splits().values()] == [43, 5, 12]
    assert dataset.class_names == (Pictures.classes if form in ("pictures", "arrays") else ("0", "1", "2"))


def test_three_data_sets_are_the_three_splits_and_subsets_keep_the_names_of_classes(my_data: Any) -> None:
    parts = [range(40), range(40, 50), range(50, 60)]
    my_data.pets = lambda: tuple(Subset(Pictures(), part) for part in parts)
    dataset = load_dataset("my_data:pets")
    assert dataset.class_names == ("ant", "bee", "cat")
    for split, part in zip(dataset.splits().values(), parts, strict=True):
        assert torch.equal(split.images, IMAGES[part.start : part.stop])
        assert torch.equal(split.labels, LABELS[part.start : part.stop])


def test_images_are_scaled_and_labels_may_be_names(my_data: Any) -> None:
    my_data.pets = lambda: Pictures(label=lambda label: "zyx"[int(label)])
    del_names = Pictures.classes
    Pictures.classes = ()  # type: ignore[assignment]
    try:
        dataset = load_dataset("my_data:pets", image_size=(4, 8))
    finally:
        Pictures.classes = del_names
    assert (dataset.image_shape, dataset.class_names) == ((3, 4, 8), ("x", "y", "z"))


def test_a_data_set_of_torchvisions_is_taken_as_it_is(my_data: Any) -> None:
    my_data.fake = lambda root: FakeData(40, (3, 8, 8), 4, random_offset=len(root))
    dataset = load_dataset("my_data:fake", root=Path("/"), image_size=4)
    assert (len(dataset.train), dataset.image_shape) == (28, (3, 4, 4))


class Others(Pictures):
    """The same, but one is not known, and so the numbers stand for others."""

    classes = ("ant", "cat")


def test_a_split_that_numbers_other_classes_is_refused(my_data: Any) -> None:
    my_data.pets = lambda: {"train": Pictures(), "test": Pictures(), "val": Others(label=lambda label: label % 2)}
    with pytest.raises(BadInput) as raised:
        load_dataset("my_data:pets")
    assert str(raised.value) == (
        "labels of the validation split of my_data:pets must stand for the same classes as labels of the train split "
        "of my_data:pets, but there class 1 is cat instead of bee; give all splits the same classes in the same order"
    )


def test_many_items_that_cannot_be_read_are_found_at_once(my_data: Any) -> None:
    began = time.process_time()
    my_data.pets = lambda: {"train": Dictionaries()}
    with pytest.raises(BadInput, match=r"2,000 of 2,000 are not: 2,000 \(not \(image, label\), but \{'image': 0"):
        load_dataset("my_data:pets")
    assert time.process_time() - began < 5  # 30 s if each looks through the others


class Dictionaries(TorchDataset[dict[str, int]]):
    """Items of another form."""

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, number: int) -> dict[str, int]:
        return {"image": 0, "label": 1}


class Moody(Pictures):
    """Some of whose pictures cannot be read, or are others each time."""

    reads = itertools.count()

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        image, label = super().__getitem__(number)
        if number == 7:
            raise OSError("image file is truncated")
        if number == 9:
            image.putpixel((0, 0), (next(self.reads), 0, 0))
        return (image.convert("L") if number == 11 else image), label


def test_all_that_is_wrong_with_the_items_is_told_at_once(my_data: Any) -> None:
    my_data.pets = Moody
    with pytest.raises(BadInput) as raised:
        load_dataset("my_data:pets")
    assert raised.value.problems == (
        "all images of my_data:pets must have as many channels, but 1 have 1 and 58 have 3; convert them",
        "all images of my_data:pets must be readable, but 2 of 60 are not: train[7] (image file is truncated), "
        "train[9] (another each time it is read; leave random transforms to task.augment); get them anew or remove "
        "them",
    )


BAD: dict[str, tuple[Any, str]] = {
    "raises": (
        lambda: 1 / 0,
        r"must be a function that runs, but ZeroDivisionError: division by zero; try it in Python",
    ),
    "ends": (sys.exit, r"must be a function that runs, but SystemExit"),
    "returns nothing": (lambda: None, r"must return data sets as \(train, validation, test\), .* but returned None"),
    "four": (lambda: (WHOLE,) * 4, r"must return data sets as \(train, validation, test\)"),
    "other names": (lambda: {"train": WHOLE, "dev": WHOLE}, r"must return data sets as"),
    "an iterator": (lambda: iter(WHOLE), r"the train split of my_data:pets must be a data set with a length and items"),
    "no labels": (lambda: TensorDataset(IMAGES), r"are not: train\[0\] \(not \(image, label\), but \(tensor"),
    "labels of floats": (lambda: TensorDataset(IMAGES, LABELS / 2), r"whole number or a name, but train\[0\] has none"),
    "wild floats": (
        lambda: TensorDataset(IMAGES / 9, LABELS),
        r"60 of 60 are not: .*\(floats that are not in \[0, 1\]\)",
    ),
    "two channels": (lambda: TensorDataset(IMAGES[:, :2], LABELS), r"of shape \(2, 5, 6\), and not of 1 or 3 channels"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_what_is_wrong_with_a_function_is_one_line(mistake: str, my_data: Any) -> None:
    my_data.pets, message = BAD[mistake]
    with pytest.raises(BadInput, match=message):
        load_dataset("my_data:pets")


def test_what_is_no_such_function_is_told_before_it_is_called(my_data: Any) -> None:
    my_data.pets, my_data.number = lambda: 1 / 0, 7
    with pytest.raises(
        BadInput, match=r"`task.dataset: my_data:number` must be a function that returns data sets, but is 7"
    ):
        check_dataset("my_data:number")
    with pytest.raises(
        BadInput, match=r"`task.dataset: my_data:pets` takes no `root`, but got task.root; leave it out"
    ):
        check_dataset("my_data:pets", root=Path("/"))
    with pytest.raises(BadInput, match=r"`task.dataset: nowhere:pets` must be something that can be imported"):
        check_dataset("nowhere:pets")
