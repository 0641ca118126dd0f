"""Nothing lost, nothing twice, whatever is killed and whenever; benchmarks/kills.py does the same at length."""

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from kills import Kind, Round, carry_out

from trainers import Knowledge, Task, run_trial

SEED = int(os.environ.get("KILLS_SEED") or random.SystemRandom().randrange(10**6))
"""Another one each time; the moments of a failure come back, as far as the machine lets them, by KILLS_SEED=..."""
KILLED: dict[str, tuple[Kind, ...]] = {
    "curves": ("worker", "power", "driver"),
    "stopped": ("worker", "raylet", "everything"),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Round]:
    """Studies that were killed several times and resumed to their end, at the same time: most of it is waiting."""
    folders = [tmp_path_factory.mktemp(name) for name in KILLED]
    with ThreadPoolExecutor() as threads:
        found = threads.map(carry_out, KILLED, KILLED.values(), [SEED, SEED + 1], folders)
        return dict(zip(KILLED, found, strict=True))


@pytest.fixture(params=KILLED)
def killed(request: pytest.FixtureRequest, rounds: dict[str, Round]) -> Round:
    return rounds[request.param]


def test_a_study_that_is_killed_and_resumed_has_every_trial_exactly_once(killed: Round) -> None:
    story = "\n".join(map(str, killed.kills))
    assert killed.faults == [], f"seed {SEED}\n{story}"
    assert [(kill.lost, kill.doubled) for kill in killed.kills] == [(0, 0)] * len(killed.kills), f"seed {SEED}\n{story}"
    assert len(killed.kills) >= 2, f"seed {SEED}\n{story}"  # it may have come to its end before the last


def test_some_trials_went_on_from_a_checkpoint(rounds: dict[str, Round]) -> None:
    assert sum(kill.resumed for round in rounds.values() for kill in round.kills) > 0, f"seed {SEED}"


def test_trials_go_on_from_their_checkpoints_to_the_student_of_an_uninterrupted_trial(killed: Round) -> None:
    study = killed.study
    done = [line for line in study.lines() if line.outcome == "complete" and line.point is None]
    results = [json.loads((study.trial_folder(line.trial) / "result.json").read_text()) for line in done]
    resumed = [line for line, result in zip(done, results, strict=True) if result["resumed_at"] > 0]
    task = Task.load(study.file.task, study.home)
    for line in resumed[:2]:
        assert line.recipe is not None
        again = run_trial(
            line.recipe, task, Knowledge(task, study.home / "knowledge"), curve=study.file.space.fractions()
        )
        written = (study.trial_folder(line.trial) / "student.safetensors").read_bytes()
        assert again.files(task)["student.safetensors"] == written
        assert again.measurements == line.measurements
