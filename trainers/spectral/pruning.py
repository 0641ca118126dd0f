"""Ranking units by eigenvalue and cutting the lowest out of the network.

Giambagli et al. 2023 rank unit i of a layer by |lambda_i| ||phi_i||_2 relative to the layer's largest, and silence the
lowest. Here the same number ranks units across the network and through the layers that depend on each other:

- |lambda_i| ||phi_i||_2 is the standard deviation of what unit i puts out before its activation, on inputs of unit
  variance as the paper's are. Behind a batch norm that deviation is |gamma_i|, whatever lambda_i and phi_i are (the
  norm undoes them), so there the rank is |gamma_i|.
- A BatchEnsemble's members have the same channels; a unit counts with the mean norm of the weights that each has.
- Channels that are added, that share a depthwise kernel, or that otherwise exist only together are one unit; its
  relevance is the mean over the spectral layers that make it.
- Across layers, relevances are compared as shares of their layer's mean. Shares of the largest, by which the paper
  counts units within a layer, leave a layer with one strong unit too little (benchmarks/pruning_criteria.py).

Which channels depend on which is read off Torch-Pruning's graph of a forward pass, channel by channel, so that any
module that takes images can be cut, its class unchanged. What cannot be followed is left whole: channels that make the
outputs, or that go through a slice, a split, or a normalisation over channels. `cut` compares what it made with the
network in which the same units are silent, and returns nothing else.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch_pruning.ops import OPTYPE

from spaces import BadInput
from trainers.families.batch_ensemble import BatchEnsemble, share_all
from trainers.spectral.layers import Model, SpectralConv2d, SpectralLinear, fold, named, spectral_layers
from trainers.spectral.reconstruction import reconstruct

ROUNDING = 1e-9
"""0.29 * 100 is 28.999999999999996 to a computer, and means 29 units."""

AGREEMENT = 1e-3
"""How far a cut network may be from the silent one, in shares of the largest output: sums over fewer terms round
differently, by 2e-7 at most in the networks of the tests; what a wrong channel changes is far more."""

_MAKERS = (nn.Conv2d, nn.Linear)
"""Layers that make units."""


@dataclass(frozen=True)
class Cut:
    """One group of layers with common units: the first of them, how many units there are, and which of them go."""

    root: str
    units: int
    removed: tuple[int, ...]
    """Numbers of units; where each unit is one channel of the root, which is nearly everywhere, its channels."""


@dataclass(frozen=True)
class Plan:
    """Which units of each group are cut."""

    cuts: tuple[Cut, ...]
    earlier: "Plan | None" = None
    """The plan of the cut before this one, where the network has been cut already."""
    keep: tuple[str, ...] = ()
    """Names of layers, or of modules that hold them, that stay whole and do not count."""

    @property
    def units(self) -> int:
        """Units in all groups together, before anything was cut."""
        return self.earlier.units if self.earlier else sum(cut.units for cut in self.cuts)

    @property
    def removed(self) -> int:
        """Units that are cut, by earlier plans too."""
        return sum(len(cut.removed) for cut in self.cuts) + (self.earlier.removed if self.earlier else 0)

    @property
    def first(self) -> "Plan":
        """The plan of the first cut."""
        return self.earlier.first if self.earlier else self


class _Place(NamedTuple):
    """Some channels of one module, or of a parameter that no module of torch's owns."""

    name: str
    parameter: bool
    made: bool
    """Whether it is the module's outputs that are meant, and not its inputs."""
    remove: Callable[[nn.Module, list[int]], object]
    """Torch-Pruning's function that takes channels out of the module."""
    dimension: int
    """Of the channels, in a parameter."""


_Unit = Mapping[_Place, list[int]]
"""Channels that exist only together."""


@dataclass(frozen=True)
class _Group:
    """Layers that have units in common, and all units of theirs that may be cut."""

    root: str
    units: tuple[_Unit, ...]
    layers: tuple[frozenset[str], ...]
    """Of each unit, the convolutions and linear layers that make it."""


class _Sets:
    """Disjoint sets."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def find(self, item: Hashable) -> Hashable:
        """The member that stands for the item's set."""
        path = []
        while (parent := self._parent.setdefault(item, item)) != item:
            path.append(item)
            item = parent
        for passed in path:
            self._parent[passed] = item
        return item

    def join(self, one: Hashable, other: Hashable) -> None:
        """Make one set of two."""
        self._parent[self.find(one)] = self.find(other)


def relevances(network: nn.Module, *, image_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Relevance of every output unit of every spectral layer, (outputs,), as a share of its largest: in [0, 1].

    The paper's effective size of a layer is the number of units at 0.05 and above.

    Args:
        network: with spectral layers.
        image_shape: of one input, (C, H, W).
    """
    found = _strengths(network, _graph(network, image_shape))
    return {name: strength / _positive(strength.max()) for name, strength in found.items()}


def heads(network: nn.Module, *, image_shape: tuple[int, ...]) -> list[str]:
    """Names of the layers that make the outputs: those behind which no other layer comes. They are never pruned."""
    graph = _graph(network, image_shape)
    pending = [node for node in graph.dependencies.module2node.values() if node.type == OPTYPE.OUTPUT]
    seen, makers = set(pending), set()
    while pending:
        for node in pending.pop().inputs:
            if isinstance(node.module, _MAKERS):
                makers.add(node.module)
            elif node not in seen:
                seen.add(node)
                pending.append(node)
    return [name for name, module in graph.model.named_modules() if module in makers]


def plan(
    network: nn.Module,
    fraction: float,
    *,
    floor: float,
    image_shape: tuple[int, ...],
    scope: Literal["network", "layer"] = "network",
    round_to: int = 1,
    keep: Iterable[str] = (),
    earlier: Plan | None = None,
    relevance: Mapping[str, Tensor] | None = None,
) -> Plan:
    """Which units of a spectral network to cut.

    Args:
        network: with spectral layers; units that none of these make stay, and so do those that make the outputs.
        fraction: share of all units to cut, rounded down; fewer where the floor or the rounding forbids it.
        floor: share of each group's units that stays, rounded up; in each layer at least one always does.
        image_shape: (C, H, W) of its input.
        scope: whether the lowest units of the whole network go, or of every group the same share, rounded down.
        round_to: the units that stay in a group are rounded up to a multiple of it, at most to what the group has.
        keep: names of layers, or of modules that hold them, that stay whole and do not count.
        earlier: the plan of the cut before, where the network has been cut already; `fraction` and `floor` are then
            shares of what was there at first.
        relevance: of output units by layer, (outputs,), by another criterion in place of the spectral one; it names at
            least one layer of every group.
    """
    graph = _graph(network, image_shape)
    if relevance is None:
        found = _strengths(network, graph)
        relevance = {name: strength / _positive(strength.mean()) for name, strength in found.items()}
    values = {name: units.tolist() for name, units in relevance.items()}
    keep = tuple(keep)
    groups = _groups(network, graph, keep)
    sizes = {cut.root: cut.units for cut in earlier.first.cuts} if earlier else {}
    stay = [units_that_stay(floor, sizes.get(group.root, len(group.units))) for group in groups]
    ranked = sorted(
        (_score(unit, values), index, number)
        for index, group in enumerate(groups)
        for number, unit in enumerate(group.units)
    )
    total = earlier.units if earlier else sum(len(group.units) for group in groups)
    budget = math.floor(fraction * total + ROUNDING) - (earlier.removed if earlier else 0)
    most = [len(group.units) for group in groups]
    if scope == "layer":
        first = [sizes.get(group.root, len(group.units)) for group in groups]
        most = [n - math.ceil((1 - fraction) * size - ROUNDING) for n, size in zip(most, first, strict=True)]
        budget = total
    left: dict[str, int] = {}
    for group in groups:
        for makers in group.layers:
            for name in makers:
                left[name] = left.get(name, 0) + 1
    removed: list[list[int]] = [[] for _ in groups]  # the least relevant first
    for _, index, number in ranked:
        if budget <= 0:
            break
        makers = groups[index].layers[number]
        spare = min(most[index], len(groups[index].units) - stay[index])
        if len(removed[index]) < spare and all(left[name] > 1 for name in makers):
            removed[index].append(number)
            budget -= 1
            for name in makers:
                left[name] -= 1
    cuts = []
    for group, gone in zip(groups, removed, strict=True):
        rounded = math.ceil((len(group.units) - len(gone)) / round_to) * round_to
        cuts.append(Cut(group.root, len(group.units), tuple(sorted(gone[: max(0, len(group.units) - rounded)]))))
    return Plan(tuple(cuts), earlier, tuple(keep))


def units_that_stay(floor: float, units: int) -> int:
    """How many of a layer's units stay whatever their rank: the share `floor`, rounded up, at least one."""
    return max(1, math.ceil(floor * units - ROUNDING))


def mask(network: Model, plan: Plan, *, image_shape: tuple[int, ...]) -> Model:
    """A folded copy of `network` in which the planned units are silent but still there: what `cut` is checked by."""
    return _silenced(network, _planned(network, plan, image_shape))


def cut(network: Model, plan: Plan, *, image_shape: tuple[int, ...], images: Tensor | None = None) -> Model:
    """A folded copy of `network` without the planned units: smaller in every layer that has to do with them.

    Args:
        network: what the plan is of.
        plan: which units go.
        image_shape: (C, H, W) of its input.
        images: (B, C, H, W), on which the weights that stay are fitted to make up for those that go
            (`trainers.spectral.reconstruction`); None leaves them as they are.

    Raises:
        BadInput: the network that is left does not compute what the one with silent units does, because the network
            does something with its channels that cannot be followed; the message names the layers.
    """
    channels = _planned(network, plan, image_shape)
    silent = _silenced(network, channels)
    if images is not None:
        gone = {place.name: own for place, own in channels.items() if place.made and not place.parameter}
        reconstruct(silent, fold(network), images, gone)
    smaller = _without(silent, channels)
    if difference := _difference(silent, smaller, image_shape):
        alone = {
            step.root: _planned(network, replace(plan, cuts=(step,)), image_shape) for step in plan.cuts if step.removed
        }
        culprits = [
            root
            for root, gone in alone.items()
            if _difference(_silenced(network, gone), _without(network, gone), image_shape)
        ]
        raise BadInput(
            f"a network must compute the same without its units as with them silent, but {difference} (units of "
            f"{', '.join(culprits) or 'several layers together'}); name these layers in `keep`, or have forward use "
            "the sizes that its tensors have and activations that are 0 at 0"
        )
    return smaller


@dataclass(frozen=True)
class _Graph:
    """What follows what in a forward pass of `model`, a folded copy of the network."""

    model: nn.Module
    dependencies: Any
    """Torch-Pruning's graph."""
    routes: Mapping[int, Callable[[int], Iterable[int]]]
    """By the id of a dependency: which channels of its target a channel of its source is; left out, the same one."""
    opaque: frozenset[Any]
    """Steps that do with channels what a cut cannot follow, so that these stay."""


def _graph(network: nn.Module, image_shape: tuple[int, ...]) -> _Graph:
    # traced by gradients, and with two images: a batch norm in training mode refuses one value a channel
    model = fold(network).eval().requires_grad_(True)
    share_all(model)  # the members of a BatchEnsemble have the same channels
    images = torch.zeros(2, *image_shape, device=next(model.parameters()).device, requires_grad=True)

    def forward(model: nn.Module, images: Tensor) -> list[Tensor]:
        # an operation of its own at either end: images and outputs are then seen even where a layer comes first or last
        return [output * 1.0 for output in tp.utils.flatten_as_list(model(images * 1.0))]

    graph = tp.DependencyGraph()
    # the last thing it does is to guess sizes, which can fail (a channel shuffle) and which nobody reads here
    with torch.enable_grad(), suppress(ZeroDivisionError):
        graph.build_dependency(model, images, forward_fn=forward, verbose=False)
    routes, opaque = {}, set()
    for node in graph.module2node.values():
        found = _followed(node, images)
        if found is None:
            opaque.add(node)
            continue
        for slot, (there, back) in enumerate(found):
            giver = node.inputs[slot]
            routes[id(node.dependencies[slot])] = back
            again = sum(earlier is giver for earlier in node.inputs[:slot])
            forth = [dep for dep in giver.dependencies[len(giver.inputs) :] if dep.target is node]
            routes[id(forth[again])] = there
    return _Graph(model, graph, routes, frozenset(opaque))


_Route = tuple[Callable[[int], Iterable[int]], Callable[[int], Iterable[int]]]
"""Which channels of a step a channel of its input is, and the other way round."""


def _followed(node: Any, images: Tensor) -> Sequence[_Route] | None:
    """The routes into a step from each of its inputs; () if channels stay where they are, None if nobody can tell.

    Torch-Pruning guesses sizes from the layers around a step; autograd knows the shapes themselves.
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
    """Into a concatenation."""
    return lambda c: [c + start], lambda c: [c - start] if start <= c < start + size else []


def _reshaped(given: Sequence[int], made: Sequence[int]) -> Sequence[_Route] | None:
    """Into a reshape from shape `given` to shape `made`; the first dimension is the images'."""
    if [size for size in given if size > 1] == [size for size in made if size > 1]:
        return ()
    short, long = sorted((given, made), key=len)
    if len(long) == len(short) + 1 and short[1:] == long[2:]:
        return ()  # the images are taken apart or together
    if len(short) != 2 or len(long) != 4 or short[0] != long[0]:
        return None
    pixels = long[2] * long[3]

    def several(channel: int) -> Iterable[int]:
        return range(channel * pixels, (channel + 1) * pixels)

    def one(channel: int) -> Iterable[int]:
        return [channel // pixels]

    return [(several, one) if long is given else (one, several)]


def _positive(value: Tensor) -> Tensor:
    return value.clamp_min(torch.finfo(value.dtype).tiny)


def rescale(network: nn.Module, *, image_shape: tuple[int, ...]) -> None:
    """Give layers whose outputs go to batch norms alone weights of the size that they begin with, in place.

    ||W||_F becomes sqrt(2 O), what K. He et al. (ICCV 2015) begin with. The batch norm undoes it: the network computes
    what it did, but for the norm's epsilon. The steps of SGD, however, change the outputs of such a layer by the rate
    over ||W||^2 (T. van Laarhoven: L2 regularization versus batch and weight normalization, 2017), and the paper's L2
    leaves weights a seventh of that size: fine-tuning at 0.02 was like 1.0, and undid what a cut had left. Validation
    accuracy in % of resnet 8, width 0.5, with the paper's L2, half of the units cut, before and after 10 epochs at 0.02
    (Fashion-MNIST, 1,000 images to train on; torch 2.15, AMD EPYC; two seeds):

        as it was     79.8 -> 74.5    77.5 -> 82.0
        rescaled      79.8 -> 83.9    77.5 -> 83.2

    Args:
        network: of ordinary layers, or a BatchEnsemble of them.
        image_shape: (C, H, W) or (features,).
    """
    graph = _graph(network, image_shape)
    nodes = graph.dependencies.module2node
    names = {module: name for name, module in graph.model.named_modules()}
    with torch.no_grad():
        for name, traced in graph.model.named_modules():
            following = nodes[traced].outputs if isinstance(traced, nn.Conv2d | nn.Linear) and traced in nodes else []
            if not following or any(
                not isinstance(node.module, _BatchNorm) or len(node.inputs) > 1 for node in following
            ):
                continue
            layer, around = network.get_submodule(name), network.get_submodule(name.rpartition(".")[0])
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            factor = math.sqrt(2 * len(layer.weight)) / _positive(layer.weight.norm())
            for parameter in (layer.weight, layer.bias, around.bias if isinstance(around, BatchEnsemble) else None):
                if parameter is not None:
                    parameter *= factor
            for norm in {network.get_submodule(names[node.module]) for node in following}:
                assert isinstance(norm, _BatchNorm)
                if norm.running_mean is not None and norm.running_var is not None:
                    norm.running_mean *= factor
                    norm.running_var *= factor.square()


def _strengths(network: nn.Module, graph: _Graph) -> dict[str, Tensor]:
    """How strong the units of every spectral layer are, (outputs,): ||w_i||_2, or |gamma_i| behind a batch norm."""
    nodes = {name: graph.dependencies.module2node.get(module) for name, module in graph.model.named_modules()}
    found = {}
    for name, layer in spectral_layers(network):
        ensemble = network.get_submodule(name.rpartition(".")[0])
        following = [node.module for node in nodes[name].outputs] if nodes[name] else []
        if following and all(isinstance(norm, _BatchNorm) and norm.affine for norm in following):
            # more than one where a layer is used more than once
            found[name] = torch.stack([norm.weight.detach().abs() for norm in following]).mean(0)
        else:
            found[name] = _member_norms(ensemble, layer) if isinstance(ensemble, BatchEnsemble) else layer.unit_norms()
    return found


def _member_norms(ensemble: BatchEnsemble, layer: SpectralLinear | SpectralConv2d) -> Tensor:
    """||gamma_i (w_i o alpha)||_2 of each output unit, (outputs,), the mean over members."""
    weight = layer.weight.detach()
    outputs, inputs = weight.shape[:2]
    squares = weight.square().reshape(outputs, inputs, -1).sum(2)
    alpha = ensemble.alpha.detach().square().view(ensemble.members, -1, inputs)  # by groups of a grouped convolution
    groups = alpha.shape[1]
    of_each = torch.einsum("gui,mgi->mgu", squares.view(groups, outputs // groups, inputs), alpha).flatten(1).sqrt()
    norms: Tensor = (of_each * ensemble.gamma.detach().abs()).mean(0)
    return norms


def _score(unit: _Unit, relevance: Mapping[str, list[float]]) -> float:
    """Mean over the spectral layers that make the unit; of several channels of a layer the strongest counts."""
    shares = [
        max(relevance[place.name][channel] for channel in channels)
        for place, channels in unit.items()
        if place.made and place.name in relevance
    ]
    return sum(shares) / len(shares)


def _groups(network: nn.Module, graph: _Graph, keep: Iterable[str]) -> list[_Group]:
    """All units that may be cut, in groups that have layers in common, in the order of the network's modules."""
    kept, spectral = set(keep), {name for name, _ in spectral_layers(network)}
    sets, places, ends = _coupled(graph)
    whole = {sets.find(key) for key in ends}
    units: dict[Hashable, dict[_Place, list[int]]] = {}
    for key, (place, channel) in places.items():
        units.setdefault(sets.find(key), {}).setdefault(place, []).append(channel)
    names = [name for name, module in graph.model.named_modules() if isinstance(module, _MAKERS)]
    position = {name: number for number, name in enumerate(names)}
    found: list[tuple[tuple[int, int], frozenset[str], _Unit]] = []
    joined = _Sets()
    for key, unit in units.items():
        first = {place.name: min(own) for place, own in unit.items() if place.made and place.name in position}
        if key in whole or not spectral & first.keys() or any(named(name, kept) for name in first):
            continue
        found.append((min((position[name], channel) for name, channel in first.items()), frozenset(first), unit))
        for name in first:
            joined.join(name, next(iter(first)))
    groups: dict[Hashable, list[tuple[tuple[int, int], frozenset[str], _Unit]]] = {}
    for item in sorted(found, key=lambda item: item[0]):
        groups.setdefault(joined.find(next(iter(item[1]))), []).append(item)
    return [
        _Group(names[items[0][0][0]], tuple(unit for _, _, unit in items), tuple(makers for _, makers, _ in items))
        for items in groups.values()
    ]


def _coupled(graph: _Graph) -> tuple[_Sets, dict[Hashable, tuple[_Place, int]], dict[Hashable, int]]:
    """Which channels exist only together.

    Returns:
        Sets of channels, over all steps of the forward pass; those of them that are a module's or a parameter's; and
        those that must stay, with the kind of step that wants it.
    """
    sets, ends = _Sets(), dict[Hashable, int]()
    seen: dict[tuple[Any, Any], set[int]] = {}
    find = graph.dependencies
    pending = [
        (node, find.get_pruner_of_module(module).prune_out_channels, set(range(find.get_out_channels(module))))
        for module, node in find.module2node.items()
        if isinstance(module, _MAKERS) and node not in graph.opaque
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
    places: dict[Hashable, tuple[_Place, int]] = {}
    for (node, function), known in seen.items():
        if node.module not in names:
            continue
        made = find.is_out_channel_pruning_fn(function)
        place = _Place(names[node.module], node.type == OPTYPE.PARAMETER, made, function, node.pruning_dim)
        for channel in known:
            places[node, function, channel] = (place, channel)
        if node.type == OPTYPE.CONV and node.module.groups > 1:
            # each group of a grouped convolution keeps as many channels as any other: those at the same place in it
            width = (node.module.out_channels if made else node.module.in_channels) // node.module.groups
            for channel in known:
                sets.join((node, function, channel), (node, function, channel % width))
    return sets, places, ends


def _planned(network: nn.Module, plan: Plan, image_shape: tuple[int, ...]) -> dict[_Place, list[int]]:
    """The channels of every module that the planned units stand for."""
    groups = {group.root: group for group in _groups(network, _graph(network, image_shape), plan.keep)}
    channels: dict[_Place, list[int]] = {}
    for step in plan.cuts:
        for number in step.removed:
            for place, own in groups[step.root].units[number].items():
                channels.setdefault(place, []).extend(own)
    return channels


def _silenced(network: Model, channels: Mapping[_Place, list[int]]) -> Model:
    """A folded copy in which these channels' makers put out 0."""
    silent = fold(network)
    with torch.no_grad():
        for place, gone in channels.items():
            if place.parameter:
                silent.get_parameter(place.name).index_fill_(
                    place.dimension, torch.tensor(gone, device=silent.get_parameter(place.name).device), 0.0
                )
            elif place.made and not isinstance(module := silent.get_submodule(place.name), nn.PReLU):
                for tensor in (module.weight, module.bias, getattr(module, "running_mean", None)):
                    if isinstance(tensor, Tensor):
                        tensor[gone] = 0.0
                ensemble = silent.get_submodule(place.name.rpartition(".")[0])
                if isinstance(ensemble, BatchEnsemble) and ensemble.bias is not None:
                    ensemble.bias[:, gone] = 0.0
    return silent


def _without(network: Model, channels: Mapping[_Place, list[int]]) -> Model:
    """A folded copy that does not have these channels."""
    smaller = fold(network)
    for place, gone in channels.items():
        if place.parameter:
            old = smaller.get_parameter(place.name)
            stays = torch.tensor(sorted(set(range(old.shape[place.dimension])) - set(gone)), device=old.device)
            owner, _, key = place.name.rpartition(".")
            new = nn.Parameter(old.detach().index_select(place.dimension, stays), old.requires_grad)
            setattr(smaller.get_submodule(owner), key, new)
        else:
            place.remove(smaller.get_submodule(place.name), gone)
            ensemble = smaller.get_submodule(place.name.rpartition(".")[0])
            if isinstance(ensemble, BatchEnsemble):
                _cut_fast_weights(ensemble, gone, place.made)
    smaller.zero_grad(set_to_none=True)
    return smaller


def _cut_fast_weights(ensemble: BatchEnsemble, gone: Iterable[int], made: bool) -> None:
    """Cut what belongs to outputs, or to inputs, of a BatchEnsemble's layer out of its fast weights."""
    for name in ("gamma", "bias") if made else ("alpha",):
        old = getattr(ensemble, name)
        if old is not None:
            stays = torch.tensor(sorted(set(range(old.shape[1])) - set(gone)), device=old.device)
            setattr(ensemble, name, nn.Parameter(old.detach().index_select(1, stays)))


def _difference(silent: nn.Module, smaller: nn.Module, image_shape: tuple[int, ...]) -> str:
    """How two networks differ on random images; empty where they agree, or put out what is no number anyway."""
    try:
        pairs = zip(_outputs(silent, image_shape), _outputs(smaller, image_shape), strict=True)
    except (RuntimeError, ValueError, IndexError) as error:
        return f"it does not run ({str(error).splitlines()[0]})"
    for expected, found in pairs:
        if expected.shape != found.shape:
            return f"its outputs' shape is {tuple(found.shape)} and not {tuple(expected.shape)}"
        size = float(expected.abs().max())
        gap = float((expected - found).abs().max())
        if math.isfinite(size) and not gap <= AGREEMENT * size + torch.finfo(expected.dtype).eps:
            return f"its outputs differ by {gap:.2g} of {size:.2g}"
    return ""


def _outputs(network: nn.Module, image_shape: tuple[int, ...]) -> list[Tensor]:
    training = [module for module in network.modules() if module.training]
    device = next(network.parameters()).device
    images = torch.rand(4, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        found: list[Tensor] = tp.utils.flatten_as_list(network.eval()(images))
    for module in training:
        module.training = True
    return found
