"""Pareto dominance and hypervolume, and the axes on which they are computed. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from spaces.errors import BadInput
from trainers.metrics import METRICS, Direction, Scale


@dataclass(frozen=True)
class Axis:
    """How one measurement is normalised: 0 at `worst`, 1 at `best`, linearly or logarithmically.

    For parameters `worst` is the teacher's number and `best` is 1: becoming ten times smaller always gains the same.
    """

    name: str
    direction: Direction
    scale: Scale
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

    @classmethod
    def of_metric(cls, name: str, direction: Direction, teacher: Mapping[str, float], classes: int) -> Self:
        """A metric's axis: from a worthless value to an unbeatable one.

        Args:
            name: a key of METRICS.
            direction: as in the study.
            teacher: the teacher's measurements.
            classes: the number of classes.
        """
        metric = METRICS[name]
        return cls(name, direction, metric.scale, *metric.ends(direction, teacher.get(name, math.nan), classes))

    def position(self, values: ArrayLike) -> NDArray[np.float64]:
        """Any shape to the same shape; outside [0, 1] beyond the ends. On a log axis, 0 and below count as tiny."""
        ends_and_values = [np.asarray(v, dtype=np.float64) for v in (self.worst, self.best, values)]
        if self.scale == "log":
            ends_and_values = [np.log(np.maximum(v, np.finfo(np.float64).tiny)) for v in ends_and_values]
        worst, best, where = ends_and_values
        return np.asarray((where - worst) / (best - worst), dtype=np.float64)

    def shows(self, value: float) -> bool:
        """Whether the value can be drawn on the axis."""
        return math.isfinite(value) and (self.scale == "linear" or value > 0)

    def normalise(self, values: ArrayLike) -> NDArray[np.float64]:
        """Any shape to the same shape, clipped to [0, 1]."""
        return np.clip(self.position(values), 0.0, 1.0)


def non_dominated(values: ArrayLike, directions: Sequence[Direction]) -> list[int]:
    """Indices, ascending, of the points that no other point beats.

    `values`: (n, m) with m = len(directions) >= 1. A point is beaten if another one is at least as good on every
    objective and better on one; of exact duplicates the first is kept. A row with NaN or an infinity is never on the
    front and beats nothing.
    """
    index, points = _finite_rows(values, len(directions))
    if len(points) == 0:
        return []
    mask = moocore.is_nondominated(points, maximise=[direction == "max" for direction in directions])
    return [int(i) for i in index[mask]]


def hypervolume(values: ArrayLike, axes: Sequence[Axis]) -> float:
    """Share of the normalised objective space, in [0, 1], that the points weakly dominate; the reference is `worst`.

    `values`: (n, m), column j on axes[j]. Rows with NaN or an infinity are ignored.
    """
    _, points = _finite_rows(values, len(axes))
    if len(points) == 0:
        return 0.0
    normalised = np.column_stack([axis.normalise(points[:, j]) for j, axis in enumerate(axes)])
    return min(1.0, float(moocore.hypervolume(normalised, ref=np.zeros(len(axes)), maximise=True)))


def _finite_rows(values: ArrayLike, m: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The rows without NaN and infinities: indices (k,) and points (k, m). `values`: (n, m), or anything empty."""
    points = np.asarray(values, dtype=np.float64)
    if points.size == 0:
        points = points.reshape(0, m)
    if points.ndim != 2 or points.shape[1] != m:
        raise ValueError(f"values must be (n, {m}), one column per objective, but are {points.shape}")
    index = np.flatnonzero(np.isfinite(points).all(axis=1))
    return index, points[index]
