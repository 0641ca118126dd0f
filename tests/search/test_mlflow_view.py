"""The view of the front as the MLflow UI draws it, in a real browser on a real server."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from processes import Command, alive, descendants
from running import Stand, wait_for
from selenium.webdriver.common.by import By

from search.secrets import sqlite_url
from search.study import Study
from search.study_file import StudyFile
from search.tracking.events import FrontMembers, StudyFinished, StudyStarted, TrialFinished, TrialReported, TrialStarted
from search.tracking.mlflow_runs import find_runs
from search.tracking.mlflow_view import database, serve, view_path, view_state
from search.tracking.tracker import Tracker
from spaces import BadInput, Space

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

TRIALS = 12
SPACE = Space.from_mapping(
    {
        "student.width": {"low": 0.125, "high": 1.0, "step": 0.125},
        "transfer": ["none", "kd", "factor"],
        "kd.temperature": {"low": 1.0, "high": 8.0},
        "factor.rate": [0.25, 0.5, 0.75, 1.0],
        "factor.mode": ["mean", "sum"],
        "pruning.fraction": {"low": 0.0, "high": 0.9},
        "seed": [0],
    }
)
OBJECTIVES = {"accuracy": "max", "parameters": "min"}


def screenshot_script() -> ModuleType:
    """The script behind the documentation's pictures."""
    path = Path(__file__).parents[2] / "docs" / "screenshot.py"
    spec = importlib.util.spec_from_file_location("screenshot", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe(trial: int, rng: random.Random) -> dict[str, object]:
    method = ["none", "kd", "factor"][trial % 3]
    options: dict[str, dict[str, object]] = {
        "none": {},
        "kd": {"kd.temperature": rng.uniform(1.0, 8.0)},
        "factor": {"factor.rate": rng.choice([0.25, 0.5, 0.75, 1.0]), "factor.mode": rng.choice(["mean", "sum"])},
    }
    width, fraction = rng.randint(1, 8) / 8, rng.uniform(0.0, 0.9)
    return {"student.width": width, "transfer": method, **options[method], "pruning.fraction": fraction, "seed": 0}


def test_the_link_opens_the_front_with_every_student_in_both_charts(stand: Stand, tmp_path: Path) -> None:
    rng = random.Random(0)
    tracker = Tracker(tmp_path, "digits", stand.store)
    tracker.record(StudyStarted.of({}, {}, OBJECTIVES, SPACE))
    for trial in range(TRIALS):
        parameters = rng.randint(1_000, 60_000)
        accuracy = 0.98 - 300 / parameters - rng.uniform(0.0, 0.1)
        tracker.record(TrialStarted.of(trial, recipe(trial, rng), SPACE))
        tracker.record(TrialReported(trial, 1, {"accuracy": accuracy / 2}))
        tracker.record(TrialFinished(trial, "FINISHED", 1, {"accuracy": accuracy, "parameters": parameters}))
    page = tmp_path / "front.html"
    page.write_text("<p id='words'></p><script>document.getElementById('words').innerText = 'a' + 'live'</script>")
    tracker.record(StudyFinished("FINISHED", [page], [{"trial": 3, "accuracy": 0.9}]))
    assert tracker.close(60.0) == 0, tracker.last_error
    runs = find_runs(tmp_path, "digits", stand.store)
    assert runs is not None

    script = screenshot_script()
    with script.browser() as browser:

        def texts(selector: str) -> list[str]:
            return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]

        browser.get(f"{stand.url}/{view_path(runs.experiment_id)}")
        script.wait_for_charts(browser)
        browser.save_screenshot(tmp_path / "view.png")
        assert len(browser.find_elements(By.CSS_SELECTOR, script.SCATTER_POINTS)) == TRIALS
        assert {"log10_parameters", "accuracy"} <= set(texts(".js-plotly-plot .infolayer text"))
        assert len(browser.find_elements(By.CSS_SELECTOR, script.PARALLEL_AXES)) == 6 + len(
            OBJECTIVES
        )  # no axis for seed
        # MLflow leaves runs out whose fillers it dislikes, and with them their values on the axes
        assert {"none", "kd", "factor", "mean", "sum", "n/a"} <= set(texts(".parcoords .tick text"))
        assert f"{TRIALS} matching runs" in browser.find_element(By.TAG_NAME, "body").text

        artifacts = f"{stand.url}/#/experiments/{runs.experiment_id}/runs/{runs.parent_run_id}/artifacts/front"
        browser.get(f"{artifacts}/table.json")
        script.wait_for(browser, "[role=table]")
        assert "View as table" in browser.find_element(By.TAG_NAME, "body").text
        browser.get("about:blank")  # MLflow reads the artifact's name from the link only when it loads
        browser.get(f"{artifacts}/front.html")
        script.wait_for(browser, "iframe")
        browser.switch_to.frame(0)
        script.wait_for(browser, "#words")
        assert browser.find_element(By.ID, "words").text == "alive"


def test_of_more_runs_than_the_charts_load_the_front_is_shown(stand: Stand, tmp_path: Path) -> None:
    rng = random.Random(0)
    tracker = Tracker(tmp_path, "many", stand.store)
    tracker.record(StudyStarted.of({}, {}, OBJECTIVES, SPACE))
    front = {200: 0.3, 1_000: 0.6, 5_000: 0.7}  # the least accurate of all, first to be told of
    others = {10_000 + trial: 0.6 + trial / 1_000 for trial in range(110)}
    for trial, (parameters, accuracy) in enumerate([*front.items(), *others.items()]):
        tracker.record(TrialStarted.of(trial, recipe(trial, rng), SPACE))
        tracker.record(TrialFinished(trial, "FINISHED", 1, {"accuracy": accuracy, "parameters": parameters}))
    tracker.record(FrontMembers([*range(len(front))]))
    tracker.record(StudyFinished("FINISHED"))
    assert tracker.close(120.0) == 0, tracker.last_error
    runs = find_runs(tmp_path, "many", stand.store)
    assert runs is not None
    script = screenshot_script()
    with script.browser() as browser:
        browser.get(f"{stand.url}/{view_path(runs.experiment_id)}")
        script.wait_for_charts(browser)
        shown = browser.execute_script(
            "return [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)"
            ".filter(trace => trace.type === 'scatter').flatMap(trace => [...trace.x])"
        )
    assert len(shown) == 100
    assert {round(math.log10(parameters), 6) for parameters in front} <= {round(x, 6) for x in shown}


def test_a_study_and_a_server_may_make_the_store_at_the_same_time_and_leave_nothing_beside_it(tmp_path: Path) -> None:
    home = tmp_path / "parent" / "50%25 ?" / "inner"
    home.mkdir(parents=True)
    store = sqlite_url(home / "mlflow.db")
    tracker = Tracker(home, "race", store)
    tracker.record(StudyStarted.of({}, {}, OBJECTIVES, SPACE))
    server = serve(store)
    try:
        assert tracker.close(120.0) == 0, tracker.last_error
        assert find_runs(home, "race", server.url) is not None
    finally:
        server.stop()
    with pytest.raises(ProcessLookupError):  # neither it nor a worker of its is left
        os.killpg(server.process.pid, 0)
    assert {file.name for file in home.glob("*mlflow.db*")} <= {"mlflow.db", ".mlflow.db.lock"}
    # MLflow makes a folder of its own where a path has `?` or `%`
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]
    assert [path.name for path in (tmp_path / "parent").iterdir()] == ["50%25 ?"]


def test_a_killed_dux_ui_takes_its_server_with_it(tmp_path: Path, start: Callable[..., Command]) -> None:
    (tmp_path / "study.yaml").write_text("name: there\nspace: {student.width: [0.5]}")
    study = Study(StudyFile.read(tmp_path / "study.yaml"), tmp_path)
    study.folder.mkdir(parents=True)
    (study.folder / "study.json").write_text(study.file.to_json())
    command = start("ui", "--home", str(tmp_path), "--port", "0")
    wait_for(lambda: "http://127.0.0.1:" in command.out or not command.running, "the server")
    assert command.running, command.err
    server = descendants(command.process.pid)
    command.process.kill()
    command.process.wait()
    wait_for(lambda: not any(map(alive, server)), "the server's end", 15.0)


def test_one_objective_has_no_scatter() -> None:
    state = json.loads(view_state({"nll": "min"}, ["student.width"]))
    assert [chart["type"] for chart in state["compareRunCharts"]] == ["PARALLEL"]


def test_three_objectives_are_all_on_the_axes_the_first_one_last() -> None:
    state = json.loads(view_state({"accuracy": "max", "parameters": "min", "latency_ms": "min"}, []))
    scatter, parallel = state["compareRunCharts"]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("log10_parameters", "accuracy")
    assert parallel["selectedMetrics"] == ["parameters", "latency_ms", "accuracy"]


def test_the_link_names_the_view() -> None:
    assert view_path("7") == "#/experiments/7/runs?viewStateShareKey=dux&compareRunsMode=CHART"


def test_a_server_of_its_own_is_not_served_again() -> None:
    with pytest.raises(
        BadInput, match=r"a store to serve must be sqlite.* http://\*\*\*@mlflow:5000 is a server; open it"
    ):
        serve("http://user:word@mlflow:5000")


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"the port must be free, but {port} is taken"):
            serve(f"sqlite:///{tmp_path / 'mlflow.db'}", port)


def test_the_two_kinds_of_store() -> None:
    assert database("sqlite:////home/a b/mlflow.db?timeout=5") == Path("/home/a b/mlflow.db")
    assert database("https://mlflow.example.org") is None
