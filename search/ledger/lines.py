"""A line of the ledger: one student that a study made or tried to make, and what kind of line it is.

The ledger stores each as an Optuna trial; its attributes are written and read only here.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState, create_trial

from spaces import BadInput, Recipe, Space
from spaces.errors import shown
from trainers.files import curve_folder

Outcome = Literal["complete", "failed", "stopped", "interrupted", "running"]
_ENDED = ("complete", "failed", "stopped")

RUNG = "rung."
"""Prefix of the attributes with a trial's measurements at a rung."""
FROM = "from"
"""Attribute of a trial of another study, which the sampler learned from."""
LOST = "lost"
"""Attribute of a placeholder for a lost trial in a rebuilt ledger, of which only the number is known."""


@dataclass(frozen=True)
class Trial:
    """One of the trials that were asked for."""


@dataclass(frozen=True)
class Repeat:
    """A trial run again with another seed."""

    of: int
    """The trial that it repeats."""
    nth: int
    """Which repeat of it, from 1."""


@dataclass(frozen=True)
class CurvePoint:
    """A student on a trial's pruning curve; not a trial itself."""

    of: int
    """The trial, or repeat, whose curve it is on."""
    place: int
    """Position on the curve, from 0."""
    repeat: Repeat | None = None
    """What `of` is, if it is a repeat."""


Kind = Trial | Repeat | CurvePoint


def kind_of(attributes: Mapping[str, Any]) -> Kind:
    """What kind an Optuna trial with these attributes is; raises like indexing if they are not a ledger's."""
    repeat = None
    if "repeat" in attributes:
        repeat = Repeat(attributes["repeat"][0], attributes["repeat"][1])
    if "point" in attributes:
        return CurvePoint(attributes["point"][0], attributes["point"][1], repeat)
    return repeat or Trial()


def attributes_of(kind: Kind) -> dict[str, Any]:
    """The inverse of `kind_of`."""
    match kind:
        case CurvePoint(of, place, repeat):
            return {**(attributes_of(repeat) if repeat else {}), "point": [of, place]}
        case Repeat(of, nth):
            return {"repeat": [of, nth]}
    return {}


@dataclass(frozen=True)
class Line:
    """One student, finished or not, as recorded in the ledger."""

    trial: int
    """Its number; curve points have numbers, too."""
    root: int
    """The first trial with its recipe, if that was interrupted and retried; else the trial itself."""
    outcome: Outcome
    recipe: Recipe | None
    """None if the process ended before a recipe was drawn."""
    measurements: Mapping[str, float]
    reason: str
    """Why it failed; for an interrupted trial, why it is retried."""
    seconds: float
    stopped_at: int | None
    """Epochs after which it was stopped early."""
    rungs: Mapping[int, Mapping[str, float]]
    """Epochs -> the objectives at the rungs of early stopping; NaN if one was not a number."""
    kind: Kind = Trial()
    files: Mapping[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of each of its student's files, as written."""

    @property
    def ended(self) -> bool:
        """Whether it has ended, successfully or not."""
        return self.outcome in _ENDED

    @property
    def counts(self) -> bool:
        """Whether it is one of the trials asked for, and done."""
        return self.ended and isinstance(self.kind, Trial)

    @property
    def is_point(self) -> bool:
        """Whether it is a curve point, which is never run by itself."""
        return isinstance(self.kind, CurvePoint)

    @property
    def repeat(self) -> Repeat | None:
        """The repeat, for a repeat and the points of its curve."""
        match self.kind:
            case Repeat():
                return self.kind
            case CurvePoint(repeat=repeat):
                return repeat
        return None

    def folder(self, trials: Path) -> Path:
        """The folder of its files; `trials`: the folder of the study's trials."""
        match self.kind:
            case CurvePoint(of, place):
                return trials / str(of) / curve_folder(place)
        return trials / str(self.trial)


def grouped(lines: Sequence[Line]) -> list[tuple[str, list[int]]]:
    """The reasons why trials ended as they did, the most frequent first, with the trials.

    Reasons that differ only in numbers are merged, in the words of the first.
    """
    groups: dict[str, tuple[str, list[int]]] = {}
    for line in lines:
        alike = re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", line.reason)
        groups.setdefault(alike, (line.reason, []))[1].append(line.trial)
    return sorted(groups.values(), key=lambda group: -len(group[1]))


def is_own(trial: FrozenTrial) -> bool:
    """Whether it is a trial of this study that was started, not one it learned from or a placeholder for a lost one."""
    return trial.state != TrialState.WAITING and not {FROM, LOST} & {*trial.user_attrs}


def result_attributes(result: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a finished trial, from its file `result.json`."""
    return {
        "curve": json.dumps(result["curve"]),
        "files": result.get("files", {}),
        "measurements": json.dumps(result["measurements"]),
        "seconds": result["seconds"],
    }


def trial_of_point(
    trial: FrozenTrial,
    place: int,
    point: Mapping[str, Any],
    values: Sequence[float],
    limits: Mapping[str, float],
    space: Space,
) -> FrozenTrial:
    """A point of a trial's curve as the ledger stores it, so that samplers learn from it.

    Args:
        trial: a finished trial, or a repeat of one.
        place: of the point on its curve.
        point: as in the trial's `result.json`.
        values: of the objectives.
        limits: by how much it exceeds each.
        space: what recipes are drawn from.
    """
    kind = kind_of(trial.user_attrs)
    # the trial's parameters, with the point's own values where they differ and the space has them
    params = {
        name: value if point["recipe"].get(name, value) == value else point["recipe"][name]
        for name, value in trial.params.items()
        if space.parameters[name].holds(point["recipe"].get(name, value))
    }
    return create_trial(
        values=values,
        params=params,
        distributions={name: trial.distributions[name] for name in params},
        user_attrs={
            **attributes_of(CurvePoint(trial.number, place, kind if isinstance(kind, Repeat) else None)),
            "recipe": json.dumps(point["recipe"], sort_keys=True),
            "measurements": json.dumps(point["measurements"]),
            "seconds": point["seconds"],
            "files": point.get("files", {}),
        },
        constraints=dict(limits),
    )


def line_of(trial: FrozenTrial) -> Line:
    """The line of an Optuna trial. Raises BadInput if the trial was not written by a ledger."""
    try:
        return _line(trial)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise BadInput(
            f"the ledger must be as it was written, but its trial {trial.number} is not ({shown(str(error))}); "
            "move the ledger away, and `dux resume NAME` rebuilds a study's ledger from its other files"
        ) from None


def _line(trial: FrozenTrial) -> Line:
    attributes = trial.user_attrs
    return Line(
        trial.number,
        attributes.get("root", trial.number),
        _outcome(trial),
        Recipe.from_json(attributes["recipe"]) if "recipe" in attributes else None,
        json.loads(attributes.get("measurements", "{}")),
        attributes.get("reason", attributes.get("again", "")),
        float(attributes.get("seconds", 0.0)),
        attributes.get("stopped_at"),
        {
            int(key.removeprefix(RUNG)): {name: math.nan if v is None else v for name, v in values.items()}
            for key, values in attributes.items()
            if key.startswith(RUNG)
        },
        kind_of(attributes),
        attributes.get("files", {}),
    )


def _outcome(trial: FrozenTrial) -> Outcome:
    if trial.state == TrialState.COMPLETE:
        return "complete"
    if trial.state == TrialState.PRUNED:
        return "stopped"
    if trial.state == TrialState.FAIL:
        return "failed" if "reason" in trial.user_attrs else "interrupted"
    return "running"
