"""What all families share: the interface of networks, and how their features are read."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtracts the data set's channel means and divides by its deviations; part of the network, so that it ships."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        """Initially the identity; `Network.set_normalization` fills it."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) in [0, 1]."""
        return (images - self.mean) / self.std


def by_member(rows: Tensor, members: int) -> Tensor:
    """(members * B, ...), member by member, as (members, B, ...)."""
    return rows.view(members, -1, *rows.shape[1:])


def combined(outputs: Tensor, members: int) -> Tensor:
    """One prediction, (B, classes), from logits (members * B, classes), member by member.

    For several members it is the logarithm of their mean probabilities: its softmax is the mean, so it can be used like
    any logits.
    """
    if members == 1:
        return outputs
    return F.log_softmax(by_member(outputs, members), dim=2).logsumexp(0) - math.log(members)


class Network(nn.Module, ABC):
    """A classifier of images in [0, 1] whose features can be read by module name."""

    members: int = 1
    """How many predictions it makes for each image and averages."""
    taps: tuple[str, ...]
    """Names of the modules whose outputs are its features, from shallow to deep."""
    activations: tuple[str | None, ...]
    """Names of the ReLUs that the taps end in, in the same order; None if a tap does not end in one."""
    heads: tuple[str, ...] = ("classifier",)
    """Names of the last layers, whose outputs are the classes and are never pruned."""
    normalize: Normalize

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) in [0, 1]; returns logits (B, classes). All that a family has to implement."""

    def outputs(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W); returns every member's logits, (members * B, classes), member by member."""
        return self.logits(images if self.members == 1 else images.repeat(self.members, 1, 1, 1))

    def member(self, index: int, images: Tensor) -> Tensor:
        """images: (B, C, H, W); returns one member's logits (B, classes)."""
        return by_member(self.outputs(images), self.members)[index]

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) in [0, 1]; returns the prediction of all members, (B, classes), as `combined` has it."""
        return combined(self.outputs(images), self.members)

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """mean, std: (C,) of the training images in [0, 1]; a constant channel is left unscaled."""
        self.normalize.mean.copy_(mean.view(1, -1, 1, 1))
        self.normalize.std.copy_(torch.where(std > 0, std, 1.0).view(1, -1, 1, 1))


@dataclass(frozen=True)
class Features:
    """The results of a forward pass: logits (B, classes) and one map per tap, each (B, C_i, H_i, W_i).

    For a network with members, B counts every member's rows, member by member: members times images.
    """

    logits: Tensor
    maps: tuple[Tensor, ...]
    before_relu: tuple[Tensor, ...] = ()
    """The same maps before the ReLU that they end in; maps that do not end in one are the same here."""
    perturbed: Tensor | None = None
    """Logits (B, classes) of the perturbed images, if a transfer method asked for them."""


def capture(network: Network, images: Tensor, taps: Sequence[str] | None = None) -> Features:
    """Run `network` and keep the outputs of its taps, as maps (`as_map`).

    Args:
        network: in any mode.
        images: (B, C, H, W) in [0, 1].
        taps: other modules than the network's own taps; values before ReLUs are then left out.
    """
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    names = network.taps if taps is None else taps
    activations = network.activations if taps is None else ()
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: outputs.__setitem__(name, output)
        )
        for name in names
    ]
    # a block may run its only ReLU several times; its output comes from the last time
    handles += [
        network.get_submodule(name).register_forward_hook(
            lambda _m, given, _o, name=name: inputs.__setitem__(name, given[0])
        )
        for name in activations
        if name is not None
    ]
    try:
        logits = network.outputs(images)
    finally:
        for handle in handles:
            handle.remove()
    maps = {name: as_map(outputs[name], images.shape) for name in names}
    before = {name: as_map(given, images.shape) for name, given in inputs.items()}
    ends = zip(names, activations, strict=taps is None)
    return Features(
        logits,
        tuple(maps[name] for name in names),
        tuple(maps[name] if end is None else before[end] for name, end in ends),
    )


def as_map(feature: Tensor, images: Sequence[int]) -> Tensor:
    """A feature as (B, C, h, w).

    (B, C) is one pixel. (B, N, C) are tokens, as in a vision transformer: a grid if all N form one in the images'
    proportions, or all but the first, which then is the class token; otherwise their mean is one pixel. (B, h, w, C) is
    distinguished from (B, C, h, w) by the images' proportions.

    Args:
        feature: with two to four dimensions.
        images: (B, C, H, W), the shape of the images.
    """
    height, width = images[2], images[3]
    if feature.dim() == 2:
        return feature[:, :, None, None]
    if feature.dim() == 3:
        for tokens in (feature, feature[:, 1:]):
            rows = round(math.sqrt(tokens.shape[1] * height / width))
            columns = round(math.sqrt(tokens.shape[1] * width / height))
            if rows and rows * columns == tokens.shape[1]:
                return tokens.mT.reshape(len(tokens), -1, rows, columns)
        return feature.mean(1)[:, :, None, None]
    is_first = _is_alike(feature.shape[2], feature.shape[3], height / width)
    is_last = _is_alike(feature.shape[1], feature.shape[2], height / width)
    return feature.permute(0, 3, 1, 2) if is_last and not is_first else feature


def _is_alike(height: int, width: int, proportion: float) -> bool:
    """Whether a map can come from images with this ratio of height to width, each side possibly rounded."""
    return abs(height - width * proportion) <= 1.0 + proportion


def scaled(base: int, width: float) -> int:
    """`base` channels times `width`, rounded half up, at least 1."""
    return max(1, math.floor(base * width + 0.5))


class Family(ABC):
    """Networks of one kind in every depth and width."""

    name: ClassVar[str]

    @abstractmethod
    def build(self, depth: int, width: float, image_shape: tuple[int, int, int], classes: int) -> Network:
        """A network initialised from PyTorch's global generator: use `trainers.families.build`."""
