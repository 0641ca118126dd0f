"""Pareto-aware early stopping: asynchronous successive halving by non-dominated rank.

Rungs are the epochs `min_epochs * reduction**k`. A trial that reaches a rung is compared with all trials that reached
it earlier, on every objective: accuracy and the like at that epoch, and size as far as it is known
(`trainers.Report.cost`). It continues if no other trial beats it, or if it is among the best 1/`reduction` of them by
non-dominated rank (0: no other beats it; 1: only those of rank 0 do; ...), and within a rank by its contribution to the
hypervolume of that front. So small students are not judged by the accuracy of large ones, and a trial that beats all
earlier ones always continues.

Li et al., "A system for massively parallel hyperparameter tuning", MLSys 2020 (asynchronous successive halving, one
objective). Syne Tune's MOASHA also replaces the value by the rank; here no trial on a rung's front is stopped.
"""

import math
from collections.abc import Mapping, Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from search.fronts.pareto import Axis


def should_continue(values: ArrayLike, axes: Sequence[Axis], reduction: int) -> bool:
    """Whether the last trial to reach a rung continues.

    Args:
        values: (n, m), one row per trial in the order they reached the rung, the one in question last; one column per
            objective. A row with NaN or an infinity is beaten by every finite row, and does not affect those.
        axes: (m,) the objectives.
        reduction: about one trial in so many continues.
    """
    points = np.asarray(values, dtype=np.float64)
    finite = np.asarray(np.isfinite(points).all(axis=1))
    if not finite[-1]:
        return not finite.any()
    points = points[finite]
    rank = moocore.pareto_rank(points, maximise=[axis.direction == "max" for axis in axes])
    if rank[-1] == 0:
        return True
    places = math.ceil(len(points) / reduction)
    added = _added(points[rank == rank[-1]], axes)
    ahead = int((rank < rank[-1]).sum()) + int((added[:-1] >= added[-1]).sum())  # among equals, who came first
    return ahead < places


def _added(points: NDArray[np.float64], axes: Sequence[Axis]) -> NDArray[np.float64]:
    """(n,) what each of (n, m) points of one rank adds to their hypervolume; 0 for duplicates."""
    if len(axes) == 1:
        return np.zeros(len(points))  # points of one rank are equal
    normalised = np.column_stack([axis.normalise(points[:, j]) for j, axis in enumerate(axes)])
    return np.asarray(moocore.hv_contributions(normalised, ref=np.zeros(len(axes)), maximise=True))


class Halving:
    """The trials that reached each rung, with their measurements there.

    Args:
        axes: the objectives.
        min_epochs: the first rung.
        reduction: from rung to rung, epochs grow and trials shrink by this factor; at least 2.
    """

    def __init__(self, axes: Sequence[Axis], min_epochs: int, reduction: int) -> None:
        self._axes, self._min_epochs, self._reduction = tuple(axes), min_epochs, reduction
        self._rungs: dict[int, dict[int, list[float]]] = {}

    def is_rung(self, epoch: int) -> bool:
        """Whether trials are compared after that many epochs."""
        rung = self._min_epochs
        while rung < epoch:
            rung *= self._reduction
        return rung == epoch

    def add(self, trial: int, epoch: int, measured: Mapping[str, float]) -> None:
        """The trial reached a rung with these measurements; one that is missing or not a number counts as NaN."""
        self._rungs.setdefault(epoch, {})[trial] = [float(measured.get(axis.name, math.nan)) for axis in self._axes]

    def should_continue(self, trial: int, epoch: int) -> bool:
        """Whether a trial that was added continues, if it was the last to reach the rung."""
        rung = self._rungs[epoch]
        others = [values for other, values in rung.items() if other != trial]
        return should_continue([*others, rung[trial]], self._axes, self._reduction)

    def forget(self, trial: int) -> None:
        """Remove a trial that failed or was cut short: others are not compared with it."""
        for rung in self._rungs.values():
            rung.pop(trial, None)
