"""A study's events for MLflow: one class per event, and the codec of the spool's lines.

A new event is a class here and its handler in `search/tracking/mirror.py`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from spaces import Domain, Space

Status = Literal["FINISHED", "FAILED", "KILLED"]

VERSION = 1
"""Version of the spool's lines; lines without one, by earlier versions of Dux, have the same format."""


class Unsendable(Exception):
    """No store will ever accept the event."""


@dataclass(frozen=True)
class StudyStarted:
    """Opens the parent run, or reopens that of a resumed study, and sets the view of the front."""

    parameters: Mapping[str, object]
    """The study file, as parameters of the parent run; MLflow refuses to change them later."""
    tags: Mapping[str, str]
    """More tags of the parent run."""
    objectives: Mapping[str, str]
    """Measurement -> "max" or "min", the most important first."""
    drawn: Sequence[str]
    """The parameters of recipes that differ between trials."""

    @classmethod
    def of(
        cls, parameters: Mapping[str, object], tags: Mapping[str, str], objectives: Mapping[str, str], space: Space
    ) -> Self:
        """The event for a study that draws its recipes from `space`."""
        drawn = [name for name, domain in space.parameters.items() if len(domain.extremes()) > 1]
        return cls(parameters, tags, objectives, drawn)


@dataclass(frozen=True)
class DataDescribed:
    """The training and validation splits: inputs of the parent run and of all trials' runs that follow.

    Class names become the artifact `classes.json` of the parent run, and its tag `dux.class_names` if they are short
    enough.
    """

    data: Sequence[Mapping[str, Any]]
    """For each split `name`, `digest` (at most 36 characters; no two splits may share name and digest), `context`
    ("training", "validation"), `source` (where it comes from), `image_shape` and `profile` (what else to show)."""
    class_names: Sequence[str] = ()
    """Names of labels 0, 1, ...; missing in older spools."""
    images: Mapping[str, str] = field(default_factory=dict)
    """The images' colour and preparation."""


@dataclass(frozen=True)
class TeacherMeasured:
    """The teacher, with which students are compared: metrics of the parent run, and a logged model."""

    metrics: Mapping[str, float]
    """`teacher.accuracy`, ...: on validation data."""
    parameters: Mapping[str, object]
    """The model's parameters: which network it is, and how it was trained."""


@dataclass(frozen=True)
class TrialStarted:
    """Opens a trial's run."""

    trial: int
    parameters: Mapping[str, object]
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, trial: int, recipe: Mapping[str, object], space: Space, repeat_of: int | None = None) -> Self:
        """The event for a recipe in its flat form, drawn from `space`.

        A repeat of another trial has the tags `dux.role` "repeat", which excludes it from the view of the front, and
        `dux.repeat_of`.
        """
        fillers = {name: filler(domain) for name, domain in space.parameters.items()}
        tags = {} if repeat_of is None else {"dux.role": "repeat", "dux.repeat_of": str(repeat_of)}
        return cls(trial, fillers | dict(recipe), tags)


@dataclass(frozen=True)
class TrialReported:
    """Adds a point to each of a trial's metrics."""

    trial: int
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrialFinished:
    """Closes a trial's run."""

    trial: int
    status: Status
    step: int
    """Step of its final metrics: the last one reported."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: str | Path | None = None
    """The folder whose files become the run's artifacts."""


@dataclass(frozen=True)
class CurveMeasured:
    """Adds the table `curve.json` to a trial's run, with a row for each point of its pruning curve."""

    trial: int
    points: Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class FrontChanged:
    """Adds a point to the front's metrics on the parent run; the step is the number of finished trials."""

    trials_finished: int
    hypervolume: float
    size: int


@dataclass(frozen=True)
class FrontMembers:
    """Marks the trials that are on the front now: `dux.pareto` is "true" on their runs and "false" on all others."""

    trials: Sequence[int]


@dataclass(frozen=True)
class StudentKept:
    """Makes a trial's student a logged model."""

    trial: int
    parameters: Mapping[str, object]
    """Its recipe in the flat form."""
    metrics: Mapping[str, float]
    """Linked to the model: run and model have the same points; values that are not finite are left out."""
    step: int
    """Step of those points, as at the trial's end."""
    at: int
    """Time of those points in ms, as at the trial's end."""


@dataclass(frozen=True)
class StudyFinished:
    """Closes the parent run."""

    status: Status
    artifacts: Sequence[str | Path] = ()
    """Files that become its artifacts."""
    front: Sequence[Mapping[str, object]] = ()
    """Rows of a table that also becomes an artifact."""


Event = (
    StudyStarted
    | DataDescribed
    | TeacherMeasured
    | TrialStarted
    | TrialReported
    | TrialFinished
    | CurveMeasured
    | FrontChanged
    | FrontMembers
    | StudentKept
    | StudyFinished
)


def name_of(kind: type) -> str:
    """`TrialStarted` is "trial_started" in the spool."""
    return re.sub(r"(?<=.)([A-Z])", r"_\1", kind.__name__).lower()


_KINDS = {name_of(kind): kind for kind in Event.__args__}


class Record(NamedTuple):
    """An event and its time."""

    time: int
    """In ms; no two events of a study have the same."""
    event: Event


def encode(record: Record) -> bytes:
    """The spool's line for a record."""
    given = {each.name: getattr(record.event, each.name) for each in fields(record.event)}
    line = {"event": name_of(type(record.event)), "version": VERSION, "time": record.time, **given}
    return json.dumps(line, default=_plain).encode() + b"\n"


def decode(line: bytes) -> Record:
    """The inverse of `encode`.

    Raises:
        Unsendable: the line is damaged, or of another version.
    """
    try:
        given = json.loads(line)
        name, time, version = str(given.pop("event")), given.pop("time"), given.pop("version", VERSION)
        if name not in _KINDS or version != VERSION:
            raise Unsendable(f"there is no event {name!r} in this version")
        numbers = [time, given.get("trial", 0), *(point["trial"] for point in given.get("points", ()))]
        if not all(isinstance(number, int) for number in numbers):
            raise ValueError("a number is none")
        if not isinstance(given.get("parameters", {}), dict):
            raise ValueError("parameters are none")
        return Record(time, _KINDS[name](**given))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise Unsendable(f"the line is damaged, or of another version ({error})") from None


def is_of_later_version(line: bytes) -> bool:
    """Whether a later version of Dux wrote the line."""
    try:
        return bool(json.loads(line).get("version", VERSION) > VERSION)
    except (AttributeError, RecursionError, TypeError, ValueError):
        return False


def filler(domain: Domain) -> str:
    """What a run logs for a parameter that its recipe did not draw, so that parallel coordinates show the run.

    MLflow leaves out a run that lacks a parameter, and also one whose value is a string where most are numbers, or the
    other way round: "n/a" among temperatures would hide all runs with one, or all without. An empty string counts as a
    number (it is drawn at 0), "n/a" as a string.
    """
    values = domain.extremes()
    return "" if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) else "n/a"


def _plain(value: Any) -> Any:
    """For values that JSON does not know: NumPy's scalars as numbers, everything else (paths) as strings."""
    return value.item() if hasattr(value, "item") else str(value)
