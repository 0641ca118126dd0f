"""How a study stands, by its lines alone: the same however they come, and never by reading them all again."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.constraints import Limits
from search.fronts.pareto import Axis
from search.ledger.lines import CurvePoint, Kind, Line, Outcome, Repeat, Trial, attributes_of, kind_of
from search.standing import Standing
from spaces import Recipe

AXES = [Axis("accuracy", "max", "linear", 0.0, 1.0), Axis("parameters", "min", "log", 1e6, 1.0)]
FOLDER = Path("trials")


def line(trial: int, outcome: Outcome = "complete", kind: Kind | None = None, **measured: float) -> Line:
    return Line(trial, trial, outcome, Recipe(), measured, "", 1.0, None, {}, kind or Trial())


def standing(lines: Sequence[Line] = (), *, trials: int = 3, seeds: int = 1, **limits: Limits) -> Standing:
    made = Standing({"accuracy": "max", "parameters": "min"}, limits, trials, seeds, FOLDER, lines)
    made.measure_by(AXES)
    return made


STORY = [
    line(0, accuracy=0.9, parameters=1e4),
    line(1, "failed"),
    line(2, accuracy=0.8, parameters=1e3),
    line(3, kind=CurvePoint(0, 0), accuracy=0.85, parameters=2e3),
    line(4, kind=CurvePoint(2, 0), accuracy=0.1, parameters=5e3),
    line(5, kind=Repeat(0, 1), accuracy=0.94, parameters=1e4),
    line(6, kind=CurvePoint(5, 0, Repeat(0, 1)), accuracy=0.83, parameters=2e3),
    line(7, "failed", Repeat(2, 1)),
    line(8, "running", Repeat(0, 2)),
    line(9, "interrupted"),
]


def seen(of: Standing) -> dict[str, Any]:
    """All that a standing says."""
    return {
        "counts": {outcome: of.count(outcome) for outcome in ("complete", "failed", "stopped", "running")},
        "done": (of.done, of.left, of.is_complete, of.repeats_failed, of.repeated),
        "repeats": (of.repeats, of.repeats_left),
        "front": of.front,
        "lines": of.lines,
        "running": of.of("running"),
    }


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_same_in_whatever_order_lines_come_and_however_often(seed: int) -> None:
    chance = random.Random(seed)
    shuffled = [*STORY, *chance.sample(STORY, 4)]
    chance.shuffle(shuffled)
    begun = [replace(each, outcome="running", measurements={}) for each in STORY if not each.is_point]
    expected = seen(standing(STORY, seeds=3))
    assert seen(standing(shuffled, seeds=3)) == expected
    assert seen(standing([*begun, *shuffled], seeds=3)) == expected  # all were seen to run before


def test_it_says_what_is_done_what_leads_and_what_is_left() -> None:
    of = standing(STORY, seeds=3)
    assert (of.done, of.left, of.count("complete"), of.count("failed")) == (3, 0, 2, 1)
    front = of.front
    assert front is not None
    assert [member.trial for member in front.non_dominated] == [2, 3, 0]
    assert of.repeats == [Repeat(0, 1), Repeat(2, 1), Repeat(0, 2), Repeat(2, 2)]
    assert of.repeats_left == [Repeat(2, 2)]  # (0, 2) runs
    assert (of.repeated, of.repeats_failed, of.is_complete) == (2, 1, False)
    members = {member.trial: member for member in front.non_dominated}
    assert [measured["accuracy"] for measured in members[0].repeats] == [0.94]
    assert [measured["accuracy"] for measured in members[3].repeats] == [0.83]
    assert members[2].repeats_failed == 1
    assert members[3].folder == FOLDER / "0" / "curve" / "0"
    assert members[3].curve_of == 0


def test_there_is_no_front_before_it_is_known_how_far_the_objectives_go_and_no_repeats_without_one() -> None:
    of = Standing({"accuracy": "max", "parameters": "min"}, {}, 1, 2, FOLDER, [STORY[0]])
    assert of.front is None
    assert (of.repeats, of.is_complete) == ([], True)
    of.measure_by(AXES)
    assert of.repeats == [Repeat(0, 1)]
    assert not of.is_complete


def test_a_student_that_breaks_a_constraint_is_counted_and_no_entry() -> None:
    front = standing(STORY, parameters=Limits(max=1500)).front
    assert front is not None
    assert [entry.trial for entry in front.entries] == [2]
    assert front.broken == 3


def test_taking_a_line_asks_for_nothing_of_the_lines_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs the same at trial 10 and at trial 10,000: no other line's attribute is read."""
    of, read = standing(trials=20_000), []
    for trial in range(1000):
        of.add(line(trial, accuracy=0.5, parameters=1000.0))

    def spied(self: Line, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name == "trial":
            read.append(value)
        return value

    monkeypatch.setattr(Line, "__getattribute__", spied)
    of.add(line(1000, accuracy=0.6, parameters=1000.0))
    assert {*read} == {1000}
    assert of.done == 1001


@pytest.mark.parametrize(
    "kind", [Trial(), Repeat(3, 1), CurvePoint(3, 0), CurvePoint(3, 7, Repeat(1, 2))], ids=lambda kind: str(kind)
)
def test_a_kind_is_read_as_it_was_written(kind: Kind) -> None:
    assert kind_of(attributes_of(kind)) == kind
