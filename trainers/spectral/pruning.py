"""Cutting the least important units out of a network.

Giambagli et al. 2023 mask the least important units of each layer. Here `plan` chooses units by their importance
(`trainers.spectral.importance`), across the network or within each layer, and `cut` removes them, with everything in
other layers that depends on them (`trainers.spectral.dependencies`). It only returns a network that agrees with the one
in which the same units are masked.
"""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

from spaces import BadInput
from trainers.families.batch_ensemble import BatchEnsemble
from trainers.spectral.dependencies import Place, Traced, UnionFind, Unit
from trainers.spectral.importance import shares_of_mean, unit_importance
from trainers.spectral.layers import Model, fold, named
from trainers.spectral.reconstruction import reconstruct

ROUNDING = 1e-9
"""0.29 * 100 is 28.999999999999996 in floating point, and means 29 units."""

AGREEMENT = 1e-3
"""How far a cut network may be from the masked one, as a fraction of the largest output: sums over fewer terms round
differently, by at most 2e-7 in the networks of the tests; a wrong channel makes a far larger difference."""


@dataclass(frozen=True)
class Cut:
    """One group of layers with common units: the first layer, the number of units, and which of them are cut."""

    root: str
    units: int
    removed: tuple[int, ...]
    """Indices of units; if each unit is one channel of the root, as in nearly all networks, channel indices."""


@dataclass(frozen=True)
class Group:
    """Layers with common units, and all their units that may be cut."""

    root: str
    """The first of the layers."""
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Plan:
    """Which units of each group are cut."""

    cuts: tuple[Cut, ...]
    earlier: "Plan | None" = None
    """The plan of the previous cut, if the network has been cut already."""
    groups: tuple[Group, ...] = field(default=(), compare=False, repr=False)
    """All groups of the network."""
    image_shape: tuple[int, ...] = field(default=(), compare=False)
    """(C, H, W) of the network's input."""

    @property
    def units(self) -> int:
        """Number of units in all groups together, before anything was cut."""
        return self.earlier.units if self.earlier else sum(cut.units for cut in self.cuts)

    @property
    def removed(self) -> int:
        """Number of units cut, including earlier plans."""
        return sum(len(cut.removed) for cut in self.cuts) + (self.earlier.removed if self.earlier else 0)

    @property
    def channels(self) -> dict[Place, list[int]]:
        """The channels of every module that belong to the planned units."""
        groups, channels = {group.root: group for group in self.groups}, dict[Place, list[int]]()
        for step in self.cuts:
            for number in step.removed:
                for place, own in groups[step.root].units[number].channels.items():
                    channels.setdefault(place, []).extend(own)
        return channels

    @property
    def first(self) -> "Plan":
        """The plan of the first cut."""
        return self.earlier.first if self.earlier else self


def plan(
    traced: Traced,
    fraction: float,
    *,
    floor: float,
    scope: Literal["network", "layer"] = "network",
    round_to: int = 1,
    keep: Iterable[str] = (),
    earlier: Plan | None = None,
    importance: Mapping[str, Tensor] | None = None,
) -> Plan:
    """Choose the units of a network to cut.

    Args:
        traced: the network; units that no layer in `importance` outputs are not cut, nor are those of output layers.
        fraction: share of all units to cut, rounded down; fewer if the floor or the rounding requires it.
        floor: share of each group's units that is kept, rounded up; at least one per layer always is.
        scope: whether to cut the least important units of the whole network, or the same share of every group, rounded
            down.
        round_to: the number of units kept in a group is rounded up to a multiple of this, up to all of them.
        keep: names of layers, or of modules that contain them, that are left whole and do not count.
        earlier: the plan of the previous cut, if the network has been cut already; `fraction` and `floor` are then
            shares of the original units.
        importance: of output units by layer, (outputs,), comparable between layers; None uses that of the spectral
            layers.
    """
    if importance is None:
        importance = shares_of_mean(traced)
    values = {name: units.tolist() for name, units in importance.items()}
    groups = _groups(traced, values.keys(), tuple(keep))
    sizes = {cut.root: cut.units for cut in earlier.first.cuts} if earlier else {}
    first = [sizes.get(group.root, len(group.units)) for group in groups]
    spare = [len(group.units) - units_that_stay(floor, size) for group, size in zip(groups, first, strict=True)]
    total = earlier.units if earlier else sum(len(group.units) for group in groups)
    budget = math.floor(fraction * total + ROUNDING) - (earlier.removed if earlier else 0)
    if scope == "layer":
        shares = [
            len(group.units) - math.ceil((1 - fraction) * size - ROUNDING)
            for group, size in zip(groups, first, strict=True)
        ]
        spare, budget = [min(pair) for pair in zip(spare, shares, strict=True)], total
    removed = _lowest(groups, values, spare, budget)
    cuts = []
    for group, gone in zip(groups, removed, strict=True):
        rounded = math.ceil((len(group.units) - len(gone)) / round_to) * round_to
        cuts.append(Cut(group.root, len(group.units), tuple(sorted(gone[: max(0, len(group.units) - rounded)]))))
    return Plan(tuple(cuts), earlier, tuple(groups), traced.image_shape)


def units_that_stay(floor: float, units: int) -> int:
    """How many of a layer's units are kept whatever their rank: the share `floor`, rounded up, at least one."""
    return max(1, math.ceil(floor * units - ROUNDING))


def mask(network: Model, plan: Plan) -> Model:
    """A folded copy of `network` in which the planned units are masked but still there; `cut` is checked against it."""
    return _silenced(network, plan.channels)


def cut(network: Model, plan: Plan, *, images: Tensor | None = None) -> Model:
    """A folded copy of `network` without the planned units: smaller in every layer that involves them.

    Args:
        network: the planned network.
        plan: which units to cut.
        images: (B, C, H, W), calibration images on which the remaining weights are fitted to compensate for the cut
            (`trainers.spectral.reconstruction`); None leaves them as they are.

    Raises:
        BadInput: the cut network does not compute the same as the masked one, because the network handles its channels
            in a way that cannot be followed; the message names the layers.
    """
    channels = plan.channels
    silent = _silenced(network, channels)
    if images is not None:
        gone = {place.name: own for place, own in channels.items() if place.made and not place.parameter}
        reconstruct(silent, fold(network), images, gone)
    smaller = _without(silent, channels)
    if difference := _difference(silent, smaller, plan.image_shape):
        alone = {step.root: replace(plan, cuts=(step,)).channels for step in plan.cuts if step.removed}
        culprits = [
            root
            for root, gone in alone.items()
            if _difference(_silenced(network, gone), _without(network, gone), plan.image_shape)
        ]
        raise BadInput(
            f"a network must compute the same with units cut as with them masked, but {difference} (units of "
            f"{', '.join(culprits) or 'several layers together'}); name these layers in `keep`, or make forward use "
            "the actual sizes of its tensors and activations that are 0 at 0"
        )
    return smaller


def _lowest(
    groups: list[Group], importance: Mapping[str, list[float]], spare: list[int], budget: int
) -> list[list[int]]:
    """Indices of the least important units of each group, in ascending order of importance.

    Args:
        groups: of all units.
        importance: of output units by layer.
        spare: how many units each group can spare.
        budget: how many units to cut in all.
    """
    ranked = sorted(
        (unit_importance(unit, importance), index, number)
        for index, group in enumerate(groups)
        for number, unit in enumerate(group.units)
    )
    remaining = Counter(name for group in groups for unit in group.units for name in unit.makers)
    removed: list[list[int]] = [[] for _ in groups]
    for _, index, number in ranked:
        if budget <= 0:
            break
        makers = groups[index].units[number].makers
        if len(removed[index]) < spare[index] and all(remaining[name] > 1 for name in makers):
            removed[index].append(number)
            budget -= 1
            remaining.subtract(makers.keys())
    return removed


def _groups(traced: Traced, ranked: Collection[str], keep: tuple[str, ...]) -> list[Group]:
    """All units that may be cut and that a layer in `ranked` outputs, grouped by common layers."""
    units = [
        unit
        for unit in traced.units
        if not unit.makers.keys().isdisjoint(ranked) and not any(named(name, keep) for name in unit.makers)
    ]
    joined = UnionFind()
    for unit in units:
        for name in unit.makers:
            joined.join(name, next(iter(unit.makers)))
    groups: dict[Hashable, list[Unit]] = {}
    for unit in units:
        groups.setdefault(joined.find(next(iter(unit.makers))), []).append(unit)
    position = {name: number for number, name in enumerate(traced.layers)}
    return [Group(min(units[0].makers, key=position.__getitem__), tuple(units)) for units in groups.values()]


def _silenced(network: Model, channels: Mapping[Place, list[int]]) -> Model:
    """A folded copy in which the layers that output these channels give 0."""
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


def _without(network: Model, channels: Mapping[Place, list[int]]) -> Model:
    """A folded copy without these channels."""
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
    """Remove outputs (`made`), or inputs, of a BatchEnsemble's layer from its fast weights."""
    for name in ("gamma", "bias") if made else ("alpha",):
        old = getattr(ensemble, name)
        if old is not None:
            stays = torch.tensor(sorted(set(range(old.shape[1])) - set(gone)), device=old.device)
            setattr(ensemble, name, nn.Parameter(old.detach().index_select(1, stays)))


def _difference(silent: nn.Module, smaller: nn.Module, image_shape: tuple[int, ...]) -> str:
    """How two networks differ on random images; empty if they agree, or their outputs are not finite anyway."""
    try:
        pairs = zip(_outputs(silent, image_shape), _outputs(smaller, image_shape), strict=True)
    except (RuntimeError, ValueError, IndexError) as error:
        return f"it does not run ({str(error).splitlines()[0]})"
    for expected, actual in pairs:
        if expected.shape != actual.shape:
            return f"its outputs' shape is {tuple(actual.shape)} and not {tuple(expected.shape)}"
        size = float(expected.abs().max())
        gap = float((expected - actual).abs().max())
        if math.isfinite(size) and not gap <= AGREEMENT * size + torch.finfo(expected.dtype).eps:
            return f"its outputs differ by {gap:.2g} of {size:.2g}"
    return ""


def _outputs(network: nn.Module, image_shape: tuple[int, ...]) -> list[Tensor]:
    training = [module for module in network.modules() if module.training]
    device = next(network.parameters()).device
    images = torch.rand(4, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        outputs: list[Tensor] = tp.utils.flatten_as_list(network.eval()(images))
    for module in training:
        module.training = True
    return outputs
