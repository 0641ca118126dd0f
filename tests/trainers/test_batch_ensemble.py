"""BatchEnsemble: each member is the ordinary network that its fast weights make of the shared one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces import Student
from trainers.data.dataset import Split
from trainers.families import Network, build, by_member, capture
from trainers.families.batch_ensemble import BatchEnsemble, share_all
from trainers.loop import Batch, Schedule, fit
from trainers.measure import cost, outputs
from trainers.spectral import cut, importances, plan, spectralize, trace

GREY = (1, 8, 8)
STUDENTS = {
    "resnet": Student(depth=8, width=0.25, members=3),
    "mlp": Student(family="mlp", depth=3, width=0.1, members=3),
}
each_family = pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(student: Student, seed: int = 0) -> Network:
    """With batch norms and biases that are drawn, too, in eval mode."""
    network, generator = build(student, GREY, 10, generator=seeded(seed)), seeded(seed + 1)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network.eval()


def images(count: int = 5) -> Tensor:
    return torch.rand(count, *GREY, generator=seeded(7))


def alone(network: Network, member: int) -> Network:
    """The ordinary network with the weights W o (gamma alpha^T) of one member."""
    network = copy.deepcopy(network)
    network.members = 1
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchEnsemble):
                layer = child.layer
                assert isinstance(layer, nn.Linear | nn.Conv2d)
                rank_one = torch.outer(child.gamma[member], child.alpha[member])
                layer.weight.data *= rank_one.view(*rank_one.shape, *(1,) * (layer.weight.dim() - 2)).detach()
                layer.bias = None if child.bias is None else nn.Parameter(child.bias[member].detach())
                setattr(parent, name, layer)
    return network


@each_family
def test_every_member_is_the_network_of_its_own_weights(student: Student) -> None:
    network = made(student)
    with torch.no_grad():
        actual = by_member(network.outputs(images()), 3)
        singles = [alone(network, member)(images()) for member in range(3)]
        for member, expected in enumerate(singles):
            torch.testing.assert_close(actual[member], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(network.member(member, images()), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(actual[0], actual[1], rtol=1e-2, atol=1e-2)
        mean = torch.stack([z.softmax(1) for z in singles]).mean(0)
        torch.testing.assert_close(network(images()).softmax(1), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(images()).exp(), mean, rtol=1e-4, atol=1e-5)


def test_a_grouped_strided_convolution_is_its_members() -> None:
    student = Student(members=2)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    weight, bias = conv.weight.detach().clone(), conv.bias
    layer = BatchEnsemble(conv, student)
    x = torch.randn(6, 4, 5, 7, generator=seeded())
    actual = layer(x)
    assert bias is not None
    for member in range(2):
        alpha = layer.alpha[member].view(2, 1, 2).expand(2, 3, 2).reshape(6, 2)  # each output's own two inputs
        own = weight * (layer.gamma[member][:, None] * alpha)[:, :, None, None]
        rows = slice(3 * member, 3 * member + 3)
        torch.testing.assert_close(actual[rows], F.conv2d(x[rows], own, bias, 2, 1, 1, 2))


@each_family
def test_without_spread_every_member_is_the_shared_network(student: Student) -> None:
    network = made(student.model_copy(update={"fast_weight_spread": 0.0}))
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, BatchEnsemble):
                layer.bias = None
        actual = by_member(network.outputs(images()), 3)
        share_all(network)
        shared = network(images())
        assert shared.shape == (5, 10)
        torch.testing.assert_close(actual, shared.expand(3, 5, 10))


def test_fast_weights_begin_as_asked_for() -> None:
    wide = {"depth": 8, "width": 4.0, "members": 4}
    for student, spread in ((Student(**wide), 0.5), (Student(**wide, fast_weight_spread=0.1), 0.1)):
        layers = [m for m in build(student, GREY, 10, generator=seeded()).modules() if isinstance(m, BatchEnsemble)]
        drawn = torch.cat([vector.flatten() for layer in layers for vector in (layer.alpha, layer.gamma)])
        assert drawn.mean().item() == pytest.approx(1.0, abs=0.02)  # of 15,000 numbers
        assert drawn.std().item() == pytest.approx(spread, rel=0.03)
    network = build(Student(**wide, fast_weights="signs"), GREY, 10, generator=seeded())
    signs = torch.cat([m.alpha.flatten() for m in network.modules() if isinstance(m, BatchEnsemble)])
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert signs.mean().abs().item() < 0.05


@each_family
def test_parameters_count_the_fast_weights_and_multiply_adds_every_member(student: Student) -> None:
    one, three = (
        cost(build(s, GREY, 10, generator=seeded()), GREY)
        for s in (Student(**{**dict(student), "members": 1}), student)
    )
    plain = build(student.model_copy(update={"members": 1}), GREY, 10, generator=seeded())
    more = 0
    for layer in plain.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            outputs, inputs = layer.weight.shape[:2]
            more += 3 * (inputs + outputs) + (0 if layer.bias is None else 2 * outputs)
    assert three["parameters"] - one["parameters"] == more
    assert three["macs"] == 3 * one["macs"]


@each_family
def test_features_have_every_members_rows(student: Student) -> None:
    network = made(student)
    features = capture(network, images())
    assert all(len(m) == 15 for m in (features.logits, *features.maps, *features.before_relu))
    torch.testing.assert_close(features.logits, network.outputs(images()))


def trained(
    student: Student, *, fast_learning_rate: float = 1.0, fast_weight_decay: float = 0.0, zero: bool = False
) -> tuple[Network, Network]:
    """A network before and after two epochs, by cross-entropy, or by a loss that is always zero."""
    network = spectralize(build(student, GREY, 10, generator=seeded()), keep=["classifier"])
    before = copy.deepcopy(network)
    split = Split((images(20) * 255).to(torch.uint8), torch.arange(20) % 10)
    schedule = Schedule(2, 5, 0.05, 0.9, 5e-4, fast_learning_rate, fast_weight_decay)

    def loss(batch: Batch) -> Tensor:
        out = network.outputs(batch.images)
        return out.sum() * 0.0 if zero else F.cross_entropy(out, batch.labels.repeat(3))

    fit(network, loss, split, schedule, policy="none", generator=seeded())
    return before, network


def moved(before: Network, after: Network) -> dict[str, bool]:
    return {
        name: not torch.equal(p, after.get_parameter(name)) for name, p in before.named_parameters() if p.requires_grad
    }


@each_family
def test_fast_weights_have_a_learning_rate_of_their_own(student: Student) -> None:
    assert all(moved(*trained(student)).values())
    actual = moved(*trained(student, fast_learning_rate=0.0))
    assert {name for name, has in actual.items() if not has} == {n for n in actual if n.endswith((".alpha", ".gamma"))}


@each_family
def test_only_shared_ordinary_weights_decay_unless_asked_for(student: Student) -> None:
    actual = moved(*trained(student, zero=True))
    assert {name for name, has in actual.items() if has} == {"classifier.layer.weight"}
    actual = moved(*trained(student, zero=True, fast_weight_decay=1e-2))
    assert {name for name, has in actual.items() if has} == {
        "classifier.layer.weight",
        *(n for n in actual if n.endswith((".alpha", ".gamma"))),
    }


def test_a_units_rank_is_the_mean_norm_of_the_members_own_weights() -> None:
    network = spectralize(made(STUDENTS["mlp"]), keep=["classifier"])
    ensemble = network.get_submodule("hidden.0.0")
    assert isinstance(ensemble, BatchEnsemble)
    weight = ensemble.layer.weight
    norms = [
        (weight * torch.outer(ensemble.gamma[member], ensemble.alpha[member])).detach().norm(dim=1)
        for member in range(3)
    ]
    expected = torch.stack(norms).mean(0)
    scores = importances(trace(network, GREY))["hidden.0.0.layer"]
    torch.testing.assert_close(scores, expected / expected.max())


@each_family
def test_a_cut_takes_the_fast_weights_of_the_channels_along(student: Student) -> None:
    network = spectralize(made(student), keep=["classifier"])
    smaller = cut(network, plan(trace(network, GREY), 0.6, floor=0.1))
    assert smaller.members == 3
    layers = [m for m in smaller.modules() if isinstance(m, BatchEnsemble)]
    assert any(
        layer.gamma.shape[1] < old.gamma.shape[1]
        for layer, old in zip(layers, (m for m in network.modules() if isinstance(m, BatchEnsemble)), strict=True)
    )
    for layer in layers:
        weight = layer.layer.weight
        assert layer.gamma.shape == (3, weight.shape[0])
        assert layer.alpha.shape == (3, weight.shape[1])
        assert layer.bias is None or layer.bias.shape == (3, weight.shape[0])
    assert smaller(images()).shape == (5, 10)


def test_a_splits_outputs_keep_members_and_images_in_their_places() -> None:
    network = made(STUDENTS["mlp"])
    split = Split((images(600) * 255).to(torch.uint8), torch.zeros(600).long())  # more than one batch
    actual = outputs(network, split)
    with torch.no_grad():
        for member in range(3):
            torch.testing.assert_close(
                actual[member], alone(network, member)(split.images.float() / 255), rtol=1e-4, atol=1e-4
            )
