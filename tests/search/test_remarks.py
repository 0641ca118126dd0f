"""What a few trials show of a study that cannot come to anything."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import Finished, Said

from search.constraints import Limits
from search.ledger.lines import CurvePoint, Line, Trial
from search.remarks import remarks
from search.study_file import StudyFile
from spaces import Recipe


def line(trial: int, accuracy: float | None = 0.9, width: float = 0.5, point: CurvePoint | None = None) -> Line:
    """A trial that ended: complete, or failed where it has no accuracy."""
    recipe = Recipe.from_flat({"student.width": width})
    if accuracy is None:
        return Line(trial, trial, "failed", recipe, {}, "Diverged: the loss is nan", 1.0, None, {})
    measured = {"accuracy": accuracy, "parameters": 1000 * width, "latency_ms": 0.1 * trial}
    return Line(trial, trial, "complete", recipe, measured, "", 1.0, None, {}, Trial() if point is None else point)


def test_nothing_is_said_of_a_study_that_is_well_or_just_begun() -> None:
    well = [line(n, 0.5 + n / 100) for n in range(20)]
    assert remarks(well, {"accuracy": Limits(min=0.6)}) == {}
    for few in ([line(0, 0.1), line(1, 0.1)], [line(0, None), line(1, None)], [line(0), line(1), line(2), line(3)]):
        assert remarks(few, {"accuracy": Limits(min=0.05)}) == {}
    assert remarks([line(0, None), line(1, None), line(2, None), line(3)], {}) == {}


def test_students_that_are_all_the_same_are_said_to_be() -> None:
    same = "all 6 so far are the same student, to the last digit: "
    assert [*remarks([line(n) for n in range(6)], {}).values()] == [f"{same}their recipes are the same"]
    varied = [replace(line(n), recipe=line(n, width=n + 1).recipe) for n in range(6)]
    assert [*remarks(varied, {}).values()] == [f"{same}the differences of their recipes have no effect"]
    assert remarks([*varied, line(6, 0.91)], {}) == {}


def test_a_limit_that_nobody_meets_is_named_with_the_nearest() -> None:
    trials = [line(n, 0.5 + n / 100, width=1 + n) for n in range(10)]
    said = remarks(trials, {"parameters": Limits(max=0), "accuracy": Limits(min=0.2)})
    assert [*said.values()] == ["none of 10 meets `parameters <= 0`; the nearest, trial 0, has 1,000"]
    said = remarks(trials, {"parameters": Limits(max=1500), "accuracy": Limits(min=0.55)})
    assert [*said.values()] == ["none of 10 meets `parameters <= 1500` and `accuracy >= 0.55` together"]
    point = line(10, 0.9, width=0.1, point=CurvePoint(0, 0))  # of a pruning curve: it is a student, too
    assert remarks([*trials, point], {"parameters": Limits(max=1500), "accuracy": Limits(min=0.55)}) == {}


def test_a_space_in_which_every_trial_fails_is_said_to_be_one() -> None:
    said = remarks([line(n, None) for n in range(4)], {})
    assert [*said.values()] == ["none of 4 trials so far succeeded; 4 failed by: Diverged: the loss is nan"]


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_status_says_it(finished: Finished, tmp_path: Path, dux: Callable[..., Said]) -> None:
    home = shutil.copytree(finished.home, tmp_path / "home")
    record = home / "studies" / "tiny" / "study.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"constraints": {"parameters": {"max": 2}}}))
    said = "none of 6 meets `parameters <= 2`; the nearest, trial 2, has 156"
    code, out, err = dux("status", "tiny", "--home", home)
    assert (code, err) == (0, "")
    assert f"  {said}\n" in out
    assert json.loads(dux("status", "tiny", "--json", "--home", home)[1])["remarks"] == [said]


@pytest.mark.parametrize(
    ("space", "search", "said"),
    [
        ({"student.width": 0.5}, {"trials": 6}, "6 trials are asked for, but `space` has one recipe"),
        ({"student.width": [0.1, 0.2]}, {"trials": 6}, "`search.trials: 2`"),
        ({"student.width": [0.1, 0.2]}, {"trials": 2}, ""),
        ({"student.width": [0.1, 0.2]}, {"trials": 6, "sampler": "grid"}, ""),
        ({"student.width": 0.5, "seed": {"low": 0, "high": 9}}, {"trials": 6}, ""),
        ({"student.width": {"low": 0.1, "high": 0.5}}, {"trials": 100}, ""),
    ],
)
def test_trials_that_cannot_differ_are_told_before_the_first(
    space: dict[str, Any], search: dict[str, Any], said: str
) -> None:
    remark = StudyFile.from_mapping({"name": "a", "space": space, "search": search}).remark
    assert said in remark
    assert bool(remark) == bool(said)
