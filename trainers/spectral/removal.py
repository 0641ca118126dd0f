"""Channels masked in a network, or removed from it, and whether both compute the same."""

import copy
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from trainers.spectral.attention import Attention
from trainers.spectral.layers import Model, fold
from trainers.spectral.units import Count, Place

AGREEMENT = 1e-3
"""How far a cut network may be from the masked one, as a fraction of the largest output: sums over fewer terms round
differently, by at most 2e-7 in the networks of the tests; a wrong channel makes a far larger difference."""


def silenced(network: Model, channels: Mapping[Place, list[int]]) -> Model:
    """A folded copy in which the layers that output these channels give 0."""
    silent = fold(network)
    parameters = dict(silent.named_parameters())
    tensors = {**parameters, **dict(silent.named_buffers())}
    with torch.no_grad():
        for place, gone in channels.items():
            if place.made and (place.name in parameters or place.name.endswith("running_mean")):
                tensor = tensors[place.name]
                tensor.index_fill_(place.dimension, torch.tensor(gone, device=tensor.device), 0.0)
    return silent


def without(network: Model, channels: Mapping[Place, list[int]], counts: Iterable[Count] = ()) -> Model:
    """A folded copy without these channels."""
    smaller = fold(network)
    tensors = {**dict(smaller.named_parameters()), **dict(smaller.named_buffers())}
    left: dict[str, Tensor] = {}
    for place, gone in channels.items():
        old = left.get(place.name, tensors[place.name])
        stays = torch.tensor(sorted(set(range(old.shape[place.dimension])) - set(gone)), device=old.device)
        left[place.name] = old.detach().index_select(place.dimension, stays)
    resize(smaller, left, counts)
    smaller.zero_grad(set_to_none=True)
    return smaller


def resize(network: nn.Module, tensors: Mapping[str, Tensor], counts: Iterable[Count] = ()) -> None:
    """Put tensors of other sizes into a network, and have its modules say what their sizes are; in place.

    This is all that there is to a cut: the shapes of a cut network's tensors, and the network that it was cut from, say
    what it is.

    Args:
        network: of ordinary layers.
        tensors: by the name that `named_parameters` or `named_buffers` gives them.
        counts: of the network (`Traced.counts`).
    """
    new: dict[int, tuple[Tensor, Tensor]] = {}  # the old one beside it, so that its id stays its own
    old = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    numbers: list[tuple[Count, int]] = []
    for count in counts:
        if count.tensor in tensors:
            before, after = (of[count.tensor].shape[count.dimension] for of in (old, tensors))
            number = getattr(network.get_submodule(count.module), count.attribute)
            numbers.append((count, number * after // before))
    for name, module in network.named_modules():
        for key, own in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            found = tensors.get(f"{name}.{key}" if name else key)
            if found is not None and id(own) not in new:
                made = nn.Parameter(found, own.requires_grad) if isinstance(own, nn.Parameter) else found
                new[id(own)] = (own, made)
            if id(own) in new:
                setattr(module, key, new[id(own)][1])
    for module in network.modules():
        _state_sizes(module)
    for count, number in numbers:
        setattr(network.get_submodule(count.module), count.attribute, number)


def _state_sizes(module: nn.Module) -> None:
    """Have a layer's sizes say what its tensors are."""
    if isinstance(module, _ConvNd):
        outputs, inputs = module.weight.shape[:2]
        if isinstance(module, _ConvTransposeNd):
            module.in_channels, module.out_channels = outputs, inputs * module.groups
            return
        if 1 < module.groups == module.in_channels:  # depthwise: a group is a channel, with as many outputs as any
            module.groups = outputs * module.groups // module.out_channels
        module.out_channels, module.in_channels = outputs, inputs * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        sizes = [t.numel() for t in (module.weight, module.running_mean) if t is not None]
        module.num_features = sizes[0] if sizes else module.num_features
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, Attention):
        module.num_heads = module.out_proj.weight.shape[1] // module.head_dim


def difference(silent: nn.Module, smaller: nn.Module, image_shape: tuple[int, ...]) -> str:
    """How two networks differ on random images; empty if they agree, or their outputs are not finite anyway.

    A network whose outputs grow without bounds magnifies the rounding in which they may differ; so networks that
    disagree are asked again in double precision, if they run in it.
    """
    images = random_images(silent, image_shape)
    try:
        differs = _difference(silent, smaller, images)
    except Exception as error:  # a network that somebody else wrote may raise anything
        return f"it does not run ({(str(error) or type(error).__name__).splitlines()[0]})"
    if differs:
        with suppress(Exception):
            return _difference(copy.deepcopy(silent).double(), copy.deepcopy(smaller).double(), images.double())
    return differs


def _difference(silent: nn.Module, smaller: nn.Module, images: Tensor) -> str:
    pairs = zip(_outputs(silent, images), _outputs(smaller, images), strict=True)
    return next(filter(None, (_unlike(*pair) for pair in pairs)), "")


def _unlike(expected: Tensor, actual: Tensor) -> str:
    if expected.shape != actual.shape:
        return f"its outputs' shape is {tuple(actual.shape)} and not {tuple(expected.shape)}"
    size = float(expected.abs().max())
    gap = float((expected - actual).abs().max())
    if math.isfinite(size) and not gap <= AGREEMENT * size + torch.finfo(expected.dtype).eps:
        return f"its outputs differ by {gap:.2g} of {size:.2g}"
    return ""


def random_images(network: nn.Module, image_shape: tuple[int, ...]) -> Tensor:
    """Four images, (4, C, H, W), the same ones whenever they are drawn."""
    images = torch.rand(4, *image_shape, generator=torch.Generator().manual_seed(0))
    return images.to(next(network.parameters()).device)


def _outputs(network: nn.Module, images: Tensor) -> Collection[Tensor]:
    training = [module for module in network.modules() if module.training]
    with torch.no_grad():
        outputs = network.eval()(images)
    for module in training:
        module.training = True
    return [output for output in tree_leaves(outputs) if isinstance(output, Tensor)]
