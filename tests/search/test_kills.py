"""Nothing lost, nothing twice, whatever is killed and whenever; benchmarks/kills.py does the same at length."""

import json
import os

import pytest
from kills import Kind, Round, carry_out

from trainers import Knowledge, Task, run_trial

SEED = int(os.environ.get("KILLS_SEED", "0"))
"""Of the moments; benchmarks/kills.py draws others each time, which come back, as far as the machine lets them."""
KILLED: tuple[Kind, ...] = ("worker", "raylet", "power")

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Round:
    """A study that was killed several times and resumed to its end."""
    return carry_out("curves", KILLED, SEED, tmp_path_factory.mktemp("curves"))


def test_a_study_that_is_killed_and_resumed_has_every_trial_exactly_once(killed: Round) -> None:
    story = "\n".join(map(str, killed.kills))
    assert killed.faults == [], f"seed {SEED}\n{story}"
    assert [(kill.lost, kill.doubled) for kill in killed.kills] == [(0, 0)] * len(killed.kills), f"seed {SEED}\n{story}"
    assert len(killed.kills) >= 2, f"seed {SEED}\n{story}"  # it may have come to its end before the last


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
