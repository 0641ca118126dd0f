"""A study whose trained students are looked at along their pruning curves, one after the other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from processes import TASK
from running import Said, but_waiting, search_here

from search.ledger.lines import CurvePoint
from search.study import Study
from trainers import Knowledge, Task, load_student, run_trial
from trainers.measure import measure

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

TRIALS, FRACTIONS = 2, [0.0, 0.3, 0.6]
BETWEEN = 1 - (1 - 0.6) ** (1 / 2)
"""The fraction after the first of two rounds."""
POINTS = len(FRACTIONS) + 1
CURVED = f"""
name: curved
{TASK}
space:
  student.width: {{low: 0.25, high: 0.5}}
  pruning.fraction: {FRACTIONS}
  pruning.rounds: 2
  pruning.fine_tune_epochs: 2
  training.epochs: 3
  training.batch_size: 16
search: {{trials: {TRIALS}, concurrent: 2}}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Path]) -> Study:
    return search_here(CURVED, new_home(tmp_path_factory.mktemp("curved")))


def test_every_trial_has_its_whole_curve_in_ledger_files_and_mlflow_exactly_once(study: Study) -> None:
    lines = study.lines()
    trials = [line.trial for line in lines if not line.is_point]
    assert len(trials) == sum(line.counts for line in lines) == TRIALS
    assert len(lines) == TRIALS * (1 + POINTS)
    client = MlflowClient(tracking_uri=study.files.tracking_uri)
    run_ids = study.run_ids()
    on_front = {entry.trial for entry in study.front().non_dominated}
    assert set(trials) | on_front <= set(run_ids) < {line.trial for line in lines}
    for line in lines:
        assert line.recipe is not None
        folder = study.files.of(line)
        assert json.loads((folder / "recipe.json").read_text()) == line.recipe.flat()
        assert json.loads((folder / "result.json").read_text())["measurements"] == line.measurements
        if line.trial not in run_ids:
            continue
        actual = client.get_run(run_ids[line.trial])
        assert actual.data.tags["dux.pareto"] == ("true" if line.trial in on_front else "false")
        assert {name: actual.data.metrics[name] for name in line.measurements} == line.measurements
        assert actual.data.tags.get("dux.curve_of") == (
            str(line.kind.of) if isinstance(line.kind, CurvePoint) else None
        )
        stored = {file.path for file in client.list_artifacts(actual.info.run_id, "student")}
        assert stored == {
            f"student/{name}" for name in ("recipe.json", "student.json", "student.safetensors", "result.json")
        }
        if not line.is_point:
            points = [other for other in lines if isinstance(other.kind, CurvePoint) and other.kind.of == line.trial]
            table = json.loads(Path(client.download_artifacts(actual.info.run_id, "curve.json")).read_text())
            rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
            assert rows == [{"trial": p.trial, **p.measurements, **p.recipe.flat()} for p in points if p.recipe]
            assert actual.data.tags["mlflow.loggedArtifacts"] == '[{"path": "curve.json", "type": "table"}]'
    for trial in trials:
        points = [line.recipe.pruning for line in lines if isinstance(line.kind, CurvePoint) and line.kind.of == trial]
        assert [(point.fraction, point.fine_tune_epochs) for point in points] == [
            *((fraction, 0) for fraction in FRACTIONS),
            (pytest.approx(BETWEEN), 1),
        ]


@pytest.mark.parametrize(("place", "epochs"), [(2, 0), (3, 1)])
def test_a_point_is_the_student_that_its_recipe_makes(place: int, epochs: int, study: Study) -> None:
    task = Task.load(study.file.task, study.home)
    line = next(line for line in study.lines() if isinstance(line.kind, CurvePoint) and line.kind.place == place)
    assert line.recipe is not None
    assert line.recipe.pruning.fine_tune_epochs == epochs
    assert run_trial(line.recipe, task, Knowledge(task)).measurements == line.measurements
    loaded = load_student(study.files.of(line))
    assert measure(loaded, task.data.validation, ensemble_nlls=task.curve) == line.measurements


def test_the_front_is_of_trials_and_points_alike_and_says_which_is_which(
    study: Study, dux: Callable[..., Said]
) -> None:
    front = study.front()
    assert len(front.entries) == TRIALS * (1 + POINTS)
    points = {line.trial: line.kind.of for line in study.lines() if isinstance(line.kind, CurvePoint)}
    code, out, _ = dux("front", "curved", "--home", study.home, "--json")
    assert code == 0
    members = json.loads(out)["members"]
    assert [member["curve_of"] for member in members] == [points.get(member["trial"]) for member in members]
    on_curves = [entry for entry in front.entries if entry.curve_of is not None]
    marks = {front.brief(entry).rpartition(" (")[2]: entry.recipe["pruning.fine_tune_epochs"] for entry in on_curves}
    ways = ("cut, not fine-tuned)", "after cut 1)")
    expected = {f"from the curve of trial {trial}, {way}" for trial in set(points.values()) for way in ways}
    assert set(marks) == expected
    assert all(("not fine-tuned" in mark) is (epochs == 0) for mark, epochs in marks.items())
    assert any(entry.curve_of is not None for entry in front.non_dominated)


def test_a_student_on_a_curve_is_exported_as_it_was_measured(
    study: Study, dux: Callable[..., Said], tmp_path: Path
) -> None:
    member = next(entry for entry in study.front().non_dominated if entry.curve_of is not None)
    parameters = int(member.measurements["parameters"])
    bounds = ("--max", f"parameters={parameters}", "--min", f"accuracy={member.measurements['accuracy']}")
    code, _, err = dux("export", "curved", "--home", study.home, *bounds, "--out", tmp_path)
    assert (code, err) == (0, "")
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["trial"], card["curve_of"]) == (member.trial, member.curve_of)
    assert card["validation"] == dict(member.measurements)


def test_status_counts_trials_and_not_their_points(study: Study, dux: Callable[..., Said]) -> None:
    code, out, _ = dux("status", "curved", "--home", study.home)
    assert code == 0
    assert f"{TRIALS}/{TRIALS} trials done" in out


def test_resuming_a_finished_study_adds_nothing(study: Study, dux: Callable[..., Said]) -> None:
    before = study.lines()
    code, _, _ = dux("resume", "curved", "--home", study.home)
    assert (code, study.lines()) == (0, before)


def test_a_finished_study_is_carried_on(study: Study, dux_here: Callable[..., Said]) -> None:
    before = study.lines()
    code, out, err = dux_here("resume", "curved", "--home", study.home, "--trials", str(TRIALS + 1))
    assert (code, but_waiting(err)) == (0, "")
    assert "finished" not in out
    longer = Study.open("curved", study.home)
    assert longer.file.search.trials == TRIALS + 1
    assert longer.lines()[: len(before)] == before
    status = longer.status()
    assert (status.state, status.standing.done) == ("finished", TRIALS + 1)
    assert not (study.folder / "spool.refused.jsonl").exists()  # MLflow takes no other `search.trials`, nor is asked to
    client = MlflowClient(tracking_uri=study.files.tracking_uri)
    experiment = client.get_experiment_by_name("dux-curved")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`dux.role` = 'study'")
    assert parent.data.params["search.trials"] == str(TRIALS)
    assert parent.data.tags["dux.trials"] == str(TRIALS + 1)
    assert parent.info.status == "FINISHED"
