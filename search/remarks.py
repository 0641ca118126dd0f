"""What the first trials show of a study that cannot succeed: reported while it runs, and by `dux status`."""

from collections.abc import Mapping, Sequence

from search.constraints import Limits, broken, violations
from search.fronts.quantities import show
from search.ledger.lines import Line, grouped
from trainers.metrics import TIMED

_FEW = 3
"""So many trials must have ended, all with the same problem."""
_SAME = 5
"""So many students must be the same; fewer may coincide by chance, if there are few recipes to draw."""


def remarks(lines: Sequence[Line], constraints: Mapping[str, Limits]) -> dict[str, str]:
    """What is wrong with all trials so far, a line by kind of problem; empty while there are few trials.

    Args:
        lines: the ledger's.
        constraints: measurement -> its limits.
    """
    trials = [line for line in lines if line.counts]
    if len(trials) < _FEW:
        return {}
    said = {}
    complete = [line for line in trials if line.outcome == "complete"]
    if not complete and (failed := [line for line in trials if line.outcome == "failed"]):
        reason, which = grouped(failed)[0]
        said["failed"] = f"none of {len(trials)} trials so far succeeded; {len(which)} failed by: {reason}"
    if len(complete) >= _SAME and all(_of_student(line) == _of_student(complete[0]) for line in complete):
        recipes = {line.recipe for line in complete}
        why = "their recipes are the same" if len(recipes) == 1 else "the differences of their recipes have no effect"
        said["same"] = f"all {len(complete)} so far are the same student, to the last digit: {why}"
    measured = [line for line in lines if line.outcome == "complete" and line.repeat is None]
    if measured and all(broken(constraints, line.measurements) for line in measured):
        over = {line.trial: violations(constraints, line.measurements) for line in measured}
        limits = [limit for limit in next(iter(over.values())) if all(each[limit] > 0 for each in over.values())]
        for limit in limits:
            nearest = min(measured, key=lambda line: (over[line.trial][limit], line.trial))
            has = show(nearest.measurements.get(limit.split()[0], float("nan")))
            said[limit] = f"none of {len(measured)} meets `{limit}`; the nearest, trial {nearest.trial}, has {has}"
        if not limits:
            together = " and ".join(f"`{limit}`" for limit in next(iter(over.values())))
            said["constraints"] = f"none of {len(measured)} meets {together} together"
    return said


def _of_student(line: Line) -> dict[str, float]:
    """Measurements that are the same whenever a student is measured."""
    return {name: value for name, value in line.measurements.items() if name not in TIMED}
