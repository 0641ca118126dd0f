"""What every picture of a front shows, whatever draws it: the axes, the students, their marks and labels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from search.fronts.front import Entry, Front
from search.fronts.pareto import Axis, non_dominated
from search.seeds import Spread
from trainers.metrics import METRICS

INK, FAINT, GRID = "#1f2933", "#616e7c", "#e4e7eb"
_UNITS = {"_bytes": "bytes", "_ms": "ms", "_s": "s"}
_LEGEND = "faint: not on the front"


class Look(NamedTuple):
    """The mark of a transfer method's students."""

    colour: str
    symbol: str  # of plotly
    marker: str  # of matplotlib


# The first six are by Okabe and Ito, distinguishable for colour-blind readers; a ninth method looks like the first.
_LOOKS = [
    Look("#0072b2", "circle", "o"),
    Look("#d55e00", "square", "s"),
    Look("#009e73", "diamond", "D"),
    Look("#cc79a7", "triangle-up", "^"),
    Look("#e69f00", "triangle-down", "v"),
    Look("#56b4e9", "pentagon", "p"),
    Look("#7f6000", "hexagon", "h"),
    Look("#666666", "cross", "P"),
]


class Picture(NamedTuple):
    """The front in two dimensions; `dux front` and the charts draw the same."""

    x: Axis
    y: Axis
    entries: list[Entry]
    """The students that can be drawn on both axes."""
    far: list[Entry]
    """Those so much worse on y that they would squash the rest: 3 interquartile ranges below the lower quartile,
    Tukey's "far out". They are outside the frame, and the picture says so; none of them is on the front."""


def pictured(front: Front) -> Picture:
    """What a picture in two dimensions shows.

    y is the first objective and x the second; with one objective x is the parameters, or else the trial.
    """
    first, *others = front.objectives
    if not others:
        others = ["parameters" if first != "parameters" and "parameters" in front.known() else "trial"]
    x, y = front.axis(others[0]), front.axis(first)
    entries = [entry for entry in front.entries if x.shows(entry.value(x.name)) and y.shows(entry.value(y.name))]
    place = y.position([entry.value(y.name) for entry in entries])
    lower, upper = np.percentile(place, [25, 75]) if entries else (0.0, 0.0)
    fence = lower - 3 * (upper - lower) if upper > lower else -math.inf
    far = [e for e, where in zip(entries, place, strict=True) if where < fence and e not in front.non_dominated]
    return Picture(x, y, entries, far)


def coordinates(picture: Picture, entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    """The students' coordinates, on x and on y."""
    return [entry.value(picture.x.name) for entry in entries], [entry.value(picture.y.name) for entry in entries]


def groups(front: Front, picture: Picture) -> Iterator[tuple[str, Look, bool, list[Entry]]]:
    """For each transfer method its dominated students, then those on the front (False, True); either may be empty."""
    for i, method in enumerate(sorted({_method(entry) for entry in picture.entries})):
        for on_front in (False, True):
            group = [e for e in picture.entries if _method(e) == method and (e in front.non_dominated) == on_front]
            yield method, _LOOKS[i % len(_LOOKS)], on_front, group


def stairs(front: Front, picture: Picture) -> list[Entry]:
    """The corners of the front in the two objectives that are drawn, by x; empty if there is one objective.

    With more than two objectives some students on the front lie below it, because of objectives that are not drawn.
    """
    if len(front.objectives) == 1:
        return []
    points = np.column_stack(coordinates(picture, picture.entries))
    corners = non_dominated(points, [picture.x.direction, picture.y.direction])
    return sorted((picture.entries[i] for i in corners), key=lambda entry: entry.value(picture.x.name))


def spreads(front: Front, picture: Picture) -> tuple[str, list[Spread], list[Spread]]:
    """A label ("" if nothing was repeated), and the spreads on x and y of repeated students on the front."""
    repeated = [entry for entry in front.non_dominated if entry.repeats and entry in picture.entries]
    counts = sorted({1 + len(entry.repeats) for entry in repeated})
    few_to_many = "–".join(str(count) for count in dict.fromkeys((*counts[:1], *counts[-1:])))
    over_x, over_y = ([entry.spread(axis.name) for entry in repeated] for axis in (picture.x, picture.y))
    return f"mean ± deviation of {few_to_many} seeds" if repeated else "", over_x, over_y


class Intervals(NamedTuple):
    """The intervals of accuracies in the picture."""

    axis: Literal["x", "y"]
    """That of the accuracy."""
    entries: list[Entry]
    """The students on the front that have one; empty if the accuracy is on neither axis."""
    below: list[float]
    """How far each reaches below the student's accuracy."""
    above: list[float]


def intervals(front: Front, picture: Picture) -> Intervals:
    """The intervals of the front's students, for bars."""
    axis: Literal["x", "y"] = "x" if picture.x.name == "accuracy" else "y"
    found = Intervals(axis, [], [], [])
    for entry in front.non_dominated if "accuracy" in (picture.x.name, picture.y.name) else ():
        ends, accuracy = front.interval(entry), entry.value("accuracy")
        if ends is not None and entry in picture.entries:
            found.entries.append(entry)
            found.below.append(max(0.0, accuracy - ends[0]))
            found.above.append(max(0.0, ends[1] - accuracy))
    return found


def teacher_place(picture: Picture, teacher: Mapping[str, float] | None) -> tuple[float, float] | None:
    """Coordinates of the teacher's mark, on x and on y; None if it was not measured on both."""
    x, y = ((teacher or {}).get(axis.name, math.nan) for axis in (picture.x, picture.y))
    return (x, y) if picture.x.shows(x) and picture.y.shows(y) else None


def frame(picture: Picture, teacher: tuple[float, float] | None) -> tuple[float, float] | None:
    """The limits of y if students lie beyond them, else None (the library's choice, which shows all)."""
    if not picture.far:
        return None
    shown = [entry.value(picture.y.name) for entry in picture.entries if entry not in picture.far]
    shown += [teacher[1]] if teacher else []
    low, high = min(shown), max(shown)
    if picture.y.scale == "log":
        return low / (high / low) ** 0.08, high * (high / low) ** 0.08
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def decades(axis: Axis, low: float, high: float) -> bool:
    """Whether the axis is logarithmic, and long enough for ticks at 1, 2 and 5 of every decade."""
    return axis.scale == "log" and high > 8 * low


def axis_label(axis: Axis) -> str:
    """The label of an axis."""
    label = (METRICS[axis.name].label if axis.name in METRICS else "") or axis.name
    for end, unit in _UNITS.items():
        if label.endswith(end):
            label = f"{label.removesuffix(end)} ({unit})"
    return f"{label}, log scale" if axis.scale == "log" else label


def legend_title(front: Front) -> str:
    """What the marks mean, in one or two lines."""
    return _LEGEND + ("\nhollow: lead within noise over another" if front.doubtful else "")


def caption(front: Front, picture: Picture) -> str:
    """The front in a line, with the number of students outside the picture."""
    return front.summary() + (f" ({len(picture.far)} far worse, off the picture)" if picture.far else "")


def _method(entry: Entry) -> str:
    return str(entry.recipe.get("transfer", "student"))
