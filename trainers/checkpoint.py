"""Checkpoints: how far a trial has come, so that an interrupted trial continues as if nothing had happened."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from trainers.files import sha256
from trainers.loop import State

FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """Where a trial's checkpoint is stored: any place that can hold bytes."""

    load: Callable[[], bytes | None]
    """Returns what was last saved, by this process or an earlier one; None if nothing was."""
    save: Callable[[bytes], object]
    """Replaces it."""
    seconds: float = 30.0
    """Minimum time between two checkpoints; 0 saves one after every epoch."""


@dataclass(frozen=True)
class Kept:
    """The content of a checkpoint."""

    phase: str
    """`pretrain` or `train`."""
    state: State
    seconds: float
    """Time that the trial has taken, in all processes that ran it."""
    reports: Sequence[tuple[str, Mapping[str, float]]]
    """Phase and metrics of each epoch."""

    def to_bytes(self, trial: str) -> bytes:
        """A safetensors file that `from_bytes` reads if given the same `trial`: everything that determines the result.

        Its metadata are `dux`, a description, and `sha256`, the hash of the file without this entry.
        """
        about = {
            "format": FORMAT,
            "trial": trial,
            "phase": self.phase,
            "epoch": self.state.epoch,
            "step": self.state.step,
            "seconds": self.seconds,
            "reports": self.reports,
        }
        tensors, metadata = dict(self.state.tensors), {"dux": json.dumps(about)}
        unsigned = safetensors.torch.save(tensors, metadata)
        content: bytes = safetensors.torch.save(tensors, {**metadata, "sha256": sha256(unsigned)})
        return content

    @classmethod
    def from_bytes(cls, content: bytes, trial: str) -> "Kept | None":
        """The content; None if the bytes are not a checkpoint, were changed, or belong to another trial."""
        try:
            tensors, about = _read(content)
            if (about["format"], about["trial"]) != (FORMAT, trial):
                return None
            state = State(about["epoch"], about["step"], tensors)
            reports = [(phase, metrics) for phase, metrics in about["reports"]]
            return cls(about["phase"], state, about["seconds"], reports)
        except _UNREADABLE:
            return None


_UNREADABLE = (safetensors.SafetensorError, KeyError, RecursionError, TypeError, ValueError)


def is_sound(content: bytes) -> bool:
    """Whether these are the bytes of a checkpoint as it was written, of any trial."""
    try:
        _read(content)
    except _UNREADABLE:
        return False
    return True


def _read(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description of a checkpoint; raises one of _UNREADABLE if it was changed."""
    tensors: dict[str, Tensor] = safetensors.torch.load(content)
    metadata = _metadata(content)
    if sha256(safetensors.torch.save(tensors, {"dux": metadata["dux"]})) != metadata["sha256"]:
        raise ValueError("its hash is another")
    return tensors, json.loads(metadata["dux"])


def described(content: bytes) -> dict[str, Any]:
    """The description of a checkpoint, without its tensors."""
    description: dict[str, Any] = json.loads(_metadata(content)["dux"])
    return description


def _metadata(content: bytes) -> dict[str, str]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: dict[str, str] = header["__metadata__"]
    return metadata
