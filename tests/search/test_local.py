"""The backend in the same process: real trials one after the other, to the same numbers as Ray's, and without Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import TASK, environment
from running import TINY, Finished, result, search_here

from search.errors import Interrupted
from search.ledger.lines import Line, Repeat
from search.study import Study
from search.study_file import StudyFile
from spaces import BadInput

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

PROGRAM = """
import sys
from pathlib import Path
from search.study import Study
from search.study_file import StudyFile
Study(StudyFile.read(Path("study.yaml")), Path("home").resolve()).search(backend="local")
print(sorted({name.partition(".")[0] for name in sys.modules} & {"ray", "torch"}))
"""


def test_a_study_has_the_same_measurements_by_either_backend_and_locally_no_ray(
    finished: Finished, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(TINY)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "['torch']\n"), done.stderr
    by_ray, here = finished.study, Study.open("tiny", home)
    assert len(by_ray.lines()) == 6
    for one, other in zip(by_ray.lines(), here.lines(), strict=True):
        assert (one.trial, one.outcome, one.recipe) == (other.trial, other.outcome, other.recipe)
        assert one.measurements == other.measurements  # to the last bit
        assert {**one.files, "recipe.json": ""} == {**other.files, "recipe.json": ""}  # students among them
    fronts = [json.loads((study.folder / "front.json").read_text()) for study in (by_ray, here)]
    for front in fronts:
        for member in front["members"]:
            del member["mlflow_run_id"]
    assert fronts[0] == fronts[1]


SLOW = "slow for 10.5 once"
TRIED = {"none": 1, "wrong": 1, "no memory once": 2, "no memory": 2, SLOW: 2, "Ctrl-C once": 2}


def test_what_goes_wrong_is_tried_again_or_not_as_by_ray_and_ctrl_c_leaves_its_trial_open(
    tmp_path: Path, home: Path
) -> None:
    tries = tmp_path / "tries"
    tries.mkdir()
    text = f"""
name: tricky
{TASK}
space:
  transfer: tricks:Tricks
  tricks:Tricks.trick: [{", ".join(TRIED)}]
  tricks:Tricks.folder: {tries}
  training.epochs: 4
  training.batch_size: 64
search: {{sampler: grid, retries: 1, trial_timeout: 10, checkpoint_seconds: 0, curve: false}}
"""
    with pytest.raises(Interrupted, match=r"^stopped after \d of 6 trials; `dux resume tricky --home .*` continues$"):
        search_here(text, home)
    study = Study.open("tricky", home)
    (cut_short,) = (line for line in study.lines() if line.outcome == "interrupted" and not line.reason)
    study.resume(backend="local")
    assert {file.name: len(file.read_text()) for file in tries.iterdir()} == TRIED
    lines: dict[str, list[Line]] = {trick: [] for trick in TRIED}
    for line in study.lines():
        assert line.recipe is not None
        lines[str(dict(line.recipe.options)["trick"])].append(line)
    assert lines["Ctrl-C once"][0] == cut_short
    again = lines["Ctrl-C once"][1]
    assert (again.outcome, again.recipe, again.root) == ("complete", cut_short.recipe, cut_short.trial)
    assert result(study, again.trial)["resumed_at"] == 2
    outcomes = {trick: [line.outcome for line in each] for trick, each in lines.items()}
    assert outcomes == {
        "none": ["complete"],
        "wrong": ["failed"],
        "no memory once": ["interrupted", "complete"],
        "no memory": ["interrupted", "failed"],
        SLOW: ["interrupted", "complete"],
        "Ctrl-C once": ["interrupted", "complete"],
    }
    assert lines["wrong"][0].reason == "KeyError: 'a mistake'"
    assert "Traceback" in (study.files.trial(lines["wrong"][0].trial) / "error.txt").read_text()
    assert lines["no memory"][0].reason == "MemoryError: none left"
    assert lines[SLOW][0].reason.startswith("took longer than search.trial_timeout, 10 s;")
    assert not [*study.files.checkpoints.glob("*")]


HALVED = f"""
name: halved
{TASK}
space:
  student.width: [0.125, 0.25]
  training.epochs: 6
  training.batch_size: 16
  training.learning_rate: [0.1, 1.0e-6, 2.0e-6]  # the last two learn nothing: others beat them
search: {{sampler: grid, stopping: pareto, min_epochs: 2, reduction: 2, seeds: 2, curve: false, seed: 1}}
"""


def test_trials_are_stopped_early_and_those_of_the_front_repeated(home: Path) -> None:
    study = search_here(HALVED, home)
    lines = study.lines()
    trials = [line for line in lines if line.repeat is None]
    assert len(trials) == 6
    stopped = [line for line in trials if line.outcome == "stopped"]
    assert stopped
    assert {line.outcome for line in trials} == {"stopped", "complete"}
    for line in stopped:
        assert line.stopped_at in (2, 4)
        assert max(line.rungs) == line.stopped_at
        assert line.recipe is not None
        assert line.recipe.training.learning_rate < 0.1
        assert line.seconds > 0
    front = {entry.trial for entry in study.front().non_dominated}
    repeats = [line for line in lines if line.repeat is not None]
    assert {(line.repeat, line.outcome) for line in repeats} == {(Repeat(trial, 1), "complete") for trial in front}
    assert all(not line.rungs for line in repeats)


def test_an_address_and_a_backend_that_has_none_are_told_before_anything_is_written(tmp_path: Path) -> None:
    study = Study(StudyFile.from_mapping({"name": "a", "space": {}}), tmp_path / "home")
    with pytest.raises(BadInput, match="an address must be that of a Ray cluster, but the backend is 'local'"):
        study.search(address="127.0.0.1:1", backend="local")
    assert not (tmp_path / "home").exists()
