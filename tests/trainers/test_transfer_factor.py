"""Factor transfer against the authors' counts and names, and against the equations written in NumPy."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.families import Features
from trainers.seeding import seeded
from trainers.transfer import Shapes, StageFailed, TeacherSignals
from trainers.transfer.factor import (
    Factor,
    FactorOptions,
    Paraphraser,
    ParaphraserModule,
    Translator,
    factor_channels,
    factor_distance,
)
from trainers.transfer.feature import same_size

Array = np.ndarray


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def array(tensor: Tensor) -> Array:
    result: Array = tensor.detach().numpy()
    return result


# --- the modules


def test_parameter_counts_are_those_of_the_authors_files() -> None:
    paraphraser = ParaphraserModule(64, factor_channels(64, 0.5))
    assert parameters(paraphraser) == 129_312
    assert sum(parameters(layer) for layer in (paraphraser.conv0, paraphraser.conv1, paraphraser.conv2)) == 64_640
    assert parameters(Translator(64, factor_channels(64, 0.5))) == 64_640


def test_layers_bear_the_authors_names() -> None:
    def keys(*layers: str) -> list[str]:
        return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]

    assert list(Translator(4, 2).state_dict()) == keys("conv0", "conv1", "conv2")
    assert list(ParaphraserModule(4, 2).state_dict()) == keys(
        "conv0", "conv1", "conv2", "deconv0", "deconv1", "deconv2"
    )


@pytest.mark.parametrize(("channels", "rate", "factors"), [(64, 0.5, 32), (64, 0.75, 48), (5, 2.0, 10), (3, 0.1, 1)])
def test_a_factor_has_the_rates_share_of_channels_at_least_one(channels: int, rate: float, factors: int) -> None:
    assert factor_channels(channels, rate) == factors


def convolved(x: Array, weight: Array, bias: Array) -> Array:
    """3x3, stride 1, padding 1, by loops; x: (B, C, H, W), weight: (O, C, 3, 3)."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y: Array = np.zeros((len(x), len(weight), height, width)) + bias[:, None, None]
    for a in range(3):
        for b in range(3):
            y += np.einsum("oc,bchw->bohw", weight[:, :, a, b], padded[:, :, a : a + height, b : b + width])
    return y


def spread(x: Array, weight: Array, bias: Array) -> Array:
    """The transposed convolution by its definition: a pixel is added into the 3x3 around it; weight: (C, O, 3, 3)."""
    height, width = x.shape[2:]
    y: Array = np.zeros((len(x), weight.shape[1], height + 2, width + 2)) + bias[:, None, None]
    for a in range(3):
        for b in range(3):
            y[:, :, a : a + height, b : b + width] += np.einsum("co,bchw->bohw", weight[:, :, a, b], x)
    return y[:, :, 1:-1, 1:-1]


def leaky(x: Array) -> Array:
    return np.where(x > 0, x, 0.1 * x)


def test_the_modules_compute_leaky_convolutions_one_after_the_other() -> None:
    x = numbers(2, 5, 4, 3)
    module = ParaphraserModule(5, 3).double()
    weights = {name: array(tensor) for name, tensor in module.state_dict().items()}
    y = array(x)
    for layer in ("conv0", "conv1", "conv2"):
        y = leaky(convolved(y, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
    assert (y < 0).any()  # the slope after the last layer is seen
    np.testing.assert_allclose(array(module.encode(x)), y, atol=1e-12)
    for layer in ("deconv0", "deconv1", "deconv2"):
        y = leaky(spread(y, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
    np.testing.assert_allclose(array(module(x)), y, atol=1e-12)

    translator = Translator(5, 3).double()
    translator.load_state_dict(
        {name: tensor for name, tensor in module.state_dict().items() if name.startswith("conv")}
    )
    assert torch.equal(translator(x), module.encode(x))


# --- stage 2: the loss


def distance(ours: Array, theirs: Array, p: int) -> float:
    """Mean over images of ||F_S/||F_S||_2 - F_T/||F_T||_2||_p, each factor one vector."""
    total = 0.0
    for a, b in zip(ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1), strict=True):
        difference = a / math.sqrt((a**2).sum()) - b / math.sqrt((b**2).sum())
        total += (abs(difference) ** p).sum() ** (1 / p)
    return total / len(ours)


@pytest.mark.parametrize("p", [1, 2])
def test_the_distance_is_the_papers(p: int) -> None:
    ours, theirs = numbers(4, 3, 5, 2), numbers(4, 3, 5, 2, seed=1)
    np.testing.assert_allclose(factor_distance(ours, theirs, p).item(), distance(array(ours), array(theirs), p))


def test_the_distance_of_two_numbers_is_what_one_works_out_by_hand() -> None:
    # (3, 4) is (0.6, 0.8) and (0, 5) is (0, 1): |0.6| + |-0.2|, and the root of 0.36 + 0.04
    ours, theirs = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([0.0, 5.0]).view(1, 2, 1, 1)
    assert factor_distance(ours, theirs, 1).item() == pytest.approx(0.8)
    assert factor_distance(ours, theirs, 2).item() == pytest.approx(math.sqrt(0.4))


@pytest.mark.parametrize("p", [1, 2])
def test_the_size_of_a_factor_does_not_matter(p: int) -> None:
    ours, theirs = numbers(4, 3, 5, 2), numbers(4, 3, 5, 2, seed=1)
    scales = torch.tensor([0.01, 1.0, 7.0, 1e4], dtype=torch.float64).view(4, 1, 1, 1)
    torch.testing.assert_close(factor_distance(ours * scales, theirs, p), factor_distance(ours, theirs, p))
    assert factor_distance(theirs * scales, theirs, p).item() == pytest.approx(0.0, abs=1e-12)
    assert factor_distance(-theirs, theirs, p).item() > 1.0


def test_our_weight_at_the_authors_size_is_their_beta() -> None:
    # their code: 500 times nn.L1Loss, the mean over batch and elements, of factors (B, 32, 8, 8): D = 2,048
    ours, theirs = numbers(6, 32, 8, 8), numbers(6, 32, 8, 8, seed=1)
    normalised = [f.flatten(1) / f.flatten(1).norm(dim=1, keepdim=True) for f in (ours, theirs)]
    assert normalised[0].shape[1] == 2048
    authors = 500 * F.l1_loss(normalised[0], normalised[1])
    torch.testing.assert_close(FactorOptions().weight * factor_distance(ours, theirs, 1), authors)


@pytest.mark.parametrize("p", [1, 2])
def test_an_all_zero_factor_gives_a_finite_loss_and_gradient(p: int) -> None:
    ours = torch.zeros(2, 3, 2, 2, requires_grad=True)
    theirs = torch.cat([torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)])
    value = factor_distance(ours, theirs, p)
    value.backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(ours.grad).all()


def test_the_larger_map_is_averaged_to_the_smaller_height_and_width_each_on_its_own() -> None:
    a, b = numbers(2, 3, 4, 2), numbers(2, 3, 2, 6, seed=1)
    ours, theirs = same_size(a, b)
    np.testing.assert_allclose(array(ours), array(a).reshape(2, 3, 2, 2, 2).mean(axis=3))
    np.testing.assert_allclose(array(theirs), array(b).reshape(2, 3, 2, 2, 3).mean(axis=4))
    assert torch.equal(same_size(a, a)[0], a)


def test_the_whole_loss_is_cross_entropy_plus_the_weighted_distance() -> None:
    options = FactorOptions(weight=0.3, p=2, rate=0.5)
    method = Factor(options, Shapes(student=((7, 9, 9), (5, 4, 4)), teacher=((9, 9, 9), (6, 4, 4)))).double()
    maps, staged, logits = numbers(2, 5, 4, 4), numbers(2, 3, 4, 4, seed=1), numbers(2, 10, seed=2)
    labels = torch.tensor([3, 0])
    actual = method(Features(logits, (numbers(2, 7, 9, 9), maps)), TeacherSignals(staged=staged), labels)
    z = array(logits)
    hard = np.mean([math.log(np.exp(z[i]).sum()) - z[i, y] for i, y in enumerate([3, 0])])
    soft = distance(array(method.translator(maps)), array(staged), 2)
    np.testing.assert_allclose(actual.item(), hard + 0.3 * soft)


# --- stage 1: the paraphraser


def stage_maps(count: int, channels: int) -> Tensor:
    """Non-negative maps (N, C, 4, 4) of one hidden pattern: easy to paraphrase."""
    generator = torch.Generator().manual_seed(0)
    strength, pattern = (
        torch.rand(count, 1, 1, 1, generator=generator),
        torch.rand(1, channels, 4, 4, generator=generator),
    )
    return 0.5 + strength * pattern


def trained(stage: Paraphraser, maps: Tensor) -> tuple[torch.nn.Module, dict[str, float]]:
    with seeded(torch.Generator().manual_seed(1)):
        module = stage.build((maps.shape[1], maps.shape[2], maps.shape[3]))
    passes = 0

    def one_pass() -> Iterator[Tensor]:
        nonlocal passes
        passes += 1
        yield from torch.split(maps, 16)

    actual = stage.train(module, one_pass)
    assert passes == math.ceil(stage.steps / math.ceil(len(maps) / 16)) + 1  # and one to see how well it went
    return module, actual


def test_a_paraphraser_learns_to_say_the_maps_again_and_reports_how_well() -> None:
    maps = stage_maps(64, 4)
    module, actual = trained(Paraphraser(rate=0.5, steps=90), maps)
    with torch.no_grad():
        error, size = (module(maps) - maps).abs().mean().item(), maps.abs().mean().item()
    assert actual == {
        "reconstruction_l1": pytest.approx(error, rel=1e-5),
        "reconstruction_ratio": pytest.approx(error / size, rel=1e-5),
    }
    assert actual["reconstruction_ratio"] < 0.5


def test_a_step_of_stage_1_is_the_authors_sgd_on_the_mean_absolute_error() -> None:
    maps = stage_maps(16, 3)
    stage = Paraphraser(rate=1.0, steps=2)
    with seeded(torch.Generator().manual_seed(1)):
        by_hand = stage.build((3, 4, 4))
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for _ in range(2):
        gradients = torch.autograd.grad((by_hand(maps) - maps).abs().mean(), list(by_hand.parameters()))
        with torch.no_grad():
            for p, v, gradient in zip(by_hand.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(gradient + 5e-4 * p)
                p.sub_(0.1 * v)
    with seeded(torch.Generator().manual_seed(1)):
        module = stage.build((3, 4, 4))
    with pytest.raises(StageFailed):
        stage.train(module, lambda: iter([maps]))
    for actual, expected in zip(module.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_an_untrained_paraphraser_is_not_let_through() -> None:
    with pytest.raises(
        StageFailed, match=r"must be below half of mean \|x\|, but is [01]\.\d\d of it after 1 steps; raise"
    ):
        trained(Paraphraser(rate=0.5, steps=1), stage_maps(64, 4))


def test_maps_that_are_not_numbers_are_not_let_through() -> None:
    with pytest.raises(StageFailed, match="but is nan of it"):
        trained(Paraphraser(rate=0.5, steps=3), stage_maps(64, 4) * math.nan)


def test_what_students_are_handed_is_the_encoders_output() -> None:
    stage, maps = Paraphraser(rate=0.5, steps=1), stage_maps(3, 4)
    module = stage.build((4, 4, 4))
    assert isinstance(module, ParaphraserModule)
    assert stage.apply(module, maps).shape == (3, 2, 4, 4)
    assert torch.equal(stage.apply(module, maps), module.encode(maps))


def test_paraphrasers_that_differ_have_different_files() -> None:
    keys = [Paraphraser(rate, steps).key for rate in (0.5, 0.25, 1.0, 1e-5) for steps in (1, 2346)]
    assert len(set(keys)) == len(keys)
    assert all(key.replace("_", "").replace("-", "").replace(".", "").isalnum() for key in keys)
    assert Paraphraser(0.5, 10).key == Paraphraser(0.5, 10).key
