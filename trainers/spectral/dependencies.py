"""Which channels of a network are coupled, determined from a forward pass.

Every operation of the pass is followed (`trainers.spectral.operations`), so that any module that takes images can be
cut without changing its class. A unit is what can only be removed together: a channel of a layer with all that depends
on it in others, or an attention head. Channels that cannot be followed are not cut; `Traced.whole` says why.
"""

from collections.abc import Hashable, Iterable

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from trainers.spectral.flow import LAYERS, Flow
from trainers.spectral.layers import fold
from trainers.spectral.units import Count, Place, Traced, Unit
from trainers.spectral.verification import verified


def trace(network: nn.Module, image_shape: tuple[int, ...]) -> Traced:
    """Follow two all-zero images through a network, which is left unchanged.

    Args:
        network: of ordinary or spectral layers, or a BatchEnsemble of them.
        image_shape: of one input, (C, H, W) or (features,).
    """
    model = fold(network).eval()
    layers = tuple(name for name, module in model.named_modules() if isinstance(module, LAYERS))
    done = Flow(model, image_shape)
    norms = {name: done.uses[name] for name in layers if done.uses.get(name) and None not in done.uses[name]}
    candidates = Traced(
        network,
        image_shape,
        layers,
        tuple(name for name in layers if name in done.heads),
        {name: tuple(norm for norm in own if norm is not None) for name, own in norms.items()},
        frozenset(name for name, makers in done.taken.items() if len(makers) > 1),
        tuple(_units(done, model, layers)),
        tuple(_counts(done)),
        _whole(done, layers),
    )
    return verified(candidates)


def counts_in(network: nn.Module, image_shape: tuple[int, ...]) -> list[Count]:
    """What a network's modules count of units: with it, `resize` needs no more than the shapes of a cut network.

    Args:
        network: of ordinary layers, of which nothing need be cut; it is left unchanged.
        image_shape: of one input.
    """
    return _counts(Flow(fold(network).eval(), image_shape))


def _units(done: Flow, model: nn.Module, layers: tuple[str, ...]) -> list[Unit]:
    """All units that can be cut, in the order of the layers that output them."""
    position = {f"{name}.weight": number for number, name in enumerate(layers) if name in done.uses}
    channels: dict[int, dict[Place, list[int]]] = {}
    for name, layout in done.tensors.items():
        for dimension, (axis,) in enumerate(layout):
            place = Place(name, dimension, _is_made(model, name, dimension))
            for index, root in done.coupling.removable(axis):
                channels.setdefault(root, {}).setdefault(place, []).append(index)
    units = []
    for own in channels.values():
        makers = {place.name: min(some) for place, some in own.items() if place.made and place.dimension == 0}
        makers = {layers[position[name]]: first for name, first in makers.items() if name in position}
        if makers:
            units.append(Unit(own, makers))
    number = {name: place for place, name in enumerate(layers)}
    return sorted(units, key=lambda unit: min((number[name], first) for name, first in unit.makers.items()))


def _is_made(model: nn.Module, name: str, dimension: int) -> bool:
    """Whether a dimension of a tensor is of what its module puts out."""
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    if key != "weight" or not isinstance(module, _ConvNd | nn.Linear):
        return True
    return dimension == (1 if isinstance(module, _ConvTransposeNd) else 0)


def _counts(done: Flow) -> list[Count]:
    """What modules count, and a dimension of a tensor that goes with it."""
    if not done.counted:
        return []
    find = done.coupling.find
    sizes: dict[frozenset[Hashable], tuple[str, int]] = {}
    for name, layout in done.tensors.items():
        for dimension, (axis,) in enumerate(layout):
            sizes.setdefault(frozenset(find(key) for key in axis.keys or ()), (name, dimension))
    counts: dict[tuple[str, str], Count] = {}
    for split in done.counted:
        keys = split.part.keys if split.part is not None and split.part.keys else ()
        place = sizes.get(frozenset(find(key) for key in keys))
        if place is not None and not any(done.coupling.reason(key) for key in keys):
            counts.update({counter: Count(*counter, *place) for counter in split.counters})
    return list(counts.values())


def _whole(done: Flow, layers: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in layers:
        if f"{name}.weight" not in done.tensors:
            found[name] = (
                "come from a weight that is computed; torch.nn.utils.parametrize.remove_parametrizations makes it an "
                "ordinary one"
            )
        elif name not in done.uses:
            found[name] = "are not used"
        else:
            (axis,) = done.tensors[f"{name}.weight"][0]
            reasons = [done.coupling.reason(key) for key in axis.keys or ()]
            if any(reasons):
                found[name] = next(filter(None, reasons))
    return found
