"""Nothing lost, nothing twice, whatever is killed and whenever; benchmarks/kills.py does the same at length."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from kills import Kind, Round, carry_out
from mlflow import MlflowClient
from running import Said, trial_runs

from search.ledger.lines import CurvePoint
from trainers import Knowledge, Task, run_trial

SEED = int(os.environ.get("KILLS_SEED", "0"))
"""Of the moments; benchmarks/kills.py draws others each time, which come back, as far as the machine lets them."""
KILLED: tuple[Kind, ...] = ("worker", "raylet", "power")

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Path]) -> Round:
    """A study with early stopping and curves that was killed several times and resumed to its end."""
    folder = tmp_path_factory.mktemp("stopped")
    new_home(folder)
    return carry_out("stopped", KILLED, SEED, folder)


def test_a_study_that_is_killed_and_resumed_has_every_trial_exactly_once(killed: Round) -> None:
    story = "\n".join(map(str, killed.kills))
    assert killed.faults == [], f"seed {SEED}\n{story}"
    assert [(kill.lost, kill.doubled) for kill in killed.kills] == [(0, 0)] * len(killed.kills), f"seed {SEED}\n{story}"
    assert len(killed.kills) >= 2, f"seed {SEED}\n{story}"  # it may have come to its end before the last
    lines = killed.study.lines()
    points = [line.kind.of for line in lines if isinstance(line.kind, CurvePoint)]
    assert sorted(points) == [line.trial for line in lines if line.outcome == "complete" and not line.is_point]


def test_some_trials_went_on_from_a_checkpoint(killed: Round) -> None:
    kept = [epochs for kill in killed.kills for _, _, epochs in kill.open.values()]
    assert sum(kill.resumed for kill in killed.kills) > 0 or not any(kept), f"seed {SEED}"


def test_trials_go_on_from_their_checkpoints_to_the_student_of_an_uninterrupted_trial(killed: Round) -> None:
    study = killed.study
    done = [line for line in study.lines() if line.outcome == "complete" and not line.is_point]
    results = [json.loads((study.files.trial(line.trial) / "result.json").read_text()) for line in done]
    resumed = [line for line, result in zip(done, results, strict=True) if result["resumed_at"] > 0]
    task = Task.load(study.file.task, study.home)
    for line in resumed[:2]:
        assert line.recipe is not None
        again = run_trial(
            line.recipe, task, Knowledge(task, study.home / "knowledge"), curve=study.file.space.fractions()
        )
        written = (study.files.trial(line.trial) / "student.safetensors").read_bytes()
        assert again.files(task)["student.safetensors"] == written
        assert again.measurements == line.measurements


def test_early_stopping_goes_on_after_a_kill_and_stops_only_what_others_beat(
    killed: Round, dux: Callable[..., Said]
) -> None:
    study, lines = killed.study, killed.study.lines()
    stopped = [line for line in lines if line.outcome == "stopped"]
    complete = [line for line in lines if line.outcome == "complete" and not line.is_point]
    assert len(stopped) >= 2
    assert len(complete) + len(stopped) == study.file.trials
    rungs = (3, 6, 12)
    for line in complete:
        assert set(line.rungs) == set(rungs)
        assert line.stopped_at is None
    for line in stopped:
        assert line.stopped_at in rungs
        assert max(line.rungs) == line.stopped_at
        here = line.rungs[line.stopped_at]
        others = [other.rungs[line.stopped_at] for other in stopped + complete if line.stopped_at in other.rungs]
        assert any(
            other["accuracy"] >= here["accuracy"] and other["parameters"] <= here["parameters"] and other != here
            for other in others
        )
        assert not study.files.trial(line.trial).exists()
    own = {entry.trial for entry in study.front().entries if entry.curve_of is None}
    assert own == {line.trial for line in complete}

    state, _, listed = dux("status", study.name, "--home", study.home)[1].partition("\n")
    assert f"trials done, 0 of them failed, {len(stopped)} stopped early; front" in state
    for line in stopped:
        assert re.search(rf"^  stopped after {line.stopped_at} epochs: (.*, )?{line.trial}(, |$)", listed, re.MULTILINE)
    runs = trial_runs(study)
    client = MlflowClient(tracking_uri=study.files.tracking_uri)
    for line in stopped:
        assert runs[line.trial].data.tags["dux.stopped_at"] == str(line.stopped_at)
        assert "accuracy" not in runs[line.trial].data.metrics
        assert len(client.get_metric_history(runs[line.trial].info.run_id, "epoch.accuracy")) == line.stopped_at
