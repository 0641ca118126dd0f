"""Weights fitted after a cut: against NumPy's least squares, and where the units that go can be made up for."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainers.spectral.reconstruction as reconstruction
from spaces import Student
from trainers.families import Network, build
from trainers.spectral import cut, fold, plan, recalibrate, spectralize, trace
from trainers.spectral.reconstruction import CLASSIFIER_RIDGE, RIDGE, reconstruct
from trainers.store import weights_bytes

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(40, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def randomised(network: nn.Module) -> nn.Module:
    """Weights of a size that keeps values near 1, and batch norms that have seen something."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(drawn(*module.weight.shape) / math.sqrt(module.weight[0].numel()))
            if (
                isinstance(module, nn.BatchNorm2d)
                and module.running_mean is not None
                and module.running_var is not None
            ):
                module.running_mean.copy_(0.1 * drawn(module.num_features))
                module.running_var.copy_(0.5 + drawn(module.num_features).square())
    return network.eval()


def silenced(network: nn.Sequential, layer: int, channels: list[int]) -> nn.Sequential:
    """A copy in which some outputs of a layer are 0."""
    silent = fold(network)
    made = silent[layer]
    assert isinstance(made, nn.Conv2d | nn.Linear)
    with torch.no_grad():
        made.weight[channels] = 0.0
        if made.bias is not None:
            made.bias[channels] = 0.0
    return silent


def ridge_regression(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(O, n) as the solution of a taller system: rows x for y, and rows of the ridge for the old weight."""
    size = math.sqrt(RIDGE * np.square(x).mean() * x.shape[1])
    tall = np.concatenate([x, size * np.eye(x.shape[1])])
    solution: np.ndarray = np.linalg.lstsq(tall, np.concatenate([y, size * weight.T]), rcond=None)[0].T
    return solution


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_is_fitted_by_least_squares(groups: int) -> None:
    last = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups)
    whole = randomised(nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), last))
    assert isinstance(whole, nn.Sequential)
    silent = silenced(whole, 0, [1])
    reconstruct(silent, whole, IMAGES, {"0": [1]})
    with torch.no_grad():
        y, hidden = whole(IMAGES), silenced(whole, 0, [1])[:2](IMAGES)
    fitted = silent[2]
    assert isinstance(fitted, nn.Conv2d)
    assert fitted.bias is not None
    for group in range(groups):
        ins, outs = (
            slice(4 // groups * group, 4 // groups * (group + 1)),
            slice(8 // groups * group, 8 // groups * (group + 1)),
        )
        rows = []
        padded = F.pad(hidden[:, ins], (1, 1, 1, 1)).double().numpy()
        for image in padded:
            for i in range(3):
                for j in range(3):
                    rows.append([*image[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].ravel(), 1.0])
        wanted = y[:, outs].double().movedim(1, -1).reshape(-1, 8 // groups).numpy()
        old = torch.cat([last.weight[outs].flatten(1), last.bias[outs, None]], 1).detach().double().numpy()  # type: ignore[index]
        expected = ridge_regression(np.array(rows), wanted, old)
        np.testing.assert_allclose(fitted.weight[outs].detach().flatten(1).numpy(), expected[:, :-1], atol=1e-5)
        np.testing.assert_allclose(fitted.bias[outs].detach().numpy(), expected[:, -1], atol=1e-5)


def test_a_later_layer_is_fitted_on_what_the_earlier_fitted_ones_make() -> None:
    whole = randomised(
        nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU())
    )
    assert isinstance(whole, nn.Sequential)
    silent = silenced(whole, 1, [0, 5, 6])
    reconstruct(silent, whole, IMAGES, {"1": [0, 5, 6]})
    last, old = silent[5], whole[5]
    assert isinstance(last, nn.Linear)
    assert isinstance(old, nn.Linear)
    with torch.no_grad():
        x = torch.cat([silent[:5](IMAGES), torch.ones(40, 1)], 1).double().numpy()
        weight = torch.cat([old.weight, old.bias[:, None]], 1).double().numpy()
        expected = ridge_regression(x, whole[:6](IMAGES).double().numpy(), weight)
    np.testing.assert_allclose(last.weight.detach().numpy(), expected[:, :-1], atol=1e-5)
    np.testing.assert_allclose(last.bias.detach().numpy(), expected[:, -1], atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_last_linear_layer_is_fitted_to_probabilities(bias: bool) -> None:
    whole = randomised(
        nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 4, bias=bias), nn.Flatten(0))
    )
    assert isinstance(whole, nn.Sequential)
    whole[3].weight.data *= 3.0
    least_squares, fitted = silenced(whole, 1, [0, 5, 6]), silenced(whole[:4], 1, [0, 5, 6])
    reconstruct(least_squares, whole, IMAGES, {"1": [0, 5, 6]})  # whose outputs are no linear layer's
    reconstruct(fitted, whole[:4], IMAGES, {"1": [0, 5, 6]})
    with torch.no_grad():
        x = fitted[:3](IMAGES).double().numpy()
        wanted = whole[:4](IMAGES).softmax(1).double().numpy()
        actual = fitted(IMAGES).softmax(1).double().numpy()
        before = least_squares[:4](IMAGES).softmax(1).double().numpy()
    assert -(wanted * np.log(actual)).sum() < -(wanted * np.log(before)).sum()
    ridge = 2 * CLASSIFIER_RIDGE * np.square(x).mean()
    for name, slope in (("weight", (actual - wanted).T @ x / len(x)), ("bias", (actual - wanted).mean(0))):
        if name == "weight" or bias:
            moved = (getattr(fitted[3], name) - getattr(least_squares[3], name)).detach().double().numpy()
            np.testing.assert_allclose(slope + ridge * moved, 0.0, atol=1e-4)  # the convex problem's one minimum
            assert np.abs(slope).max() > 1e-3 or np.abs(moved).max() > 1e-3


def test_only_what_is_made_of_lost_inputs_changes() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3))
    whole = randomised(network)
    assert isinstance(whole, nn.Sequential)
    silent = silenced(whole, 0, [2]).train()
    silent[4].eval()
    before, modes = weights_bytes(whole), [module.training for module in silent.modules()]
    old = {name: tensor.clone() for name, tensor in silent.state_dict().items()}
    reconstruct(silent, whole, IMAGES, {"0": [2]})
    assert weights_bytes(whole) == before
    assert [module.training for module in silent.modules()] == modes
    assert [module.momentum for module in silent.modules() if isinstance(module, nn.BatchNorm2d)] == [0.1, 0.1]
    new = silent.state_dict()
    torch.testing.assert_close(new["0.weight"], old["0.weight"])
    assert not new["0.weight"][2].any()
    assert not new["0.bias"][2].any()
    assert not torch.allclose(new["3.weight"], old["3.weight"], atol=1e-3)
    for name in ("running_mean", "running_var", "weight", "bias"):
        assert torch.equal(new[f"4.{name}"], old[f"4.{name}"])


@pytest.mark.parametrize("family", ["resnet", "mlp"])
@pytest.mark.parametrize("members", [1, 2])
def test_a_twin_is_made_up_for(family: str, members: int) -> None:
    """Every second unit is a copy of the one before it; without it the network can do what it did."""
    student = Student(family=family, depth=8 if family == "resnet" else 3, width=0.5, members=members)
    network = build(student, (1, 8, 8), 10, generator=torch.Generator().manual_seed(0)).eval()
    images = torch.rand(1024, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    alphas = [name for name, _ in network.named_parameters() if name.endswith("alpha")]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in alphas[:1] or (network.heads[0] in name and name not in alphas):
                continue  # what belongs to pixels, or to outputs
            units = 1 if members > 1 and parameter.dim() == 2 and not name.endswith("weight") else 0
            even = parameter.index_select(units, torch.arange(0, parameter.shape[units], 2))
            parameter.copy_(even.repeat_interleave(2, units))
    recalibrate(network, [images])
    spectral = spectralize(network, keep=network.heads)
    cuts = plan(trace(spectral, (1, 8, 8)), 0.5, floor=0.0, scope="layer")
    every_second = (replace(step, removed=tuple(range(1, step.units, 2))) for step in cuts.cuts)
    odd = replace(cuts, cuts=tuple(every_second))
    with torch.no_grad():
        wanted = fold(spectral).eval()(images)
        lost = cut(spectral, odd)(images)
        fitted = cut(spectral, odd, images=images)
        recalibrate(fitted, [images])
        actual = fitted.eval()(images)
    size = float((wanted - wanted.mean(0)).norm())
    assert float((actual - wanted).norm()) < 0.15 * size < 0.3 * float((lost - wanted).norm())


def trained() -> Network:
    network = build(Student(depth=8, width=0.25), (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    return spectralize(network, keep=network.heads)


def test_large_maps_are_fitted_to_at_some_places_only(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = trained(), torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    cuts = plan(trace(network, (1, 8, 8)), 0.5, floor=0.1)
    with torch.no_grad():
        wanted = fold(network).eval()(images)
        lost = cut(network, cuts).eval()(images)
        everywhere = cut(network, cuts, images=images).eval()
        monkeypatch.setattr(reconstruction, "ROWS", 2000)
        here_and_there = cut(network, cuts, images=images).eval()
        assert weights_bytes(everywhere) != weights_bytes(here_and_there)
        for fitted in (everywhere, here_and_there):
            assert float((fitted(images) - wanted).norm()) < 0.9 * float((lost - wanted).norm())


def test_the_same_images_give_the_same_weights() -> None:
    network = trained()
    cuts = plan(trace(network, (1, 8, 8)), 0.4, floor=0.1)
    images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    one, other = (cut(network, cuts, images=images) for _ in range(2))
    assert weights_bytes(one) == weights_bytes(other)


def test_layers_that_are_used_twice_or_see_nothing_are_no_obstacle() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding="same")
            self.again, self.unused, self.last = nn.Conv2d(6, 6, 1), nn.Linear(3, 3), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            x = F.relu(self.again(F.relu(self.again(F.relu(self.shared(x))))))
            actual: Tensor = self.last(x.mean((2, 3)))
            return actual

    network = spectralize(Twice(), keep=["last"])
    cuts = plan(trace(network, (1, 8, 8)), 0.4, floor=0.1)
    smaller = cut(network, cuts, images=torch.zeros(7, 1, 8, 8))
    assert all(p.isfinite().all() for p in smaller.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_is_no_numbers_is_left_as_it_is(value: float) -> None:
    network = trained()
    with torch.no_grad():
        next(p for name, p in network.named_parameters() if p.dim() == 1).fill_(value)
    cuts = plan(trace(network, (1, 8, 8)), 0.0, floor=0.1)
    cut(network, cuts, images=torch.rand(9, 1, 8, 8))
