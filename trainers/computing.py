"""How torch computes on a CPU: with a stated number of threads, and denormal numbers taken as zero."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Inside, torch computes with `threads`; afterwards as before.

    Sums are rounded differently with another number of threads, so the number belongs to whatever is to come out the
    same again. One is fastest where processes share the cores: two threads on a busy 2-core machine trained a ResNet-8
    five times slower than one.
    """
    before = torch.get_num_threads()
    flushing = not bool(torch.tensor(1e-310, dtype=torch.float64) * 1.0)  # torch has no way to ask
    torch.set_num_threads(threads)
    # weights that decay to nothing pass through denormal numbers, which a CPU multiplies a hundred times slower
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushing)
        torch.set_num_threads(before)
