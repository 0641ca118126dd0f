import hashlib
import random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from trainers.data import Dataset, load_dataset


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_there_are_1077_train_360_validation_and_360_test_images_of_8_by_8(digits: Dataset) -> None:
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1077, 360, 360)
    assert (digits.name, digits.classes, digits.image_shape) == ("digits", 10, (1, 8, 8))


def test_the_three_splits_are_a_partition_of_scikit_learns_images(digits: Dataset) -> None:
    source = load_digits()
    grey = np.round(source.images / 16 * 255).astype(int)
    expected = [(image.tolist(), int(label)) for image, label in zip(grey, source.target, strict=True)]
    actual = [
        (image.tolist(), label)
        for split in (digits.train, digits.validation, digits.test)
        for image, label in zip(split.images[:, 0], split.labels.tolist(), strict=True)
    ]
    assert sorted(actual) == sorted(expected)


def test_grey_goes_from_0_to_255(digits: Dataset) -> None:
    assert set(digits.train.images.flatten().tolist()) == {round(v * 255 / 16) for v in range(17)}


def test_each_class_has_its_share_of_each_split(digits: Dataset) -> None:
    total = sum(torch.bincount(s.labels, minlength=10) for s in (digits.train, digits.validation, digits.test))
    for split in (digits.train, digits.validation, digits.test):
        share = torch.bincount(split.labels, minlength=10) - total * len(split) / 1797
        assert share.abs().max() < 1.5  # two roundings of 0.5 one after the other, and what rounding a share up adds


def test_the_split_is_the_one_that_all_published_numbers_stand_on(digits: Dataset) -> None:
    """A change here (of ours or of scikit-learn's) makes old results of `digits` incomparable with new ones."""
    digest = hashlib.sha256()
    for split in (digits.train, digits.validation, digits.test):
        digest.update(split.images.numpy().tobytes())
        digest.update(split.labels.numpy().astype("<i8").tobytes())
    assert digest.hexdigest() == "c9050821b2b69dba69d35d3cd2423d6e6af324e9217ff6daba8732ccffca4077"


def test_global_seeds_change_nothing(digits: Dataset) -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        again = load_dataset("digits")
        for which, array in again.arrays().items():
            np.testing.assert_array_equal(array, digits.arrays()[which])


def test_a_train_limit_leaves_validation_and_test_whole(digits: Dataset) -> None:
    limited = load_dataset("digits", train_limit=200)
    assert (len(limited.train), len(limited.validation), len(limited.test)) == (200, 360, 360)
    assert torch.bincount(limited.train.labels).min() >= 19
    assert torch.equal(limited.test.images, digits.test.images)
    rows = {image.numpy().tobytes() for image in digits.train.images}
    assert all(image.numpy().tobytes() in rows for image in limited.train.images)
