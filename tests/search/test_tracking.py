"""The tracker against real stores: a SQLite file and a running MLflow server."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from running import Stand

from search.tracking.events import (
    CurveMeasured,
    DataDescribed,
    Event,
    FrontChanged,
    FrontMembers,
    Record,
    StudentKept,
    StudyFinished,
    StudyStarted,
    TeacherMeasured,
    TrialFinished,
    TrialReported,
    TrialStarted,
    decode,
    encode,
    filler,
)
from search.tracking.mirror import Mirror, key
from search.tracking.mlflow_runs import find_runs
from search.tracking.spool import Spool, history_of
from search.tracking.tracker import Tracker
from spaces import BadInput, Choice, Float, Space

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

SPACE = Space.from_mapping(
    {
        "student.width": {"low": 0.125, "high": 1.0, "step": 0.125},
        "transfer": ["none", "kd", "factor"],
        "kd.temperature": {"low": 1.0, "high": 8.0},
        "factor.mode": ["mean", "sum"],
        "seed": [0],
    }
)
OBJECTIVES = {"accuracy": "max", "parameters": "min"}
NO_NUMBER, NO_TEXT = "", "n/a"
NOBODY = "http://127.0.0.1:9"
"""A server's address where none answers."""


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, stand: Stand) -> str:
    """Both kinds of store; behind them is the same file, so every test has a study of its own name."""
    return stand.store if request.param == "sqlite" else stand.url


@pytest.fixture
def study(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W+", "-", request.node.name).strip("-")


@contextmanager
def tracking(folder: Path, uri: str, study: str) -> Iterator[Tracker]:
    tracker = Tracker(folder, study, uri)
    try:
        yield tracker
    finally:
        tracker.close(0.0)


DATA = [
    {
        "name": "digits",
        "digest": digest,
        "context": context,
        "source": "digits",
        "image_shape": [1, 8, 8],
        "profile": {"num_rows": images, "classes": 10},
    }
    for digest, context, images in (("d1", "training", 1000), ("d2", "validation", 200))
]
TEACHER = {"accuracy": 0.97, "parameters": 1e5}


def start(tracker: Tracker) -> None:
    tracker.record(StudyStarted.of({"search.trials": "3"}, {"dux.commit": "abc"}, OBJECTIVES, SPACE))
    tracker.record(DataDescribed(DATA))
    metrics = {f"teacher.{name}": value for name, value in TEACHER.items()}
    tracker.record(TeacherMeasured(metrics, {"family": "resnet", "depth": 20}))


def keep(tracker: Tracker, folder: Path, trial: int) -> None:
    """Make the student of a trial of `run_trial` a logged model."""
    events = [json.loads(line) for line in (folder / "spool.jsonl").read_text().splitlines()]
    (end,) = (event for event in events if event["event"] == "trial_finished" and event["trial"] == trial)
    recipe = {"student.width": 0.5, "transfer": "kd", "kd.temperature": 4.0}
    tracker.record(StudentKept(trial, recipe, {**end["metrics"], "nll": math.nan}, end["step"], end["time"]))


def run_trial(tracker: Tracker, folder: Path, trial: int) -> None:
    recipe = [
        {"student.width": 0.5, "transfer": "none", "seed": 0},
        {"student.width": 0.25, "transfer": "kd", "kd.temperature": 4.0, "seed": 0},
        {"student.width": 1.0, "transfer": "factor", "factor.mode": "sum", "seed": 0},
    ][trial % 3]
    files = folder / "trials" / str(trial)
    files.mkdir(parents=True, exist_ok=True)
    (files / "recipe.json").write_text(json.dumps(recipe))
    tracker.record(TrialStarted.of(trial, recipe, SPACE))
    for step in range(1, 4):
        metrics = {"accuracy": 0.5 + step / 10, "nll": [math.nan, math.inf, 0.5][step - 1]}
        tracker.record(TrialReported(trial, step, metrics))
    metrics = {"accuracy": 0.75, "parameters": 1000 * trial}
    tracker.record(TrialFinished(trial, "FINISHED", 3, metrics, {"dux.why": "done"}, files))


def run_study(folder: Path, uri: str, study: str) -> None:
    page = folder / "front.html"
    with tracking(folder, uri, study) as tracker:
        start(tracker)
        for trial in range(3):
            run_trial(tracker, folder, trial)
            tracker.record(FrontChanged(trial + 1, 0.25 * trial, trial + 1))
            tracker.record(FrontMembers([trial, 0]))
        page.write_text("<p>front</p>")
        for trial in (0, 2):
            keep(tracker, folder, trial)
        rows = [{"trial": 0, "accuracy": 0.75}, {"trial": 2, "parameters": 2000}]
        tracker.record(StudyFinished("FINISHED", [page], rows))
        assert tracker.flush(60.0) == 0, tracker.last_error
        assert tracker.last_error is None


def contents(uri: str, study: str) -> dict[str, Any]:
    """All that a store has of a study: its experiment's tags, and each run under its name without the study's."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"dux-{study}")
    runs = client.search_runs([experiment.experiment_id])
    stored: dict[str, Any] = {"tags": experiment.tags}
    for listed in runs:
        run_id = listed.info.run_id
        run = client.get_run(run_id)  # which has the models, too
        points = {
            metric: [(point.step, repr(point.value), point.timestamp) for point in history]
            for metric in run.data.metrics
            for history in [client.get_metric_history(run_id, metric)]
        }
        stored[run.info.run_name.removeprefix(study)] = {
            "id": run_id,
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "tags": run.data.tags,
            "points": points,
            "files": [
                file.path
                for folder in client.list_artifacts(run_id)
                for file in client.list_artifacts(run_id, folder.path)
            ],
            "data": sorted(
                (tag.value, given.dataset.digest) for given in run.inputs.dataset_inputs for tag in given.tags
            ),
            "models in": [model.model_id for model in run.inputs.model_inputs],
            "models out": [(model.model_id, model.step) for model in run.outputs.model_outputs],
        }
    assert len(stored) == len(runs) + 1, "two runs have the same name"
    return stored


def models(uri: str, study: str) -> dict[str, Any]:
    """All logged models of a study under their names without the study's."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"dux-{study}")
    models = client.search_logged_models([experiment.experiment_id])
    named = {model.name.removeprefix(f"{study}-"): model.to_dictionary() for model in models}
    assert len(named) == len(models), "two models have the same name"
    for model in named.values():
        model["metrics"] = sorted(json.dumps(vars(metric)) for metric in model["metrics"] or [])
        del model["last_updated_timestamp"]
        model["status"] = str(LoggedModelStatus.from_int(model["status"]))
    return named


def steps(points: list[tuple[int, str, int]]) -> list[tuple[int, str]]:
    return [(step, value) for step, value, _ in sorted(points, key=lambda point: point[2])]


def test_everything_a_study_does_is_in_mlflow(tmp_path: Path, uri: str, study: str) -> None:
    run_study(tmp_path, uri, study)
    stored = contents(uri, study)
    assert set(stored) == {"tags", "", "/0", "/1", "/2"}

    parent = stored[""]
    assert parent["status"] == "FINISHED"
    assert parent["params"] == {"search.trials": "3"}
    assert parent["tags"].items() >= {"dux.study": study, "dux.role": "study", "dux.commit": "abc"}.items()
    assert steps(parent["points"]["hypervolume"]) == [(1, "0.0"), (2, "0.25"), (3, "0.5")]
    assert steps(parent["points"]["front_size"]) == [(1, "1.0"), (2, "2.0"), (3, "3.0")]
    assert parent["files"] == ["front/front.html", "front/table.json"]

    trial = stored["/1"]
    assert trial["status"] == "FINISHED"
    assert trial["tags"]["mlflow.parentRunId"] == parent["id"]
    tags = {"dux.study": study, "dux.role": "trial", "dux.trial": "1", "dux.why": "done"}
    assert trial["tags"].items() >= tags.items()
    assert steps(trial["points"]["accuracy"]) == [(1, "0.6"), (2, "0.7"), (3, "0.8"), (3, "0.75")]
    assert [value for _, value in steps(trial["points"]["nll"])] == ["nan", repr(sys.float_info.max), "0.5"]
    assert steps(trial["points"]["parameters"]) == [(3, "1000.0")]
    assert steps(trial["points"]["log10_parameters"]) == [(3, "3.0")]
    assert "log10_parameters" not in stored["/0"]["points"]  # of nothing there is no logarithm
    assert "log10_accuracy" not in trial["points"]
    assert trial["files"] == ["student/recipe.json"]
    assert [stored[f"/{trial}"]["tags"]["dux.pareto"] for trial in range(3)] == ["true", "false", "true"]

    drawn = {"student.width": "0.25", "transfer": "kd", "kd.temperature": "4.0", "seed": "0"}
    assert trial["params"] == drawn | {"factor.mode": NO_TEXT}
    assert stored["/2"]["params"]["kd.temperature"] == NO_NUMBER
    assert all(set(stored[f"/{trial}"]["params"]) == set(SPACE.parameters) for trial in range(3))


def test_data_and_teacher_are_inputs_of_the_study_and_of_every_trial(tmp_path: Path, uri: str, study: str) -> None:
    run_study(tmp_path, uri, study)
    stored, teacher = contents(uri, study), models(uri, study)["teacher"]
    for name in ("", "/0", "/1", "/2"):
        assert stored[name]["data"] == [("training", "d1"), ("validation", "d2")]
        assert stored[name]["models in"] == [teacher["model_id"]]
    run = MlflowClient(tracking_uri=uri).get_run(stored["/1"]["id"])
    (train,) = (given.dataset for given in run.inputs.dataset_inputs if given.dataset.digest == "d1")
    assert (train.name, json.loads(train.source)) == ("digits", {"uri": "digits"})
    assert json.loads(train.profile) == {"num_rows": 1000, "classes": 10}
    features = json.loads(json.loads(train.schema)["mlflow_tensorspec"]["features"])
    assert features == [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, 1, 8, 8]}}]

    assert (teacher["status"], teacher["source_run_id"]) == ("READY", stored[""]["id"])
    assert teacher["params"] == {"family": "resnet", "depth": "20"}
    assert {m["_key"]: m["_value"] for m in map(json.loads, teacher["metrics"])} == {
        f"teacher.{name}": value for name, value in TEACHER.items()
    }


def test_the_names_of_the_classes_are_in_the_study_run(tmp_path: Path, uri: str, study: str) -> None:
    images = {"colour": "RGB", "preparation": "as they are in the files"}
    many = [f"a class with a long name, number {label}" for label in range(1000)]
    for number, names in enumerate((["bee", "größe"], many)):
        with tracking(tmp_path / str(number), uri, f"{study}-{number}") as tracker:
            tracker.record(StudyStarted.of({}, {}, OBJECTIVES, SPACE))
            tracker.record(DataDescribed(DATA, names, images))
            assert tracker.flush(60.0) == 0, tracker.last_error
        run = contents(uri, f"{study}-{number}")[""]
        assert run["tags"].get("dux.class_names") == ('["bee", "größe"]' if number == 0 else None)  # too long for a tag
        file = MlflowClient(tracking_uri=uri).download_artifacts(run["id"], "classes.json", str(tmp_path))
        assert json.loads(Path(file).read_text()) == {"class_names": names, "images": images}


def test_a_student_that_is_kept_is_a_logged_model_with_the_very_points_of_its_run(
    tmp_path: Path, uri: str, study: str
) -> None:
    run_study(tmp_path, uri, study)
    stored, logged = contents(uri, study), models(uri, study)
    assert set(logged) == {"teacher", "0", "2"}
    for name in ("0", "2"):
        run, model = stored[f"/{name}"], logged[name]
        assert (model["status"], model["model_type"], model["source_run_id"]) == ("READY", "student", run["id"])
        assert model["params"] == {"student.width": "0.5", "transfer": "kd", "kd.temperature": "4.0"}
        tags = {"dux.study": study, "dux.model": name, "dux.files": f"runs:/{run['id']}/student"}
        assert model["tags"].items() >= tags.items()
        assert run["models out"] == [(model["model_id"], 3)]
        points = {m["_key"]: m for m in map(json.loads, model["metrics"])}
        assert set(points) == {"accuracy", "parameters"}  # nll is no number
        for metric, point in points.items():
            assert (point["_step"], repr(point["_value"]), point["_timestamp"]) in run["points"][metric]
            assert (point["_dataset_name"], point["_dataset_digest"]) == ("digits", "d2")
        assert len(run["points"]["accuracy"]) == 4  # linking adds no point
    assert stored["/1"]["models out"] == stored[""]["models out"] == []


def test_sending_everything_again_changes_nothing(tmp_path: Path, uri: str, study: str) -> None:
    run_study(tmp_path, uri, study)
    once = contents(uri, study), models(uri, study)
    (tmp_path / "spool.sent").unlink()
    with tracking(tmp_path, uri, study) as tracker:
        assert tracker.flush(60.0) == 0, tracker.last_error
    assert (contents(uri, study), models(uri, study)) == once
    assert not (tmp_path / "spool.refused.jsonl").exists()


def test_a_server_killed_in_mid_stream_gets_everything_once(tmp_path: Path, stand: Stand, study: str) -> None:
    costs_ms = []
    with tracking(tmp_path, stand.url, study) as tracker:
        start(tracker)
        tracker.record(TrialStarted.of(0, {"student.width": 0.5, "transfer": "none", "seed": 0}, SPACE))
        for step in range(60):
            if step == 20:
                tracker.flush(0.3)  # some events are there, some on their way
                stand.kill()
            before = time.perf_counter()
            tracker.record(TrialReported(0, step, {"accuracy": step / 100}))
            costs_ms.append(1000 * (time.perf_counter() - before))
        run_trial(tracker, tmp_path, 1)
        assert tracker.flush(1.0) > 40
        assert "MLflow does not accept events" in str(tracker.last_error)
        stand.start()
        assert tracker.flush(60.0) == 0, tracker.last_error
    assert statistics.median(costs_ms) < 1.0  # nobody waited for the server
    stored = contents(stand.url, study)
    assert set(stored) == {"tags", "", "/0", "/1"}
    assert steps(stored["/0"]["points"]["accuracy"]) == [(step, repr(step / 100)) for step in range(60)]
    assert len(stored["/1"]["points"]["accuracy"]) == 4


def test_the_next_process_goes_on_where_this_one_was_killed(tmp_path: Path, stand: Stand, study: str) -> None:
    with tracking(tmp_path, NOBODY, study) as tracker:  # all stays in the spool
        start(tracker)
        run_trial(tracker, tmp_path, 0)
    with (tmp_path / "spool.jsonl").open("ab") as spool:
        spool.write(b'{"event": "trial_reported", "time": 17')  # torn by the kill
    with tracking(tmp_path, stand.store, study) as tracker:
        start(tracker)
        run_trial(tracker, tmp_path, 1)
        assert tracker.flush(60.0) == 0, tracker.last_error
    events = [json.loads(line)["event"] for line in (tmp_path / "spool.jsonl").read_text().splitlines()]
    assert events.count("study_started") == 2
    assert not (tmp_path / "spool.refused.jsonl").exists()
    assert set(contents(stand.store, study)) == {"tags", "", "/0", "/1"}


def test_a_kill_while_mlflow_makes_its_tables_leaves_no_half_made_store(tmp_path: Path, study: str) -> None:
    store = tmp_path / "mlflow.db"
    program = (
        "import sys, pathlib\n"
        "from search.tracking.events import TeacherMeasured\n"
        "from search.tracking.tracker import Tracker\n"
        f"tracker = Tracker(pathlib.Path({str(tmp_path)!r}), {study!r}, 'sqlite:///{store}')\n"
        "tracker.record(TeacherMeasured({'teacher.accuracy': 0.5}, {}))\n"
        "tracker.flush(300.0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    try:
        while not (tmp_path / ".mlflow.db.new").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
    finally:
        process.kill()
        process.wait()
    assert not store.exists()
    with tracking(tmp_path, f"sqlite:///{store}", study) as tracker:
        assert tracker.flush(120.0) == 0, tracker.last_error
    assert contents(f"sqlite:///{store}", study)[""]["status"] == "RUNNING"


def test_after_a_power_cut_that_took_lines_which_were_sent_all_are_sent_again(tmp_path: Path) -> None:
    for trial in range(9):
        spool = Spool(tmp_path)
        spool.append(Record(trial, TrialStarted(trial, {})))
        spool.close()
    spool.save_sent("store", spool.end)
    os.truncate(tmp_path / "spool.jsonl", spool.end // 2)
    for _ in range(9):  # it grows beyond what was sent before, and nobody sends
        spool = Spool(tmp_path)
        assert spool.load_sent("store") == 0
        spool.append(Record(9, TrialStarted(0, {})))
        spool.close()


def test_a_resumed_study_opens_its_run_again(tmp_path: Path, stand: Stand, study: str) -> None:
    run_study(tmp_path, stand.store, study)
    with tracking(tmp_path, stand.store, study) as tracker:
        start(tracker)
        assert tracker.flush(60.0) == 0
        assert contents(stand.store, study)[""]["status"] == "RUNNING"
        run_trial(tracker, tmp_path, 3)
        tracker.record(FrontMembers([3]))
        tracker.record(StudyFinished("KILLED"))
        assert tracker.flush(60.0) == 0
    stored = contents(stand.store, study)
    assert stored[""]["status"] == "KILLED"
    assert [stored[f"/{trial}"]["tags"]["dux.pareto"] for trial in range(4)] == ["false", "false", "false", "true"]


def test_a_store_without_the_study_gets_all_of_it(tmp_path: Path, stand: Stand, empty_store: Path, study: str) -> None:
    run_study(tmp_path, stand.store, study)
    client = MlflowClient(tracking_uri=stand.store)
    client.rename_experiment(client.get_experiment_by_name(f"dux-{study}").experiment_id, f"lost-{study}")
    another = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'another.db')}"
    for store in (stand.store, another):
        with tracking(tmp_path, store, study) as tracker:
            start(tracker)
            assert tracker.flush(60.0) == 0, tracker.last_error
        assert set(contents(store, study)) == {"tags", "", "/0", "/1", "/2"}


def test_a_study_deleted_in_the_ui_comes_back_when_it_goes_on(tmp_path: Path, stand: Stand, study: str) -> None:
    run_study(tmp_path, stand.store, study)
    client = MlflowClient(tracking_uri=stand.store)
    client.delete_experiment(client.get_experiment_by_name(f"dux-{study}").experiment_id)
    with tracking(tmp_path, stand.store, study) as tracker:
        run_trial(tracker, tmp_path, 3)
        assert tracker.flush(60.0) == 0, tracker.last_error
    assert set(contents(stand.store, study)) == {"tags", "", "/0", "/1", "/2", "/3"}


def test_an_event_that_mlflow_refuses_does_not_hold_up_the_others(tmp_path: Path, uri: str, study: str) -> None:
    with tracking(tmp_path, uri, study) as tracker:
        run_trial(tracker, tmp_path, 0)
        tracker.record(TrialStarted(0, {"student.width": 0.125}))  # MLflow lets no parameter change
        tracker.record(TrialFinished(1, "FAILED", 0, {"accuracy": 0.5}, {}, tmp_path / "nowhere"))
        assert tracker.flush(60.0) == 0
        assert "nowhere no longer exists" in str(tracker.last_error)
        tracker.record(TrialReported(0, 9, {"accuracy": 0.9}))
        assert tracker.flush(60.0) == 0
    refused = [json.loads(line) for line in (tmp_path / "spool.refused.jsonl").read_text().splitlines()]
    assert [json.loads(item["line"])["event"] for item in refused] == ["trial_started", "trial_finished"]
    assert "Changing param values is not allowed" in refused[0]["why"]
    stored = contents(uri, study)
    assert (9, "0.9") in steps(stored["/0"]["points"]["accuracy"])
    assert stored["/1"]["status"] == "FAILED"
    assert steps(stored["/1"]["points"]["accuracy"]) == [(0, "0.5")]


def test_a_damaged_line_is_set_aside(tmp_path: Path, stand: Stand, study: str) -> None:
    (tmp_path / "spool.jsonl").write_bytes(b'\0\0\0\0\n{"event": "no_such", "time": 1}\n')
    with tracking(tmp_path, stand.store, study) as tracker:
        run_trial(tracker, tmp_path, 0)
        assert tracker.flush(60.0) == 0, tracker.last_error
    assert len((tmp_path / "spool.refused.jsonl").read_text().splitlines()) == 2
    assert len(contents(stand.store, study)["/0"]["points"]["accuracy"]) == 4


def test_no_password_is_kept_or_shown(tmp_path: Path, stand: Stand, study: str) -> None:
    with tracking(tmp_path / "down", NOBODY.replace("://", "://user:S3cret%2Fword@"), study) as tracker:
        start(tracker)
        assert tracker.flush(2.0) == 3
        errors = [str(tracker.last_error)]
    with tracking(tmp_path / "up", stand.url.replace("://", "://user:S3cret%2Fword@"), study) as tracker:
        run_trial(tracker, tmp_path, 0)
        tracker.record(TrialStarted(0, {"student.width": 0.125}))
        assert tracker.flush(60.0) == 0, tracker.last_error
        errors.append(str(tracker.last_error))
    assert "127.0.0.1" in errors[0]
    assert "Changing param" in errors[1]
    files = {file.name: file.read_text() for file in (tmp_path / "up").iterdir() if file.is_file()}
    assert set(files) == {"spool.jsonl", "spool.sent", "spool.refused.jsonl", "runs.json"}
    assert "http://***@127.0.0.1" in files["runs.json"]
    for text in [*errors, *files.values(), (tmp_path / "down" / "spool.jsonl").read_text()]:
        assert "S3cret" not in text


def test_runs_are_found_with_and_without_the_note_of_them(tmp_path: Path, stand: Stand, study: str) -> None:
    assert find_runs(tmp_path, study, stand.store) is None
    assert find_runs(tmp_path, study, f"sqlite:///{tmp_path / 'none.db'}") is None
    run_study(tmp_path, stand.store, study)
    noted = find_runs(tmp_path, study, stand.store)
    (tmp_path / "runs.json").unlink()
    assert find_runs(tmp_path, study, stand.store) == noted
    assert noted is not None
    stored = contents(stand.store, study)
    assert noted.parent_run_id == stored[""]["id"]
    assert noted.run_ids == {trial: stored[f"/{trial}"]["id"] for trial in range(3)}
    with pytest.raises(ConnectionError, match=r"MLflow does not answer: .*http://\*\*\*@127\.0\.0\.1:9"):
        find_runs(tmp_path, study, NOBODY.replace("://", "://user:word@"))


def test_no_event_raises_whatever_it_is_given(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "odd", NOBODY)
    tracker.record(TrialReported(0, 0, {("not", "text"): 1.0}))  # type: ignore[dict-item]
    assert "trial_reported of study odd is lost" in str(tracker.last_error)
    assert tracker.close(0.0) == 0
    assert tracker.close(0.0) == 0
    tracker.record(TrialReported(0, 1, {"accuracy": 0.5}))
    assert "closed file" in str(tracker.last_error)


@pytest.mark.parametrize(
    "uri",
    ["mlruns", "file:///tmp/mlruns", "sqlite:///mlflow.db", "postgresql://u:word@host/db", "http://", "http://[host"],
)
def test_a_store_of_another_kind_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(BadInput, match=r"tracking URI must be sqlite:////absolute/path.db or .* but got ") as caught:
        Tracker(tmp_path, "digits", uri)
    assert "word" not in str(caught.value)


EVENTS: list[Event] = [
    StudyStarted({"search.trials": "3"}, {"dux.trials": "3"}, OBJECTIVES, ["student.width"]),
    DataDescribed(DATA, ["bee", "größe"], {"colour": "RGB"}),
    TeacherMeasured({"teacher.accuracy": 0.97}, {"depth": 20}),
    TrialStarted(4, {"student.width": 0.5}, {"dux.role": "repeat"}),
    TrialReported(4, 1, {"epoch.accuracy": 0.5}),
    TrialFinished(4, "FINISHED", 1, {"accuracy": 0.75}, {"dux.why": "done"}, "/trials/4"),
    CurveMeasured(4, [{"trial": 7, "accuracy": 0.5}]),
    FrontChanged(1, 0.25, 1),
    FrontMembers([4, 7]),
    StudentKept(4, {"student.width": 0.5}, {"accuracy": 0.75}, 1, 1_700_000_000_000),
    StudyFinished("FINISHED", ["/front.html"], [{"trial": 4}]),
]


def test_every_event_has_a_handler() -> None:
    """One without would be tried again for ever, as in an outage."""
    assert {*get_args(Event)} <= vars(Mirror)["_carry_out"].dispatcher.registry.keys()


def test_every_event_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert {type(event) for event in EVENTS} == {*get_args(Event)}
    spool = Spool(tmp_path)
    records = [Record(number, event) for number, event in enumerate(EVENTS)]
    for record in records:
        spool.append(record)
    spool.close()
    assert [decode(line) for line in (tmp_path / "spool.jsonl").read_bytes().splitlines()] == records
    history = history_of(tmp_path)
    assert (history.started, history.curves, history.numbers_given) == ({4}, {4}, 8)
    assert (history.ends, history.first_start) == ({4: (5, EVENTS[5])}, EVENTS[0])
    assert (history.has_data, history.has_teacher, history.is_finished) == (True, True, True)


OLD = b"""{"event": "study_started", "time": 1, "parameters": {}, "tags": {}, "objectives": {}, "drawn": []}
{"event": "data_described", "time": 2, "data": []}
{"event": "trial_started", "time": 3, "trial": 0, "parameters": {"student.width": 0.5}}
{"event": "trial_finished", "time": 4, "trial": 0, "status": "KILLED", "step": 3, "metrics": {}, "tags": {}}
"""
"""Lines as they were before they had a version, class names or tags."""


def test_a_spool_without_versions_is_read_and_one_of_a_later_dux_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "spool.jsonl").write_bytes(OLD)
    history = history_of(tmp_path)
    assert (history.started, [*history.ends], history.has_data) == ({0}, [0], True)
    (tmp_path / "spool.jsonl").write_bytes(
        OLD + encode(Record(5, FrontMembers([0]))).replace(b'"version": 1', b'"version": 2')
    )
    with pytest.raises(BadInput, match=r"a version that this Dux knows, but .*spool\.jsonl has some of a later one"):
        Tracker(tmp_path, "later", NOBODY)


def test_a_last_line_that_lacks_its_end_alone_is_dropped_and_not_known(tmp_path: Path) -> None:
    """A kill can tear a write anywhere: what the spool drops, nobody may take for told."""
    with tracking(tmp_path, NOBODY, "torn") as tracker:
        tracker.record(TrialStarted(0, {}))
        tracker.record(TrialFinished(0, "FINISHED", 3))
    os.truncate(tmp_path / "spool.jsonl", (tmp_path / "spool.jsonl").stat().st_size - 1)
    with tracking(tmp_path, NOBODY, "torn") as tracker:
        assert (tracker.history.started, tracker.history.ends) == ({0}, {})
        tracker.record(TrialFinished(0, "FINISHED", 3))
    assert (history_of(tmp_path).started, [*history_of(tmp_path).ends]) == ({0}, [0])


def test_a_filler_is_of_its_parameters_kind() -> None:
    assert filler(Float(0.0, 1.0)) == filler(Choice((1, 0.5))) == NO_NUMBER
    assert filler(Choice(("mean", "sum"))) == filler(Choice((True, False))) == filler(Choice(("none", 1))) == NO_TEXT


def test_keys_are_what_mlflow_takes() -> None:
    assert key("accuracy") == "accuracy"
    assert key("top@5[test]") == "top_5_test_"
    assert key("a//b") == "a__b"
    assert key("../up") == "___up"
    assert len(key("x" * 300)) == 250


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import sys, search.tracking.tracker; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
