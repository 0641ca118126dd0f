"""Measurements against counts by hand and sums in NumPy."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spaces import Student
from trainers import METRICS, Task, measure
from trainers.data.dataset import Split
from trainers.families import build
from trainers.loop import Diverged
from trainers.measure import EVALUATION_BATCH, best, cost, predictions, quality, worst
from trainers.store import weights_bytes


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 5, 7)
    )


def test_multiply_adds_and_parameters_are_those_one_counts_by_hand(tmp_path: Path) -> None:
    # 4x5 places times 3x3x2 inputs for each of 3 channels; then 60 inputs for each of 7 outputs
    found = cost(small(), (2, 4, 5))
    assert found["macs"] == 4 * 5 * 3 * (3 * 3 * 2) + 60 * 7
    assert found["parameters"] == 3 * 2 * 9 + 2 * 3 + 60 * 7 + 7
    file = tmp_path / "weights.safetensors"
    file.write_bytes(weights_bytes(small()))
    assert found["size_bytes"] == file.stat().st_size


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
    found = quality(logits, labels)
    assert found["accuracy"] == np.mean(z.argmax(1) == y)
    assert 0 < found["accuracy"] < 1
    assert found["nll"] == pytest.approx(-np.log(p[np.arange(50), y]).mean(), rel=1e-12)


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
    found = predictions(network, data)
    assert network.training  # the mode is put back
    assert not found.requires_grad
    with torch.no_grad():
        expected = torch.cat([network.eval()(image[None].float() / 255) for image in data.images])
    torch.testing.assert_close(found, expected)


def test_every_measurement_is_taken_and_described(task: Task) -> None:
    found = measure(task.teacher, task.data.validation)
    assert list(found) == list(METRICS)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
    assert found["parameters"] == sum(p.numel() for p in task.teacher.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_no_numbers_are_not_measured(value: float) -> None:
    logits = torch.zeros(3, 2)
    logits[1, 0] = value
    with pytest.raises(Diverged, match="a network's outputs must be finite, but are not"):
        quality(logits, torch.zeros(3).long())


@pytest.mark.parametrize("name", METRICS)
def test_the_worst_and_the_best_are_on_the_right_sides(name: str) -> None:
    teacher = {"accuracy": 0.9, "nll": 0.3, "parameters": 5000.0, "macs": 1e5, "size_bytes": 20000.0}
    low, high = worst(name, teacher, 10), best(name)
    assert (low < high) if METRICS[name].direction == "max" else (low > high)
    assert METRICS[name].scale == "linear" or high > 0


def test_guessing_has_the_worst_likelihood() -> None:
    guessed: Tensor = torch.zeros(20, 10)
    assert worst("nll", {}, 10) == pytest.approx(quality(guessed, torch.arange(20) % 10)["nll"])
