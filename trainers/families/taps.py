"""Where the features and the outputs of a network are made that Dux did not write: found by a forward pass."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.families.family import as_map

_IMAGES = 2
"""In the pass; what has another number of rows is no feature of an image."""
_STAGES = 3
"""Into which the blocks of a network are parted that keeps one resolution throughout, as a vision transformer does."""
_PIXEL = (1, 1)
_POOLINGS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Places:
    """Names of modules of a network."""

    taps: tuple[str, ...]
    """Whose outputs are its features, from shallow to deep."""
    activations: tuple[str | None, ...]
    """Of each tap, the ReLU that it ends in; None where it ends in no module that is one."""
    heads: tuple[str, ...]
    """The layers that make the outputs: those behind which no other linear or convolutional layer comes."""
    outputs: tuple[int, ...] | None
    """The shape of what the network puts out for two images; None where that is no tensor."""


@dataclass(frozen=True)
class _Call:
    """A module has put something out."""

    name: str
    module: nn.Module
    output: Tensor
    given: tuple[int, int] | None
    """(h, w) of what it took, where that can be a map (B, C, h, w)."""
    size: tuple[int, int] | None
    """(h, w) of what it put out, so, too."""

    @property
    def has_weights(self) -> bool:
        """Whether the module has some of its own."""
        return next(self.module.parameters(recurse=False), None) is not None


def find_taps(network: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the last module at each spatial resolution, from shallow to deep.

    Of a block that halves the resolution, what it does before that is not counted: the output of the block before is
    the tap. What is pooled to a single pixel is none, unless layers have made the pixel. Of a network that keeps one
    resolution, as a vision transformer does, the blocks after a third and two thirds are taps, too; of one without
    any, what is given to each linear layer but the first.

    Args:
        network: in any mode, on any device; it is run once, in eval mode, and left as it was.
        image_shape: (C, H, W) of what it takes.
    """
    return list(find_places(network, image_shape).taps)


def find_places(network: nn.Module, image_shape: tuple[int, int, int], taps: Iterable[str] | None = None) -> Places:
    """Taps, as `find_taps` finds them where none are given, the ReLUs that these end in, and the heads.

    Args:
        network: in any mode, on any device; it is run once, in eval mode, and left as it was.
        image_shape: (C, H, W) of what it takes.
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
    """What modules put out, in the order in which they finished; for each call of a linear layer, how many had finished
    when it began; the heads, and the shape of what they make."""
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
    """(h, w) of the map that `feature` can be taken for."""
    if not isinstance(feature, Tensor) or not 2 <= feature.dim() <= 4 or len(feature) != _IMAGES:
        return None
    *_, height, width = as_map(feature, images).shape
    return height, width


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode; afterwards each of its modules is in its own again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _nearest(outputs: Tensor, makers: dict[object, str]) -> Iterator[str]:
    """Those of `makers` that the gradient of the outputs comes to before any other, in the order of the pass."""
    pending, seen, found = [outputs.grad_fn], set(), set()
    while pending:
        step = pending.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if step in makers:
            found.add(makers[step])
        else:
            pending += [before for before, _ in step.next_functions]
    return (name for name in dict.fromkeys(makers.values()) if name in found)


def _final(calls: Sequence[_Call]) -> list[_Call]:
    """The last call of each module, whose output is what a hook keeps."""
    last = {call.name: place for place, call in enumerate(calls)}
    return [call for place, call in enumerate(calls) if last[call.name] == place]


def _taps(calls: Sequence[_Call], begun: Sequence[int]) -> list[str]:
    # before the first module with weights there is only the image
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
    found = [call.name for call in last.values()]
    return found if len(found) > 1 else [*_blocks(final, found[0]), *found]


def _between_blocks(final: Sequence[_Call]) -> Iterator[_Call]:
    """Calls that make features: not poolings, nor what a block that changes the resolution does before it does."""
    down = []
    for block in final:
        if type(block.module) is not nn.Sequential and block.given not in (None, block.size):
            inside = {call.size for call in final if call.name.startswith(f"{block.name}.")}
            if inside <= {block.given, block.size, _PIXEL}:  # else it is a network rather than a block
                down.append(block)
    for call in final:
        if not isinstance(call.module, _POOLINGS) and not any(
            call.name.startswith(f"{block.name}.") and call.size == block.given for block in down
        ):
            yield call


def _blocks(final: Sequence[_Call], end: str) -> list[str]:
    """Of the most modules of one class in one place, those after all stages but the last."""
    alike: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for call in final:
        if call.size != _PIXEL and call.name != end and next(call.module.children(), None) is not None:
            alike.setdefault((call.name.rpartition(".")[0], type(call.module)), []).append(call.name)
    most = max(alike.values(), key=len, default=[])
    if len(most) < _STAGES:
        return []
    return [most[len(most) * stage // _STAGES - 1] for stage in range(1, _STAGES)]
