"""Checkpoints: how far a trial has come, so that one that is interrupted goes on as if nothing had been."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from trainers.loop import State

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where a trial's checkpoint is kept: a place for bytes, whichever."""

    load: Callable[[], bytes | None]
    """What was saved last, by this process or an earlier one; None if nothing was."""
    save: Callable[[bytes], object]
    """Replace it."""
    seconds: float = 30.0
    """The least time between two; 0 saves one after every epoch."""


@dataclass(frozen=True)
class Kept:
    """What a checkpoint holds."""

    phase: str
    """`pretrain` or `train`."""
    state: State
    seconds: float
    """That the trial has taken, in all the processes that worked on it."""
    reports: Sequence[tuple[str, Mapping[str, float]]]
    """Phase and metrics of each epoch."""

    def to_bytes(self, trial: str) -> bytes:
        """A safetensors file that `from_bytes` reads where it is told the same `trial`: all that makes the result."""
        about = {
            "format": FORMAT,
            "trial": trial,
            "phase": self.phase,
            "epoch": self.state.epoch,
            "step": self.state.step,
            "seconds": self.seconds,
            "reports": self.reports,
        }
        content: bytes = safetensors.torch.save(dict(self.state.tensors), {"dux": json.dumps(about)})
        return content

    @classmethod
    def from_bytes(cls, content: bytes, trial: str) -> "Kept | None":
        """What was kept; None where the bytes are no checkpoint, are cut short, or belong to another trial."""
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(content)
            about = described(content)
            if (about["format"], about["trial"]) != (FORMAT, trial):
                return None
            state = State(about["epoch"], about["step"], tensors)
            reports = [(phase, metrics) for phase, metrics in about["reports"]]
            return cls(about["phase"], state, about["seconds"], reports)
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError):
            return None


def described(content: bytes) -> dict[str, Any]:
    """What a checkpoint says of itself, without its tensors."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found: dict[str, Any] = json.loads(header["__metadata__"]["dux"])
    return found
