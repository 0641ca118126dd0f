"""Measurements against counts by hand and sums in NumPy."""

import math
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import Tensor, nn

from spaces import Student
from trainers import METRICS, Task
from trainers.data.dataset import Split
from trainers.data.splits import wilson
from trainers.families import DeepEnsemble, build
from trainers.loop import Diverged
from trainers.measure import (
    EVALUATION_BATCH,
    all_quality,
    batch_size,
    cost,
    ensemble_nlls,
    in_batches,
    measure,
    predictions,
    quality,
    timings,
)
from trainers.metrics import Direction, deep_ensemble_equivalent
from trainers.predictions import Predictions, fitted_temperature
from trainers.spectral import spectralize
from trainers.store import weights_bytes


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 5, 7)
    )


def test_multiply_adds_and_parameters_are_those_one_counts_by_hand(tmp_path: Path) -> None:
    # 4x5 places times 3x3x2 inputs for each of 3 channels; then 60 inputs for each of 7 outputs
    actual = cost(small(), (2, 4, 5))
    assert actual["macs"] == 4 * 5 * 3 * (3 * 3 * 2) + 60 * 7
    assert actual["parameters"] == 3 * 2 * 9 + 2 * 3 + 60 * 7 + 7
    file = tmp_path / "weights.safetensors"
    file.write_bytes(weights_bytes(small()))
    assert actual["size_bytes"] == file.stat().st_size


def test_multiply_adds_of_strided_and_grouped_convolutions_are_counted_where_they_are_done() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2))
    assert cost(network, (4, 6, 6))["macs"] == 3 * 3 * 8 * (3 * 3 * 2)


def test_a_resnets_multiply_adds_are_those_one_counts_by_hand() -> None:
    # resnet 8 of quarter width on 8x8: 4 channels at 8x8, 8 at 4x4, 16 at 2x2
    network = build(Student(depth=8, width=0.25), (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    by_hand = 64 * 9 * (1 * 4 + 4 * 4 + 4 * 4)
    by_hand += 16 * (9 * (4 * 8 + 8 * 8) + 4 * 8) + 4 * (9 * (8 * 16 + 16 * 16) + 8 * 16) + 16 * 10
    assert cost(network, (1, 8, 8))["macs"] == by_hand


def test_accuracy_and_likelihood_are_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator) * 5
    labels = torch.randint(4, (50,), generator=generator)
    z, y = logits.double().numpy(), labels.numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    actual = quality(logits, labels)
    assert actual["accuracy"] == np.mean(z.argmax(1) == y)
    assert 0 < actual["accuracy"] < 1
    assert actual["nll"] == pytest.approx(-np.log(p[np.arange(50), y]).mean(), rel=1e-12)


def test_every_image_of_a_split_is_predicted_in_its_place_whatever_the_batch() -> None:
    count = EVALUATION_BATCH + 3
    generator = torch.Generator().manual_seed(0)
    data = Split(
        torch.randint(256, (count, 2, 4, 5), generator=generator, dtype=torch.uint8), torch.zeros(count).long()
    )
    network = small().train()
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean, m.running_var = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    actual = predictions(network, data)
    assert network.training  # the mode is put back
    assert not actual.requires_grad
    with torch.no_grad():
        expected = torch.cat([network.eval()(image[None].float() / 255) for image in data.images])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("student", [Student(), Student(family="mlp"), Student(family="mobilenetv2", members=2)])
def test_a_network_with_large_maps_is_given_fewer_images_and_predicts_the_same(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A residual network to the bit; others but for rounding, as they are linear or channelwise."""
    shape = (3, 16, 20)
    network = spectralize(build(student, shape, 10, generator=torch.Generator().manual_seed(0)), keep=["classifier"])
    images = torch.randint(256, (70, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    data = Split(images, torch.zeros(70).long())
    whole = predictions(network, data)
    each = 2**40 // batch_size(network, shape, 2**40, most=2**40)  # numbers in the largest map of an image
    assert student.family != "resnet" or each == 16 * 16 * 20
    monkeypatch.setattr("trainers.measure.LARGEST_MAP", 33 * each + 7)
    seen: list[int] = []
    network.normalize.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    torch.testing.assert_close(
        predictions(network, data), whole, rtol=0.0, atol=0.0 if student.family == "resnet" else 1e-5
    )
    assert [count // network.members for count in seen] == [1, 2, 24, 23, 23]
    assert network.training


def test_how_large_a_batch_may_be_follows_from_what_grows_with_it() -> None:
    """Weights do not: here 300 x 300 of them, and 4 x 5 x 6 numbers of an image's map."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.convolution = nn.Parameter(torch.zeros(300, 300)), nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.convolution(images).sum((2, 3)) + (2 * self.weight).sum()

    assert batch_size(Wide(), (3, 5, 6), 1200) == 10
    assert batch_size(Wide(), (3, 5, 6), 1199) == 9
    assert batch_size(Wide(), (3, 5, 6), 1) == 1
    assert batch_size(Wide(), (3, 5, 6)) == EVALUATION_BATCH
    assert batch_size(Wide(), (3, 5, 6), most=1024) == 1024


@pytest.mark.parametrize(("count", "size", "parts"), [(70, 33, [24, 23, 23]), (40, 40, [40]), (5, 9, [5]), (0, 9, [0])])
def test_parts_of_a_split_are_evenly_large(count: int, size: int, parts: list[int]) -> None:
    assert [len(part) for part in in_batches(torch.arange(count), size)] == parts
    assert [len(part) for part in in_batches(torch.arange(EVALUATION_BATCH + 2), EVALUATION_BATCH)] == [512, 2]


def test_every_measurement_is_taken_and_described(task: Task) -> None:
    actual = measure(task.teacher, task.data.validation, ensemble_nlls=task.curve)
    assert list(actual) == [name for name, row in METRICS.items() if not row.timed]
    assert actual == task.teacher_measurements
    assert actual["deep_ensemble_equivalent"] == 1.0  # a single network is as good as itself
    assert actual["diversity"] == 0.0
    assert all(isinstance(value, float) and math.isfinite(value) for value in actual.values())
    assert actual["parameters"] == sum(p.numel() for p in task.teacher.parameters())


def test_latency_is_the_time_of_one_image_in_milliseconds() -> None:
    class Slow(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape == (1, 1, 2, 2)
            assert not self.training
            time.sleep(0.003)
            return super().forward(images.flatten(1))

    network = Slow(4, 3).train()
    assert 3.0 <= timings(network, (1, 2, 2))["latency_ms"] < 300.0
    assert network.training


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_no_numbers_are_not_measured(value: float) -> None:
    logits = torch.zeros(3, 2)
    logits[1, 0] = value
    with pytest.raises(Diverged, match="a network's outputs must be finite, but are not"):
        quality(logits, torch.zeros(3).long())


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("name", METRICS)
def test_the_worst_and_the_best_are_on_the_right_sides(name: str, direction: Direction) -> None:
    teacher = {"accuracy": 0.9, "nll": 0.3, "parameters": 5000.0, "macs": 1e5, "size_bytes": 20000.0, "latency_ms": 0.7}
    wanted = METRICS[name].direction or direction
    low, high = METRICS[name].ends(wanted, teacher.get(name, math.nan), 10)
    assert (low < high) if wanted == "max" else (low > high)
    assert METRICS[name].scale == "linear" or high > 0


@pytest.mark.parametrize("lacking", [(), (1,), (0, 3)], ids=str)
def test_means_over_classes_are_scikit_learns(lacking: tuple[int, ...]) -> None:
    """Also where classes do not occur, but are predicted."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.multinomial(torch.tensor([0.6, 0.2, 0.15, 0.05]), 200, replacement=True, generator=generator)
    labels = labels[~torch.isin(labels, torch.tensor(lacking))] if lacking else labels
    logits = torch.randn(len(labels), 4, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 4)
    taken, actual = logits.argmax(1), quality(logits, labels, ("accuracy", "balanced_accuracy", "macro_f1"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        assert actual["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, taken))
    assert actual["macro_f1"] == pytest.approx(f1_score(labels, taken, average="macro", zero_division=0.0))
    assert len({round(value, 3) for value in actual.values()}) == 3


def test_a_class_that_neither_occurs_nor_is_predicted_counts_for_nothing() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    assert quality(logits, torch.tensor([0, 0, 1]), ("balanced_accuracy", "macro_f1")) == {
        "balanced_accuracy": 1.0,
        "macro_f1": 1.0,
    }


def test_guesses_reach_the_worst_end_of_means_over_classes() -> None:
    """In proportion to the classes' shares of images; always the same class reaches it for the mean recall, too."""
    counts = torch.tensor([60, 30, 10])
    labels = torch.arange(3).repeat_interleave(counts).repeat(100)
    taken = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    guessed = quality(torch.nn.functional.one_hot(taken, 3).float(), labels, ("balanced_accuracy", "macro_f1"))
    constant = quality(torch.tensor([[1.0, 0.0, 0.0]]).expand(len(labels), 3), labels, tuple(guessed))
    for name, value in guessed.items():
        worst, best = METRICS[name].ends("max", math.nan, 3)
        assert value == pytest.approx(worst, abs=0.01)
        assert constant[name] <= worst + 1e-12
        assert best == 1.0


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (0, 40), (40, 40), (31, 40), (9876, 10_000)])
def test_the_interval_of_a_share_is_scipys(right: int, images: int) -> None:
    low, high = wilson(right / images, images)
    assert 0.0 <= low < high <= 1.0
    assert (low, high) == pytest.approx([*binomtest(right, images).proportion_ci(method="wilson")], abs=1e-12)


def test_guessing_has_the_worst_likelihood_and_brier_score() -> None:
    guessed: Tensor = torch.zeros(20, 10)
    labels = torch.arange(20) % 10
    measured = quality(guessed, labels, ("nll", "brier", "entropy"))
    for name, value in measured.items():
        assert METRICS[name].ends("min", math.nan, 10)[0] == pytest.approx(value)


def members(count: int, images: int = 60, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits (count, images, classes) that are right more often than not, and too sure of it; labels (images,)."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(classes, (images,), generator=generator)
    noise = 2.0 * torch.randn(count, images, classes, generator=generator)
    return 3.0 * (noise + 2.0 * torch.nn.functional.one_hot(labels, classes)), labels


def probabilities(logits: Tensor) -> np.ndarray:
    z = logits.double().numpy()
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def test_brier_score_and_calibration_error_are_numpys() -> None:
    logits, labels = members(1)[0][0], members(1)[1]
    p, y = probabilities(logits), labels.numpy()
    actual = quality(logits, labels, ("brier", "ece"))
    assert actual["brier"] == pytest.approx(((p - np.eye(4)[y]) ** 2).sum(1).mean())
    confidence, right = p.max(1), p.argmax(1) == y
    gap = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap += abs(confidence[inside].mean() - right[inside].mean()) * inside.mean()
    assert gap > 0.05
    assert actual["ece"] == pytest.approx(gap, abs=1e-6)


def test_the_fitted_temperature_beats_every_other_on_a_grid() -> None:
    logits, labels = members(1)[0][0], members(1)[1]
    tau = fitted_temperature(logits, labels)
    assert tau > 1.5  # they were made too sure
    grid = [quality(logits / t, labels)["nll"] for t in np.geomspace(0.05, 20, 200)]
    assert quality(logits / tau, labels)["nll"] <= min(grid) + 1e-6
    actual = all_quality(Predictions(logits[None], labels))
    assert actual["calibrated_nll"] == pytest.approx(quality(logits.double() / tau, labels)["nll"])
    assert actual["calibrated_ece"] < actual["ece"]
    assert actual["calibrated_brier"] < actual["brier"]
    as_it_is = all_quality(Predictions(logits[None], labels, temperature=1.0))
    assert as_it_is["calibrated_ece"] == pytest.approx(actual["ece"])


def test_outputs_that_are_always_right_keep_a_finite_temperature() -> None:
    labels = torch.arange(20) % 4
    assert 0.05 <= fitted_temperature(30.0 * torch.nn.functional.one_hot(labels, 4), labels) < 1.0


def test_diversity_and_entropy_are_numpys_over_the_mean_probabilities() -> None:
    logits, labels = members(3)
    p = probabilities(logits)
    pairs = [(p[j] * np.log(p[j] / p[i])).sum(1).mean() for i in range(3) for j in range(3) if i != j]
    actual = all_quality(Predictions(logits, labels))
    assert actual["diversity"] == pytest.approx(np.mean(pairs))
    mean = p.mean(0)
    assert actual["entropy"] == pytest.approx(-(mean * np.log(mean)).sum(1).mean())
    assert actual["brier"] == pytest.approx(((mean - np.eye(4)[labels.numpy()]) ** 2).sum(1).mean())
    same = all_quality(Predictions(logits[:1].repeat(3, 1, 1), labels))
    assert same["diversity"] == pytest.approx(0.0, abs=1e-12)


def test_members_average_their_probabilities(task: Task) -> None:
    ensemble = DeepEnsemble([build(Student(depth=8, width=0.25), (1, 8, 8), 10, generator=seeded(i)) for i in range(3)])
    split = task.data.validation
    actual = predictions(ensemble, split)
    mean = torch.stack([predictions(network, split).double().softmax(1) for network in ensemble.networks]).mean(0)
    torch.testing.assert_close(actual.double().exp(), mean, rtol=1e-5, atol=1e-6)


def test_an_ensemble_is_worth_as_many_members_as_reach_its_likelihood() -> None:
    teacher = (0.5, 0.4, 0.35)
    expected = {0.6: 0.0, 0.5: 1.0, 0.45: 1.5, 0.4: 2.0, 0.36: 2.8, 0.35: 3.0, 0.1: 3.0}
    assert {nll: deep_ensemble_equivalent(nll, teacher) for nll in expected} == pytest.approx(expected)
    assert deep_ensemble_equivalent(0.4, (0.5, 0.4, 0.4)) == 2.0  # a member more that gains nothing


def test_the_likelihood_of_an_ensemble_falls_from_its_members_mean_to_the_whole() -> None:
    logits, labels = members(4)
    nlls = ensemble_nlls(logits, labels)
    ones = [quality(member, labels, ["calibrated_nll"])["calibrated_nll"] for member in logits]
    assert len(nlls) == 4
    assert nlls[0] == pytest.approx(np.mean(ones))
    assert nlls[3] == pytest.approx(all_quality(Predictions(logits, labels))["calibrated_nll"])
    assert list(nlls) == sorted(nlls, reverse=True)
    assert nlls[3] < nlls[0]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
