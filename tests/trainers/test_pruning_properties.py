"""What holds of any network, ours or not: folding, cutting and reading back leave its function as it is."""

import atexit
import random
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spaces import BadInput, Student
from trainers.exported import read_exported
from trainers.families import OwnNetwork, build
from trainers.families.taps import find_places
from trainers.spectral import cut, fold, importances, mask, plan, rescale, spectralize, trace
from trainers.spectral.layers import spectral_layers
from trainers.store import filled, weights_bytes

Shape = tuple[int, int, int]


class Separable(nn.Module):
    """Depthwise and pointwise convolutions with a residual sum; batch norms registered far from their layers."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        c, d = draw.randint(2, 9), draw.randint(2, 9)
        self.norms = nn.ModuleList([nn.BatchNorm2d(c), nn.BatchNorm2d(c), nn.BatchNorm2d(c, affine=False)])
        self.stem = nn.Conv2d(3, c, 3, padding=1, bias=draw.random() < 0.5)
        self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=draw.random() < 0.5)
        self.pointwise = nn.Conv2d(c, c, 1, bias=draw.random() < 0.5)
        self.act = nn.PReLU(c)
        self.wide = nn.Conv2d(c, d, 1)
        self.fc = nn.Linear(d, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norms[0](self.stem(x)))
        x = x + self.norms[2](self.pointwise(F.relu(self.norms[1](self.depthwise(x)))))
        logits: Tensor = self.fc(F.hardswish(self.wide(self.act(x))).mean((2, 3)))
        return logits


class Concatenating(nn.Module):
    """Each layer sees all before it; a grouped convolution; flattened with its pixels into linear layers."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        a, b, c, half = (draw.randint(2, 6) for _ in range(4))
        self.first = nn.Conv2d(3, a, 3, padding=1)
        self.second = nn.Conv2d(a, b, 3, padding=1)
        self.norm = nn.BatchNorm2d(a + b)
        self.third = nn.Conv2d(a + b, 2 * half, 1, bias=False)
        self.grouped = nn.Conv2d(2 * half, 2 * c, 3, padding=1, groups=2)
        self.norm2 = nn.BatchNorm2d(2 * c, track_running_stats=draw.random() < 0.5)
        self.hidden = nn.Linear((a + b + 2 * c) * 16, 7)
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 2)
        x = torch.cat([y := F.silu(self.first(x)), self.second(y)], 1)
        y = F.relu(self.norm(x))
        y = self.norm2(self.grouped(F.leaky_relu(self.third(y))))
        y = torch.tanh(self.hidden(torch.cat([x, y], 1).flatten(1)))
        logits: Tensor = self.fc(y)
        return logits


class Tied(nn.Module):
    """One convolution used twice with a batch norm for each use, one linear layer under two names, two heads."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        c, d = draw.randint(2, 8), draw.randint(2, 8)
        self.stem = nn.Conv2d(3, c, 3, stride=2)
        self.same = nn.Conv2d(c, c, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(c), nn.BatchNorm2d(c)])
        self.scale = nn.Parameter(torch.randn(c, 1, 1))
        self.shift = nn.Parameter(torch.randn(c))
        self.flat = nn.Linear(c, d)
        self.square = nn.Linear(d, d)
        self.again = self.square
        self.one, self.other = nn.Linear(d, 3), nn.Linear(d, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm in self.norms:
            x = F.relu(norm(self.same(x)))
        x = (x * self.scale).amax((2, 3)) + self.shift
        x = F.relu(self.again(F.relu(self.square(F.relu(self.flat(x))))))
        return torch.cat([self.one(x), self.other(x)], 1)


class Gated(nn.Module):
    """Squeeze and excitation, and a gated linear unit, whose halves a split takes apart: those stay whole."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        c, d = draw.randint(3, 9), draw.randint(1, 4)
        self.conv = nn.Conv2d(3, c, 3, bias=False)
        self.norm = nn.BatchNorm2d(c)
        self.squeeze, self.excite = nn.Conv2d(c, d, 1), nn.Conv2d(d, c, 1)
        self.halves = nn.Conv2d(c, 6, 1)
        self.layer_norm = nn.LayerNorm(3)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        logits: Tensor = self.fc(self.layer_norm(F.glu(self.halves(x), 1).amax((2, 3))))
        return logits


class Branches(nn.Module):
    """Residual, depthwise and concatenated parts."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        c, d, e = (draw.randint(2, 8) for _ in range(3))
        self.stem = nn.Sequential(nn.Conv2d(3, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU())
        self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.point = nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c))
        self.branch, self.other = nn.Conv2d(c, d, 3, 2, 1), nn.Conv2d(c, e, 1, 2)
        self.last = nn.BatchNorm2d(d + e)
        self.fc = nn.Linear(d + e, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.point(F.relu(self.depthwise(x))))
        x = F.relu(self.last(torch.cat([self.branch(x), self.other(x)], 1)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def from_file(_: random.Random) -> nn.Module:
    """A network that was exported: the same file for every seed."""
    return read_exported(_exported())


@cache
def _exported() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    network = Branches(random.Random(0)).eval()
    program = torch.export.export(network, (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, folder / "net.pt2")
    return folder / "net.pt2"


VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}


@dataclass(frozen=True)
class Kind:
    """A kind of network: how one is made anew, its images, and how often it is drawn."""

    make: Callable[[random.Random], nn.Module]
    shape: Shape = (3, 8, 8)
    draws: int = 8


OBLONG = (3, 8, 12)


def ours(*families: str) -> Callable[[random.Random], nn.Module]:
    def make(draw: random.Random) -> nn.Module:
        student = Student(family=draw.choice(families), width=draw.choice([0.02, 0.1, 0.3]))
        return build(student, OBLONG, 10, generator=torch.Generator().manual_seed(0))

    return make


def own(draw: random.Random) -> nn.Module:
    return OwnNetwork(draw.choice([Separable, Concatenating])(draw), (3, 8, 8), 5, called="it")


KINDS = {
    "resnet": Kind(ours("resnet8", "resnet14"), OBLONG),
    "wrn": Kind(ours("wrn10", "wrn16"), OBLONG, 4),
    "vgg": Kind(ours("vgg8", "vgg11"), OBLONG, 4),
    "mobilenetv2": Kind(ours("mobilenetv2"), OBLONG, 2),
    "shufflenetv2": Kind(ours("shufflenetv2"), OBLONG, 2),
    "mlp": Kind(ours(*(f"mlp{depth}" for depth in range(2, 7))), OBLONG),
    "own": Kind(own, draws=4),
    "separable": Kind(Separable),
    "concatenating": Kind(Concatenating),
    "tied": Kind(Tied),
    "gated": Kind(Gated),
    "branches": Kind(Branches),
    "file": Kind(from_file, draws=1),
    "resnet18": Kind(lambda _: torchvision.models.resnet18(weights=None, num_classes=4), (3, 32, 32), 1),
    "mobilenet_v2": Kind(lambda _: torchvision.models.mobilenet_v2(weights=None, num_classes=4), (3, 32, 32), 1),
    "mobilenet_v3": Kind(
        lambda _: torchvision.models.mobilenet_v3_small(num_classes=4, width_mult=0.25), (3, 32, 32), 1
    ),
    "timm": Kind(lambda _: timm.create_model("mobilenetv3_small_050", num_classes=4), (3, 32, 32), 1),
    "vit": Kind(lambda _: timm.create_model("vit_tiny_patch16_224", num_classes=4, **VIT), (3, 32, 32), 1),
}
CASES = [(name, seed) for name, kind in KINDS.items() for seed in range(kind.draws)]
each_case = pytest.mark.parametrize(("name", "seed"), CASES)


def fresh(name: str, seed: int) -> nn.Module:
    """The same network, and the same weights, whenever it is made."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return KINDS[name].make(random.Random(f"{name}{seed}"))


def spectral(name: str, seed: int) -> nn.Module:
    """Spectral but for the layers that make the outputs; eigenvalues, biases and batch norms drawn."""
    network = fresh(name, seed)
    network = spectralize(network, keep=trace(network, KINDS[name].shape).heads)
    generator = torch.Generator().manual_seed(seed)
    # as large as keeps the signal of a network of 50 layers from growing
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key.endswith(("running_var", "eigenvalues_out")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and tensor.dim() == 1 and not key.endswith("eigenvalues_in"):
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    return network.eval()


def logits(network: nn.Module, name: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        outputs: Tensor = network(torch.rand(4, *KINDS[name].shape, generator=generator))
    return outputs


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for sums over fewer terms, which round differently; in units of the logits' size."""
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@each_case
def test_folding_cutting_and_reading_back_leave_the_function_as_it_is(name: str, seed: int) -> None:
    network, shape = spectral(name, seed), KINDS[name].shape
    draw = random.Random(seed)
    assert_close(logits(fold(network), name), logits(network, name))
    fraction, floor = draw.choice([0.3, 0.999, draw.random()]), draw.choice([0.0, 0.1, 0.5])
    planned = plan(trace(network, shape), fraction, floor=floor, round_to=draw.choice([1, 1, 3]))
    smaller = cut(network, planned)
    assert_close(logits(smaller, name), logits(mask(network, planned), name))
    assert all(min(p.shape, default=1) >= 1 for p in smaller.parameters())
    assert not list(spectral_layers(smaller))
    numbers = [sum(p.numel() for p in n.parameters()) for n in (smaller, fold(network))]
    assert numbers[0] < numbers[1] or not planned.removed
    again = filled(fresh(name, seed), safetensors.torch.load(weights_bytes(smaller)), shape).eval()
    assert torch.equal(logits(again, name), logits(smaller, name))
    assert str(again) == str(smaller)
    assert weights_bytes(again) == weights_bytes(smaller)


@each_case
def test_rescaling_leaves_the_function_as_it_is(name: str, seed: int) -> None:
    network = fold(spectral(name, seed))
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eps = 1e-30  # the one thing that is not undone
    before = logits(network, name)
    weights = {key: p.detach() for key, p in network.named_parameters() if key.endswith("weight") and p.dim() > 1}
    sizes = {key: float(weight.norm()) for key, weight in weights.items()}
    rescale(network, trace(network, KINDS[name].shape))
    assert_close(logits(network, name), before)
    changed = {key: weight for key, weight in weights.items() if float(weight.norm()) != sizes[key]}
    for weight in changed.values():
        assert float(weight.norm()) == pytest.approx((2 * len(weight)) ** 0.5, rel=1e-4)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    # in a wide residual network the first of two convolutions of a block has a batch norm behind it
    # and one that is behind two layers, concatenated, is none's alone
    few = {"mlp": 0, "concatenating": 1, "tied": 0, "gated": 0, "wrn": len(norms) // 2, "own": 1}
    few |= {"branches": 2, "file": 2}
    assert len(changed) >= few.get(name, len(norms)), changed.keys()


def units(name: str) -> list[tuple[str, int]]:
    """Groups of units of a kind's first network, in its order."""
    planned = plan(trace(spectral(name, 0), KINDS[name].shape), 0.0, floor=0.0)
    return [(c.root, c.units) for c in planned.cuts]


def test_units_are_what_can_be_cut_alone() -> None:
    # by hand, from the widths that the first draws give
    def widths(name: str, layers: str) -> list[tuple[str, int]]:
        network = fresh(name, 0)
        return [(layer, network.get_submodule(layer).get_parameter("weight").shape[0]) for layer in layers.split()]

    assert units("separable") == widths("separable", "stem wide")  # depthwise and pointwise are added to the stem
    (first, second, third, (_, grouped), hidden) = widths("concatenating", "first second third grouped hidden")
    # the grouped convolution has two groups, which stay of one size, as do the halves of what it sees
    halves = [("third", third[1] // 2), ("grouped", grouped // 2)]
    assert units("concatenating") == [first, second, *halves, hidden]
    assert units("tied") == widths("tied", "stem flat")  # what is used twice gives what it takes
    assert units("gated") == widths("gated", "conv squeeze")
    # of each group of blocks what is added up, and what is between a block's two convolutions
    (stem, *inner) = widths("wrn", "stem groups.0.0.conv1 groups.1.0.conv1 groups.2.0.conv1")
    first, second, third = (count for _, count in inner)
    blocks = len(fresh("wrn", 0).get_submodule("groups.0"))
    assert sum(count for _, count in units("wrn")) == stem[1] + (blocks + 1) * (first + second + third) - first
    convolutions = [name for name, m in fresh("vgg", 0).named_modules() if isinstance(m, nn.Conv2d)]
    assert units("vgg") == widths("vgg", " ".join(convolutions))
    # the stem, what is between a unit's convolutions, and the last; what is split and shuffled stays
    inside = [f"stages.{stage}.{unit}.branch.0" for stage, count in enumerate((4, 8, 4)) for unit in range(count)]
    assert units("shufflenetv2") == widths("shufflenetv2", " ".join(["stem.0", *inside, "last.0"]))
    # three groups of channels a stage in a ResNet-18: what is added up, and the first convolution of either block
    assert sum(count for _, count in units("resnet18")) == 3 * (64 + 128 + 256 + 512)
    # what each of the 16 blocks with an expansion makes of its input, six times as wide; the blocks' outputs by stage;
    # the first and the last layer
    expanded = 6 * (16 + 2 * 24 + 3 * 32 + 4 * 64 + 3 * 96 + 3 * 160)
    outputs = 16 + 24 + 32 + 64 + 96 + 160 + 320
    assert sum(count for _, count in units("mobilenet_v2")) == expanded + outputs + 32 + 1280


def test_the_layers_that_make_the_outputs_are_found() -> None:
    expected = {"resnet": "classifier", "mlp": "classifier", "tied": "one other", "mobilenet_v2": "classifier.1"}
    expected |= {"mobilenet_v3": "classifier.3", "timm": "classifier", "vit": "head"}
    expected |= dict.fromkeys(("wrn", "vgg", "mobilenetv2", "shufflenetv2"), "classifier") | {"own": "network.fc"}
    for name, kind in KINDS.items():
        network = fresh(name, 0)
        assert list(trace(network, kind.shape).heads) == expected.get(name, "fc").split()
        assert find_places(network, kind.shape).heads == tuple(expected.get(name, "fc").split())


def test_a_layer_that_is_kept_stays_whole_and_does_not_count() -> None:
    network = spectral("resnet18", 0)
    planned = plan(trace(network, (3, 32, 32)), 0.9, floor=0.0, keep=["layer1", "layer2.0.conv1"])
    smaller = cut(network, planned)
    assert planned.units == 3 * (64 + 128 + 256 + 512) - 3 * 64 - 128
    for name, layer in fresh("resnet18", 0).named_modules():
        if isinstance(layer, nn.Conv2d):
            actual = smaller.get_submodule(name).get_parameter("weight").shape[0]
            kept = name == "conv1" or name.startswith("layer1.") or name == "layer2.0.conv1"
            assert (actual == layer.out_channels) == kept


@pytest.mark.parametrize("name", KINDS)
def test_no_layer_dies_at_the_largest_fraction(name: str) -> None:
    network, shape = spectral(name, 1), KINDS[name].shape
    planned = plan(trace(network, shape), 1 - 1e-12, floor=0.0)
    assert planned.removed == planned.units - len(planned.cuts)  # of each group one unit stays
    smaller = cut(network, planned)
    assert all(min(p.shape, default=1) >= 1 for p in smaller.parameters())
    assert logits(smaller, name).isfinite().all()


class BatchNormElsewhere(nn.Module):
    """The norm registered right after a layer is another's."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm_of_two = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.two, self.norm_of_one = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        self.three, self.fc = nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_of_one(self.one(x)))
        logits: Tensor = self.fc(self.three(F.relu(self.norm_of_two(self.two(x)))).mean((2, 3)))
        return logits


def test_the_batch_norm_of_a_layer_is_the_one_that_it_goes_through() -> None:
    generator = torch.Generator().manual_seed(0)
    network = spectralize(BatchNormElsewhere(), keep=["fc"])
    expected = {}
    for name, norm in (("one", network.norm_of_one), ("two", network.norm_of_two), ("three", None)):
        layer = dict(spectral_layers(network))[name]
        with torch.no_grad():
            layer.eigenvalues_out.copy_(torch.randn(6, generator=generator))
            if norm is not None:
                assert norm.running_var is not None
                norm.weight.copy_(torch.randn(6, generator=generator))
                norm.running_var.copy_(torch.rand(6, generator=generator))
        # the paper's |lambda_i| ||phi_i||; behind a batch norm, which undoes that, |gamma_i|
        importance = layer.eigenvalues_out.abs() * layer.eigenvectors.flatten(1).norm(dim=1)
        if norm is not None:
            importance = norm.weight.abs()
        expected[name] = importance.detach() / importance.max().item()
    scores = importances(trace(network, (3, 8, 8)))
    for name, importance in expected.items():
        torch.testing.assert_close(scores[name], importance)


class Odd(nn.Module):
    """Two hidden layers, and something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.two(self.between(self.one(x.mean((2, 3)))))))
        return logits


def odd(between: Callable[[Tensor], Tensor]) -> Odd:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return spectralize(Odd(between), keep=["fc"])


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (torch.sigmoid, r"cannot be cut without changing what the network computes: its outputs differ by .*"),
        (lambda x: x + torch.arange(6.0), r"are combined with something of fixed size"),
        (lambda x: x.roll(1, 1), r"change places"),
    ],
)
def test_what_a_cut_would_change_stays_whole_and_the_trace_says_why(
    between: Callable[[Tensor], Tensor], why: str
) -> None:
    network = odd(between)
    traced = trace(network, (3, 4, 4))
    assert re.fullmatch(why, traced.whole["one"])
    smaller = cut(network, plan(traced, 0.5, floor=0.0))
    assert (smaller.one.out_features, smaller.two.out_features) == (6, 3)


def test_a_layer_whose_weight_is_computed_stays_whole_and_the_trace_says_what_to_do() -> None:
    network = Odd(F.relu)
    torch.nn.utils.parametrizations.weight_norm(network.two)
    traced = trace(spectralize(network, keep=["fc"]), (3, 4, 4))
    assert traced.whole["two"].startswith("come from a weight that is computed; torch.nn.utils.parametrize.remove_")
    assert cut(traced.network, plan(traced, 0.5, floor=0.0)).two.out_features == 6
    torch.nn.utils.parametrize.remove_parametrizations(network.two, "weight")
    traced = trace(spectralize(network, keep=["fc"]), (3, 4, 4))
    assert traced.whole.keys() == {"fc"}
    assert cut(traced.network, plan(traced, 0.5, floor=0.0)).two.out_features == 3


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (torch.sigmoid, r"its outputs differ by .* \(units of one\); name these layers in `keep`.* that are 0 at 0"),
        (lambda x: x + torch.arange(6.0), r"it does not run \(.*\) \(units of one\); name these layers in `keep`"),
        (lambda x: x.roll(1, 1), r"its outputs differ by .* \(units of one\)"),
    ],
)
def test_a_plan_that_would_change_what_a_network_computes_is_refused(
    between: Callable[[Tensor], Tensor], message: str
) -> None:
    planned = plan(trace(odd(F.relu), (3, 4, 4)), 0.5, floor=0.5)  # of another network than is cut
    with pytest.raises(BadInput, match=message):
        cut(odd(between), planned)


class Magnifier(nn.Module):
    """Magnifies rounding a million times."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(3, 100), nn.Linear(100, 100), nn.Linear(100, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.sin(1e6 * self.two(F.relu(self.one(x.mean((2, 3)))))))
        return logits


def test_rounding_that_a_network_magnifies_is_not_taken_for_a_wrong_cut() -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = spectralize(Magnifier(), keep=["fc"])
    smaller = cut(network, plan(trace(network, (3, 4, 4)), 0.5, floor=0.5))
    assert (smaller.one.out_features, smaller.two.out_features) == (50, 50)


def test_a_tensor_that_is_used_twice_is_kept_once() -> None:
    tied = fresh("tied", 0)
    names = set(safetensors.torch.load(weights_bytes(tied)))
    assert not any(name.startswith("again") for name in names)
    spectral_tied = spectralize(tied)
    assert spectral_tied.again is spectral_tied.square
    again = filled(fresh("tied", 0), safetensors.torch.load(weights_bytes(fold(spectral_tied))))
    assert again.again is again.square
    assert len(list(again.parameters())) == len(list(tied.parameters()))


def test_what_the_documentation_shows_runs() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "pruning.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("torch.rand(64, *shape)", "torch.rand(16, *shape)")
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=()):
        exec(code, names)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(names["again"].eval()(images), names["smaller"].eval()(images))
    assert names["planned"].removed > 1000
