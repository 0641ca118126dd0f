"""An interrupted trial goes on from its checkpoint, and its result is that of one that never was, to the bit."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spaces import Recipe
from trainers import Checkpoint, Knowledge, Report, Task, TaskSpec, TeacherSpec, TrialResult, run_trial
from trainers.checkpoint import Kept, described
from trainers.store import weights_bytes
from trainers.transfer import METHODS
from trainers.transfer.crd import CRD

TRAINED = 3
"""Epochs of the training; a pretraining has two, and fine-tuning one."""
QUICK: dict[str, dict[str, Any]] = {
    "factor": {"factor.paraphraser_steps": 700, "factor.rate": 1.0},
    "ab": {"ab.pretraining_epochs": 2},
    "fsp": {"fsp.pretraining_epochs": 2},
    "crd": {"crd.negatives": 64},
}
AT_EVERY_EPOCH = ("none", "crd", "ab")
"""Killed at every epoch, and with a pruning curve: without a stage, with a state of its own, with a pretraining."""


class Killed(Exception):
    """What ends a trial in these tests."""


@dataclass
class Place:
    """A checkpoint in memory."""

    content: bytes | None = None
    saved: list[bytes] = field(default_factory=list)

    def save(self, content: bytes) -> None:
        self.content = content
        self.saved.append(content)

    def checkpoint(self, seconds: float = 0.0) -> Checkpoint:
        return Checkpoint(lambda: self.content, self.save, seconds)


def killed_at(step: int) -> Callable[[Report], None]:
    """Raises when an epoch is reported, before a checkpoint has it."""

    def report(report: Report) -> None:
        if report.step == step:
            raise Killed

    return report


def outcome(result: TrialResult) -> tuple[Any, ...]:
    """All of a result but the times, and the points of its curve; weights to the bit."""
    curve = [outcome(point) for point in result.curve]
    return result.measurements, result.before_cut, result.units_cut, weights_bytes(result.network), curve


@pytest.fixture(scope="module")
def knowledge(home: Path) -> Knowledge:
    """Of a teacher of 100 digits."""
    teacher = TeacherSpec(depth=8, width=0.25, epochs=4, batch_size=16)
    return Knowledge(Task.load(TaskSpec(train_limit=100, augment="none", teacher=teacher), home))


@pytest.fixture(scope="module")
def ensemble(home: Path) -> Knowledge:
    """Of two teachers."""
    teacher = TeacherSpec(family="mlp", depth=3, width=0.25, epochs=2, batch_size=16, members=2)
    return Knowledge(Task.load(TaskSpec(train_limit=100, augment="none", teacher=teacher), home))


def recipe(name: str, **more: Any) -> Recipe:
    flat = {
        "student.width": 0.25,
        "training.epochs": TRAINED,
        "training.batch_size": 32,
        "training.learning_rate": 0.02,
        "pruning.fraction": 0.4,
        "pruning.fine_tune_epochs": 1,
    }
    return Recipe.from_flat({**flat, "transfer": name, **QUICK.get(name, {}), **more})


MEMBERS = {"student.family": "mlp", "student.depth": 3, "student.members": 2}


def run(asked: Recipe, knowledge: Knowledge, **more: Any) -> tuple[TrialResult, list[Report]]:
    reports: list[Report] = []
    result = run_trial(asked, knowledge.task, knowledge, reports.append, **more)
    return result, reports


@pytest.mark.parametrize("name", METHODS)
def test_a_trial_goes_on_as_if_nothing_had_been(name: str, knowledge: Knowledge, ensemble: Knowledge) -> None:
    members = name == "ensemble"
    often = members or name in AT_EVERY_EPOCH
    asked, known = (recipe(name, **MEMBERS), ensemble) if members else (recipe(name), knowledge)
    curve = (0.4, 0.8) if often else ()
    whole, reports = run(asked, known, curve=curve)
    trained = len(reports) - 1
    epochs = range(2, trained + 2) if often else [trained]
    for step in epochs:  # each by a process that began anew
        place = Place()
        with pytest.raises(Killed):
            run_trial(asked, known.task, known, killed_at(step), curve=curve, checkpoint=place.checkpoint())
        assert len(place.saved) == step - 1
        resumed, told = run(asked, known, curve=curve, checkpoint=place.checkpoint())
        assert resumed.resumed_at == step - 1
        assert outcome(resumed) == outcome(whole)
        assert told == reports
        assert len(place.saved) == trained  # those that were left; none of fine-tuning


def test_a_trial_that_is_interrupted_after_every_epoch_comes_to_the_same_end(task: Task) -> None:
    task = replace(task, spec=task.spec.model_copy(update={"augment": "resized_crop_flip_color"}))
    asked, place, knowledge = recipe("crd"), Place(), Knowledge(task)
    whole, reports = run(asked, knowledge)
    for step in range(2, TRAINED + 2):
        with pytest.raises(Killed):
            run_trial(asked, knowledge.task, knowledge, killed_at(step), checkpoint=place.checkpoint())
    resumed, told = run(asked, knowledge, checkpoint=place.checkpoint())
    assert outcome(resumed) == outcome(whole)
    assert told == reports
    assert len(place.saved) == TRAINED


def test_seconds_count_all_processes_that_worked_on_it(knowledge: Knowledge) -> None:
    place = Place()
    run(recipe("none"), knowledge, checkpoint=place.checkpoint())
    assert place.content is not None
    trial = described(place.content)["trial"]
    kept = Kept.from_bytes(place.content, trial)
    assert kept is not None
    place.content = replace(kept, seconds=kept.seconds + 1000.0).to_bytes(trial)
    assert 1000.0 < run(recipe("none"), knowledge, checkpoint=place.checkpoint())[0].seconds < 1100.0


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:100],
        lambda content: b"",
        lambda content: b"\0" * len(content),
        lambda content: content.replace(b"modules.0.stem", b"modules.0.stam"),
        lambda content: content.replace(b'\\"format\\": 2', b'\\"format\\": 3'),
        lambda content: content.replace(b'\\"epoch\\": 3', b'\\"epoch\\": 1'),
        lambda content: content.replace(b'\\"step\\": 1', b'\\"step\\": 2'),
        lambda content: content.replace(b'\\"phase\\": \\"train\\"', b'\\"phase\\": \\"tame\\" '),
        lambda content: content.replace(b'\\"loss\\": 2.', b'\\"loss\\": 1.'),
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    ],
    ids=[
        "half of it",
        "hardly anything",
        "nothing",
        "zeros",
        "other modules",
        "a later format",
        "another epoch",
        "another step",
        "another phase",
        "another loss",
        "a number that differs in a bit",
    ],
)
def test_what_is_no_checkpoint_of_the_trial_is_ignored(change: Callable[[bytes], bytes], knowledge: Knowledge) -> None:
    asked, place = recipe("kd"), Place()
    run_trial(asked, knowledge.task, knowledge, checkpoint=place.checkpoint())
    assert place.content is not None
    trial = described(place.content)["trial"]
    assert Kept.from_bytes(place.content, trial) is not None
    changed = change(place.content)
    assert changed != place.content
    assert Kept.from_bytes(changed, trial) is None


def test_a_trial_whose_checkpoint_was_changed_begins_anew(knowledge: Knowledge) -> None:
    asked, place = recipe("kd"), Place()
    whole, reports = run(asked, knowledge, checkpoint=place.checkpoint())
    assert place.content is not None
    place.content = place.content.replace(b'\\"epoch\\": 3', b'\\"epoch\\": 1')
    again, told = run(asked, knowledge, checkpoint=place.checkpoint())
    assert again.resumed_at == 0
    assert outcome(again) == outcome(whole)
    assert told == reports


def test_another_recipes_task_or_thread_counts_checkpoint_is_ignored(knowledge: Knowledge, task: Task) -> None:
    place = Place()
    run(recipe("kd"), knowledge, checkpoint=place.checkpoint())

    def resumed_at(asked: Recipe, known: Knowledge, threads: int = 1) -> int:
        epochs: list[int] = []

        def stopped_at_once(content: bytes) -> None:
            epochs.append(described(content)["epoch"])
            raise Killed

        with pytest.raises(Killed):
            run(asked, known, checkpoint=Checkpoint(lambda: place.content, stopped_at_once, 0.0), threads=threads)
        return epochs[0] - 1

    place.content = place.saved[1]
    assert resumed_at(recipe("kd"), knowledge) == 2
    assert resumed_at(recipe("kd", seed=1), knowledge) == 0
    assert resumed_at(recipe("kd"), Knowledge(task)) == 0
    assert resumed_at(recipe("kd"), knowledge, threads=2) == 0


def test_a_checkpoint_is_written_no_more_often_than_asked_for(knowledge: Knowledge) -> None:
    place = Place()
    run(recipe("none"), knowledge, checkpoint=place.checkpoint(seconds=1000.0))
    assert place.saved == []
    run(recipe("none"), knowledge, checkpoint=place.checkpoint(seconds=0.0))
    assert [described(content)["epoch"] for content in place.saved] == [1, 2, 3]


def test_a_method_whose_state_is_no_tensor_is_carried_out_without_checkpoints(
    knowledge: Knowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CRD, "get_extra_state", lambda self: {"generator": self.generator.get_state()})
    place = Place()
    run(recipe("crd"), knowledge, checkpoint=place.checkpoint())
    assert place.saved == []


def test_taking_a_checkpoint_changes_nothing_of_the_result(knowledge: Knowledge) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    whole, reports = run(recipe("factor"), knowledge)
    kept, told = run(recipe("factor"), knowledge, checkpoint=Place().checkpoint())
    assert outcome(kept) == outcome(whole)
    assert told == reports
    assert torch.equal(torch.random.get_rng_state(), before)
