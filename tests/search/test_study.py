"""A study that was carried out by the real command, looked at from all sides; and studies that may not go on."""

import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from processes import TASK
from running import Finished, Said, result, runs, trial_runs

from search.ledger.storage import in_ledger
from search.preparation import drop_changed_checkpoints
from search.study import Study
from search.study_file import StudyFile
from trainers import Knowledge, Task, load_student, run_trial, save_student
from trainers.checkpoint import Kept
from trainers.data import pixels
from trainers.files import hashes, listing, sealed, write_whole
from trainers.loop import State
from trainers.measure import measure
from trainers.task import key_of

ROOT = Path(__file__).parents[2]
TRIALS = 6

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"), pytest.mark.timeout(1200)]


def test_ledger_mlflow_and_folders_have_every_trial_exactly_once(finished: Finished) -> None:
    study = finished.study
    lines = study.lines()
    assert [line.trial for line in lines] == list(range(TRIALS))
    assert {line.outcome for line in lines} == {"complete"}
    assert {folder.name for folder in (study.folder / "trials").iterdir()} == {str(trial) for trial in range(TRIALS)}
    actual = trial_runs(study)
    assert set(actual) == set(range(TRIALS))
    (parent,) = (run for run in runs(study) if run.data.tags["dux.role"] == "study")
    assert parent.info.status == "FINISHED"
    for line in lines:
        run = actual[line.trial]
        assert line.recipe is not None
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert result(study, line.trial)["measurements"] == line.measurements
        assert {name: run.data.metrics[name] for name in line.measurements} == line.measurements
        assert json.loads((study.files.trial(line.trial) / "recipe.json").read_text()) == line.recipe.flat()
        given = {name: value for name, value in run.data.params.items() if value not in ("", "n/a")}
        assert given == {name: str(value) for name, value in line.recipe.flat().items() if name in given}
        assert set(study.file.space.parameters) <= set(run.data.params)  # with a filler for what was not drawn
    assert study.run_ids() == {trial: run.info.run_id for trial, run in actual.items()}
    in_optuna = optuna.load_study(study_name=study.name, storage=study.files.storage)
    assert in_optuna.user_attrs["mlflow_runs"] == {str(trial): run.info.run_id for trial, run in actual.items()}


def test_mlflow_has_every_epoch_of_every_trial(finished: Finished) -> None:
    client = MlflowClient(tracking_uri=finished.study.files.tracking_uri)
    for line in finished.study.lines():
        assert line.recipe is not None
        pruning = line.recipe.pruning
        epochs = line.recipe.training.epochs + (pruning.fine_tune_epochs if pruning.fraction > 0 else 0)
        history = client.get_metric_history(finished.study.run_ids()[line.trial], "epoch.accuracy")
        assert sorted(point.step for point in history) == list(range(1, epochs + 1))
        assert all(0 <= point.value <= 1 for point in history)


def test_the_parent_run_has_the_front_as_table_picture_and_page(finished: Finished) -> None:
    study = finished.study
    client = MlflowClient(tracking_uri=study.files.tracking_uri)
    (parent,) = (run for run in runs(study) if run.data.tags["dux.role"] == "study")
    files = {file.path for file in client.list_artifacts(parent.info.run_id, "front")}
    assert files == {f"front/{name}" for name in ("front.html", "front.json", "front.png", "table.json")}
    on_front = {trial for trial, run in trial_runs(study).items() if run.data.tags["dux.pareto"] == "true"}
    assert on_front == {entry.trial for entry in study.front().non_dominated}
    course = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert sorted(point.step for point in course) == list(range(1, TRIALS + 1))
    assert course[-1].value == study.front().hypervolume
    student = {file.path for file in client.list_artifacts(trial_runs(study)[0].info.run_id, "student")}
    assert student >= {"student/recipe.json", "student/student.json", "student/student.safetensors"}


def test_mlflow_knows_who_is_on_the_front_while_the_study_runs(finished: Finished) -> None:
    events = [json.loads(line) for line in (finished.study.folder / "spool.jsonl").read_text().splitlines()]
    members, looked = [], 0
    for event in events:
        if event["event"] == "front_members":
            members = event["trials"]
        elif event["event"] == "front_changed":
            looked += 1
            assert len(members) == event["size"]
    assert looked == TRIALS


def test_the_parent_run_says_what_computed(finished: Finished) -> None:
    (parent,) = (run for run in runs(finished.study) if run.data.tags["dux.role"] == "study")
    tags = parent.data.tags
    assert {name: tags[f"dux.version.{name}"] for name in ("torch", "ray", "optuna", "mlflow")} == {
        name: version(name) for name in ("torch", "ray", "optuna", "mlflow")
    }
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:  # a checkout, that is; it may have been changed since the study
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", tags["mlflow.source.git.commit"])
    else:
        assert "mlflow.source.git.commit" not in tags


def test_methods_widths_and_fractions_are_all_drawn(finished: Finished) -> None:
    recipes = [line.recipe for line in finished.study.lines() if line.recipe is not None]
    assert {recipe.transfer for recipe in recipes} == {"none", "kd", "factor"}
    assert len({recipe.student.width for recipe in recipes}) > 1
    assert len({recipe.pruning.fraction for recipe in recipes}) == TRIALS


def test_the_written_front_is_what_the_trials_files_say(finished: Finished) -> None:
    study = finished.study
    measured = {trial: result(study, trial)["measurements"] for trial in range(TRIALS)}
    points = {trial: (m["accuracy"], m["parameters"]) for trial, m in measured.items()}

    def beaten(trial: int) -> bool:
        accuracy, parameters = points[trial]
        return any(
            a >= accuracy and p <= parameters and (a, p) != (accuracy, parameters) for a, p in points.values()
        ) or any(points[other] == points[trial] for other in range(trial))

    expected = sorted((t for t in points if not beaten(t)), key=lambda trial: points[trial][1])
    written = json.loads((study.folder / "front.json").read_text())
    assert [member["trial"] for member in written["members"]] == expected
    teacher = study.files.task()["teacher"]["parameters"]
    volume, floor = 0.0, 0.0
    for (
        trial
    ) in expected:  # from the smallest, hence the worst, on: each adds a strip of accuracy, as long as it is small
        accuracy, parameters = points[trial]
        volume += (accuracy - floor) * max(0.0, 1 - math.log(parameters) / math.log(teacher))
        floor = accuracy
    assert written["hypervolume"] == pytest.approx(volume, rel=1e-9)
    for member in written["members"]:
        assert {**member["objectives"], **member["measurements"]} == measured[member["trial"]]
        assert member["recipe"] == json.loads((study.files.trial(member["trial"]) / "recipe.json").read_text())
        assert member["mlflow_run_id"] == study.run_ids()[member["trial"]]


def test_a_members_files_give_exactly_its_accuracy_and_parameters(finished: Finished) -> None:
    study = finished.study
    validation = study.file.task.load_data().validation
    for entry in study.front().entries:
        network = load_student(study.files.trial(entry.trial))
        with torch.no_grad():
            logits = torch.cat([network(pixels(images)) for images in torch.split(validation.images, 512)])
        hits = int((logits.argmax(1) == validation.labels).sum())
        assert hits / len(validation) == entry.measurements["accuracy"]
        assert sum(p.numel() for p in network.parameters()) == entry.measurements["parameters"]


def test_the_same_recipe_gives_the_same_student_without_ray(finished: Finished) -> None:
    study = finished.study
    task = Task.load(study.file.task, study.home)
    assert task.key == study.files.task()["key"]
    knowledge = Knowledge(task, study.home / "knowledge")
    lines = {line.recipe.transfer: line for line in study.lines() if line.recipe is not None}
    assert set(lines) == {"none", "kd", "factor"}
    for line in lines.values():
        assert line.recipe is not None
        again = run_trial(line.recipe, task, knowledge, threads=1)
        assert again.measurements == line.measurements  # to the last bit: accuracy, nll, parameters and all
        written = (study.files.trial(line.trial) / "student.safetensors").read_bytes()
        assert again.files(task)["student.safetensors"] == written
        assert again.before_cut == result(study, line.trial)["before_cut"]


class Unread:
    """A test split that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the test split was read ({name})")


def test_no_trial_reads_the_test_split(finished: Finished) -> None:
    study = finished.study
    task = Task.load(study.file.task, study.home)
    assert {name: len(array) for name, array in task.arrays().items() if "test" in name} == {  # what workers get
        "data/test.images": 0,
        "data/test.labels": 0,
    }
    object.__setattr__(task.data, "test", Unread())  # past the check that reads all splits once, when data are made
    line = next(line for line in study.lines() if line.recipe is not None and line.recipe.transfer != "none")
    assert line.recipe is not None
    assert run_trial(line.recipe, task, Knowledge(task)).measurements == line.measurements
    with pytest.raises(AssertionError, match="the test split was read"):
        measure(task.teacher, task.data.test)


def test_resuming_a_finished_study_does_nothing_and_says_so(finished: Finished, dux: Callable[..., Said]) -> None:
    study = finished.study
    before = study.lines(), {path: path.stat().st_mtime_ns for path in study.folder.rglob("front.*")}
    spool = (study.folder / "spool.jsonl").read_bytes()
    code, out, err = dux("resume", "tiny", "--home", finished.home)
    assert (code, err) == (0, "")
    assert out.startswith(f"tiny is finished: {TRIALS} of {TRIALS} trials are done; nothing to resume\n")
    assert "students on the front" in out
    assert (study.lines(), {path: path.stat().st_mtime_ns for path in study.folder.rglob("front.*")}) == before
    assert (study.folder / "spool.jsonl").read_bytes() == spool


def test_a_study_of_a_name_that_exists_is_refused(finished: Finished, dux: Callable[..., Said]) -> None:
    code, out, err = dux("search", finished.file, "--home", finished.home)
    assert (code, out) == (2, "")
    assert err == (
        f"dux: a new study must have a new name, but 'tiny' exists in {finished.home}; "
        f"`dux resume tiny --home {shlex.quote(str(finished.home))}` continues it, another `name:` starts a new study\n"
    )


def test_a_study_whose_folder_was_deleted_is_no_new_one(tmp_path: Path, dux: Callable[..., Said]) -> None:
    (tmp_path / "study.yaml").write_text(f"name: gone\n{TASK}\nspace: {{}}")
    home = tmp_path / "home"
    home.mkdir()
    Study(StudyFile.read(tmp_path / "study.yaml"), home).ledger().ask()  # and nothing else is left of it
    code, _, err = dux("search", tmp_path / "study.yaml", "--home", home)
    assert code == 2
    assert err.startswith("dux: a new study must have a new name, but the ledger has a 'gone' whose folder is gone")
    assert not (home / "studies" / "gone" / "study.json").exists()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            TASK.replace("batch_size: 16", "batch_size: 16, learning_rate: 1.0e+30"),
            "`task.teacher` must be one that can be trained, but the loss must be finite",
        ),
        (TASK, "`factor` must be possible with this teacher, but the paraphraser's reconstruction"),
    ],
    ids=["teacher", "paraphraser"],
)
def test_what_cannot_be_prepared_ends_in_one_line_and_leaves_the_name_free(
    task: str, message: str, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    (tmp_path / "study.yaml").write_text(
        f"name: unready\n{task}\nspace: {{transfer: factor, factor.paraphraser_steps: 1}}"
    )
    code, out, err = dux("search", tmp_path / "study.yaml", "--home", tmp_path / "home")
    assert (code, out) == (2, "")
    assert err.startswith(f"dux: {message}")
    assert err.count("\n") == 1
    assert Study.names(tmp_path / "home") == []
    assert not list((tmp_path / "home" / "studies").iterdir())
    assert not list((tmp_path / "home").glob("knowledge/*"))
    assert not in_ledger(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}", "unready")
    kept = list((tmp_path / "home").glob("teachers/*/teacher.json"))
    assert (len(kept), err.endswith("; the teacher is kept\n")) == ((1, True) if task == TASK else (0, False))


def test_a_study_whose_teacher_is_another_than_its_trials_had_does_not_go_on(
    tmp_path: Path, dux: Callable[..., Said]
) -> None:
    (tmp_path / "study.yaml").write_text(f"name: swapped\n{TASK}\nspace: {{}}")
    study = Study(StudyFile.read(tmp_path / "study.yaml"), tmp_path / "home")
    task = Task.load(study.file.task, study.home)
    study.folder.mkdir(parents=True)
    (study.folder / "study.json").write_text(study.file.to_json())
    record = {"key": task.key, "classes": 10, "image_shape": [1, 8, 8], "teacher": dict(task.teacher_measurements)}
    (study.folder / "task.json").write_bytes(sealed({**record, "teacher_sha256": "0" * 64, "data": []}))
    study.ledger().ask()
    code, out, err = dux("resume", "swapped", "--home", study.home)
    assert (code, out) == (2, "")
    assert err.startswith("dux: the teacher of 'swapped' must be the one that its trials learned from, but in ")
    assert err.count("\n") == 1


def test_a_study_whose_data_were_changed_does_not_go_on_and_trains_no_second_teacher(
    tmp_path: Path, dux: Callable[..., Said]
) -> None:
    images = tmp_path / "images"
    for number in range(40):
        path = images / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 6 * number, np.uint8)).save(path)
    (tmp_path / "study.yaml").write_text(
        f"name: moved\ntask: {{dataset: imagefolder, root: {images}, teacher: {{family: mlp, depth: 2, epochs: 1}}}}\n"
        "space: {}"
    )
    study = Study(StudyFile.read(tmp_path / "study.yaml"), tmp_path / "home")
    study.folder.mkdir(parents=True)
    (study.folder / "study.json").write_text(study.file.to_json())
    key = key_of(study.file.task, study.file.task.load_data(), study.file.task.teacher.identity())
    record = {"key": key, "classes": 2, "teacher": {"accuracy": 0.5, "parameters": 1000.0}, "data": []}
    (study.folder / "task.json").write_bytes(sealed(record))
    (study.folder / "data.json").write_bytes(sealed(listing(images)))
    study.ledger().ask()
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(images / "train" / "a" / "0.png")
    (images / "train" / "b" / "39.png").rename(images / "train" / "b" / "new.png")
    code, out, err = dux("resume", "moved", "--home", study.home)
    assert (code, out) == (2, "")
    assert err == (
        f"dux: the data of 'moved' must be those that its trials learned from, but {images} was changed: train/a/0.png "
        "is another, train/b/39.png is gone, train/b/new.png is new; put it back, or start over under another name\n"
    )
    assert not (study.home / "teachers").exists()


def test_what_a_study_knows_of_its_task_is_believed_by_its_hash(
    finished: Finished, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    home = shutil.copytree(finished.home, tmp_path / "home")
    path = home / "studies" / "tiny" / "task.json"
    text = path.read_text()
    (accuracy,) = re.findall(r'"accuracy": (0\.\d+)', text)
    for changed in (text.replace(accuracy, "0.123"), text[:100], "", "[]"):
        path.write_text(changed)
        for verb in ("status", "front", "export"):
            code, out, err = dux(verb, "tiny", "--home", home)
            assert (code, out) == (2, "")
            assert f"must be as they were written, but in {path.parent} task.json " in err
            assert err.count("\n") == 1


def test_what_a_kill_left_and_someone_changed_is_computed_anew_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(f"name: left\n{TASK}\nspace: {{}}")
    study = Study(StudyFile.read(tmp_path / "study.yaml"), tmp_path / "home")
    said: list[str] = []

    for trial in range(4):
        files = {name: f"{name} of {trial}".encode() for name in ("student.json", "student.safetensors")}
        result = {"measurements": {}, "seconds": 1.0, "curve": [], "files": hashes(files)}
        save_student(study.files.trial(trial), {**files, "result.json": sealed(result)})
    (study.files.trial(1) / "result.json").write_text("{}")
    (study.files.trial(2) / "student.safetensors").write_text("another")
    (study.files.trial(3) / "student.json").unlink()
    kept = Kept("train", State(3, 1, {"weight": torch.zeros(2)}), 1.0, []).to_bytes("trial")
    for name, content in (("0", kept), ("1", kept.replace(b'\\"epoch\\": 3', b'\\"epoch\\": 1'))):
        write_whole(study.files.checkpoints / f"{name}.safetensors", content)
    say = said.append
    assert [study.files.result(trial, say) is not None for trial in range(5)] == [True, False, False, False, False]
    drop_changed_checkpoints(study.files, say)
    assert [file.name for file in study.files.checkpoints.iterdir()] == ["0.safetensors"]
    assert [line.partition(";")[0] for line in said] == [
        "result.json is not a record with a hash",
        "student.safetensors was changed",
        "student.json is gone",
        "1.safetensors was changed",
    ]


RECORDED = """
name: recorded
space: {student.width: {low: 0.125, high: 1.0}}
constraints: {parameters: {max: 2k}, nll: {max: 0.5}}
search: {trials: 9}
"""


@pytest.fixture
def recorded(tmp_path: Path) -> Study:
    """A study whose trials are in the ledger, without any having been carried out."""
    (tmp_path / "study.yaml").write_text(RECORDED)
    study = Study(StudyFile.read(tmp_path / "study.yaml"), tmp_path / "home")
    study.folder.mkdir(parents=True)
    (study.folder / "study.json").write_text(study.file.to_json())
    teacher = {"accuracy": 0.97, "parameters": 1e5}
    (study.folder / "task.json").write_bytes(sealed({"key": "key", "classes": 10, "teacher": teacher, "data": []}))
    return study


@pytest.mark.parametrize("begun", ["", "postgresql://dux:***@there/dux"])
def test_a_study_is_not_gone_on_with_in_another_database(
    begun: str, recorded: Study, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    (recorded.folder / "ledger.txt").write_text(begun)
    if not begun:
        monkeypatch.setenv("DUX_STORAGE", "postgresql://dux:hush@here/dux")
    said = f"not set instead of {begun}; " if begun else "postgresql://dux:***@here/dux instead of not set; "
    for verb in ("status", "front", "resume"):
        code, out, err = dux(verb, "recorded", "--home", recorded.home)
        assert (code, out) == (2, "")
        assert f"must name the database that 'recorded' was started with, but is {said}" in err
        assert err.count("\n") == 1
    assert not (recorded.home / "ledger.db").exists()


def test_students_that_break_a_constraint_are_counted_and_not_on_the_front(
    recorded: Study, dux: Callable[..., Said]
) -> None:
    home = ("--home", recorded.home)
    ledger = recorded.ledger()
    ledger.complete(ledger.ask()[0], {"accuracy": 0.99, "parameters": 2001.0, "nll": 0.1}, 1.0)
    assert dux("front", "recorded", *home)[1].startswith("no student to draw yet")
    assert dux("export", "recorded", *home)[::2] == (
        3,
        "dux: no student satisfies the bounds: all 1 break a constraint of the study\n",
    )
    for accuracy, parameters, nll in ((0.9, 2000.0, 0.5), (0.95, 1000.0, 0.6), (0.8, 500.0, math.nan)):
        ledger.complete(ledger.ask()[0], {"accuracy": accuracy, "parameters": parameters, "nll": nll}, 1.0)
    front = recorded.front()
    assert [entry.trial for entry in front.entries] == [1]
    assert [entry.trial for entry in front.non_dominated] == [1]
    summary = "1 of 1 students on the front, hypervolume 0.3058; 3 more break a constraint"
    assert front.summary() == summary
    assert summary in dux("front", "recorded", *home)[1]
    content = json.loads(dux("front", "recorded", "--json", *home)[1])
    assert (content["trials"], content["broke_constraints"]) == (1, 3)
    assert dux("status", "recorded", *home)[1].splitlines()[0] == (
        "recorded: interrupted; 4/9 trials done, 0 of them failed; "
        "front of 1, hypervolume 0.3058; 3 more break a constraint"
    )
    _, _, err = dux("export", "recorded", "--min", "accuracy=0.95", *home)
    assert err.startswith("dux: no student satisfies accuracy >= 0.95; the nearest is trial 1 ")


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ("space: {}", "a study must exist to be opened, but 'recordd' does not; did you mean `recorded`"),
        ("space: {}\ntask: {train_limit: 100}", "must be a study of the same task, but 'recorded' has another `task`"),
        (
            "space: {student.width: [2.0, 3.0]}",
            "a finished trial whose recipe is in this space, but 'recorded' has none",
        ),
    ],
    ids=["no such study", "another task", "another space"],
)
def test_a_study_that_nothing_can_be_learned_from_is_refused_and_leaves_the_name_free(
    study: str, message: str, recorded: Study, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    ledger = recorded.ledger()
    ledger.complete(ledger.ask()[0], {"accuracy": 0.9, "parameters": 2000.0, "nll": 0.5}, 1.0)
    (tmp_path / "later.yaml").write_text(f"name: later\n{study}")
    earlier = "recordd" if "recordd" in message else "recorded"
    code, out, err = dux("search", tmp_path / "later.yaml", "--from", earlier, "--home", recorded.home)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert Study.names(recorded.home) == ["recorded"]
