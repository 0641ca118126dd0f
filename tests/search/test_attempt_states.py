"""Attempts at trials, with a real ledger and no backend: what is next, and what each end of one comes to."""

import itertools
import math
from pathlib import Path

import pytest

from search.backends.attempts import Attempt, Attempts, Status
from search.backends.messages import EpochDone, Failed, Finished
from search.fronts.pareto import Axis, Direction
from search.ledger.ledger import Ledger
from search.ledger.lines import Repeat
from search.standing import Standing
from search.stopping import Halving
from spaces import Recipe, Space

SPACE = Space.from_mapping({"student.width": {"low": 0.125, "high": 1.0}})
OBJECTIVES: dict[str, Direction] = {"accuracy": "max", "parameters": "min"}
AXES = (Axis("accuracy", "max", "linear", 0.0, 1.0), Axis("parameters", "min", "log", 1e5, 1.0))
ENDS = {
    Status.COMPLETE: "complete",
    Status.FAILED: "failed",
    Status.STOPPED: "stopped",
    Status.RETRIED: "interrupted",
    Status.LEFT: "running",
}
"""What the ledger says of an attempt, by its final status."""


class Heard:
    """A watcher that writes down what it is told, and knows how the study stands from that."""

    def __init__(self, ledger: Ledger, standing: Standing) -> None:
        self.ledger, self.standing = ledger, standing
        self.told: list[tuple[str, int]] = []

    def ready(self) -> None:
        raise AssertionError

    def trial_started(self, trial: int, recipe: Recipe) -> None:
        self.told.append(("started", trial))
        self.standing.add(self.ledger.line(trial))

    def trial_reported(self, trial: int, step: int, steps: int, metrics: dict[str, float]) -> None:
        self.told.append(("reported", trial))

    def trial_ended(self, trial: int) -> None:
        self.told.append(("ended", trial))
        for line in self.ledger.ended(trial):
            self.standing.add(line)

    def left(self) -> int:
        return self.standing.left

    def repeats(self) -> list[Repeat]:
        return self.standing.repeats_left

    def tick(self) -> None:
        raise AssertionError


class Stage:
    """Attempts over a ledger of their own."""

    def __init__(
        self,
        folder: Path,
        trials: int = 2,
        retries: int = 1,
        trial_timeout: float | None = None,
        halve: bool = False,
        seeds: int = 1,
    ) -> None:
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}", "a", OBJECTIVES, "random", 0, SPACE)
        standing = Standing(OBJECTIVES, {}, trials, seeds, folder)
        standing.measure_by(AXES)
        self.watcher = Heard(self.ledger, standing)
        halving = Halving(AXES, 1, 2) if halve else None
        self.attempts = Attempts(self.ledger, self.watcher, halving, retries=retries, trial_timeout=trial_timeout)

    def begin(self) -> Attempt:
        """The next one, at work."""
        attempt = self.attempts.next()
        assert attempt is not None
        self.attempts.started(attempt)
        return attempt

    def outcome(self, attempt: Attempt) -> str:
        return self.ledger.line(attempt.trial).outcome


def finished(accuracy: float = 0.5, parameters: float = 100.0) -> Finished:
    return Finished({"accuracy": accuracy, "parameters": parameters}, [], {}, 1.0)


def epoch(step: int, accuracy: float, parameters: float = 100.0) -> EpochDone:
    return EpochDone(step, 4, {"accuracy": accuracy}, {"parameters": parameters})


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_as_many_are_under_way_as_are_left_and_nothing_is_left_when_they_have_ended(stage: Stage) -> None:
    first, second = stage.begin(), stage.begin()
    assert stage.attempts.next() is None
    assert not stage.attempts.over
    for attempt in (first, second):
        stage.attempts.ended(attempt, finished())
    assert stage.attempts.over
    assert stage.attempts.next() is None
    assert [(attempt.status, stage.outcome(attempt)) for attempt in (first, second)] == [
        (Status.COMPLETE, "complete")
    ] * 2
    assert stage.watcher.told == [("started", 0), ("started", 1), ("ended", 0), ("ended", 1)]


def test_an_objective_that_is_no_number_is_a_failure(stage: Stage) -> None:
    attempt = stage.begin()
    stage.attempts.ended(attempt, finished(math.nan))
    assert (attempt.status, stage.outcome(attempt)) == (Status.FAILED, "failed")


def test_what_may_not_happen_again_is_attempted_again_as_a_trial_of_its_own_and_no_oftener_than_asked(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, trials=1)
    first = stage.begin()
    stage.attempts.ended(first, Failed("MemoryError: none left", again=True))
    assert (first.status, stage.outcome(first)) == (Status.RETRIED, "interrupted")
    assert not stage.attempts.over
    second = stage.begin()
    assert (second.recipe, second.root, second.trial) == (first.recipe, first.trial, first.trial + 1)
    stage.attempts.died(second, "the worker process was killed (SIGKILL) by another process")
    assert (second.status, stage.outcome(second)) == (Status.FAILED, "failed")
    assert stage.attempts.over


def test_what_would_happen_again_is_not_attempted_again(stage: Stage) -> None:
    attempt = stage.begin()
    stage.attempts.ended(attempt, Failed("KeyError: 'a mistake'", again=False))
    assert (attempt.status, stage.outcome(attempt)) == (Status.FAILED, "failed")
    assert stage.ledger.line(attempt.trial).reason == "KeyError: 'a mistake'"


def test_a_worker_that_does_not_start_is_a_death(stage: Stage) -> None:
    attempt = stage.attempts.next()
    assert attempt is not None
    stage.attempts.died(attempt, "the worker process could not start")
    assert attempt.status is Status.RETRIED


def test_what_is_cut_short_stays_open_until_it_is_reconciled(stage: Stage) -> None:
    asked, running = stage.attempts.next(), stage.begin()
    assert asked is not None
    for attempt in (asked, running):
        stage.attempts.ended(attempt, None)
        stage.attempts.leave(attempt)  # whoever else hears of it
        assert (attempt.status, stage.outcome(attempt)) == (Status.LEFT, "running")
    assert stage.ledger.reconcile() == 2
    assert {stage.outcome(attempt) for attempt in (asked, running)} == {"interrupted"}


def test_a_report_is_no_outcome(stage: Stage) -> None:
    attempt = stage.begin()
    assert stage.attempts.reported(attempt, epoch(1, 0.5))
    stage.attempts.ended(attempt, epoch(1, 0.5))
    assert attempt.status is Status.LEFT


def test_what_takes_too_long_is_named_once_and_dies_of_that(tmp_path: Path) -> None:
    stage = Stage(tmp_path, trial_timeout=1e-9)
    asked, running = stage.attempts.next(), stage.begin()
    assert stage.attempts.overdue() == [running]  # the other has not begun
    assert stage.attempts.overdue() == []
    assert stage.attempts.reported(running, epoch(1, 0.5))  # whose worker has not heard of it yet
    stage.attempts.died(running, "the worker process was killed (SIGKILL) by another process")
    assert stage.ledger.line(running.trial).reason == (
        "took longer than search.trial_timeout, 1e-09 s; raise it, or narrow the space"
    )
    assert asked is not None
    assert running.status is Status.RETRIED


def test_what_takes_too_long_and_comes_to_its_end_nevertheless_is_complete(tmp_path: Path) -> None:
    stage = Stage(tmp_path, trial_timeout=1e-9)
    attempt = stage.begin()
    assert stage.attempts.overdue() == [attempt]
    stage.attempts.ended(attempt, finished())
    assert attempt.status is Status.COMPLETE


def test_at_a_rung_what_others_beat_is_stopped_unless_it_is_at_its_last_epoch(tmp_path: Path) -> None:
    stage = Stage(tmp_path, trials=4, halve=True)
    good, poor, done = stage.begin(), stage.begin(), stage.begin()
    assert stage.attempts.reported(good, epoch(1, 0.9))
    assert stage.attempts.reported(poor, epoch(3, 0.1))  # no rung
    assert not stage.attempts.reported(poor, epoch(1, 0.1, 1000.0))
    stage.attempts.ended(poor, epoch(1, 0.1, 1000.0))
    assert (poor.status, stage.outcome(poor)) == (Status.STOPPED, "stopped")
    assert stage.ledger.line(poor.trial).stopped_at == 1
    assert stage.ledger.line(poor.trial).rungs == {1: {"accuracy": 0.1, "parameters": 1000.0}}
    assert stage.attempts.reported(good, epoch(4, 0.9))
    assert stage.attempts.reported(done, epoch(4, 0.1, 1000.0))
    assert stage.ledger.line(done.trial).rungs == {4: {"accuracy": 0.1, "parameters": 1000.0}}


def test_a_trial_that_failed_is_compared_with_nobody(tmp_path: Path) -> None:
    stage = Stage(tmp_path, trials=3, halve=True)
    lost, next_one = stage.begin(), stage.begin()
    assert stage.attempts.reported(lost, epoch(1, 0.9))
    stage.attempts.died(lost, "the worker process was killed (SIGKILL) by another process")
    assert stage.attempts.reported(next_one, epoch(1, 0.1, 1000.0))


def test_repeats_follow_the_trials_and_are_neither_compared_nor_counted(tmp_path: Path) -> None:
    stage = Stage(tmp_path, trials=1, halve=True, seeds=2)
    trial = stage.begin()
    assert stage.attempts.reported(trial, epoch(1, 0.9))
    stage.attempts.ended(trial, finished())
    assert not stage.attempts.over
    repeat = stage.begin()
    assert repeat.repeat == Repeat(trial.trial, 1)
    assert repeat.recipe == trial.recipe.model_copy(update={"seed": repeat.recipe.seed})
    assert stage.attempts.next() is None
    assert not stage.attempts.over
    assert stage.attempts.reported(repeat, epoch(1, 0.0, 1e5))
    stage.attempts.ended(repeat, finished())
    assert stage.attempts.over
    assert stage.ledger.done() == 1


def test_a_repeat_whose_worker_is_yet_to_start_is_not_asked_for_again_when_another_ends(tmp_path: Path) -> None:
    stage = Stage(tmp_path, trials=1, seeds=4)
    trial = stage.begin()
    stage.attempts.ended(trial, finished())
    first, waits = stage.begin(), stage.attempts.next()
    assert waits is not None
    stage.attempts.ended(first, finished())
    last = stage.attempts.next()
    assert last is not None
    assert stage.attempts.next() is None
    assert [attempt.repeat for attempt in (first, waits, last)] == [Repeat(trial.trial, nth) for nth in (1, 2, 3)]


def test_no_status_follows_but_those_that_are_drawn() -> None:
    recipe = Recipe.from_flat({})
    drawn = {(Status.ASKED, after) for after in (Status.RUNNING, Status.FAILED, Status.RETRIED, Status.LEFT)} | {
        (before, after)
        for before in (Status.RUNNING, Status.OVERDUE)
        for after in (Status.COMPLETE, Status.FAILED, Status.RETRIED, Status.LEFT)
    }
    drawn |= {(Status.RUNNING, Status.OVERDUE), (Status.RUNNING, Status.STOPPING), (Status.LEFT, Status.LEFT)}
    drawn |= {(Status.STOPPING, after) for after in (Status.STOPPED, Status.FAILED, Status.RETRIED, Status.LEFT)}
    for before, after in itertools.product(Status, Status):
        attempt = Attempt(0, 0, recipe, None, before)
        if (before, after) in drawn:
            attempt.move_to(after)
            assert attempt.status is after
        else:
            with pytest.raises(RuntimeError, match=f"attempt 0 cannot be {after.name} after {before.name}"):
                attempt.move_to(after)


@pytest.mark.parametrize("message", [finished(), Failed("no", False)], ids=lambda m: type(m).__name__)
def test_an_end_that_is_told_twice_is_an_error_and_not_recorded_twice(message: Finished | Failed, stage: Stage) -> None:
    attempt = stage.begin()
    stage.attempts.ended(attempt, message)
    with pytest.raises((KeyError, RuntimeError)):
        stage.attempts.ended(attempt, message)
    assert len(stage.ledger.lines()) == 1
