"""A copy of the ledger's trials in a file of the study's folder, from which a lost ledger can be rebuilt.

The file has a line for each state of each trial, preceded by the line's hash; a trial's last line is valid. Lines that
were torn by a kill or changed are ignored.
"""

import json
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from trainers.files import sha256


class Journal:
    """One study's trials by number, as in the file. Only the study's driver writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._states = {number: trial.state for number, trial in self.read().items()}

    def read(self) -> dict[int, FrozenTrial]:
        """Number -> the trial as last written."""
        trials = {}
        if self._path.exists():
            for line in self._path.read_bytes().splitlines():
                noted, _, text = line.partition(b" ")
                if noted.decode(errors="replace") != sha256(text):
                    continue
                try:
                    trial = _trial(json.loads(text))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    continue
                trials[trial.number] = trial
        return trials

    def write(self, trials: Iterable[FrozenTrial]) -> None:
        """Add trials that are new, or whose state has changed since they were written."""
        fresh = [trial for trial in trials if self._states.get(trial.number) != trial.state]
        if not fresh and self._path.exists():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            # each line starts on its own, also after a torn one
            texts = [json.dumps(_plain(trial)).encode() for trial in fresh]
            file.write(b"".join(b"\n" + sha256(text).encode() + b" " + text for text in texts))
            file.flush()
            os.fsync(file.fileno())
        self._states |= {trial.number: trial.state for trial in fresh}


def _plain(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": {name: distribution_to_json(each) for name, each in trial.distributions.items()},
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "began": None if trial.datetime_start is None else trial.datetime_start.isoformat(),
        "ended": None if trial.datetime_complete is None else trial.datetime_complete.isoformat(),
    }


def _trial(plain: dict[str, Any]) -> FrozenTrial:
    began, ended = (None if plain[key] is None else datetime.fromisoformat(plain[key]) for key in ("began", "ended"))
    return FrozenTrial(
        number=int(plain["number"]),
        trial_id=-1,
        state=TrialState[plain["state"]],
        value=None,
        values=plain["values"],
        datetime_start=began,
        datetime_complete=ended,
        params=plain["params"],
        distributions={name: json_to_distribution(text) for name, text in plain["distributions"].items()},
        user_attrs=plain["user_attrs"],
        system_attrs=plain["system_attrs"],
        intermediate_values={},
    )
