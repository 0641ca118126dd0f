"""Tries out which units can really be cut.

What is followed from operation to operation cannot show that a network computes the same without some units: its code
may have a size written into it, or an activation may not be 0 at 0. So all groups of units are cut at once, in a copy
with drawn weights (a layer that begins at 0 would hide everything before it), and compared with the network in which
the same units are masked. If the two differ, those groups that make them differ stay whole.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from trainers.spectral.layers import Model, fold
from trainers.spectral.removal import difference, random_images, silenced, without
from trainers.spectral.statistics import recalibrate
from trainers.spectral.units import Group, Traced, channels_in, grouped

_EPS = 1e-5
"""A batch norm in training refuses an epsilon of 0."""


def verified(traced: Traced) -> Traced:
    """What of the units of a network can be cut; the others are in `whole`."""
    groups = [group for group in grouped(traced.units, traced.layers) if len(group.units) > 1]
    drawn = _drawn(traced.network, traced.image_shape)

    def differs(some: Sequence[Group]) -> str:
        channels = channels_in(unit for group in some for unit in group.units[1::2])
        smaller = without(drawn, channels, traced.counts)
        return difference(silenced(drawn, channels), smaller, traced.image_shape)

    def culprits(some: Sequence[Group]) -> dict[str, str]:
        why = differs(some) if some else ""
        if not why:
            return {}
        if len(some) == 1:
            return {some[0].root: why}
        half = len(some) // 2
        alone = culprits(some[:half]) | culprits(some[half:])
        return alone or {group.root: why for group in some}

    bad = culprits(groups)
    if not bad:
        return traced
    roots = {name: group.root for group in groups for unit in group.units for name in unit.makers}
    units = tuple(unit for unit in traced.units if not any(roots.get(name) in bad for name in unit.makers))
    reasons = {
        name: f"cannot be cut without changing what the network computes: {bad[root]}"
        for name, root in roots.items()
        if root in bad
    }
    return verified(replace(traced, units=units, whole={**reasons, **traced.whole}))  # the others together


def _drawn(network: Model, image_shape: tuple[int, ...]) -> Model:
    """A folded copy with weights that let signals through, the same ones whenever they are drawn."""
    drawn, generator = fold(network), torch.Generator().manual_seed(0)
    layers = {f"{name}.weight" for name, module in drawn.named_modules() if isinstance(module, _ConvNd | nn.Linear)}
    with torch.no_grad():
        for name, tensor in [*drawn.named_parameters(), *drawn.named_buffers()]:
            numbers = torch.randn(tensor.shape, generator=generator)
            if name in layers:
                tensor.copy_(numbers * (2 * len(tensor) / tensor.numel()) ** 0.5)
            elif isinstance(tensor, nn.Parameter):
                tensor.copy_(0.5 * numbers)
    for module in drawn.modules():
        if isinstance(module, _BatchNorm):
            module.eps = max(module.eps, _EPS)
    recalibrate(drawn, [random_images(drawn, image_shape)])
    return drawn
