"""The units of a network: what of it can only be removed together."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from trainers.spectral.axes import UnionFind


class Place(NamedTuple):
    """A dimension of one of the network's tensors: a parameter or a buffer."""

    name: str
    dimension: int
    made: bool
    """Whether its indices are outputs rather than inputs."""


class Count(NamedTuple):
    """A number that a module keeps of its units, such as that of its heads; in proportion to a tensor's size."""

    module: str
    attribute: str
    tensor: str
    dimension: int


@dataclass(frozen=True)
class Unit:
    """Channels that can only be removed together."""

    channels: Mapping[Place, list[int]]
    makers: Mapping[str, int]
    """The convolutions and linear layers that output the unit, each with the lowest of its channels in it."""

    def channels_of(self, layer: str) -> list[int]:
        """The channels of the layer's outputs that are in the unit."""
        return self.channels.get(Place(f"{layer}.weight", 0, True), [])


@dataclass(frozen=True)
class Group:
    """Layers with common units, and all their units that may be cut."""

    root: str
    """The first of the layers."""
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Traced:
    """A network and the dependencies between its channels, by name: they remain valid while its weights are trained."""

    network: nn.Module
    image_shape: tuple[int, ...]
    layers: tuple[str, ...]
    """Convolutions and linear layers, in the order of the network's modules."""
    heads: tuple[str, ...]
    """The output layers: those not followed by another layer. They are never pruned."""
    norms: Mapping[str, tuple[str, ...]]
    """For each layer whose outputs go only to batch norms, these norms: one for each use of the layer."""
    shared_norms: frozenset[str]
    """Batch norms on the outputs of more than one layer."""
    units: tuple[Unit, ...]
    """All units that can be cut, in the order of the layers that output them."""
    counts: tuple[Count, ...] = ()
    """What else changes when units are cut."""
    whole: Mapping[str, str] = field(default_factory=dict)
    """For each layer with channels that cannot be cut, the reason: how the sentence "its channels ..." ends."""


def grouped(units: Iterable[Unit], layers: Sequence[str]) -> list[Group]:
    """Units that have layers in common, together; in the order of the units.

    Args:
        units: in the order of the layers that output them.
        layers: all of the network's.
    """
    joined, groups = UnionFind(), dict[Hashable, list[Unit]]()
    several = list(units)
    for unit in several:
        for name in unit.makers:
            joined.join(name, next(iter(unit.makers)))
    for unit in several:
        groups.setdefault(joined.find(next(iter(unit.makers))), []).append(unit)
    position = {name: number for number, name in enumerate(layers)}
    return [Group(min(own[0].makers, key=position.__getitem__), tuple(own)) for own in groups.values()]


def channels_in(units: Iterable[Unit]) -> dict[Place, list[int]]:
    """The channels of every tensor that belong to some units."""
    found = dict[Place, list[int]]()
    for unit in units:
        for place, own in unit.channels.items():
            found.setdefault(place, []).extend(own)
    return found
