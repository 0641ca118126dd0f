"""Cutting the least important units out of a network.

Giambagli et al. 2023 mask the least important units of each layer. Here `plan` chooses units by their importance
(`trainers.spectral.importance`), across the network or within each layer, and `cut` removes them, with everything in
other layers that depends on them (`trainers.spectral.dependencies`). It only returns a network that agrees with the one
in which the same units are masked.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from spaces import BadInput
from trainers.spectral.importance import shares_of_mean, unit_importance
from trainers.spectral.layers import Model, fold, named
from trainers.spectral.reconstruction import reconstruct
from trainers.spectral.removal import difference, silenced, without
from trainers.spectral.units import Count, Group, Place, Traced, channels_in, grouped

ROUNDING = 1e-9
"""0.29 * 100 is 28.999999999999996 in floating point, and means 29 units."""


@dataclass(frozen=True)
class Cut:
    """One group of layers with common units: the first layer, the number of units, and which of them are cut."""

    root: str
    units: int
    removed: tuple[int, ...]
    """Indices of units; if each unit is one channel of the root, as in nearly all networks, channel indices."""


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
    counts: tuple[Count, ...] = field(default=(), compare=False, repr=False)
    """What else changes when units are cut."""

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
        groups = {group.root: group.units for group in self.groups}
        return channels_in(groups[step.root][number] for step in self.cuts for number in step.removed)

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
        round_to: the number of channels kept in a group is rounded up to a multiple of this, up to all of them.
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
        rounded = rounded_up(group, len(group.units) - len(gone), round_to)
        cuts.append(Cut(group.root, len(group.units), tuple(sorted(gone[: len(group.units) - rounded]))))
    return Plan(tuple(cuts), earlier, tuple(groups), traced.image_shape, traced.counts)


def units_that_stay(floor: float, units: int) -> int:
    """How many of a layer's units are kept whatever their rank: the share `floor`, rounded up, at least one."""
    return max(1, math.ceil(floor * units - ROUNDING))


def rounded_up(group: Group, units: int, round_to: int) -> int:
    """The least number of units, at least as many, of which the channels are a multiple of `round_to` or are all."""
    step = round_to // math.gcd(round_to, *(len(unit.channels_of(group.root)) for unit in group.units))
    return min(len(group.units), math.ceil(units / step) * step)


def mask(network: Model, plan: Plan) -> Model:
    """A folded copy of `network` in which the planned units are masked but still there; `cut` is checked against it."""
    return silenced(network, plan.channels)


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
    silent = silenced(network, channels)
    if images is not None:
        made = {place: own for place, own in channels.items() if place.made and place.dimension == 0}
        gone = {
            place.name.removesuffix(".weight"): own for place, own in made.items() if place.name.endswith(".weight")
        }
        reconstruct(silent, fold(network), images, gone)
    smaller = without(silent, channels, plan.counts)
    if differs := difference(silent, smaller, plan.image_shape):
        alone = {step.root: replace(plan, cuts=(step,)).channels for step in plan.cuts if step.removed}
        culprits = [
            root
            for root, gone in alone.items()
            if difference(silenced(network, gone), without(network, gone, plan.counts), plan.image_shape)
        ]
        raise BadInput(
            f"a network must compute the same with units cut as with them masked, but {differs} (units of "
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
    return grouped(units, traced.layers)
