"""A worker's messages about its trial: one after every epoch, one at the end; and how they pass through Ray Tune."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EpochDone:
    """An epoch is over."""

    step: int
    """Epochs done, from 1."""
    steps: int
    """Epochs in all."""
    metrics: Mapping[str, float]
    """Measured on the current network."""
    cost: Mapping[str, float]
    """Of the final student, as far as it is known."""


@dataclass(frozen=True)
class Finished:
    """The trial ended, and its files are written; holds what the ledger records."""

    measurements: Mapping[str, float]
    curve: Sequence[Mapping[str, Any]]
    """The points of its pruning curve, as in its `result.json`."""
    files: Mapping[str, str]
    """Name -> SHA-256 of its student's files."""
    seconds: float


@dataclass(frozen=True)
class Failed:
    """An exception ended the trial."""

    reason: str
    again: bool
    """Whether another attempt may succeed, for example after a lack of memory. Other errors would occur again with the
    same recipe and seed."""


Message = EpochDone | Finished | Failed

_KINDS = {kind.__name__: kind for kind in (EpochDone, Finished, Failed)}
_KEY = "message"


def to_tune(message: Message) -> dict[str, str]:
    """The message as a result for Tune: as text, since Tune flattens nested results."""
    return {_KEY: json.dumps([type(message).__name__, vars(message)])}


def from_tune(result: Mapping[str, Any] | None) -> Message | None:
    """The message in a result from Tune; None if Tune made the result itself."""
    if result is None or _KEY not in result:
        return None
    kind, values = json.loads(result[_KEY])
    message: Message = _KINDS[kind](**values)
    return message
