"""Locates the features and the outputs of a network that is not Dux's own, by a forward pass."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.families.family import as_map

_IMAGES = 2
"""Images in the pass; an output with another number of rows is not a feature of an image."""
_STAGES = 3
"""How many stages the blocks of a network with a single resolution, such as a vision transformer, are divided into."""
_PIXEL = (1, 1)
_POOLINGS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Places:
    """Names of modules of a network."""

    taps: tuple[str, ...]
    """Modules whose outputs are the features, from shallow to deep."""
    activations: tuple[str | None, ...]
    """For each tap, the ReLU that it ends in; None if it does not end in a ReLU module."""
    heads: tuple[str, ...]
    """The output layers: those not followed by another linear or convolutional layer."""
    outputs: tuple[int, ...] | None
    """The shape of the network's output for two images; None if it is not a tensor."""


@dataclass(frozen=True)
class _Call:
    """A module's call during the pass."""

    name: str
    module: nn.Module
    output: Tensor
    given: tuple[int, int] | None
    """(h, w) of its input, if that can be a map (B, C, h, w)."""
    size: tuple[int, int] | None
    """(h, w) of its output, likewise."""

    @property
    def has_weights(self) -> bool:
        """Whether the module has weights of its own."""
        return next(self.module.parameters(recurse=False), None) is not None


def find_taps(network: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the last module at each spatial resolution, from shallow to deep.

    In a block that halves the resolution, modules before the halving do not count: the output of the previous block is
    the tap. Features pooled to a single pixel are not taps, unless layers have made the pixel. In a network with a
    single resolution, such as a vision transformer, the blocks after a third and two thirds are taps, too; in a network
    without any resolution, the inputs of every linear layer but the first.

    Args:
        network: in any mode, on any device; it is run once, in eval mode, and left as it was.
        image_shape: (C, H, W) of its input.
    """
    return list(find_places(network, image_shape).taps)


def find_places(network: nn.Module, image_shape: tuple[int, int, int], taps: Iterable[str] | None = None) -> Places:
    """The taps, by `find_taps` unless they are given, the ReLUs that they end in, and the heads.

    Args:
        network: in any mode, on any device; it is run once, in eval mode, and left as it was.
        image_shape: (C, H, W) of its input.
        taps: names of modules.
    """
    calls, begun, heads, outputs = _run(network, image_shape)
    names = tuple(_taps(calls, begun) if taps is None else taps)
    last = {call.name: call.output for call in calls}
    relus = {id(call.output): call.name for call in _final(calls) if isinstance(call.module, nn.ReLU)}
    return Places(names, tuple(relus.get(id(last.get(name))) for name in names), heads, outputs)


def _run(
    network: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[list[_Call], list[int], tuple[str, ...], tuple[int, ...] | None]:
    """The modules' calls, in the order in which they finished; for each call of a linear layer, how many had finished
    when it began; the heads, and the shape of their output."""
    calls, begun, makers = list[_Call](), list[int](), dict[object, str]()
    named = [(name, module) for name, module in network.named_modules() if name]
    first = next(network.parameters(), torch.zeros(()))
    images = torch.zeros(_IMAGES, *image_shape, device=first.device, dtype=first.dtype, requires_grad=True)

    def note(name: str, module: nn.Module, given: Sequence[object], output: object) -> None:
        if not isinstance(output, Tensor):
            return
        if isinstance(module, nn.Conv2d | nn.Linear) and output.grad_fn is not None:
            makers[output.grad_fn] = name
        came = _size(given[0], images.shape) if given else None
        calls.append(_Call(name, module, output, came, _size(output, images.shape)))

    hooks = []
    for name, module in named:
        hooks.append(module.register_forward_hook(lambda m, given, output, name=name: note(name, m, given, output)))
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(lambda *_: begun.append(len(calls))))
    try:
        with _evaluated(network), torch.enable_grad():
            outputs = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(outputs, Tensor):
        return calls, begun, (), None
    return calls, begun, tuple(_nearest(outputs, makers)), tuple(outputs.shape)


def _size(feature: object, images: Sequence[int]) -> tuple[int, int] | None:
    """(h, w) of `feature` interpreted as a map."""
    if not isinstance(feature, Tensor) or not 2 <= feature.dim() <= 4 or len(feature) != _IMAGES:
        return None
    *_, height, width = as_map(feature, images).shape
    return height, width


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode; afterwards each of its modules is in its previous mode."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _nearest(outputs: Tensor, makers: dict[object, str]) -> Iterator[str]:
    """Those of `makers` that the gradient of the outputs reaches before any other, in the order of the pass."""
    pending, seen, reached = [outputs.grad_fn], set(), set()
    while pending:
        step = pending.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if step in makers:
            reached.add(makers[step])
        else:
            pending += [before for before, _ in step.next_functions]
    return (name for name in dict.fromkeys(makers.values()) if name in reached)


def _final(calls: Sequence[_Call]) -> list[_Call]:
    """The last call of each module, whose output is the one that a hook keeps."""
    last = {call.name: place for place, call in enumerate(calls)}
    return [call for place, call in enumerate(calls) if last[call.name] == place]


def _taps(calls: Sequence[_Call], begun: Sequence[int]) -> list[str]:
    # anything before the first module with weights is only the image
    start = next((place for place, call in enumerate(calls) if call.has_weights), len(calls))
    final = [call for call in _final(calls[start:]) if call.size is not None and call.output.dim() > 2]
    if not any(call.size != _PIXEL for call in final):
        before = [[call for call in calls[start:end] if call.size is not None] for end in begun]
        return list(dict.fromkeys(several[-1].name for several in before if several))
    last: dict[tuple[int, int] | None, _Call] = {}
    for call in _between_blocks(final):
        last.pop(call.size, None)
        last[call.size] = call
    deepest = max(
        place
        for place, call in enumerate(calls)
        if call.size not in (None, _PIXEL) and not isinstance(call.module, _POOLINGS)
    )
    pixels = [call for call in calls[deepest:] if call.size == _PIXEL]
    if pixels and not pixels[0].has_weights:  # pooled, and not by a layer
        last.pop(_PIXEL, None)
    taps = [call.name for call in last.values()]
    return taps if len(taps) > 1 else [*_blocks(final, taps[0]), *taps]


def _between_blocks(final: Sequence[_Call]) -> Iterator[_Call]:
    """Calls that make features: not poolings, nor modules before the change in a block that changes the resolution."""
    down = []
    for block in final:
        if type(block.module) is not nn.Sequential and block.given not in (None, block.size):
            inside = {call.size for call in final if call.name.startswith(f"{block.name}.")}
            if inside <= {block.given, block.size, _PIXEL}:  # otherwise it is a network rather than a block
                down.append(block)
    for call in final:
        if not isinstance(call.module, _POOLINGS) and not any(
            call.name.startswith(f"{block.name}.") and call.size == block.given for block in down
        ):
            yield call


def _blocks(final: Sequence[_Call], end: str) -> list[str]:
    """Of the largest set of modules of one class in one place, those at the end of all stages but the last."""
    alike: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for call in final:
        if call.size != _PIXEL and call.name != end and next(call.module.children(), None) is not None:
            alike.setdefault((call.name.rpartition(".")[0], type(call.module)), []).append(call.name)
    most = max(alike.values(), key=len, default=[])
    if len(most) < _STAGES:
        return []
    return [most[len(most) * stage // _STAGES - 1] for stage in range(1, _STAGES)]
