"""The front: the students that no other student of the study beats on every objective.

Everything here is a pure function of what the study's students measured, computed anew whenever somebody looks;
nothing of it is stored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from search.output import WIDTH
from search.seeds import Spread, is_within_noise, spread
from spaces.errors import BadInput

Direction = Literal["min", "max"]
Bounds = Mapping[str, tuple[Direction, float]]

_IN_THE_TABLE = ("accuracy", "nll", "parameters", "macs", "size_bytes")
"""Measurements that the terminal has room for beside the objectives."""
_SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9}


class NoStudent(LookupError):
    """No student satisfies the bounds; the message names the nearest one, in one line."""


@dataclass(frozen=True)
class Axis:
    """How one measurement is normalised: 0 at `worst`, 1 at `best`, by logarithm on a log scale.

    For parameters `worst` is the teacher's number and `best` is 1: being ten times smaller gains the same everywhere.
    """

    name: str
    direction: Direction
    scale: Literal["linear", "log"]
    worst: float
    best: float

    def __post_init__(self) -> None:
        if not (self.worst < self.best if self.direction == "max" else self.worst > self.best):
            raise BadInput(
                f"`worst` must be {'below' if self.direction == 'max' else 'above'} `best` on a {self.direction} axis, "
                f"but {self.name} got worst {self.worst:g} and best {self.best:g}; swap them or turn the direction"
            )
        if self.scale == "log" and min(self.worst, self.best) <= 0:
            raise BadInput(
                f"both ends of a log axis must be positive, but {self.name} got worst {self.worst:g} and best "
                f"{self.best:g}; use a linear one"
            )

    def position(self, values: ArrayLike) -> NDArray[np.float64]:
        """Any shape to the same shape; outside [0, 1] beyond the ends. On a log axis 0 and below are tiny."""
        ends_and_values = [np.asarray(v, dtype=np.float64) for v in (self.worst, self.best, values)]
        if self.scale == "log":
            ends_and_values = [np.log(np.maximum(v, np.finfo(np.float64).tiny)) for v in ends_and_values]
        worst, best, where = ends_and_values
        return np.asarray((where - worst) / (best - worst), dtype=np.float64)

    def shows(self, value: float) -> bool:
        """Whether a picture has a place for the value."""
        return math.isfinite(value) and (self.scale == "linear" or value > 0)

    def normalise(self, values: ArrayLike) -> NDArray[np.float64]:
        """Any shape to the same shape, clipped to [0, 1]."""
        return np.clip(self.position(values), 0.0, 1.0)


def non_dominated(values: ArrayLike, directions: Sequence[Direction]) -> list[int]:
    """Indices, ascending, of the points that no other point beats.

    `values`: (n, m) with m = len(directions) >= 1. A point is out if another one is at least as good on every objective
    and better on one; of exact duplicates the first index stays. A row that holds NaN or an infinity is never on the
    front and beats nothing.
    """
    index, points = _finite_rows(values, len(directions))
    if len(points) == 0:
        return []
    mask = moocore.is_nondominated(points, maximise=[direction == "max" for direction in directions])
    return [int(i) for i in index[mask]]


def hypervolume(values: ArrayLike, axes: Sequence[Axis]) -> float:
    """Share of the normalised objective space, in [0, 1], that the points weakly dominate; the reference is `worst`.

    `values`: (n, m), column j on axes[j]. Rows that hold NaN or an infinity count nothing.
    """
    _, points = _finite_rows(values, len(axes))
    if len(points) == 0:
        return 0.0
    normalised = np.column_stack([axis.normalise(points[:, j]) for j, axis in enumerate(axes)])
    return min(1.0, float(moocore.hypervolume(normalised, ref=np.zeros(len(axes)), maximise=True)))


def _finite_rows(values: ArrayLike, m: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """`values`: (n, m), or anything empty. The rows without NaN and infinities: indices (k,) and points (k, m)."""
    points = np.asarray(values, dtype=np.float64)
    if points.size == 0:
        points = points.reshape(0, m)
    if points.ndim != 2 or points.shape[1] != m:
        raise ValueError(f"values must be (n, {m}), a column an objective, but are {points.shape}")
    index = np.flatnonzero(np.isfinite(points).all(axis=1))
    return index, points[index]


@dataclass(frozen=True)
class Entry:
    """A finished student: what it was made by, and what it measured."""

    trial: int
    recipe: Mapping[str, object]
    measurements: Mapping[str, float]
    run_id: str | None = None
    """Of the trial's run in MLflow; None where it is not there (yet)."""
    folder: Path | None = None
    curve_of: int | None = None
    """The trial on whose pruning curve it is: its student, cut otherwise and not fine-tuned, or between two rounds."""
    repeats: tuple[Mapping[str, float], ...] = ()
    """What the same recipe measured with other seeds, where its trial was repeated."""
    repeats_failed: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of the student's files, as they were written."""

    def spread(self, name: str) -> Spread:
        """A measurement over all seeds, the student's own the first; what repeats did not measure is as its own."""
        own = self.value(name)
        return spread([own, *(measured.get(name, own) for measured in self.repeats)])

    @property
    def called(self) -> str:
        """What it is, for messages."""
        if self.curve_of is None:
            return f"trial {self.trial}"
        return f"student {self.trial} (from the curve of trial {self.curve_of})"

    def value(self, name: str) -> float:
        """The measurement, NaN where the student has none of that name; "trial" is the trial's number."""
        return float(self.trial) if name == "trial" else float(self.measurements.get(name, math.nan))


class Picture(NamedTuple):
    """The front in two dimensions; `dux front` and the charts draw the same one."""

    x: Axis
    y: Axis
    entries: list[Entry]
    """The students that have a place on both axes."""
    far: list[Entry]
    """Those of them so much worse on y that they would squash the rest: 3 quartile distances below the lower quartile,
    as Tukey's "far out". The frame leaves them out and the picture says so; a member never is."""


@dataclass(frozen=True)
class Front:
    """All finished students of a study and those of them on the front. Make it by `Front.of`."""

    objectives: dict[str, Direction]
    axes: tuple[Axis, ...]
    """One an objective, in the objectives' order."""
    entries: tuple[Entry, ...]
    """All finished students, by trial; those that diverged are among them and never members."""
    members: tuple[Entry, ...]
    """By the last objective (the size, as a rule), then the first, then the trial."""
    hypervolume: float
    broken: int = 0
    """Finished students that break a constraint of the study; they are not among the entries."""

    @classmethod
    def of(
        cls, students: Sequence[Entry], objectives: Mapping[str, Direction], axes: Sequence[Axis], broken: int = 0
    ) -> Front:
        """The front of the students, in whatever order they come.

        Args:
            students: those that keep the study's constraints.
            objectives: measurement -> "max" or "min", the most important first.
            axes: one an objective.
            broken: how many others do not.

        Raises:
            BadInput: the axes are not the objectives', in the same order and direction.
        """
        given = {axis.name: axis.direction for axis in axes}
        if not objectives or [*given.items()] != [*objectives.items()] or len(given) < len(axes):
            raise BadInput(
                f"objectives and axes must agree, but are {dict(objectives)} and {given}; give one Axis each"
            )
        entries = tuple(sorted(students, key=lambda entry: entry.trial))
        values = np.array([[entry.value(name) for name in objectives] for entry in entries])
        names = list(objectives)
        members = sorted(
            (entries[i] for i in non_dominated(values, list(objectives.values()))),
            key=lambda entry: (entry.value(names[-1]), entry.value(names[0]), entry.trial),
        )
        return cls(dict(objectives), tuple(axes), entries, tuple(members), hypervolume(values, axes), broken)

    @property
    def is_repeated(self) -> bool:
        """Whether members were trained again with other seeds, or it was tried."""
        return any(entry.repeats or entry.repeats_failed for entry in self.members)

    @cached_property
    def noisy(self) -> list[str]:
        """The objectives that another seed has changed in any member."""
        return [name for name in self.objectives if any(entry.spread(name).deviation > 0 for entry in self.members)]

    @cached_property
    def doubtful(self) -> dict[int, list[int]]:
        """Member -> the members over which its lead is within the noise (`search.seeds`), by their trials.

        Only those that have such; empty without repeats. Each member leads over every other on some objective: that is
        what makes it one.
        """
        if not self.is_repeated:
            return {}
        spreads = {e.trial: {name: e.spread(name) for name in self.objectives} for e in self.members}
        found = {
            trial: sorted(
                other
                for other in spreads
                if other != trial and is_within_noise(own, spreads[other], self.objectives, self.noisy)
            )
            for trial, own in spreads.items()
        }
        return {trial: others for trial, others in found.items() if others}

    def seed_columns(self, member: Entry) -> dict[str, float | str]:
        """What the repeats say of a member, for tables; nothing where there are none.

        `accuracy.mean` and `accuracy.deviation` of every objective that depends on the seed, `seeds`, `repeats_failed`
        and `lead_within_noise_over` (trials).
        """
        if not self.is_repeated:
            return {}
        found: dict[str, float | str] = {}
        for name in self.noisy:
            over = member.spread(name)
            found |= {f"{name}.mean": over.mean, f"{name}.deviation": over.deviation}
        return found | {
            "seeds": 1 + len(member.repeats),
            "repeats_failed": member.repeats_failed,
            "lead_within_noise_over": ", ".join(map(str, self.doubtful.get(member.trial, []))),
        }

    def seed_cells(self, member: Entry) -> dict[str, str]:
        """The same for people: column -> text, in few columns."""
        if not self.is_repeated:
            return {}
        cells = {}
        for name in self.noisy:
            over = member.spread(name)
            deviation = f"{over.deviation:,.0f}" if abs(over.mean) >= 1000 else show(over.deviation)
            cells[f"{name} over seeds"] = f"{show(over.mean)} ± {deviation}"
        failed = f" ({member.repeats_failed} failed)" if member.repeats_failed else ""
        cells["seeds"] = f"{1 + len(member.repeats)}{failed}"
        if self.doubtful:
            others = ", ".join(map(str, self.doubtful.get(member.trial, [])))
            cells["lead within noise over"] = others
        return cells

    def axis(self, name: str) -> Axis:
        """The objective's axis; for anything else one that spans what was measured.

        The latter is logarithmic where all is positive and spans more than a decade.
        """
        for axis in self.axes:
            if axis.name == name:
                return axis
        measured = [value for entry in self.entries if math.isfinite(value := entry.value(name))] or [0.0]
        low, high = min(measured), max(measured)
        scale: Literal["linear", "log"] = "log" if 0 < 10 * low < high else "linear"
        return Axis(name, "min", scale, worst=high if high > low else low + (abs(low) or 1.0), best=low)

    def pictured(self) -> Picture:
        """What a picture in two dimensions shows.

        y is the first objective and x the second; with one objective x is the parameters, or else the trial.
        """
        first, *others = self.objectives
        if not others:
            others = ["parameters" if first != "parameters" and "parameters" in self.known() else "trial"]
        x, y = self.axis(others[0]), self.axis(first)
        entries = [entry for entry in self.entries if x.shows(entry.value(x.name)) and y.shows(entry.value(y.name))]
        place = y.position([entry.value(y.name) for entry in entries])
        lower, upper = np.percentile(place, [25, 75]) if entries else (0.0, 0.0)
        fence = lower - 3 * (upper - lower) if upper > lower else -math.inf
        far = [e for e, where in zip(entries, place, strict=True) if where < fence and e not in self.members]
        return Picture(x, y, entries, far)

    def known(self) -> list[str]:
        """The names that any student measured, in the order they appear."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.measurements))

    def _counts(self, name: str) -> bool:
        """Whether the measurement counts something: whole in every student, and more than 1 in one (no share is)."""
        values = [value for entry in self.entries if math.isfinite(value := entry.value(name))]
        return all(value.is_integer() for value in values) and max(values, default=0.0) > 1

    def brief(self, entry: Entry) -> str:
        """What of the entry's recipe differs between students of the study, in one line.

        A name stands without its namespace ("width" for "student.width") where no other of the entry's ends so.
        """
        varied = [
            name for name, value in entry.recipe.items() if any(e.recipe.get(name) != value for e in self.entries)
        ]
        ends = Counter(name.rpartition(".")[2] for name in entry.recipe)
        short = {name: end if ends[end := name.rpartition(".")[2]] == 1 else name for name in varied or entry.recipe}
        values = {name: f"{v:.3g}" if isinstance(v := entry.recipe[name], float) else str(v) for name in short}
        origin = ""
        if entry.curve_of is not None:
            tuned = entry.recipe["pruning.fine_tune_epochs"]
            way = f"after cut {entry.recipe['pruning.rounds']}" if tuned else "cut, not fine-tuned"
            origin = f" (from the curve of trial {entry.curve_of}, {way})"
        return " ".join(f"{short[name]}={values[name]}" for name in short) + origin

    def to_json(self, study: str) -> dict[str, object]:
        """The front as what `json.dumps` takes; counts are whole numbers, a value that is no finite number is None."""
        counts = {name for name in self.known() if self._counts(name)}

        def finite(entry: Entry, names: Sequence[str]) -> dict[str, float | None]:
            numbers = {name: entry.value(name) for name in names}
            return {
                name: None if not math.isfinite(value) else int(value) if name in counts else value
                for name, value in numbers.items()
            }

        return {
            "study": study,
            "objectives": dict(self.objectives),
            "hypervolume": self.hypervolume,
            "trials": len(self.entries),
            "broke_constraints": self.broken,
            "members": [
                {
                    "trial": entry.trial,
                    "recipe": dict(entry.recipe),
                    "objectives": finite(entry, [*self.objectives]),
                    "measurements": finite(entry, [n for n in entry.measurements if n not in self.objectives]),
                    "mlflow_run_id": entry.run_id,
                    "curve_of": entry.curve_of,
                    **({"seeds": self._seeds_json(entry)} if self.is_repeated else {}),
                }
                for entry in self.members
            ],
        }

    def _seeds_json(self, member: Entry) -> dict[str, object]:
        over = {name: member.spread(name) for name in self.objectives}
        return {
            "n": 1 + len(member.repeats),
            "failed": member.repeats_failed,
            "objectives": {
                name: {"mean": found.mean, "deviation": found.deviation if found.seeds > 1 else None}
                for name, found in over.items()
            },
            "lead_within_noise_over": self.doubtful.get(member.trial, []),
        }

    def table(self) -> Table:
        """The members for the terminal: student, objectives, what repeats say or else a few more numbers, the recipe.

        The recipe has a third of WIDTH at least: other numbers than objectives stay away where they would take it.
        Where repeats take too much of it, the objectives that they are about are shown over the seeds alone.
        """
        cells = [self.seed_cells(entry) for entry in self.members]
        columns = {"student": [str(entry.trial) for entry in self.members]}
        columns |= {name: [show(entry.value(name)) for entry in self.members] for name in self.objectives}
        columns |= {name: [each[name] for each in cells] for name in (cells[0] if cells else ())}
        if sum(map(_width, columns.items())) > 3 * WIDTH // 4:
            columns = {name: each for name, each in columns.items() if f"{name} over seeds" not in columns}
        for name in () if self.is_repeated else _IN_THE_TABLE:
            if name in self.known() and name not in self.objectives:
                more = columns | {name: [shortened(entry.value(name)) for entry in self.members]}
                if sum(map(_width, more.items())) <= 2 * WIDTH // 3:
                    columns = more
        table = Table(title=self.summary(), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in columns:
            width = _width((name, columns[name])) - 2
            table.add_column(name.replace("_", " "), justify="right", overflow="fold", width=width)
        table.add_column("recipe", overflow="fold")
        for place, entry in enumerate(self.members):
            table.add_row(*(Text(rows[place]) for rows in columns.values()), Text(self.brief(entry)))
        return table

    def summary(self) -> str:
        """How many, and how good, in a line."""
        others = f"; {self.broken} more break a constraint" if self.broken else ""
        found = f"{len(self.members)} of {len(self.entries)} students on the front"
        return f"{found}, hypervolume {self.hypervolume:.4f}{others}"

    def select(self, bounds: Bounds) -> Entry:
        """The student within all bounds that is best on the first objective, then on the next ones, then the earliest.

        `bounds`: a measurement's name to ("min", least value) or ("max", greatest value), the ends included. All
        students are asked, not only the members, since a bound on what is no objective may leave none of those.

        Raises:
            BadInput: no student of the study measured what a bound names.
            NoStudent: none is within the bounds; names the nearest, by violation on normalised axes, summed.
        """
        candidates = [e for e in self.entries if all(math.isfinite(e.value(name)) for name in self.objectives)]
        if not candidates:
            why = f"all {self.broken} break a constraint of the study" if self.broken else "none was measured yet"
            raise NoStudent(f"no student satisfies the bounds: {why}")
        known = self.known()
        for name in bounds:
            if name not in known:
                raise BadInput(f"a bound must name a measurement, but got {name!r}; known are {', '.join(known)}")

        def violation(entry: Entry) -> float:
            missed = [(name, b) for name, (side, b) in bounds.items() if not _holds(entry.value(name), side, b)]
            ends = [self.axis(name).position([entry.value(name), b]) for name, b in missed]
            total = sum(abs(float(value - bound)) for value, bound in ends)
            return math.inf if math.isnan(total) else total

        def cost(entry: Entry) -> tuple[float, ...]:
            return *(entry.value(n) if d == "min" else -entry.value(n) for n, d in self.objectives.items()), entry.trial

        if found := [e for e in candidates if all(_holds(e.value(name), *bound) for name, bound in bounds.items())]:
            return min(found, key=cost)
        nearest = min(candidates, key=lambda entry: (violation(entry), *cost(entry)))
        wanted = " and ".join(f"{n} {'>=' if side == 'min' else '<='} {_plain(b)}" for n, (side, b) in bounds.items())
        got = " and ".join(f"{n} {_plain(nearest.value(n))}" for n in dict.fromkeys([*bounds, *self.objectives]))
        raise NoStudent(f"no student satisfies {wanted}; the nearest is {nearest.called} with {got}")

    def plot(self, width: int = 72, height: int = 18) -> str:
        """A scatter of text, `height` lines of at most `width` characters (at least 40 by 8)."""
        x, y, entries, far = self.pictured()
        if not entries:
            return "no student to draw yet"
        near = [entry for entry in entries if entry not in far]
        x_ends, y_ends = (
            (min(values), max(values)) for values in ([e.value(axis.name) for e in near] for axis in (x, y))
        )
        y_ticks = [shortened(value) for value in _ticks(y, *y_ends)]
        gutter = max(map(len, y_ticks))
        columns, rows = max(width, 40) - gutter - 2, max(height, 8) - 4
        arrow = "↓" if y.direction == "max" else "↑"
        cells = [[" "] * columns for _ in range(rows)]
        for entry in sorted(self.entries, key=lambda entry: entry in self.members):  # members on top
            if entry in entries:
                row = rows - 1 - _cell(y, entry.value(y.name), y_ends, rows)
                mark = "●" if entry in self.members else arrow if entry in far else "·"
                cells[row][_cell(x, entry.value(x.name), x_ends, columns)] = mark
        labels = dict(zip((0, (rows - 1) // 2, rows - 1), reversed(y_ticks), strict=True))
        lines = [
            f"{labels.get(i, ''):>{gutter}} {'┤' if i in labels else '│'}{''.join(r)}" for i, r in enumerate(cells)
        ]
        left, middle, right = (shortened(value) for value in _ticks(x, *x_ends))
        ticks = left + middle.center(columns - len(left) - len(right)) + right
        margin = " " * (gutter + 2)
        x_name, y_name = (f"{axis.name} (log)" if axis.scale == "log" else axis.name for axis in (x, y))
        title = f"{y_name}   ● front   · dominated" + (f"   {arrow} off the picture" if far else "")
        lines = [title, *lines, margin[1:] + "└" + "─" * columns, margin + ticks, margin + x_name.rjust(columns)]
        return "\n".join(line.rstrip() for line in lines)


def _width(column: tuple[str, Sequence[str]]) -> int:
    """How many characters a column of a table takes, its margin included."""
    name, cells = column
    return 2 + max(map(len, (*name.replace("_", " ").split(), *cells)))


def show(value: float) -> str:
    """A measurement in a table: a whole number in groups of three, else four decimals; "–" if not finite."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000 or (float(value).is_integer() and abs(value) > 1):
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2e}"


def shortened(value: float) -> str:
    """Three digits and the suffix that `parse_quantity` reads: 50000.0 is "50k"; "–" if not finite."""
    if not math.isfinite(value):
        return "–"
    rounded = float(f"{value:.3g}")
    for suffix, factor in reversed(_SUFFIXES.items()):
        if abs(rounded) >= factor:
            return f"{rounded / factor:g}{suffix}"
    return f"{rounded:g}"


def parse_quantity(text: str) -> float:
    """A number with an optional k, M or G: "50k" is 50000.0.

    Raises:
        BadInput: it is none, or not finite.
    """
    factor = _SUFFIXES.get(text[-1:], 1.0)
    try:
        value = factor * float(text if factor == 1 else text[:-1])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"a quantity must be a finite number, as 0.9, 50k, 1.5M or 2G, but got {text!r}")
    return value


def parse_bound(text: str) -> tuple[str, float]:
    """ "parameters=50k" is ("parameters", 50000.0).

    Raises:
        BadInput: it is not NAME=QUANTITY.
    """
    name, equals, quantity = text.partition("=")
    if not (name.strip() and equals):
        raise BadInput(f"a bound must read NAME=VALUE, but got {text!r}; write for example parameters=50k")
    return name.strip(), parse_quantity(quantity.strip())


def _holds(value: float, side: Direction, bound: float) -> bool:
    return value >= bound if side == "min" else value <= bound


def _plain(value: float) -> str:
    """For a sentence: whole numbers in full, others to six digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"


def _ticks(axis: Axis, low: float, high: float) -> tuple[float, float, float]:
    """The ends, and between them what lies midway on the axis."""
    return low, math.sqrt(low) * math.sqrt(high) if axis.scale == "log" else low / 2 + high / 2, high


def _cell(axis: Axis, value: float, ends: tuple[float, float], count: int) -> int:
    """The value's cell: 0 at the lower end and below, count - 1 at the upper and above; the middle if those are one."""
    start, end, here = (math.log(v) if axis.scale == "log" else v for v in (*ends, value))
    share = (here - start) / (end - start) if end > start else 0.5
    return round(min(1.0, max(0.0, share)) * (count - 1))
