"""Which channels of a network are coupled, determined from a forward pass.

Torch-Pruning's graph gives the order of the operations; the channels are followed one by one, with the shapes recorded
by autograd, so that any module that takes images can be cut without changing its class. Channels that cannot be
followed are not cut: those of the outputs, and those that pass through a slice, a split, or a normalisation over
channels.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch_pruning.ops import OPTYPE

from trainers.families.batch_ensemble import share_all
from trainers.spectral.layers import fold

_LAYERS = (nn.Conv2d, nn.Linear)
"""Layers whose outputs are units."""


class Place(NamedTuple):
    """Some channels of one module, or of a parameter that belongs to no torch module."""

    name: str
    parameter: bool
    made: bool
    """Whether the channels are the module's outputs rather than its inputs."""
    remove: Callable[[nn.Module, list[int]], object]
    """Torch-Pruning's function that removes channels from the module."""
    dimension: int
    """Dimension of the channels, in a parameter."""


@dataclass(frozen=True)
class Unit:
    """Channels that can only be removed together."""

    channels: Mapping[Place, list[int]]
    makers: Mapping[str, int]
    """The convolutions and linear layers that output the unit, each with the lowest of its channels in it."""


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


def trace(network: nn.Module, image_shape: tuple[int, ...]) -> Traced:
    """Follow two all-zero images through a network, which is left unchanged.

    Args:
        network: of ordinary or spectral layers, or a BatchEnsemble of them.
        image_shape: of one input, (C, H, W) or (features,).
    """
    graph = _graph(network, image_shape)
    nodes = graph.dependencies.module2node
    names = {module: name for name, module in graph.model.named_modules()}
    layers = tuple(name for module, name in names.items() if isinstance(module, _LAYERS))
    norms, shared = {}, set()
    for layer in layers:
        node = nodes.get(graph.model.get_submodule(layer))
        following = node.outputs if node is not None else []
        if following and all(isinstance(other.module, _BatchNorm) for other in following):
            norms[layer] = tuple(names[other.module] for other in following)
            shared |= {names[other.module] for other in following if len(other.inputs) > 1}
    return Traced(network, image_shape, layers, _heads(graph), norms, frozenset(shared), tuple(_units(graph, layers)))


class UnionFind:
    """Disjoint sets."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def find(self, item: Hashable) -> Hashable:
        """The representative of the item's set."""
        path = []
        while (parent := self._parent.setdefault(item, item)) != item:
            path.append(item)
            item = parent
        for passed in path:
            self._parent[passed] = item
        return item

    def join(self, one: Hashable, other: Hashable) -> None:
        """Merge two sets."""
        self._parent[self.find(one)] = self.find(other)


@dataclass(frozen=True)
class _Graph:
    """The order of operations in a forward pass of `model`, a folded copy of the network."""

    model: nn.Module
    dependencies: Any
    """Torch-Pruning's graph."""
    routes: Mapping[int, Callable[[int], Iterable[int]]]
    """Id of a dependency -> which channels of its target a channel of its source becomes; if missing, the same."""
    opaque: frozenset[Any]
    """Operations that handle channels in ways that a cut cannot follow, so that these channels stay."""


def _graph(network: nn.Module, image_shape: tuple[int, ...]) -> _Graph:
    # traced through gradients, with two images: a batch norm in training mode refuses one value per channel
    model = fold(network).eval().requires_grad_(True)
    share_all(model)  # all members of a BatchEnsemble have the same channels
    images = torch.zeros(2, *image_shape, device=next(model.parameters()).device, requires_grad=True)

    def forward(model: nn.Module, images: Tensor) -> list[Tensor]:
        # a separate operation at either end keeps images and outputs in the graph even if a layer comes first or last
        return [output * 1.0 for output in tp.utils.flatten_as_list(model(images * 1.0))]

    graph = tp.DependencyGraph()
    # its last step is to guess sizes, which can fail (for a channel shuffle) and which are not used here
    with torch.enable_grad(), suppress(ZeroDivisionError):
        graph.build_dependency(model, images, forward_fn=forward, verbose=False)
    routes, opaque = {}, set()
    for node in graph.module2node.values():
        steps = _followed(node, images)
        if steps is None:
            opaque.add(node)
            continue
        for slot, (there, back) in enumerate(steps):
            giver = node.inputs[slot]
            routes[id(node.dependencies[slot])] = back
            again = sum(earlier is giver for earlier in node.inputs[:slot])
            forth = [dep for dep in giver.dependencies[len(giver.inputs) :] if dep.target is node]
            routes[id(forth[again])] = there
    return _Graph(model, graph, routes, frozenset(opaque))


def _heads(graph: _Graph) -> tuple[str, ...]:
    pending = [node for node in graph.dependencies.module2node.values() if node.type == OPTYPE.OUTPUT]
    seen, makers = set(pending), set()
    while pending:
        for node in pending.pop().inputs:
            if isinstance(node.module, _LAYERS):
                makers.add(node.module)
            elif node not in seen:
                seen.add(node)
                pending.append(node)
    return tuple(name for name, module in graph.model.named_modules() if module in makers)


def _units(graph: _Graph, layers: Sequence[str]) -> list[Unit]:
    """All units that can be cut, in the order of the layers that output them."""
    sets, places, ends = _coupled(graph)
    whole = {sets.find(key) for key in ends}
    channels: dict[Hashable, dict[Place, list[int]]] = {}
    for key, (place, channel) in places.items():
        channels.setdefault(sets.find(key), {}).setdefault(place, []).append(channel)
    position = {name: number for number, name in enumerate(layers)}
    units = [
        Unit(own, {place.name: min(some) for place, some in own.items() if place.made and place.name in position})
        for key, own in channels.items()
        if key not in whole
    ]
    with_makers = [unit for unit in units if unit.makers]
    return sorted(with_makers, key=lambda unit: min((position[name], first) for name, first in unit.makers.items()))


def _coupled(graph: _Graph) -> tuple[UnionFind, dict[Hashable, tuple[Place, int]], dict[Hashable, int]]:
    """Which channels are coupled.

    Returns:
        Sets of channels, over all operations of the forward pass; those of them that belong to a module or a parameter;
        and those that must stay, with the kind of operation that requires it.
    """
    sets, ends = UnionFind(), dict[Hashable, int]()
    seen: dict[tuple[Any, Any], set[int]] = {}
    find = graph.dependencies
    pending = [
        (node, find.get_pruner_of_module(module).prune_out_channels, set(range(find.get_out_channels(module))))
        for module, node in find.module2node.items()
        if isinstance(module, _LAYERS) and node not in graph.opaque
    ]
    while pending:
        node, function, channels = pending.pop()
        known = seen.setdefault((node, function), set())
        fresh = channels - known
        known |= fresh
        for dependency in node.dependencies if fresh else ():
            if not dependency.is_triggered_by(function):
                continue
            target, handler = dependency.target, dependency.handler
            if target in graph.opaque:
                ends.update({(node, function, channel): target.type for channel in fresh})
                continue
            route = graph.routes.get(id(dependency))
            reached = {channel: route(channel) if route else [channel] for channel in fresh}
            for channel, others in reached.items():
                for other in others:
                    sets.join((node, function, channel), (target, handler, other))
            pending.append((target, handler, {other for others in reached.values() for other in others}))
    names: dict[Any, str] = {module: name for name, module in graph.model.named_modules()}
    names.update({parameter: name for name, parameter in graph.model.named_parameters()})
    places: dict[Hashable, tuple[Place, int]] = {}
    for (node, function), known in seen.items():
        if node.module not in names:
            continue
        made = find.is_out_channel_pruning_fn(function)
        place = Place(names[node.module], node.type == OPTYPE.PARAMETER, made, function, node.pruning_dim)
        for channel in known:
            places[node, function, channel] = (place, channel)
        if node.type == OPTYPE.CONV and node.module.groups > 1:
            # all groups of a grouped convolution keep the same number of channels: those at the same place in each
            width = (node.module.out_channels if made else node.module.in_channels) // node.module.groups
            for channel in known:
                sets.join((node, function, channel), (node, function, channel % width))
    return sets, places, ends


_Route = tuple[Callable[[int], Iterable[int]], Callable[[int], Iterable[int]]]
"""Which channels of an operation a channel of its input becomes, and the inverse."""


def _followed(node: Any, images: Tensor) -> Sequence[_Route] | None:
    """The routes into an operation from each of its inputs; () if channels stay in place, None if unknown.

    Torch-Pruning guesses sizes from the neighbouring layers; autograd knows the actual shapes.
    """
    module = node.module
    match node.type:
        case OPTYPE.LINEAR | OPTYPE.BN | OPTYPE.PRELU:
            return ()
        case OPTYPE.CONV:
            return () if isinstance(module, nn.Conv2d) else None
        case OPTYPE.DEPTHWISE_CONV:
            return () if isinstance(module, nn.Conv2d) and module.in_channels == module.groups else None
        case OPTYPE.PARAMETER:
            return () if module.dim() <= 2 or module.numel() == module.shape[node.pruning_dim] else None
        case OPTYPE.CONCAT | OPTYPE.RESHAPE | OPTYPE.ELEMENTWISE | OPTYPE.EXPAND | OPTYPE.SPLIT | OPTYPE.SLICE:
            pass
        case _:
            return None
    leaves = [f for f, _ in node.grad_fn.next_functions if f is None or f.name().endswith("AccumulateGrad")]
    if any(leaf is not None and leaf.variable is images for leaf in leaves):
        return None
    given = [f._input_metadata[n].shape for f, n in node.grad_fn.next_functions if f not in leaves]
    made = [data.shape for data in node.grad_fn._input_metadata]
    if node.type == OPTYPE.CONCAT and node.grad_fn._saved_dim in (1, 2**64 + 1 - len(made[0])):
        starts = [sum(shape[1] for shape in given[:slot]) for slot in range(len(given))]
        return None if leaves else [_part(start, shape[1]) for start, shape in zip(starts, given, strict=True)]
    if node.type == OPTYPE.RESHAPE:
        return _reshaped(given[0], made[0]) if given else ()
    channels = {shape[1] for shape in made if len(shape) > 1}
    others = {shape[1] for shape in given if len(shape) > 1} - channels
    return () if len(channels) <= 1 and others <= {1} else None


def _part(start: int, size: int) -> _Route:
    """The route into a concatenation."""
    return lambda c: [c + start], lambda c: [c - start] if start <= c < start + size else []


def _reshaped(given: Sequence[int], made: Sequence[int]) -> Sequence[_Route] | None:
    """The route through a reshape from shape `given` to shape `made`; the first dimension is the batch."""
    if [size for size in given if size > 1] == [size for size in made if size > 1]:
        return ()
    short, long = sorted((given, made), key=len)
    if len(long) == len(short) + 1 and short[1:] == long[2:]:
        return ()  # the batch dimension is split or merged
    if len(short) != 2 or len(long) != 4 or short[0] != long[0]:
        return None
    pixels = long[2] * long[3]

    def several(channel: int) -> Iterable[int]:
        return range(channel * pixels, (channel + 1) * pixels)

    def one(channel: int) -> Iterable[int]:
        return [channel // pixels]

    return [(several, one) if long is given else (one, several)]
