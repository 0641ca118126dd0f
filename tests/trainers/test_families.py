"""Networks: their depth, width, taps and beginnings."""

import pytest
import torch
from torch import Tensor, nn

from spaces import BadInput, Student
from trainers.depths import DEPTHS, check_student
from trainers.families import FAMILIES, Network, build, capture
from trainers.families.family import scaled

GREY = (1, 8, 8)
ALL = [
    Student(family="resnet", depth=8, width=0.125),
    Student(family="resnet", depth=14, width=0.01),
    Student(family="resnet", depth=20, width=0.5),
    Student(family="mlp", depth=2, width=0.01),
    Student(family="mlp", depth=4, width=0.125),
]


def made(student: Student, shape: tuple[int, int, int] = GREY, seed: int = 0) -> Network:
    return build(student, shape, 10, generator=torch.Generator().manual_seed(seed)).eval()


def images(count: int, shape: tuple[int, int, int] = GREY) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("student", ALL)
@pytest.mark.parametrize("shape", [GREY, (3, 12, 20)])
def test_a_network_gives_a_logit_a_class_for_images_of_any_shape(student: Student, shape: tuple[int, int, int]) -> None:
    assert made(student, shape)(images(3, shape)).shape == (3, 10)


@pytest.mark.parametrize("student", ALL)
def test_depth_counts_the_layers_with_weights(student: Student) -> None:
    layers = [m for m in made(student).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    shortcuts = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(layers) - len(shortcuts) == student.depth
    assert len(shortcuts) == (2 if student.family == "resnet" else 0) or student.width == 0.01


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


@pytest.mark.parametrize("student", ALL)
def test_taps_are_what_the_next_layer_is_given(student: Student) -> None:
    network, batch = made(student), images(4)
    given: list[Tensor] = []
    handle = network.get_submodule(network.heads[0]).register_forward_pre_hook(lambda _, args: given.append(args[0]))
    features = capture(network, batch)
    handle.remove()
    assert len(features.maps) == len(network.taps)
    assert all(m.dim() == 4 and bool((m >= 0).all()) for m in features.maps)
    torch.testing.assert_close(features.maps[-1].mean((2, 3)), given[0])
    assert torch.equal(features.logits, network(batch))


def test_capture_leaves_the_network_as_it_was() -> None:
    network = made(ALL[0])
    capture(network, images(2))
    with pytest.raises(RuntimeError):
        capture(network, torch.zeros(2, 5, 8, 8))  # five channels where one is known
    assert all(not module._forward_hooks for module in network.modules())


def test_capture_gives_the_named_taps_in_the_order_asked_for() -> None:
    network, batch = made(ALL[0]), images(2)
    shallow, _, deep = capture(network, batch).maps
    found = capture(network, batch, taps=["groups.2", "groups.0"]).maps
    assert torch.equal(found[0], deep)
    assert torch.equal(found[1], shallow)


@pytest.mark.parametrize("student", ALL)
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
    ],
)
def test_a_network_that_does_not_exist_is_refused(student: Student, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_student(student)
    with pytest.raises(BadInput, match=message):
        made(student)


def test_every_family_is_in_the_catalogue_under_its_name() -> None:
    assert all(family.name == name for name, family in FAMILIES.items())
    assert list(DEPTHS) == list(FAMILIES)
