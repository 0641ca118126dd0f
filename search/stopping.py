"""Pareto-aware early stopping: asynchronous successive halving by non-dominated rank.

Rungs are the epochs `min_epochs * reduction**k`. A trial that comes to a rung is compared with all that came there
before it, on every objective: accuracy and the like as they are at that epoch, size as far as it is known
(`trainers.Report.cost`). It goes on if no other beats it, or if it is among the best 1/`reduction` of them, by the rank
of the front it is on (0: no other beats it; 1: only those of rank 0 do; ...), and within a rank by what it adds to the
hypervolume of that front. So small students are not measured by the accuracy of large ones, and a trial that beats all
before it always goes on.

Li et al., "A system for massively parallel hyperparameter tuning", MLSys 2020 (asynchronous successive halving, one
objective). Syne Tune's MOASHA has the rank in the place of the value, too; here nothing on a rung's front is stopped.
"""

import math
from collections.abc import Mapping, Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from search.fronts.pareto import Axis


def should_continue(values: ArrayLike, axes: Sequence[Axis], reduction: int) -> bool:
    """Whether the trial that came to a rung last goes on.

    Args:
        values: (n, m), a row a trial in the order they came, the one in question last; a column an objective. A row
            that holds NaN or an infinity is beaten by every row that does not, and changes nothing for those.
        axes: (m,) the objectives.
        reduction: about one of so many goes on.
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
    ahead = int((rank < rank[-1]).sum()) + int((added[:-1] >= added[-1]).sum())  # of equals, who came first
    return ahead < places


def _added(points: NDArray[np.float64], axes: Sequence[Axis]) -> NDArray[np.float64]:
    """(n,) what each of (n, m) points of one rank adds to their hypervolume; nothing where there are two of it."""
    if len(axes) == 1:
        return np.zeros(len(points))  # points of one rank are equal
    normalised = np.column_stack([axis.normalise(points[:, j]) for j, axis in enumerate(axes)])
    return np.asarray(moocore.hv_contributions(normalised, ref=np.zeros(len(axes)), maximise=True))


class Halving:
    """Who came to which rung with what.

    Args:
        axes: the objectives.
        min_epochs: the first rung.
        reduction: between rungs epochs grow, and trials dwindle, by this factor; at least 2.
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
        """The trial was at a rung with these measurements; one that is no number, or lacks, compares as NaN does."""
        self._rungs.setdefault(epoch, {})[trial] = [float(measured.get(axis.name, math.nan)) for axis in self._axes]

    def should_continue(self, trial: int, epoch: int) -> bool:
        """Whether a trial that was added goes on, if it came last."""
        rung = self._rungs[epoch]
        others = [values for other, values in rung.items() if other != trial]
        return should_continue([*others, rung[trial]], self._axes, self._reduction)

    def forget(self, trial: int) -> None:
        """A trial that fails, or is cut short, counts for nobody."""
        for rung in self._rungs.values():
            rung.pop(trial, None)
