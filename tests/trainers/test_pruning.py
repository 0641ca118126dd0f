"""What is cut: as many units as asked for, the least relevant ones, and the cut network is the masked one."""

import math
import random
from decimal import Decimal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces import Student
from trainers.families import Network, build
from trainers.spectral import Plan, cut, fold, importances, mask, plan, rescale, spectralize, trace
from trainers.spectral.layers import SpectralLinear, spectral_layers
from trainers.store import weights_bytes
from trainers.task import Task

GREY = (1, 8, 8)


def spectral(student: Student, shape: tuple[int, int, int] = GREY, seed: int = 0) -> Network:
    """A spectral network in which every number is drawn: eigenvalues, biases, batch norms and their statistics."""
    generator = torch.Generator().manual_seed(seed)
    network = build(student, shape, 10, generator=generator)
    network = spectralize(network, keep=network.heads)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith(("running_var", "norm.std", "normalize.std")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and tensor.dim() == 1 and not name.endswith("eigenvalues_in"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return network.eval()


def images(count: int, shape: tuple[int, int, int] = GREY) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(3))


def assert_masked_is_cut(network: Network, planned: Plan, shape: tuple[int, int, int] = GREY) -> None:
    masked, smaller = (how(network, planned).eval() for how in (mask, cut))
    with torch.no_grad():
        expected, actual = masked(images(16, shape)), smaller(images(16, shape))
    # sums over fewer terms round differently; in units of the logits' size
    assert float((expected - actual).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    if planned.removed:
        assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in masked.parameters())


STUDENTS = [
    Student(family="resnet", depth=8, width=0.25),
    Student(family="resnet", depth=8, width=0.01),
    Student(family="resnet", depth=14, width=0.5),
    Student(family="resnet", depth=20, width=0.125),
    Student(family="resnet", depth=14, width=0.25, members=3),
    Student(family="mlp", depth=3, width=0.125, members=2),
    Student(family="mlp", depth=2, width=0.125),
    Student(family="mlp", depth=3, width=0.01),
    Student(family="mlp", depth=5, width=0.25),
]


@pytest.mark.parametrize("student", STUDENTS, ids=lambda s: f"{s.family}{s.depth}x{s.width} of {s.members}")
def test_masked_and_cut_networks_agree_at_any_fraction(student: Student) -> None:
    draw = random.Random(f"{student}")
    for seed, fraction in enumerate([0.0, 0.99, draw.random(), draw.random()]):
        network = spectral(student, seed=seed)
        floor = draw.choice([0.0, 0.1, 0.5])
        assert_masked_is_cut(network, plan(trace(network, GREY), fraction, floor=floor))


@pytest.mark.parametrize("family", ["resnet", "mlp"])
def test_masked_and_cut_networks_agree_on_colour_images_that_are_not_square(family: str) -> None:
    shape = (3, 8, 12)
    network = spectral(Student(family=family, depth=8, width=0.125), shape)
    assert_masked_is_cut(network, plan(trace(network, shape), 0.6, floor=0.1), shape)


@pytest.mark.parametrize("student", [STUDENTS[0], STUDENTS[6]], ids=["resnet", "mlp"])
def test_masked_and_cut_networks_agree_after_training(student: Student, task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    network = build(student, GREY, 10, generator=generator)
    network.set_normalization(*task.data.mean_std())
    network = spectralize(network, keep=network.heads).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        index = torch.randint(200, (32,), generator=generator)
        optimizer.zero_grad()
        logits = network(task.data.train.images[index] / 255)
        F.cross_entropy(logits, task.data.train.labels[index]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for fraction in (0.1, 0.5, 0.9, 0.99):
        assert_masked_is_cut(network.eval(), plan(trace(network, GREY), fraction, floor=0.05))


def test_units_that_are_coupled_count_once() -> None:
    # by hand, resnet 8 of 16/32/64 channels: in each group the first convolution alone, and with the second all that is
    # added to it (the stem in group 1, the shortcuts in groups 2 and 3)
    planned = plan(trace(spectral(Student(depth=8)), GREY), 0.0, floor=0.0)
    assert sorted(c.units for c in planned.cuts) == [16, 16, 32, 32, 64, 64]
    # resnet 14: one more first convolution a group
    planned = plan(trace(spectral(Student(depth=14)), GREY), 0.0, floor=0.0)
    assert sorted(c.units for c in planned.cuts) == sorted([16, 32, 64] * 3)
    # an mlp: its hidden layers
    planned = plan(trace(spectral(Student(family="mlp", depth=4, width=0.125)), GREY), 0.0, floor=0.0)
    assert [c.units for c in planned.cuts] == [32, 32, 32]


@pytest.mark.parametrize("student", [STUDENTS[0], STUDENTS[4], STUDENTS[6]], ids=["resnet", "mlp2", "mlp5"])
@pytest.mark.parametrize("floor", [0.0, 0.07, 0.1, 0.5, 1.0])
def test_the_fraction_is_cut_unless_the_floor_forbids_it(student: Student, floor: float) -> None:
    traced = trace(spectral(student), GREY)
    for fraction in (0.0, 0.01, 0.1, 0.29, 0.3, 0.57, 0.7, 0.9, 0.99):
        planned = plan(traced, fraction, floor=floor)
        stay = [max(1, math.ceil(Decimal(str(floor)) * c.units)) for c in planned.cuts]
        asked = math.floor(Decimal(str(fraction)) * planned.units)
        assert planned.removed == min(asked, planned.units - sum(stay))
        assert all(c.units - len(c.removed) >= least for c, least in zip(planned.cuts, stay, strict=True))
        assert all(len(set(c.removed)) == len(c.removed) for c in planned.cuts)


@pytest.mark.parametrize(("fraction", "units"), [(0.29, 29), (0.57, 57), (0.07, 7), (0.3, 30)])
def test_a_fraction_that_floats_cannot_say_exactly_is_the_decimal_that_was_written(fraction: float, units: int) -> None:
    network = spectral(Student(family="mlp", depth=2, width=100 / 256))
    assert plan(trace(network, GREY), fraction, floor=0.0).removed == units
    assert plan(trace(network, GREY), 0.99, floor=1 - units / 100).removed == units


@pytest.mark.parametrize("student", STUDENTS, ids=lambda s: f"{s.family}{s.depth}x{s.width} of {s.members}")
def test_every_layer_keeps_a_unit_at_the_largest_fraction(student: Student) -> None:
    network = spectral(student)
    smaller = cut(network, plan(trace(network, GREY), 1 - 1e-12, floor=0.0))
    assert all(min(p.shape) >= 1 for p in smaller.parameters())
    assert torch.isfinite(smaller.eval()(images(2))).all()


def test_the_least_relevant_units_of_all_layers_are_cut() -> None:
    network = spectral(Student(family="mlp", depth=3, width=4 / 256))
    importance = {"hidden.0.0": [0.9, 0.2, 1.0, 0.05], "hidden.1.0": [0.1, 1.0, 0.15, 0.5]}
    with torch.no_grad():
        for name, layer in spectral_layers(network):
            # the length of each unit's eigenvector differs, and so does its layer's scale: neither may count
            length = layer.eigenvectors.flatten(1).norm(dim=1)
            scale = 10.0 if name == "hidden.0.0" else 1e-3
            layer.eigenvalues_out.copy_(-scale * torch.tensor(importance[name]) / length)
    scores = importances(trace(network, GREY))
    for name, expected in importance.items():
        torch.testing.assert_close(scores[name], torch.tensor(expected))
    planned = plan(trace(network, GREY), 0.5, floor=0.0)
    assert {c.root: c.removed for c in planned.cuts} == {"hidden.0.0": (1, 3), "hidden.1.0": (0, 2)}
    planned = plan(trace(network, GREY), 0.25, floor=0.75)
    assert {c.root: c.removed for c in planned.cuts} == {"hidden.0.0": (3,), "hidden.1.0": (0,)}


def test_coupled_layers_share_the_mean_of_their_importances() -> None:
    network = spectral(Student(depth=8, width=0.25))
    coupled = [  # by hand: what is added to each other is one unit a channel
        ["stem.0", "groups.0.0.conv2"],
        ["groups.0.0.conv1"],
        ["groups.1.0.conv2", "groups.1.0.shortcut.0"],
        ["groups.1.0.conv1"],
        ["groups.2.0.conv2", "groups.2.0.shortcut.0"],
        ["groups.2.0.conv1"],
    ]
    scores = importances(trace(network, GREY))
    shares = {name: values / values.mean() for name, values in scores.items()}  # of their layer's mean
    score = {names[0]: torch.stack([shares[name] for name in names]).mean(0).tolist() for names in coupled}
    root = {name: names[0] for names in coupled for name in names}
    ranked = sorted((value, name, unit) for name, values in score.items() for unit, value in enumerate(values))
    for count in (3, 10, 20, 30):  # so few that every layer keeps a unit
        planned = plan(trace(network, GREY), count / 56, floor=0.0)
        removed = {(root[c.root], unit) for c in planned.cuts for unit in c.removed}
        assert removed == {(name, unit) for _, name, unit in ranked[:count]}


def test_what_a_batch_norm_undoes_does_not_change_the_rank() -> None:
    student = Student(depth=8, width=0.25)
    network, scaled = spectral(student), spectral(student)
    with torch.no_grad():
        layer = dict(spectral_layers(scaled))["groups.1.0.conv1"]
        norm = scaled.get_submodule("groups.1.0.norm1")
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # units up to eight times as large, and statistics that know it: the same function
        scale = torch.arange(8) + 1.0
        layer.eigenvalues_out.mul_(scale)
        norm.running_mean.mul_(scale)
        norm.running_var.mul_(scale.square())
    # but for the norm's eps, 1e-5 of a variance of 0.5 and more
    torch.testing.assert_close(scaled(images(4)), network(images(4)), rtol=1e-3, atol=1e-3)
    for name, importance in importances(trace(network, GREY)).items():
        torch.testing.assert_close(importances(trace(scaled, GREY))[name], importance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("members", [1, 3])
def test_rescaled_layers_have_the_size_that_they_begin_with_and_do_what_they_did(members: int) -> None:
    network = fold(spectral(Student(depth=8, width=0.25, members=members)))
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
        for number, layer in enumerate(convolutions):
            layer.weight *= 0.1 + number  # which its statistics do not know of
        before = network(images(4))
        others = {key: p.clone() for key, p in network.named_parameters() if p.dim() == 1 or "head" in key}
        rescale(network, trace(network, GREY))
        torch.testing.assert_close(network(images(4)), before, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(network.get_parameter(key), value) for key, value in others.items())
    once = [layer.weight.detach().clone() for layer in convolutions]
    for weight in once:
        assert float(weight.norm()) == pytest.approx(math.sqrt(2 * len(weight)))
    rescale(network, trace(network, GREY))
    for layer, weight in zip(convolutions, once, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight)


def test_cutting_dead_units_leaves_the_function_as_it_was() -> None:
    network = spectral(Student(family="mlp", depth=3, width=0.125))
    dead = {"hidden.0.0": (1, 5, 30), "hidden.1.0": (0, 31)}
    with torch.no_grad():
        for name, layer in spectral_layers(network):
            assert isinstance(layer, SpectralLinear)
            assert layer.bias is not None
            layer.eigenvalues_out[list(dead[name])] = 0.0
            layer.bias[list(dead[name])] = 0.0
    planned = plan(trace(network, GREY), 5 / 64, floor=0.1)
    assert {c.root: c.removed for c in planned.cuts} == dead
    torch.testing.assert_close(cut(network, planned)(images(8)), network(images(8)))


@pytest.mark.parametrize("training", [True, False])
def test_planning_masking_and_cutting_change_neither_the_network_nor_the_global_generator(training: bool) -> None:
    network = spectral(STUDENTS[0]).train(training)
    before, state = weights_bytes(network), torch.random.get_rng_state()
    planned = plan(trace(network, GREY), 0.5, floor=0.1)
    mask(network, planned)
    cut(network, planned)
    assert weights_bytes(network) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training == training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert planned == plan(trace(network, GREY), 0.5, floor=0.1)


def test_nothing_planned_is_nothing_cut() -> None:
    network = spectral(STUDENTS[0])
    planned = plan(trace(network, GREY), 0.0, floor=0.1)
    assert weights_bytes(cut(network, planned)) == weights_bytes(fold(network))


@pytest.mark.parametrize("student", [STUDENTS[0], STUDENTS[6]], ids=["resnet", "mlp5"])
@pytest.mark.parametrize("round_to", [2, 3, 8, 100])
def test_what_stays_is_rounded_up_to_a_multiple_and_the_best_of_what_would_have_gone_comes_back(
    student: Student, round_to: int
) -> None:
    network = spectral(student)
    scores = importances(trace(network, GREY))
    for fraction in (0.0, 0.2, 0.5, 0.8, 0.99):
        exact, rounded = (plan(trace(network, GREY), fraction, floor=0.1, round_to=size) for size in (1, round_to))
        for one, other in zip(exact.cuts, rounded.cuts, strict=True):
            stays = one.units - len(one.removed)
            assert one.units - len(other.removed) == min(one.units, -(-stays // round_to) * round_to)
            assert set(other.removed) <= set(one.removed)
            if student.family == "mlp":  # nothing is coupled, so the rank is the layer's own
                score = scores[one.root].tolist()
                back = set(one.removed) - set(other.removed)
                assert all(score[unit] >= score[gone] for unit in back for gone in other.removed)
        assert_masked_is_cut(network, rounded)


@pytest.mark.parametrize("student", [STUDENTS[0], STUDENTS[6]], ids=["resnet", "mlp5"])
def test_a_later_cut_goes_on_to_shares_of_what_was_there_at_first(student: Student) -> None:
    network = spectral(student)
    for fraction, floor in ((0.5, 0.1), (0.97, 0.3)):
        at_once = plan(trace(network, GREY), fraction, floor=floor)
        first = plan(trace(network, GREY), 0.3, floor=floor)
        smaller = spectralize(cut(network, first), keep=network.heads)
        second = plan(trace(smaller, GREY), fraction, floor=floor, earlier=first)
        assert (second.units, second.removed) == (at_once.units, at_once.removed)
        left = cut(smaller, second)
        stays = [
            c.units - len(c.removed) for c in plan(trace(spectralize(left, keep=["classifier"]), GREY), 0, floor=0).cuts
        ]
        assert all(count >= math.ceil(floor * c.units) for count, c in zip(stays, first.cuts, strict=True))
        assert sum(stays) == at_once.units - at_once.removed


@pytest.mark.parametrize("fraction", [0.0, 0.29, 0.5, 0.9])
def test_within_layers_every_group_loses_the_same_share_of_its_own_lowest_units(fraction: float) -> None:
    network = spectral(Student(depth=14, width=0.5))
    planned = plan(trace(network, GREY), fraction, floor=0.0, scope="layer")
    for step in planned.cuts:
        assert len(step.removed) == min(step.units - 1, math.floor(Decimal(str(fraction)) * step.units))
    assert_masked_is_cut(network, planned)
    importance = importances(trace(network, GREY))
    for step in planned.cuts:
        if step.root.endswith("conv1"):  # coupled with nothing: its rank is its own
            order = importance[step.root].argsort().tolist()
            assert set(step.removed) == set(order[: len(step.removed)])


def test_within_layers_the_second_round_counts_from_the_first_ones_sizes() -> None:
    network = spectral(Student(depth=8, width=1.0))
    first = plan(trace(network, GREY), 0.5, floor=0.1, scope="layer")
    smaller = spectralize(cut(network, first), keep=network.heads)
    second = plan(trace(smaller, GREY), 0.75, floor=0.1, scope="layer", earlier=first)
    sizes = {step.root: step.units for step in first.cuts}
    for step in second.cuts:
        assert step.units - len(step.removed) == sizes[step.root] // 4


def test_another_criterions_importances_take_the_place_of_the_spectral_ones() -> None:
    network = spectral(Student(family="mlp", depth=3, width=4 / 256))
    importance = {"hidden.0.0": torch.tensor([0.9, 0.2, 1.0, 0.05]), "hidden.1.0": torch.tensor([0.1, 1.0, 0.15, 0.5])}
    planned = plan(trace(network, GREY), 0.5, floor=0.0, importance=importance)
    assert {c.root: c.removed for c in planned.cuts} == {"hidden.0.0": (1, 3), "hidden.1.0": (0, 2)}
