"""Initialisation from a given generator: PyTorch's initialisers draw only from the global one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Inside, the global generator of the CPU is seeded from `generator`; afterwards it is as it was."""
    with torch.random.fork_rng(devices=()):
        # not torch.manual_seed, which would also permanently seed the accelerators' generators
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        yield
