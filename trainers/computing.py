"""How torch computes on a CPU: with a given number of threads, denormal numbers flushed to zero, correct gradients."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Inside, torch computes with `threads`; afterwards as before.

    Sums are rounded differently with another number of threads, so reproducing a result requires the same number. One
    is fastest if processes share the cores: two threads on a busy 2-core machine trained a ResNet-8 five times slower
    than one.
    """
    before = torch.get_num_threads()
    flushing = not bool(torch.tensor(1e-310, dtype=torch.float64) * 1.0)  # torch has no way to ask
    torch.set_num_threads(threads)
    # weights that decay to zero pass through denormal numbers, which a CPU multiplies a hundred times slower
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushing)
        torch.set_num_threads(before)


class SoundConvolutions(TorchFunctionMode):
    """Inside, strided convolutions of kernel size 1 are computed in another way on a CPU; used for all training.

    oneDNN's backward pass of such a layer writes out of bounds with few channels in channels-last layout: the process
    dies, or gradients are silently wrong (torch 2.15; `Conv2d(4, 8, 1, stride=2)` on 64 maps of 8x8 without AVX-512, of
    48x48 with it; benchmarks/convolutions.py). Taking the pixels that the stride selects, and then convolving without a
    stride, gives the same numbers to the bit, just as fast. Since the call is replaced rather than the layer, networks
    need not know, and what is saved, traced, cut, counted or exported stays as its author wrote it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch for each torch function that Python code calls."""
        if func in _POOLINGS:
            return _convolution(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


# pooling over one pixel selects pixels in one step forward and one backward; slicing needs one for each dimension,
# which cost 10 % of a training step
_POOLINGS: Mapping[Any, Callable[[Tensor, int, Any], Tensor]] = MappingProxyType(
    {torch.conv1d: F.avg_pool1d, torch.conv2d: F.avg_pool2d, torch.conv3d: F.avg_pool3d}
)


def _convolution(
    convolution: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """The same as `convolution` with these arguments."""
    kernel = tuple(weight.shape[2:])
    strides, paddings = (_each(value, len(kernel)) for value in (stride, 0 if padding == "valid" else padding))
    if input.device.type != "cpu" or math.prod(kernel) > 1 or max(strides) == 1 or "same" in paddings:
        return convolution(input, weight, bias, stride, padding, dilation, groups)
    if any(paddings):
        input = F.pad(input, [size for size in reversed(paddings) for _ in range(2)])
    return convolution(_POOLINGS[convolution](input, 1, strides), weight, bias, groups=groups)


def _each(value: Any, dimensions: int) -> tuple[Any, ...]:
    """A number, or a sequence of one, repeated for every dimension, as convolutions read it."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    return values * dimensions if len(values) == 1 else values
