"""Networks: their depth, width, taps and beginnings."""

import pytest
import torch
from torch import Tensor, nn

from spaces import BadInput, Student
from trainers.depths import DEPTHS, check_student, shape_of, titled
from trainers.families import FAMILIES, Network, build, capture, outline
from trainers.families.family import scaled
from trainers.families.taps import find_places

GREY = (1, 8, 8)
ALL = [
    Student(family="resnet", depth=8, width=0.125),
    Student(family="resnet", depth=14, width=0.01),
    Student(family="resnet", depth=20, width=0.5),
    Student(family="wrn", depth=10, width=0.01),
    Student(family="wrn16", width=0.25),
    Student(family="vgg", depth=8, width=0.01),
    Student(family="vgg13", width=0.05),
    Student(family="mobilenetv2", width=0.05),
    Student(family="shufflenetv2", width=0.05),
    Student(family="mlp", depth=2, width=0.01),
    Student(family="mlp", depth=4, width=0.125),
]


def made(student: Student, shape: tuple[int, int, int] = GREY, seed: int = 0) -> Network:
    return build(student, shape, 10, generator=torch.Generator().manual_seed(seed)).eval()


def images(count: int, shape: tuple[int, int, int] = GREY) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("student", ALL, ids=titled)
@pytest.mark.parametrize("shape", [GREY, (3, 12, 20), (1, 28, 28), (3, 1, 1), (3, 33, 9)])
def test_a_network_gives_a_logit_a_class_for_images_of_any_shape(student: Student, shape: tuple[int, int, int]) -> None:
    assert made(student, shape)(images(3, shape)).shape == (3, 10)


@pytest.mark.parametrize("student", ALL, ids=titled)
def test_depth_counts_the_layers_with_weights(student: Student) -> None:
    family, depth = shape_of(student)
    named = {name: m for name, m in made(student).named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    layers = [name for name in named if "shortcut" not in name]
    # their papers count the three linear layers of VGG, and the projections of a wide residual network
    assert len(layers) == depth - (2 if family in ("vgg", "wrn") else 0)
    shortcuts = {"resnet": 2, "wrn": 2, "shufflenetv2": 6}  # the latter's: two layers in each of three stages
    assert len(named) - len(layers) == shortcuts.get(family, 0) or student.width == 0.01


@pytest.mark.parametrize(
    ("student", "parameters", "published"),
    [
        # Tian, Krishnan, Isola (ICLR 2020), in millions, for 100 classes; below that, the authors' own counts
        (Student(family="resnet", depth=56, width=1.0), None, 0.86),
        (Student(family="wrn40", width=2.0), 2_255_156, 2.26),
        (Student(family="wrn40", width=1.0), 569_780, 0.57),
        (Student(family="wrn16", width=2.0), 703_284, 0.70),
        (Student(family="vgg8"), 3_965_028, 3.97),
        (Student(family="vgg13"), 9_462_180, 9.46),
        (Student(family="mobilenetv2", width=0.5), 812_836 - 16 * 16 - 2 * 16, 0.81),  # theirs expands by 1, too
        (Student(family="shufflenetv2"), 1_355_528 + 3 * 24 * 8, 1.36),  # theirs has a 1x1 stem
        # Zagoruyko and Komodakis (BMVC 2016), table 4
        (Student(family="wrn28", width=10.0), None, 36.5),
    ],
    ids=lambda value: titled(value) if isinstance(value, Student) else None,
)
def test_networks_have_as_many_parameters_as_the_published_ones(
    student: Student, parameters: int | None, published: float
) -> None:
    network = outline(student, (3, 32, 32), 100)
    actual = sum(p.numel() for p in network.parameters())
    assert parameters in (None, actual)
    digits = 1 if published > 2.3 and parameters is None else 2
    assert round(actual / 1e6, digits) == pytest.approx(published)


def test_on_images_of_cifar_stages_have_the_papers_resolutions() -> None:
    shapes = {
        "wrn10": [(16, 32, 32), (32, 16, 16), (64, 8, 8)],
        "vgg8": [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)],
        "mobilenetv2": [(24, 16, 16), (32, 8, 8), (96, 4, 4), (1280, 2, 2)],
        "shufflenetv2": [(24, 32, 32), (116, 16, 16), (232, 8, 8), (1024, 4, 4)],
    }
    for family, expected in shapes.items():
        maps = capture(made(Student(family=family), (3, 32, 32)), images(1, (3, 32, 32))).maps
        assert [(m.shape[1], m.shape[2], m.shape[3]) for m in maps] == expected


@pytest.mark.parametrize("family", ["wrn10", "vgg8", "mobilenetv2", "shufflenetv2"])
def test_small_images_are_not_pooled_away(family: str) -> None:
    maps = capture(made(Student(family=family, width=0.1)), images(1)).maps
    assert len(maps) > 1
    assert maps[-1].shape[2:] >= (2, 2)


def test_a_shuffle_puts_the_halves_channels_by_turns() -> None:
    """Made to pass on what it takes, a unit's two halves are mixed, and nothing is lost."""
    unit = made(Student(family="shufflenetv2", width=0.05)).get_submodule("stages.0.1")
    x = images(2, (6, 5, 5))
    x[:, 3:] = 1.0
    with torch.no_grad():
        y = unit(x)
    assert torch.equal(y[:, 0::2], x[:, :3])
    assert not torch.equal(y[:, 1::2], x[:, 3:])


def test_a_resnet_of_full_width_has_the_papers_layers() -> None:
    # 3x3 convolutions, 1x1 shortcuts of groups 2 and 3, two numbers a channel of each batch norm, the classifier
    convolutions = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64) + 16 * 32 + 32 * 64
    norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)
    network = made(Student(depth=20), (3, 32, 32))
    assert sum(p.numel() for p in network.parameters()) == convolutions + norms + 64 * 10 + 10
    maps = capture(network, images(2, (3, 32, 32))).maps
    assert [tuple(m.shape) for m in maps] == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


def test_an_mlp_of_full_width_has_256_units_a_layer() -> None:
    network = made(Student(family="mlp", depth=3))
    assert sum(p.numel() for p in network.parameters()) == 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10


@pytest.mark.parametrize(
    ("base", "width", "channels"),
    [(16, 1.0, 16), (16, 0.5, 8), (16, 0.01, 1), (2, 0.25, 1), (6, 0.25, 2), (16, 0.34, 5)],
)
def test_channels_are_rounded_half_up_and_at_least_one(base: int, width: float, channels: int) -> None:
    assert scaled(base, width) == channels


@pytest.mark.parametrize("student", ALL, ids=titled)
def test_taps_are_what_the_next_layer_is_given(student: Student) -> None:
    network, batch = made(student), images(4)
    given: list[Tensor] = []
    handle = network.get_submodule(network.heads[0]).register_forward_pre_hook(lambda _, args: given.append(args[0]))
    features = capture(network, batch)
    handle.remove()
    assert len(features.maps) == len(features.before_relu) == len(network.taps) == len(network.activations)
    for each, before, activation in zip(features.maps, features.before_relu, network.activations, strict=True):
        assert each.dim() == 4
        assert torch.equal(each, before if activation is None else network.get_submodule(activation)(before))
    resolutions = [tuple(m.shape[2:]) for m in features.maps]
    assert sorted(set(resolutions), reverse=True) == resolutions or shape_of(student)[0] == "mlp"
    torch.testing.assert_close(features.maps[-1].mean((2, 3)), given[0])
    assert torch.equal(features.logits, network(batch))


@pytest.mark.parametrize("student", ALL, ids=titled)
def test_the_families_taps_are_those_that_would_be_found(student: Student) -> None:
    network, batch = made(student), images(4)
    if shape_of(student)[0] == "wrn":  # whose taps are after the batch norms that follow the groups, as the papers' are
        return
    places = find_places(network, GREY)
    for name, tap in zip(places.taps, capture(network, batch).maps, strict=True):
        assert torch.equal(capture(network, batch, taps=[name]).maps[0], tap)
    assert places.heads == network.heads


def test_capture_leaves_the_network_as_it_was() -> None:
    network = made(ALL[0])
    capture(network, images(2))
    with pytest.raises(RuntimeError):
        capture(network, torch.zeros(2, 5, 8, 8))  # five channels where one is known
    assert all(not module._forward_hooks for module in network.modules())


def test_capture_gives_the_named_taps_in_the_order_asked_for() -> None:
    network, batch = made(ALL[0]), images(2)
    shallow, _, deep = capture(network, batch).maps
    actual = capture(network, batch, taps=["groups.2", "groups.0"]).maps
    assert torch.equal(actual[0], deep)
    assert torch.equal(actual[1], shallow)


@pytest.mark.parametrize("student", ALL, ids=titled)
def test_the_generator_alone_decides_how_a_network_begins(student: Student) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one = made(student).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = made(student).state_dict(), made(student, seed=1).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_images_are_normalised_inside_and_a_constant_channel_is_left_unscaled() -> None:
    shape = (3, 8, 8)
    network, batch = made(Student(family="mlp", depth=2), shape), images(5, shape)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.0, 2.0])
    by_hand = network((batch - mean.view(1, 3, 1, 1)) / torch.tensor([0.2, 1.0, 2.0]).view(1, 3, 1, 1))
    network.set_normalization(mean, std)
    torch.testing.assert_close(network(batch), by_hand)
    assert "normalize.mean" in network.state_dict()  # it ships with the weights


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (Student(family="resent"), "must be a known one, but got 'resent'; did you mean `resnet`"),
        (Student(depth=9), r"must be 6n\+2 with n >= 1 .*, but got 9; the nearest is 8"),
        (Student(depth=2), r"must be 6n\+2 with n >= 1 .*, but got 2; the nearest is 8"),
        (Student(depth=12), "but got 12; the nearest is 14"),
        (Student(family="mlp", depth=17), "must be from 2 to 16 layers with weights, but got 17"),
        (Student(family="resnet9"), r"depth of a resnet must be 6n\+2 .*, but got 9; the nearest is 8"),
        (Student(family="resnet3020"), "at most 302, but got 3020; the nearest is 302"),
        (Student(family="wrn", depth=8), r"depth of a wrn must be 6n\+4 with n >= 1 .*, but got 8; the nearest is 10"),
        (Student(family="wrn17"), r"depth of a wrn must be 6n\+4 .*, but got 17; the nearest is 16"),
        (
            Student(family="vgg", depth=9),
            "a vgg must be one of 8, 11, 13, 16, 19, but got 9; the nearest is 8",
        ),
        (Student(family="mobilenetv3"), "but got 'mobilenetv3'; did you mean `mobilenetv2`"),
        (Student(family="mobilenetv21"), "but got 'mobilenetv21'; did you mean `mobilenetv2`"),
        (Student(family="wrn-16"), "but got 'wrn-16'; .*known: "),
    ],
)
def test_a_network_that_does_not_exist_is_refused(student: Student, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_student(student)
    with pytest.raises(BadInput, match=message):
        made(student)


@pytest.mark.parametrize(
    ("student", "shape", "words"),
    [
        (Student(depth=20), ("resnet", 20), "a resnet of depth 20"),
        (Student(family="resnet20", depth=9), ("resnet", 20), "a resnet20"),
        (Student(family="mlp3"), ("mlp", 3), "an mlp3"),
        (Student(family="mobilenetv2"), ("mobilenetv2", 53), "a mobilenetv2"),
    ],
)
def test_a_familys_name_may_have_its_depth(student: Student, shape: tuple[str, int], words: str) -> None:
    assert shape_of(student) == shape
    assert titled(student) == words
    one, other = made(student), made(Student(family=shape[0], depth=shape[1]))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_every_family_is_in_the_catalogue_under_its_name() -> None:
    assert all(family.name == name for name, family in FAMILIES.items())
    assert list(DEPTHS) == list(FAMILIES)
