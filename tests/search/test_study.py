"""A study from end to end by the real command: nothing lost, nothing twice, whatever is killed and whenever."""

import ast
import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from processes import TASK, Command, Ended, descendants, run
from running import Finished, Said, but_waiting, wait_for

from search.ledger import Line, in_ledger
from search.study import Silent, Study, _Session
from search.study_file import StudyFile
from trainers import Knowledge, Task, load_student, run_trial, save_student
from trainers.checkpoint import Kept
from trainers.data import pixels
from trainers.files import hashes, listing, sealed, write_whole
from trainers.loop import State
from trainers.task import key_of

ROOT = Path(__file__).parents[2]
TRIALS = 6

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.timeout(
        1800
    ),  # the first test of `story` waits for four starts of Ray, on a busy machine a minute each
]


def runs(study: Study) -> list[Run]:
    """Every run of the study's experiment."""
    client = MlflowClient(tracking_uri=study.tracking_uri)
    experiment = client.get_experiment_by_name(f"dux-{study.name}")
    found: list[Run] = client.search_runs([experiment.experiment_id])
    return found


def trial_runs(study: Study) -> dict[int, Run]:
    """Trial -> its run; fails where a trial has two."""
    found = [run for run in runs(study) if run.data.tags["dux.role"] == "trial"]
    trials = [int(run.data.tags["dux.trial"]) for run in found]
    assert len(set(trials)) == len(trials)
    return dict(zip(trials, found, strict=True))


def result(study: Study, trial: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((study.trial_folder(trial) / "result.json").read_text())
    return content


def test_ledger_mlflow_and_folders_have_every_trial_exactly_once(finished: Finished) -> None:
    study = finished.study
    lines = study.lines()
    assert [line.trial for line in lines] == list(range(TRIALS))
    assert {line.outcome for line in lines} == {"complete"}
    assert {folder.name for folder in (study.folder / "trials").iterdir()} == {str(trial) for trial in range(TRIALS)}
    found = trial_runs(study)
    assert set(found) == set(range(TRIALS))
    (parent,) = (run for run in runs(study) if run.data.tags["dux.role"] == "study")
    assert parent.info.status == "FINISHED"
    for line in lines:
        run = found[line.trial]
        assert line.recipe is not None
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert result(study, line.trial)["measurements"] == line.measurements
        assert {name: run.data.metrics[name] for name in line.measurements} == line.measurements
        assert json.loads((study.trial_folder(line.trial) / "recipe.json").read_text()) == line.recipe.flat()
        given = {name: value for name, value in run.data.params.items() if value not in ("", "n/a")}
        assert given == {name: str(value) for name, value in line.recipe.flat().items() if name in given}
        assert set(study.file.space.parameters) <= set(run.data.params)  # with a filler for what was not drawn
    assert study.run_ids() == {trial: run.info.run_id for trial, run in found.items()}
    in_optuna = optuna.load_study(study_name=study.name, storage=study.storage)
    assert in_optuna.user_attrs["mlflow_runs"] == {str(trial): run.info.run_id for trial, run in found.items()}


def test_mlflow_has_every_epoch_of_every_trial(finished: Finished) -> None:
    client = MlflowClient(tracking_uri=finished.study.tracking_uri)
    for line in finished.study.lines():
        assert line.recipe is not None
        pruning = line.recipe.pruning
        epochs = line.recipe.training.epochs + (pruning.fine_tune_epochs if pruning.fraction > 0 else 0)
        history = client.get_metric_history(finished.study.run_ids()[line.trial], "epoch.accuracy")
        assert sorted(point.step for point in history) == list(range(1, epochs + 1))
        assert all(0 <= point.value <= 1 for point in history)


def test_the_parent_run_has_the_front_as_table_picture_and_page(finished: Finished) -> None:
    study = finished.study
    client = MlflowClient(tracking_uri=study.tracking_uri)
    (parent,) = (run for run in runs(study) if run.data.tags["dux.role"] == "study")
    files = {file.path for file in client.list_artifacts(parent.info.run_id, "front")}
    assert files == {f"front/{name}" for name in ("front.html", "front.json", "front.png", "table.json")}
    on_front = {trial for trial, run in trial_runs(study).items() if run.data.tags["dux.pareto"] == "true"}
    assert on_front == {entry.trial for entry in study.front().members}
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
    teacher = study.task_record()["teacher"]["parameters"]
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
        assert member["recipe"] == json.loads((study.trial_folder(member["trial"]) / "recipe.json").read_text())
        assert member["mlflow_run_id"] == study.run_ids()[member["trial"]]


def test_a_members_files_give_exactly_its_accuracy_and_parameters(finished: Finished) -> None:
    study = finished.study
    validation = study.file.task.load_data().validation
    for entry in study.front().entries:
        network = load_student(study.trial_folder(entry.trial))
        with torch.no_grad():
            logits = torch.cat([network(pixels(images)) for images in torch.split(validation.images, 512)])
        hits = int((logits.argmax(1) == validation.labels).sum())
        assert hits / len(validation) == entry.measurements["accuracy"]
        assert sum(p.numel() for p in network.parameters()) == entry.measurements["parameters"]


def test_the_same_recipe_gives_the_same_student_without_ray(finished: Finished) -> None:
    study = finished.study
    task = Task.load(study.file.task, study.home)
    assert task.key == study.task_record()["key"]
    knowledge = Knowledge(task, study.home / "knowledge")
    lines = {line.recipe.transfer: line for line in study.lines() if line.recipe is not None}
    assert set(lines) == {"none", "kd", "factor"}
    for line in lines.values():
        assert line.recipe is not None
        again = run_trial(line.recipe, task, knowledge, threads=1)
        assert again.measurements == line.measurements  # to the last bit: accuracy, nll, parameters and all
        written = (study.trial_folder(line.trial) / "student.safetensors").read_bytes()
        assert again.files(task)["student.safetensors"] == written
        assert again.before_cut == result(study, line.trial)["before_cut"]


def test_only_export_reads_the_test_split(finished: Finished) -> None:
    naming = {
        path.relative_to(ROOT).as_posix()
        for package in ("search", "trainers")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "test"
    }
    assert {name for name in naming if not name.startswith("trainers/data/")} == {"search/export.py"}
    sent = Task.load(finished.study.file.task, finished.study.home).arrays()  # what workers get
    assert {name: len(array) for name, array in sent.items() if "test" in name} == {
        "data/test.images": 0,
        "data/test.labels": 0,
    }


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
        f"`dux resume tiny --home {shlex.quote(str(finished.home))}` goes on with it, another `name:` begins anew\n"
    )


def test_a_study_whose_folder_was_deleted_is_no_new_one(tmp_path: Path, dux: Callable[..., Said]) -> None:
    (tmp_path / "study.yaml").write_text(f"name: gone\n{TASK}\nspace: {{}}")
    home = tmp_path / "home"
    home.mkdir()
    Study(StudyFile.read(tmp_path / "study.yaml"), home).ledger().ask()  # and nothing else is left of it
    code, _, err = dux("search", tmp_path / "study.yaml", "--home", home)
    assert code == 2
    assert err.startswith("dux: a new study must have a new name, but the ledger knows a 'gone' whose folder is gone")
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
    key = key_of(study.file.task, study.file.task.load_data())
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
        "is another, train/b/39.png is gone, train/b/new.png is new; put it back, or begin anew under another name\n"
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

    class Heard(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    for trial in range(4):
        files = {name: f"{name} of {trial}".encode() for name in ("student.json", "student.safetensors")}
        result = {"measurements": {}, "seconds": 1.0, "curve": [], "files": hashes(files)}
        save_student(study.trial_folder(trial), {**files, "result.json": sealed(result)})
    (study.trial_folder(1) / "result.json").write_text("{}")
    (study.trial_folder(2) / "student.safetensors").write_text("another")
    (study.trial_folder(3) / "student.json").unlink()
    kept = Kept("train", State(3, 1, {"weight": torch.zeros(2)}), 1.0, []).to_bytes("trial")
    for name, content in (("0", kept), ("1", kept.replace(b'\\"epoch\\": 3', b'\\"epoch\\": 1'))):
        write_whole(study.checkpoints / f"{name}.safetensors", content)
    session = _Session(study, Heard(), False)
    assert [session._finished(trial) is not None for trial in range(5)] == [True, False, False, False, False]
    session._check_checkpoints()
    session._tracker.close(0.0)
    assert [file.name for file in study.checkpoints.iterdir()] == ["0.safetensors"]
    assert [line.partition(";")[0] for line in said] == [
        "result.json is no record with a hash in it",
        "student.safetensors was changed",
        "student.json is gone",
        "1.safetensors was changed",
    ]


CUT = f"""
name: cut
{TASK}
space:
  student.width: {{low: 0.125, high: 0.5}}
  transfer: [none, kd]
  kd.temperature: {{low: 1.0, high: 8.0}}
  pruning.fraction: {{low: 0.0, high: 0.9}}
  pruning.fine_tune_epochs: 1
  training.epochs: 30
  training.batch_size: 16
  training.learning_rate: [0.1, 0.05, 1.0e+15]  # a third diverges, and the others go on
search: {{trials: 14, concurrent: 2, curve: false}}
"""


@dataclass(frozen=True)
class Session:
    """How one process that worked on the study ended, and what the ledger had then."""

    code: int
    out: str
    err: str
    stopping_s: float
    """From the last signal to the end."""
    lines: list[Line]
    students: set[int]
    """The trials whose files were whole."""


@dataclass(frozen=True)
class Story:
    """One study in four sessions: killed; told to stop; told twice; carried out to the end."""

    study: Study
    killed: Session
    stopped: Session
    stopped_twice: Session
    ended: Session
    second_driver: Ended
    """What came of `dux resume` while the second session was at work."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("cut")
    file, home = folder / "cut.yaml", folder / "home"
    file.write_text(CUT)
    commands: list[Command] = []

    def begin(*arguments: str) -> Command:
        commands.append(Command(tmp_path_factory.mktemp("session"), *arguments, "--home", str(home)))
        return commands[-1]

    def students() -> set[int]:
        return {int(path.parent.name) for path in home.glob("studies/cut/trials/*/result.json")}

    def wait_for_a_student(command: Command) -> None:
        there = students()
        wait_for(lambda: students() > there or not command.running, "another student")
        assert command.running, command.err

    def session(command: Command, since: float) -> Session:
        wait_for(lambda: not command.running, "the end of the session")
        stopping_s = time.monotonic() - since
        return Session(command.process.returncode, command.out, command.err, stopping_s, study.lines(), students())

    try:
        command = begin("search", str(file))
        wait_for_a_student(command)
        study = Study.open("cut", home)
        signalled = time.monotonic()
        command.kill()
        killed = session(command, signalled)

        command = begin("resume", "cut")
        wait_for(lambda: study.at_work, "the second session")
        second_driver = run("resume", "cut", "--home", str(home), folder=folder)  # while the first one's Ray starts
        wait_for_a_student(command)
        signalled = time.monotonic()
        command.interrupt()
        stopped = session(command, signalled)

        command = begin("resume", "cut")
        wait_for_a_student(command)
        command.interrupt()
        time.sleep(0.3)
        signalled = time.monotonic()
        command.interrupt()
        stopped_twice = session(command, signalled)

        command = begin("resume", "cut")
        yield Story(study, killed, stopped, stopped_twice, session(command, time.monotonic()), second_driver)
    finally:
        for command in commands:
            if command.running:
                command.kill()


def ended(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.ended]


def test_a_killed_study_keeps_every_trial_that_had_ended(story: Story) -> None:
    assert story.killed.code == -signal.SIGKILL
    after = {line.trial: line for line in story.ended.lines}
    before = ended(story.killed.lines)
    assert [after[line.trial] for line in before] == before
    assert story.killed.students  # those that the driver had not heard of, too
    for trial in story.killed.students:
        assert after[trial].outcome == "complete"
        assert after[trial].measurements == result(story.study, trial)["measurements"]


def test_ctrl_c_ends_tidily_and_says_how_to_go_on(story: Story) -> None:
    done = len(ended(story.stopped.lines))
    assert story.stopped.code == 130
    assert story.stopped.out == ""
    assert story.stopped.err.startswith(f"dux: stopped after {done} of 14 trials; `dux resume cut --home ")
    assert story.stopped.err.endswith("` goes on\n")
    assert "running" not in {line.outcome for line in story.stopped.lines}
    assert story.stopped.stopping_s < 60


def test_ctrl_c_twice_stops_soon(story: Story) -> None:
    assert story.stopped_twice.code == 130
    assert story.stopped_twice.stopping_s < 30
    assert story.stopped_twice.err.startswith("dux: stopped")
    assert story.stopped_twice.err.count("\n") == 1


def test_a_second_process_on_a_running_study_is_refused(story: Story) -> None:
    assert story.second_driver.returncode == 2
    assert story.second_driver.stdout == ""
    assert story.second_driver.stderr == (
        "dux: one process at a time may work on a study, but another works on 'cut'; "
        f"`dux status cut --home {story.study.home}` shows it\n"
    )


def test_the_resumed_study_ends_with_the_trials_asked_for_each_once(story: Story) -> None:
    assert (story.ended.code, story.ended.err) == (0, "")
    lines = ended(story.ended.lines)
    assert len(lines) == 14
    assert len({line.recipe for line in lines}) == 14  # continuous, so two are equal only if one was repeated
    assert {line.outcome for line in story.ended.lines} == {"complete", "failed", "interrupted"}
    assert story.ended.students == {line.trial for line in lines if line.outcome == "complete"}


def test_what_was_cut_short_was_carried_out_later_once(story: Story) -> None:
    count = Counter(line.recipe for line in ended(story.ended.lines))
    cut_short = {line.recipe for line in story.ended.lines if line.outcome == "interrupted" and line.recipe is not None}
    assert cut_short
    assert {count[recipe] for recipe in cut_short} == {1}


def test_a_study_goes_on_when_some_of_its_trials_fail(story: Story) -> None:
    failed = [line for line in story.ended.lines if line.outcome == "failed"]
    assert 0 < len(failed) < 14
    for line in failed:
        assert line.recipe is not None
        assert line.recipe.training.learning_rate == 1e15
        assert line.reason.startswith("Diverged: ")
        assert "Traceback" in (story.study.trial_folder(line.trial) / "error.txt").read_text()
    trials = {entry.trial for entry in story.study.front().entries}
    assert trials == {line.trial for line in story.ended.lines if line.outcome == "complete"}


def test_mlflow_has_every_ended_trial_once_and_none_that_seems_to_run(story: Story) -> None:
    found = trial_runs(story.study)
    status = {"complete": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
    lines = {line.trial: line for line in story.ended.lines}
    assert {line.trial for line in ended(story.ended.lines)} <= set(found)
    for trial, found_run in found.items():
        assert found_run.info.status == status[lines[trial].outcome]
        measured = lines[trial].measurements
        assert {name: found_run.data.metrics[name] for name in measured} == measured
    (parent,) = (run for run in runs(story.study) if run.data.tags["dux.role"] == "study")
    assert parent.info.status == "FINISHED"
    assert not (story.study.folder / "spool.refused.jsonl").exists()


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
        assert f"must name the database that 'recorded' was begun with, but is {said}" in err
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
    assert [entry.trial for entry in front.members] == [1]
    summary = "1 of 1 students on the front, hypervolume 0.3058; 3 more break a constraint"
    assert front.summary() == summary
    assert summary in dux("front", "recorded", *home)[1]
    found = json.loads(dux("front", "recorded", "--json", *home)[1])
    assert (found["trials"], found["broke_constraints"]) == (1, 3)
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


@pytest.mark.parametrize("in_background", [False, True])
def test_ctrl_c_or_sigterm_while_the_teacher_is_trained_can_be_resumed_too(
    in_background: bool, tmp_path: Path, start: Callable[..., Command], dux: Callable[..., Said]
) -> None:
    (tmp_path / "study.yaml").write_text(f"name: early\n{TASK.replace('epochs: 2', 'epochs: 100000')}\nspace: {{}}")
    home = tmp_path / "home"
    command = start("search", str(tmp_path / "study.yaml"), "--home", str(home), in_background=in_background)
    wait_for(lambda: (home / "teachers").is_dir() or not command.running, "the teacher's training")
    code, _, err = dux("resume", "early", "--home", home)
    assert (code, "another works on 'early'" in err) == (2, True)
    assert dux("status", "early", "--home", home)[1].startswith("early: running; 0/24 trials done")
    if in_background:
        command.process.terminate()
    else:
        command.interrupt()
    wait_for(lambda: not command.running, "the end", 60)
    assert command.process.returncode == 130
    resume = f"`dux resume early --home {home}`"
    assert (command.out, command.err) == ("", f"dux: stopped before the first trial; {resume} goes on\n")
    assert dux("status", "early", "--home", home)[1].startswith("early: interrupted; 0/24 trials done")
    code, out, err = dux("front", "early", "--home", home)
    assert (code, out) == (2, "")
    assert "must have its teacher before it has a front" in err


STOPPED = f"""
name: halved
{TASK}
space:
  student.width: [0.125, 0.25]
  transfer: none
  training.epochs: 12
  training.batch_size: 16
  training.learning_rate: [0.1, 0.05, 1.0e-6, 2.0e-6, 3.0e-6]  # the last three learn nothing: others beat them
  seed: {{low: 0, high: 1000}}
constraints: {{latency_ms: {{max: 10000}}}}
search: {{trials: 14, concurrent: 2, sampler: random, stopping: pareto, min_epochs: 2, reduction: 2, seed: 1}}
"""


def test_a_killed_study_with_early_stopping_goes_on_and_stops_only_what_others_beat(
    tmp_path: Path, start: Callable[..., Command], dux: Callable[..., Said]
) -> None:
    (tmp_path / "study.yaml").write_text(STOPPED)
    home = tmp_path / "home"
    command = start("search", str(tmp_path / "study.yaml"), "--home", str(home))
    wait_for(lambda: (home / "studies/halved/task.json").exists() or not command.running, "the task")
    assert command.running, command.err
    study = Study.open("halved", home)
    wait_for(lambda: any(line.outcome == "stopped" for line in study.lines()) or not command.running, "a stop")
    command.kill()
    before = ended(study.lines())
    done = run("resume", "halved", "--home", str(home), folder=tmp_path)
    assert (done.returncode, but_waiting(done.stderr)) == (0, "")

    lines = study.lines()
    assert [line for line in lines if line in before] == before
    assert len(ended(lines)) == 14
    stopped = [line for line in lines if line.outcome == "stopped"]
    complete = [line for line in lines if line.outcome == "complete"]
    assert len(stopped) >= 3
    assert len(complete) + len(stopped) == 14
    rungs = (2, 4, 8)
    for line in complete:
        assert set(line.rungs) == set(rungs)
        assert 0 < line.measurements["latency_ms"] < 10000
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
        assert not study.trial_folder(line.trial).exists()
    assert {entry.trial for entry in study.front().entries} == {line.trial for line in complete}

    state, _, listed = dux("status", "halved", "--home", home)[1].partition("\n")
    assert state.startswith(
        f"halved: finished; 14/14 trials done, 0 of them failed, {len(stopped)} stopped early; front"
    )
    for line in stopped:
        assert re.search(rf"^  stopped after {line.stopped_at} epochs: (.*, )?{line.trial}(, |$)", listed, re.MULTILINE)
    found = trial_runs(study)
    client = MlflowClient(tracking_uri=study.tracking_uri)
    for line in stopped:
        assert found[line.trial].info.status == "KILLED"
        assert found[line.trial].data.tags["dux.stopped_at"] == str(line.stopped_at)
        assert "accuracy" not in found[line.trial].data.metrics
        history = client.get_metric_history(found[line.trial].info.run_id, "epoch.accuracy")
        assert len(history) == line.stopped_at
    assert {found[line.trial].info.status for line in complete} == {"FINISHED"}


TRICKS = """
import os, signal, time
from pathlib import Path
from pydantic import Field
from trainers.loop import Diverged
from trainers.transfer import Method, Needs, Options, Paper

class TrickOptions(Options):
    trick: str = "none"
    folder: str = ""

class Tricks(Method):
    name = "tricks"
    abbreviation = "T"
    paper = Paper("", "", "", "")
    Options = TrickOptions

    @classmethod
    def needs(cls, options):
        return Needs()

    def __init__(self, options, shapes):
        super().__init__(options, shapes)
        tried = Path(options.folder) / options.trick
        with tried.open("a") as file:
            file.write("x")
        tries, trick = len(tried.read_text()), options.trick
        if trick == "sleep" or (trick == "sleep once" and tries == 1):
            time.sleep(600)
        if trick == "die" or (trick == "die once" and tries == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if trick.startswith("SIG") and tries == 1:
            signal.raise_signal(getattr(signal, trick.split()[0]))  # in this thread, as a crash's are
            time.sleep(600)
        if trick == "no memory" or (trick == "no memory once" and tries == 1):
            raise MemoryError("none left")
        if trick == "wrong":
            raise KeyError("a mistake")
        if trick == "nan":
            raise Diverged("nan")

    def forward(self, student, teacher, labels):
        return student.logits.square().mean()
"""
TRIED = {
    "none": 1,
    "wrong": 1,
    "nan": 1,
    "sleep once": 2,
    "die once": 2,
    "SIGSEGV once": 2,
    "SIGABRT once": 2,
    "SIGTERM once": 2,
    "no memory once": 2,
    "sleep": 2,
    "die": 2,
    "no memory": 2,
}


def test_what_dies_hangs_or_lacks_memory_is_tried_again_and_what_is_wrong_is_not(
    tmp_path: Path, dux: Callable[..., Said]
) -> None:
    (tmp_path / "tricks.py").write_text(TRICKS)
    tries = tmp_path / "tries"
    tries.mkdir()
    (tmp_path / "study.yaml").write_text(
        f"""
name: tricky
{TASK}
space:
  transfer: tricks:Tricks
  tricks:Tricks.trick: [{", ".join(TRIED)}]
  tricks:Tricks.folder: {tries}
  training.epochs: 1
search: {{sampler: grid, concurrent: 2, retries: 1, trial_timeout: 30}}
"""
    )
    home = tmp_path / "home"
    done = run("search", "study.yaml", "--home", str(home), folder=tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(r"dux: all \d so far are the same student, .* makes no difference\n", but_waiting(done.stderr))
    assert "(raylet)" not in done.stdout
    assert {file.name: len(file.read_text()) for file in tries.iterdir()} == TRIED
    study = Study.open("tricky", home)
    assert study.file.trials == len(TRIED)
    by_trick = {
        trick: [
            line for line in study.lines() if line.recipe is not None and dict(line.recipe.options)["trick"] == trick
        ]
        for trick in TRIED
    }
    assert {trick: len(lines) for trick, lines in by_trick.items()} == TRIED
    for trick, lines in by_trick.items():
        good = trick == "none" or "once" in trick
        assert [line.outcome for line in lines] == ["interrupted"] * (len(lines) - 1) + [
            "complete" if good else "failed"
        ]
    reasons = {trick: lines[0].reason for trick, lines in by_trick.items()}
    assert reasons["none"] == ""
    assert reasons["wrong"] == "KeyError: 'a mistake'"
    assert reasons["nan"] == "Diverged: nan"
    assert reasons["sleep"].startswith("took longer than search.trial_timeout, 30 s")
    killed = ("the worker process was killed (SIGKILL) by somebody", "the worker process was killed (SIGKILL): by")
    assert reasons["die"].startswith(killed)
    for name in ("SIGSEGV", "SIGABRT"):
        line = next(place for place, text in enumerate(TRICKS.splitlines(), 1) if "getattr(signal" in text)
        where = rf"called at [^ /]+/tricks\.py:{line}"
        assert re.fullmatch(
            rf"the worker process crashed \({name}\) in compiled code, {where}", reasons[f"{name} once"]
        )
    assert reasons["SIGTERM once"] == "the worker process was ended (SIGTERM) by somebody"
    assert reasons["no memory"] == "MemoryError: none left"
    for trick in ("sleep", "die", "no memory"):
        assert by_trick[trick][1].reason == reasons[trick] == reasons[f"{trick} once"]
    status = dux("status", "tricky", "--home", home)[1]
    assert f"tricky: finished; {len(TRIED)}/{len(TRIED)} trials done, 5 of them failed; front of 1" in status
    pair = sorted(by_trick[trick][0].trial for trick in ("no memory", "no memory once"))
    assert f"  tried again: {pair[0]}, {pair[1]}: MemoryError: none left\n" in status
    found = trial_runs(study)
    assert {found[line.trial].info.status for lines in by_trick.values() for line in lines[:-1]} == {"FAILED"}
    assert not (study.folder / "spool.refused.jsonl").exists()


def test_sigterm_while_ray_starts_ends_in_one_line_and_can_be_resumed(
    tmp_path: Path, start: Callable[..., Command], dux: Callable[..., Said]
) -> None:
    (tmp_path / "study.yaml").write_text(
        f"name: early\n{TASK}\nspace: {{student.width: {{low: 0.1, high: 1.0}}}}\nsearch: {{concurrent: 1}}"
    )
    home = tmp_path / "home"
    command = start("search", str(tmp_path / "study.yaml"), "--home", str(home))

    def ray_starts() -> bool:
        mine = {str(pid) for pid in descendants(command.process.pid)}
        listed = subprocess.run(["ps", "-wweo", "pid=,args="], capture_output=True, text=True, check=True).stdout
        return any(line.split()[0] in mine and "gcs_server" in line for line in listed.splitlines())

    wait_for(lambda: ray_starts() or not command.running, "Ray's start")
    assert command.running, command.err
    command.process.terminate()
    wait_for(lambda: not command.running, "the end", 120)
    assert command.process.returncode == 130
    assert command.out == ""
    assert re.fullmatch(
        r"dux: stopped (before the first trial|after 0 of 24 trials); `dux resume .*` goes on\n", command.err
    )
    assert dux("status", "early", "--home", home)[1].startswith("early: interrupted; 0/24 trials done")


def test_where_ray_does_not_start_one_line_says_so_and_the_study_can_go_on(
    tmp_path: Path, start: Callable[..., Command], dux: Callable[..., Said]
) -> None:
    (tmp_path / "study.yaml").write_text(
        f"name: rayless\n{TASK}\nspace: {{student.width: {{low: 0.1, high: 1.0}}}}\nsearch: {{concurrent: 1}}"
    )
    home = tmp_path / "home"
    search = ("search", str(tmp_path / "study.yaml"), "--home", str(home))
    command = start(*search, settings={"RAY_TMPDIR": "/dev/null/there"})
    wait_for(lambda: not command.running, "the end")
    assert (command.process.returncode, command.out) == (1, "")
    resume = f"`dux resume rayless --home {home}` goes on"
    assert command.err.startswith("dux: stopped after 0 of 24 trials, because Ray did not start ([Errno 20] ")
    assert command.err.endswith(f"; {resume}\n")
    assert command.err.count("\n") == 1
    assert dux("status", "rayless", "--home", home)[1].startswith("rayless: interrupted; 0/24 trials done")


def test_a_study_whose_trials_all_fail_says_why(tmp_path: Path, dux: Callable[..., Said]) -> None:
    (tmp_path / "study.yaml").write_text(
        f"name: hopeless\n{TASK}\nspace: {{training.learning_rate: 1.0e+15, training.epochs: 1, seed: [0, 1, 2]}}\n"
        "search: {trials: 3, concurrent: 1}"
    )
    home = tmp_path / "home"
    done = run("search", "study.yaml", "--home", str(home), folder=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("dux: all 3 trials failed: 3 x Diverged: the loss must be finite, but is ")
    assert done.stderr.count("\n") == 1
    assert dux("resume", "hopeless", "--home", home)[0] == 4  # it is no better the second time
    code, out, _ = dux("status", "hopeless", "--home", home)
    assert code == 0
    assert out.startswith("hopeless: finished; 3/3 trials done, 3 of them failed; front of 0")
    assert re.search(r"^  failed: 0, 1, 2: Diverged: the loss must be finite, but is ", out, re.MULTILINE)
    assert json.loads(dux("front", "hopeless", "--json", "--home", home)[1])["members"] == []
    code, _, err = dux("export", "hopeless", "--home", home, "--out", tmp_path / "out")
    assert (code, err) == (3, "dux: no student satisfies the bounds: none was measured yet\n")
    assert not (tmp_path / "out").exists()
