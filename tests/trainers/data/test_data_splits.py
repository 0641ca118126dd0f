import random

import numpy as np
import pytest
import torch

from spaces.errors import BadInput
from trainers.data import Dataset, Split
from trainers.data.splits import limit_train, split_off


def numbered(labels: torch.Tensor) -> Split:
    """Images that hold their own number, so that one can see where each went."""
    number = torch.arange(len(labels))
    return Split(torch.stack([number // 256, number % 256], dim=1).to(torch.uint8)[:, :, None, None], labels)


def numbers(split: Split) -> list[int]:
    return [256 * high + low for high, low in split.images.flatten(1).tolist()]


LABELS = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)


def test_rest_and_taken_are_disjoint_and_together_the_whole() -> None:
    rest, taken = split_off(numbered(LABELS), 0.1, "made")
    assert sorted(numbers(rest) + numbers(taken)) == list(range(1000))


def test_each_image_keeps_its_label() -> None:
    for part in split_off(numbered(LABELS), 0.1, "made"):
        assert torch.equal(part.labels, LABELS[numbers(part)])


@pytest.mark.parametrize(("taken", "expected"), [(0.1, [60, 30, 10]), (0.2, [120, 60, 20]), (100, [60, 30, 10])])
def test_each_class_is_taken_in_proportion(taken: float, expected: list[int]) -> None:
    part = split_off(numbered(LABELS), taken, "made")[1]
    assert torch.bincount(part.labels).tolist() == expected


def test_a_share_is_rounded_up_to_whole_images() -> None:
    rest, taken = split_off(numbered(torch.tensor([0, 1] * 8 + [0])), 0.2, "made")  # 3.4 of 17
    assert (len(rest), len(taken)) == (13, 4)


def test_a_split_depends_on_the_labels_only_and_not_on_global_seeds() -> None:
    expected = [numbers(part) for part in split_off(numbered(LABELS), 0.1, "made")]
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        assert [numbers(part) for part in split_off(numbered(LABELS), 0.1, "another")] == expected


def test_splitting_leaves_the_global_generators_as_they_were() -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    split_off(numbered(LABELS), 0.1, "made")
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # type: ignore[index]


def test_the_seeded_order_is_not_the_order_of_the_files() -> None:
    rest, taken = split_off(numbered(LABELS), 0.1, "made")
    for part in (rest, taken):
        assert numbers(part) != sorted(numbers(part))
        assert set(part.labels[:20].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("labels", [[0] * 10 + [1], [0, 1, 2] * 3], ids=["a class of one image", "too few to take"])
def test_too_few_images_of_a_class_say_so_in_one_line(labels: list[int]) -> None:
    why = "(1 of 2 classes have one image: 1|of 9 images 1 would be taken .*)"
    message = rf"^made must have images enough .*, but {why}; add images, or folders .*$"
    with pytest.raises(BadInput, match=message) as caught:
        split_off(numbered(torch.tensor(labels)), 0.1, "made")
    assert "\n" not in str(caught.value)


def dataset() -> Dataset:
    other = numbered(torch.tensor([0, 1, 2]))
    return Dataset("made", ("a", "b", "c"), numbered(LABELS), other, other)


def test_a_train_limit_keeps_that_many_in_the_same_proportions_and_leaves_the_rest_alone() -> None:
    whole = dataset()
    limited = limit_train(whole, 50)
    assert torch.bincount(limited.train.labels).tolist() == [30, 15, 5]
    assert len(set(numbers(limited.train))) == 50
    assert torch.equal(limited.train.labels, LABELS[numbers(limited.train)])
    assert limited.validation is whole.validation
    assert limited.test is whole.test
    assert (limited.name, limited.classes) == ("made", 3)


def test_a_train_limit_keeps_the_same_images_every_time() -> None:
    first = numbers(limit_train(dataset(), 50).train)
    torch.manual_seed(7)
    np.random.seed(7)
    assert numbers(limit_train(dataset(), 50).train) == first


@pytest.mark.parametrize("limit", [3, 997])
def test_the_least_and_the_largest_train_limit_work(limit: int) -> None:
    assert len(limit_train(dataset(), limit).train) == limit


@pytest.mark.parametrize("limit", [-5, 0, 2, 998, 1000, 5000])
def test_a_train_limit_out_of_range_is_refused(limit: int) -> None:
    message = (
        rf"^3 <= task.train_limit <= 997 must hold for made \(3 classes, 1000 train images\), but got {limit}; "
        "leave it out to train on all$"
    )
    with pytest.raises(BadInput, match=message):
        limit_train(dataset(), limit)
