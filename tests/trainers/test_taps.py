"""Features of networks that Dux did not write: where they are found, and how they are read."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from trainers.families.family import as_map
from trainers.families.taps import find_places, find_taps

models = torchvision.models


@pytest.mark.parametrize(
    ("make", "size", "taps"),
    [
        (models.resnet18, 64, "relu layer1 layer2 layer3 layer4"),
        # at 8 x 8 the last two groups make one pixel; what pools that is no feature
        (models.resnet18, 8, "relu layer1 layer4"),
        # its blocks halve the resolution in their second convolution: what the first makes is no end of a stage
        (models.resnet50, 64, "relu layer1 layer2 layer3 layer4"),
        (models.mobilenet_v2, 64, "features.1 features.3 features.6 features.13 features"),
        (models.vgg11_bn, 32, "features.2 features.6 features.13 features.20 features.27"),
        (
            models.densenet121,
            64,
            "features.relu0 features.denseblock1 features.denseblock2 features.denseblock3 features",
        ),
        # channels last inside, or tokens: read as maps
        (models.swin_t, 64, "features.1 features.3 features.5 permute"),
        (models.vit_b_32, 224, "encoder.layers.encoder_layer_3 encoder.layers.encoder_layer_7 encoder"),
    ],
)
def test_the_last_module_of_each_resolution_is_found(make: Callable[..., nn.Module], size: int, taps: str) -> None:
    with torch.device("meta"):
        network = make(weights=None, num_classes=10)
    places = find_places(network, (3, size, size))
    assert find_taps(network, (3, size, size)) == list(places.taps) == taps.split()
    assert places.outputs == (2, 10)


def test_relus_that_taps_end_in_and_the_layers_that_make_the_outputs_are_found() -> None:
    with torch.device("meta"):
        places = find_places(models.resnet18(weights=None), (3, 64, 64))
    assert places.activations == ("relu", *(f"layer{number}.1.relu" for number in range(1, 5)))
    assert places.heads == ("fc",)


class Functional(nn.Module):
    """No module but its layers, one of which makes the last feature and is used twice; two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.again(self.stem(x).relu()).relu()).relu().mean((2, 3))
        return torch.cat([self.one(x), self.other(x)], 1)


def test_a_module_that_is_used_twice_is_a_tap_where_it_is_used_last() -> None:
    places = find_places(Functional(), (1, 8, 8))
    assert (places.taps, places.activations, places.heads) == (("stem", "again"), (None, None), ("one", "other"))


def test_of_flat_features_those_that_linear_layers_are_given_are_found() -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 6), nn.Linear(6, 10)
    )
    places = find_places(network, (1, 8, 8))
    assert (places.taps, places.activations, places.heads) == (("4", "5"), ("3", None), ("6",))


def test_looking_leaves_a_network_as_it_was() -> None:
    network = models.resnet18(weights=None, num_classes=10).train()
    network.layer1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    find_taps(network, (3, 32, 32))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert {module.training for module in network.layer1.modules()} == {False}
    assert network.training
    assert network.layer2.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("feature", "images", "expected"),
    [
        ((5, 7), (32, 32), (5, 7, 1, 1)),
        ((5, 16, 7), (32, 32), (5, 7, 4, 4)),
        ((5, 17, 7), (32, 32), (5, 7, 4, 4)),  # with a class token
        ((5, 8, 7), (32, 64), (5, 7, 2, 4)),
        ((5, 12, 7), (32, 32), (5, 7, 1, 1)),  # in no grid: their mean
        ((5, 9, 3, 3), (32, 32), (5, 9, 3, 3)),
        ((5, 3, 3, 9), (32, 32), (5, 9, 3, 3)),  # channels last
        ((5, 3, 2, 4), (31, 62), (5, 3, 2, 4)),
        ((5, 3, 4, 4), (31, 31), (5, 3, 4, 4)),  # either way, so as torch has it
    ],
)
def test_a_feature_is_read_as_a_map(
    feature: tuple[int, ...], images: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert as_map(torch.zeros(feature), (5, 3, *images)).shape == expected


def test_tokens_come_row_by_row_and_the_class_token_is_left_out() -> None:
    tokens = torch.arange(10.0).view(2, 5, 1)
    assert as_map(tokens, (2, 3, 8, 8)).tolist() == [[[[1, 2], [3, 4]]], [[[6, 7], [8, 9]]]]
    assert as_map(tokens[:, :3], (2, 3, 8, 8)).flatten().tolist() == [1, 6]
