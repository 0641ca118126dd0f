"""What a worker says of its trial: a message after every epoch, one at the end; and how Ray Tune carries them."""

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
    """Epochs there will be."""
    metrics: Mapping[str, float]
    """Of the network as it is."""
    cost: Mapping[str, float]
    """Of what the student will be, as far as it is known."""


@dataclass(frozen=True)
class Finished:
    """The trial came to its end, and its files are written; what the ledger records of it."""

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
    """Whether another attempt may not meet it: for want of memory, say. All else it would meet again, by the same
    recipe and seed."""


Message = EpochDone | Finished | Failed

_KINDS = {kind.__name__: kind for kind in (EpochDone, Finished, Failed)}
_KEY = "message"


def to_tune(message: Message) -> dict[str, str]:
    """The message as a result of Tune's: as text, since Tune flattens nested results for whom it tells of them."""
    return {_KEY: json.dumps([type(message).__name__, vars(message)])}


def from_tune(result: Mapping[str, Any] | None) -> Message | None:
    """The message in a result of Tune's; None where there is none, in what Tune says by itself."""
    if result is None or _KEY not in result:
        return None
    kind, values = json.loads(result[_KEY])
    message: Message = _KINDS[kind](**values)
    return message
