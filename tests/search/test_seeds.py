"""Repeats with other seeds: what they say of the front, and that each is carried out exactly once, whatever is killed.

One study is killed among its repeats and resumed. Until then it is looked at all the time, to see whether `dux status`
and the live progress say what Optuna's and MLflow's own records say.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState
from processes import TASK, Command
from running import Said, but_waiting, resume_here, wait_for
from test_chart import own_part

from search.cli import app
from search.fronts.front import Entry, Front
from search.fronts.page import front_html
from search.fronts.pareto import Axis
from search.fronts.picture import FAINT
from search.fronts.png import front_figure, front_png
from search.fronts.quantities import show
from search.fronts.tables import front_table
from search.ledger.ledger import Ledger
from search.ledger.lines import CurvePoint, Line, Repeat, Trial
from search.seeds import Spread, is_within_noise, margin, spread
from search.study import Study
from search.study_file import StudyFile
from spaces import Space
from trainers import Knowledge, Task, run_trial
from trainers.files import sealed

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"), pytest.mark.timeout(1200)]

ACCURACY = Axis("accuracy", "max", "linear", worst=0.0, best=1.0)
PARAMETERS = Axis("parameters", "min", "log", worst=100_000.0, best=1.0)
OBJECTIVES = {"accuracy": "max", "parameters": "min"}


# --- means, deviations, noise -----------------------------------------------------------------------------------------


def test_mean_and_sample_deviation() -> None:
    assert [*spread([0.9, 0.8, 0.7])] == [pytest.approx(0.8), pytest.approx(0.1), 3]
    one = spread([0.9])
    assert (one.mean, one.seeds) == (0.9, 1)
    assert math.isnan(one.deviation)


def test_the_margin_is_welchs() -> None:
    # equal deviations and seeds: v = 2 (n - 1) = 4, of which Student's t has 2.776 at 0.975; sqrt(2 * 0.01 / 3)
    assert margin(Spread(0.9, 0.1, 3), Spread(0.8, 0.1, 3)) == pytest.approx(2.7764 * 0.081650, rel=1e-4)
    # only one varies: v = n - 1 = 1, t = 12.706; sqrt(0.02 / 2)
    assert margin(Spread(0.9, math.sqrt(0.02), 2), Spread(0.8, 0.0, 5)) == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert margin(Spread(0.9, 0.0, 2), Spread(0.8, 0.0, 3)) == 0.0
    assert margin(Spread(0.9, 0.0, 2), Spread(0.8, math.nan, 1)) == math.inf


def member(trial: int, parameters: float, *accuracies: float, failed: int = 0) -> Entry:
    first, *others = ({"accuracy": accuracy, "parameters": parameters} for accuracy in accuracies)
    return Entry(trial, {"transfer": "kd", "seed": trial}, first, repeats=tuple(others), repeats_failed=failed)


def front(*entries: Entry) -> Front:
    return Front.of(entries, OBJECTIVES, [ACCURACY, PARAMETERS])  # type: ignore[arg-type]


SMALL = member(0, 100, 0.80, 0.82, 0.81)  # 0.81 +- 0.01
LARGER = member(1, 200, 0.84, 0.80, 0.82)  # 0.82 +- 0.02: the lead of 0.01 is noise
LARGEST = member(2, 400, 0.90, 0.89, 0.91)  # 0.90 +- 0.01: the leads of 0.09 and 0.08 are none
NOISE = front(SMALL, LARGER, LARGEST)


def test_a_lead_that_chance_explains_is_marked_and_a_certain_one_is_not() -> None:
    # margins: of LARGER over SMALL t(0.975, 2.94) * sqrt((0.0004 + 0.0001) / 3) = 3.2 * 0.0129 = 0.0415;
    # of LARGEST over LARGER the same, below 0.08. The smaller ones lead by their size, which no seed changes.
    assert [entry.trial for entry in NOISE.non_dominated] == [0, 1, 2]
    assert NOISE.noisy == ["accuracy"]
    assert NOISE.doubtful == {1: [0]}


def test_a_member_that_by_its_means_is_beaten_has_no_lead() -> None:
    lucky = member(3, 300, 0.85, 0.70, 0.70)
    assert front(SMALL, lucky).doubtful == {3: [0]}


def test_a_lead_on_any_objective_is_a_lead() -> None:
    a = {"accuracy": Spread(0.9, 0.01, 3), "nll": Spread(0.5, 0.01, 3)}
    b = {"accuracy": Spread(0.9, 0.01, 3), "nll": Spread(0.7, 0.01, 3)}
    directions = {"accuracy": "max", "nll": "min"}
    assert not is_within_noise(a, b, directions, ["accuracy", "nll"])
    assert is_within_noise(b, a, directions, ["accuracy", "nll"])
    assert is_within_noise(a, a, directions, [])  # no better on anything


def test_a_member_whose_repeats_failed_has_no_lead_but_by_what_is_certain() -> None:
    alone = member(4, 50, 0.79, failed=2)
    larger_alone = member(5, 900, 0.99, failed=2)
    actual = front(SMALL, LARGEST, alone, larger_alone)
    assert actual.doubtful == {5: [0, 2, 4], 0: [4], 2: [4]}  # those larger than 4 lead over it by accuracy alone
    assert actual.seed_cells(alone)["seeds"] == "1 (2 failed)"


def test_without_repeats_nothing_changes() -> None:
    plain = front(member(0, 100, 0.8), member(1, 200, 0.9))
    assert (plain.noisy, plain.doubtful, plain.seed_columns(plain.non_dominated[0])) == ([], {}, {})
    assert "seeds" not in json.dumps(plain.to_json("study"))
    assert [column.header for column in front_table(plain).columns] == ["student", "accuracy", "parameters", "recipe"]
    assert "seeds" not in own_part(front_html(plain, "study", None))


def test_json_table_and_page_have_mean_deviation_seeds_and_mark() -> None:
    said = {m["trial"]: m["seeds"] for m in json.loads(json.dumps(NOISE.to_json("study"), allow_nan=False))["members"]}
    assert said[1] == {
        "n": 3,
        "failed": 0,
        "objectives": {
            "accuracy": {"mean": pytest.approx(0.82), "deviation": pytest.approx(0.02)},
            "parameters": {"mean": 200.0, "deviation": 0.0},
        },
        "lead_within_noise_over": [0],
    }
    assert said[0]["lead_within_noise_over"] == []
    headers = [column.header for column in front_table(NOISE).columns]
    objectives = ["accuracy", "parameters", "accuracy over seeds"]
    assert headers == ["student", *objectives, "seeds", "lead within noise over", "recipe"]
    assert NOISE.seed_cells(LARGER) == {
        "accuracy over seeds": "0.8200 ± 0.0200",
        "seeds": "3",
        "lead within noise over": "0",
    }
    assert NOISE.seed_columns(LARGER) == {
        "accuracy.mean": pytest.approx(0.82),
        "accuracy.deviation": pytest.approx(0.02),
        "seeds": 3,
        "repeats_failed": 0,
        "lead_within_noise_over": "0",
    }
    page = front_html(NOISE, "study", None)
    assert '<td class="number">0.8200 ± 0.0200</td>' in page
    assert "lead within noise over" in page
    assert own_part(page).count("circle-open") == 1
    assert "of 3 seeds" in own_part(page)


def test_the_picture_shows_the_means_and_deviations_of_those_on_the_front(tmp_path: Path) -> None:
    figure = front_figure(NOISE, "study")
    front_png(NOISE, "study", tmp_path / "noise.png")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    ((means, _, bars),) = axes.containers
    x, y = means.get_data()
    assert [*x] == [100, 200, 400]
    assert [*y] == pytest.approx([0.81, 0.82, 0.90])
    across, upright = (bar.get_segments() for bar in bars)
    assert [float(np.ptp(ends[:, 0])) for ends in across] == [0.0, 0.0, 0.0]  # no seed changes the size
    lengths = [float(np.ptp(ends[:, 1])) for ends in upright]
    assert lengths == pytest.approx([0.02, 0.04, 0.02])
    assert [ends[:, 1].mean() for ends in upright] == pytest.approx([0.81, 0.82, 0.90])
    legend = axes.get_legend()
    assert legend is not None
    assert "mean ± deviation of 3 seeds" in [text.get_text() for text in legend.get_texts()]
    pixels = (matplotlib.image.imread(tmp_path / "noise.png")[..., :3] * 255).round().astype(int)
    faint = [int(FAINT[i : i + 2], 16) for i in (1, 3, 5)]
    for place, mean, deviation in zip(x, y, (0.01, 0.02, 0.01), strict=True):
        for end in (mean - deviation, mean + deviation):
            column, row = axes.transData.transform((place, end)).round().astype(int)
            around = pixels[-row - 3 : -row + 3, column - 3 : column + 3].reshape(-1, 3)
            assert (abs(around - faint).max(axis=1) < 8).any()  # the cap

    plain = front(*(Entry(e.trial, e.recipe, e.measurements) for e in NOISE.non_dominated))
    assert not front_figure(plain, "study").axes[0].containers


# --- repeats in the ledger --------------------------------------------------------------------------------------------

SPACE = Space.from_mapping({"student.width": {"low": 0.125, "high": 1.0}, "training.epochs": 2})


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def opened(storage: str) -> Callable[[], Ledger]:
    return lambda: Ledger(storage, "study", OBJECTIVES, "tpe", 7, SPACE)


def test_a_repeat_is_the_same_recipe_with_a_seed_that_follows_from_the_study(opened: Callable[[], Ledger]) -> None:
    ledger = opened()
    trial, recipe = ledger.ask()
    ledger.complete(trial, {"accuracy": 0.9, "parameters": 100.0}, 1.0)
    again = {repeat: ledger.ask_again(Repeat(trial, repeat)) for repeat in (1, 2)}
    seeds = {repeat: each.seed for repeat, (_, each) in again.items()}
    assert len({recipe.seed, *seeds.values()}) == 3
    for _, each in again.values():
        assert each.model_copy(update={"seed": recipe.seed}) == recipe
    assert {line.trial: line.repeat for line in opened().lines()} == {
        0: None,
        1: Repeat(0, 1),
        2: Repeat(0, 2),
    }
    assert opened().ask_again(Repeat(trial, 1))[1].seed == seeds[1]


def test_repeats_are_no_trials_and_the_sampler_does_not_learn_of_them(
    opened: Callable[[], Ledger], storage: str
) -> None:
    ledger = opened()
    trial, _ = ledger.ask()
    ledger.complete(trial, {"accuracy": 0.9, "parameters": 100.0}, 1.0)
    repeat, _ = ledger.ask_again(Repeat(trial, 1))
    point = {"recipe": {"seed": 1}, "measurements": {"accuracy": 0.5, "parameters": 10.0}, "seconds": 0.1}
    ledger.complete(repeat, {"accuracy": 0.8, "parameters": 100.0}, 1.0, [point])
    lines = ledger.lines()
    assert [line.kind for line in lines] == [Trial(), Repeat(0, 1), CurvePoint(1, 0, Repeat(0, 1))]
    assert ledger.done() == 1
    assert [line.counts for line in lines] == [True, False, False]
    records = optuna.load_study(study_name="study", storage=storage).get_trials()
    assert [bool(record.params) for record in records] == [True, False, False]
    other = Ledger(storage, "other", OBJECTIVES, "random", 0, SPACE)
    assert other.proposals.learn_from("study", lines) == 1


def test_a_repeat_that_was_cut_short_is_closed_and_not_queued(opened: Callable[[], Ledger]) -> None:
    ledger = opened()
    trial, _ = ledger.ask()
    ledger.complete(trial, {"accuracy": 0.9, "parameters": 100.0}, 1.0)
    ledger.ask_again(Repeat(trial, 1))
    again = opened()  # after a kill
    assert again.reconcile() == 0
    assert [line.outcome for line in again.lines()] == ["complete", "interrupted"]
    assert again.reconcile() == 0
    number, _ = again.ask()  # nothing of the repeat is in the queue
    assert again.lines()[-1].repeat is None
    assert number == 2


def test_a_repeat_whose_worker_died_may_be_tried_again_so_many_times(opened: Callable[[], Ledger]) -> None:
    ledger = opened()
    trial, _ = ledger.ask()
    ledger.complete(trial, {"accuracy": 0.9, "parameters": 100.0}, 1.0)
    for tries in range(3):
        number, _ = ledger.ask_again(Repeat(trial, 1))
        assert ledger.tries(number) == tries
        ledger.retry(number, "the worker process died")
    other, _ = ledger.ask_again(Repeat(trial, 2))
    assert ledger.tries(other) == 0
    assert [line.outcome for line in ledger.lines()][1:4] == ["interrupted"] * 3


RECORDED = """
name: recorded
space: {student.width: {low: 0.125, high: 1.0}}
search: {trials: 2, seeds: 3}
"""


def test_a_repeat_that_failed_is_told_and_none_is_left(tmp_path: Path, dux: Callable[..., Said]) -> None:
    (tmp_path / "study.yaml").write_text(RECORDED)
    study = Study(StudyFile.read(tmp_path / "study.yaml"), tmp_path / "home")
    study.folder.mkdir(parents=True)
    (study.folder / "study.json").write_text(study.file.to_json())
    teacher = {"accuracy": 0.97, "parameters": 1e5}
    (study.folder / "task.json").write_bytes(sealed({"key": "key", "classes": 10, "teacher": teacher, "data": []}))
    ledger, home = study.ledger(), ("--home", study.home)
    ledger.complete(ledger.ask()[0], {"accuracy": 0.9, "parameters": 1000.0}, 1.0)
    assert study.standing().repeats == []  # the front is not settled
    ledger.complete(ledger.ask()[0], {"accuracy": 0.8, "parameters": 2000.0}, 1.0)
    assert study.standing().repeats == study.standing().repeats_left == [Repeat(0, 1), Repeat(0, 2)]
    assert dux("status", "recorded", *home)[1].startswith(
        "recorded: interrupted; 2/2 trials done, 0 of them failed; 0/2 repeats with other seeds done; front of 1"
    )
    first, second = (ledger.ask_again(Repeat(0, nth))[0] for nth in (1, 2))
    assert study.standing().repeats_left == []  # they run
    assert f"  trial {second} was cut short: none, width" in dux("status", "recorded", *home)[1]
    ledger.complete(first, {"accuracy": 0.86, "parameters": 1000.0}, 1.0)
    ledger.fail(second, "Diverged: nan")
    assert study.standing().repeats_left == []
    said = dux("status", "recorded", *home)[1]
    assert "finished; 2/2 trials done, 0 of them failed; 2/2 repeats with other seeds done, 1 of them failed;" in said
    assert f"  failed: {second}: Diverged: nan" in said
    (entry,) = study.front().non_dominated
    assert (entry.trial, len(study.front().entries)) == (0, 2)
    assert [*entry.spread("accuracy")] == [pytest.approx(0.88), pytest.approx(math.sqrt(0.0008)), 2]
    table = " ".join(dux("front", "recorded", *home)[1].split())
    assert "0 0.9000 1,000 0.8800 ± 0.0283 2 (1 failed)" in table


# --- a study ----------------------------------------------------------------------------------------------------------

SEEDED = f"""
name: seeded
{TASK}
objectives: {{accuracy: max, nll: min, parameters: min}}
space:
  student.width: [0.125, 0.25, 0.5]
  pruning.fraction: [0.0, 0.5]
  pruning.fine_tune_epochs: 1
  training.epochs: 3
  training.batch_size: 16
search: {{trials: 4, seeds: 3, concurrent: 2, sampler: grid}}
"""
TRIALS, SEEDS = 4, 3

RECORDER = """
import json, sys
from pathlib import Path

import optuna

from search.study import Study
from search.study_file import StudyFile

study = Study(StudyFile.read(Path(sys.argv[1])), Path(sys.argv[2]))
records = open(sys.argv[3], "a")

class Recorder:
    def show(self, progress):
        try:
            trials = optuna.load_study(study_name=study.name, storage=study.files.storage).get_trials()
        except KeyError:
            trials = []
        seen = [[t.number, t.state.name, sorted(t.user_attrs)] for t in trials]
        standing = progress.standing
        shown = {
            "phase": progress.phase,
            "trials": standing.trials,
            "done": standing.done,
            "failed": standing.count("failed"),
            "stopped": standing.count("stopped"),
            "running": progress.running,
            "repeats": len(standing.repeats),
            "repeated": standing.repeated,
        }
        records.write(json.dumps({"progress": shown, "optuna": seen}) + "\\n")
        records.flush()

    def say(self, line):
        raise AssertionError(line)

if __name__ == "__main__":
    study.search(display=Recorder())
"""
"""A study with a display that writes down what it is shown, and beside it what Optuna says at that very moment."""


def from_optuna(study: Study) -> list[FrozenTrial]:
    try:
        return optuna.load_study(study_name=study.name, storage=study.files.storage).get_trials(deepcopy=False)
    except KeyError:
        return []


def counted(trials: list[FrozenTrial]) -> dict[str, int]:
    """What can only grow, by Optuna's own states."""
    failed = [t for t in trials if t.state == TrialState.FAIL and "reason" in t.user_attrs]
    ended = [t for t in trials if t.state == TrialState.COMPLETE] + failed
    return {
        "done": sum(not {"point", "repeat"} & {*t.user_attrs} for t in ended),
        "failed": sum("repeat" not in t.user_attrs for t in failed),
        "repeated": sum("repeat" in t.user_attrs and "point" not in t.user_attrs for t in ended),
    }


def running(trials: list[FrozenTrial]) -> set[int]:
    return {t.number for t in trials if t.state == TrialState.RUNNING}


def status(study: Study) -> dict[str, Any]:
    """What `dux status --json` says."""
    with redirect_stdout(StringIO()) as said:
        app(["status", study.name, "--home", str(study.home), "--json"], standalone_mode=False)
    content: dict[str, Any] = json.loads(said.getvalue())
    return content


def mlflow_runs(study: Study) -> dict[int, Any]:
    """Trial -> run; fails where a trial has two. Nothing before the study has opened the store: two make it badly."""
    if not (study.folder / "runs.json").exists():
        return {}
    client = MlflowClient(tracking_uri=study.files.tracking_uri)
    experiment = client.get_experiment_by_name(f"dux-{study.name}")
    runs = [] if experiment is None else client.search_runs([experiment.experiment_id])
    results = [run for run in runs if "dux.trial" in run.data.tags]
    trials = {int(run.data.tags["dux.trial"]): run for run in results}
    assert len(trials) == len(results)
    return trials


@dataclass(frozen=True)
class Look:
    """One look at a study that runs, with Optuna's records just before and just after, and MLflow's before those."""

    in_mlflow: set[int]
    """The trials whose runs were finished."""
    before: list[FrozenTrial]
    said: dict[str, Any]
    after: list[FrozenTrial]


@dataclass(frozen=True)
class Story:
    """A study that was killed among its repeats, and resumed."""

    study: Study
    records: list[dict[str, Any]]
    """What the display was shown until the kill."""
    killed: dict[str, Any]
    """What `dux status --json` said after it."""
    resumed: str
    """What it then said on standard error."""
    looks: list[Look] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Path]) -> Story:
    folder = tmp_path_factory.mktemp("seeded")
    (folder / "study.yaml").write_text(SEEDED)
    (folder / "recorder.py").write_text(RECORDER)
    home, looks = new_home(folder), []
    program = ("recorder.py", "study.yaml", str(home), "records.jsonl")
    command = Command(folder, program=program)
    try:
        wait_for(lambda: (home / "studies/seeded/task.json").exists() or not command.running, "the task")
        study = Study.open("seeded", home)

        def look() -> Look:
            in_mlflow = {trial for trial, run in mlflow_runs(study).items() if run.info.status == "FINISHED"}
            looks.append(Look(in_mlflow, from_optuna(study), status(study), from_optuna(study)))
            time.sleep(1.0)
            return looks[-1]

        wait_for(lambda: look().said["repeated"] > 0 or not command.running, "a repeat")
        assert command.running, command.err
    finally:
        if command.running:
            command.kill()
    killed = status(study)
    resumed = resume_here(study)
    records = [
        json.loads(line)
        for line in (folder / "records.jsonl").read_text().splitlines(keepends=True)
        if line[-1] == "\n"
    ]
    return Story(study, records, killed, resumed, looks)


def test_every_repeat_of_every_trial_on_the_front_is_there_once_after_a_kill_among_them(story: Story) -> None:
    assert but_waiting(story.resumed) == ""
    study, lines = story.study, story.study.lines()
    trials = {entry.trial if entry.curve_of is None else entry.curve_of for entry in study.front().non_dominated}
    assert len(trials) > 1
    repeats = [line for line in lines if line.repeat is not None and not line.is_point and line.ended]
    assert len(repeats) == len(trials) * (SEEDS - 1)
    assert {line.repeat for line in repeats} == {Repeat(t, k) for t in trials for k in range(1, SEEDS)}
    assert {line.outcome for line in repeats} == {"complete"}
    assert sum(line.counts for line in lines) == TRIALS
    # what had ended before the kill was not done again
    ended = {line.trial for line in repeats}
    before = {t.number for t in story.looks[-1].before if t.state == TrialState.COMPLETE and "repeat" in t.user_attrs}
    assert {trial for trial in before if not study.lines()[trial].is_point} <= ended
    # what was under way was cut short and is not told as ended
    assert all(line.outcome in ("complete", "interrupted") for line in lines)
    seeds = {line.recipe.seed for line in repeats if line.recipe is not None}
    assert len(seeds | {0}) == len(repeats) + 1


def places_of(lines: Iterable[Line], trial: int) -> list[int]:
    """Those on a trial's curve that have a student."""
    return [line.kind.place for line in lines if isinstance(line.kind, CurvePoint) and line.kind.of == trial]


def test_a_repeat_is_its_trial_with_another_seed_and_has_the_whole_curve(story: Story) -> None:
    lines = {line.trial: line for line in story.study.lines()}
    for line in lines.values():
        if line.repeat is None or line.outcome != "complete":
            continue
        assert line.recipe is not None
        base = lines[line.repeat.of]
        if not line.is_point:
            assert base.recipe == line.recipe.model_copy(update={"seed": 0})
            places = places_of(lines.values(), line.trial)
            assert places
            assert places == places_of(lines.values(), base.trial)
        files = json.loads((story.study.files.of(line) / "result.json").read_text())
        assert files["measurements"] == line.measurements


def test_the_front_is_of_the_trials_alone_and_has_the_spread_of_their_repeats(
    story: Story, dux: Callable[..., Said]
) -> None:
    study = story.study
    lines = {line.trial: line for line in study.lines()}
    front = study.front()
    assert all(lines[entry.trial].repeat is None for entry in front.entries)
    assert any(entry.curve_of is not None for entry in front.non_dominated)
    members = json.loads(dux("front", "seeded", "--json", "--home", study.home)[1])["members"]
    assert [member["trial"] for member in members] == [entry.trial for entry in front.non_dominated]
    for member in members:
        own = lines[member["trial"]]
        base, place = (own.kind.of, own.kind.place) if isinstance(own.kind, CurvePoint) else (own.trial, None)
        values = [own.measurements["accuracy"]] + [
            line.measurements["accuracy"]
            for line in lines.values()
            if line.repeat is not None
            and line.repeat.of == base
            and line.outcome == "complete"
            and (line.kind.place if isinstance(line.kind, CurvePoint) else None) == place
        ]
        assert len(values) == member["seeds"]["n"] == SEEDS
        mean = sum(values) / SEEDS
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (SEEDS - 1))
        said = member["seeds"]["objectives"]["accuracy"]
        assert (said["mean"], said["deviation"]) == (pytest.approx(mean), pytest.approx(deviation))
    shown = dux("front", "seeded", "--home", study.home)[1]
    for member in members:
        over = member["seeds"]["objectives"]["accuracy"]
        assert f"{show(over['mean'])} ± {show(over['deviation'])}" in shown


def test_a_repeat_can_be_carried_out_again_without_ray(story: Story) -> None:
    task = Task.load(story.study.file.task, story.study.home)
    line = next(line for line in story.study.lines() if line.repeat is not None and not line.is_point and line.ended)
    assert line.recipe is not None
    assert run_trial(line.recipe, task, Knowledge(task)).measurements == line.measurements


def test_repeats_are_nested_runs_of_their_own_and_not_on_the_front(story: Story) -> None:
    study = story.study
    runs, lines = mlflow_runs(study), {line.trial: line for line in study.lines()}
    ended = {line.trial for line in lines.values() if line.ended}
    members = {entry.trial for entry in study.front().non_dominated}
    assert {trial for trial in ended if not lines[trial].is_point} | members <= set(runs)
    for trial, its_run in runs.items():
        tags, line = its_run.data.tags, lines[trial]
        assert its_run.info.status == ("FINISHED" if trial in ended else "KILLED")
        assert tags["dux.role"] == ("trial" if line.repeat is None else "repeat")
        assert tags.get("dux.repeat_of") == (None if line.repeat is None else str(line.repeat.of))
        assert tags["dux.pareto"] == ("true" if trial in members else "false")
        assert {name: its_run.data.metrics[name] for name in line.measurements} == line.measurements
        assert len(its_run.inputs.dataset_inputs) == 2
    client = MlflowClient(tracking_uri=study.files.tracking_uri)
    experiment = client.get_experiment_by_name("dux-seeded")
    models = client.search_logged_models([experiment.experiment_id])
    assert sorted(model.tags["dux.model"] for model in models) == sorted([*map(str, members), "teacher"])
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`dux.role` = 'study'")
    course = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert sorted(point.step for point in course) == list(range(1, TRIALS + 1))
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "front/table.json")).read_text())
    assert {"accuracy.mean", "accuracy.deviation", "seeds", "lead_within_noise_over"} <= set(table["columns"])
    assert len(table["data"]) == len(members)
    assert not (study.folder / "spool.refused.jsonl").exists()


def test_a_study_whose_repeats_are_done_is_finished_and_is_not_resumed(story: Story, dux: Callable[..., Said]) -> None:
    spool, lines = story.study.folder / "spool.jsonl", story.study.lines()
    told = spool.read_bytes()
    code, out, _ = dux("resume", "seeded", "--home", story.study.home)
    assert code == 0
    assert out.startswith(f"seeded is finished: {TRIALS} of {TRIALS} trials are done; nothing to resume\n")
    assert (spool.read_bytes(), story.study.lines()) == (told, lines)
    assert status(story.study)["state"] == "finished"


# --- status and live progress -----------------------------------------------------------------------------------------


def told(study: Study) -> list[Any]:
    """The ledger's lines as far as they are of what ended."""
    return [line for line in study.lines() if line.ended]


@pytest.mark.parametrize("kept", ["journal", "half of the ledger", "trials alone"])
def test_a_ledger_that_is_gone_is_rebuilt_from_the_studys_files(
    kept: str, story: Story, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    home = shutil.copytree(story.study.home, tmp_path / "home")
    study, before = Study.open("seeded", home), told(story.study)
    front = json.loads((study.folder / "front.json").read_text())
    files = {file: file.read_bytes() for file in (study.folder / "trials").rglob("*") if file.is_file()}
    (home / "ledger.db").unlink()
    if kept == "half of the ledger":  # a rebuilding was killed, or the file comes from a backup
        half = (study.folder / "ledger.jsonl").read_bytes().splitlines()[:5]
        (tmp_path / "half.jsonl").write_bytes(b"\n".join(half))
        study_file = study.file
        Ledger(
            study.files.storage,
            "seeded",
            study_file.objectives,
            "grid",
            0,
            study_file.space,
            journal=tmp_path / "half.jsonl",
        ).restore(tmp_path / "none", 0)
    elif kept == "trials alone":
        (study.folder / "ledger.jsonl").unlink()
    for verb in ("status", "front", "export"):
        code, out, err = dux(verb, "seeded", "--home", home)
        assert (code, out) == (2, "")
        assert "gone; `dux resume seeded --home" in err
        assert err.count("\n") == 1
    assert (home / "ledger.db").exists() == (kept == "half of the ledger")
    code, out, err = dux("resume", "seeded", "--home", home)
    assert (code, but_waiting(err)) == (0, "")
    assert out.startswith("the ledger of seeded is not there any more")
    assert {file: file.read_bytes() for file in files} == files
    if kept == "trials alone":  # the numbers of the points are the ledger's own
        assert {line.trial: line for line in told(study) if not line.is_point}.items() <= {
            line.trial: line for line in before
        }.items()
        assert {line.kind: (line.measurements, line.files) for line in told(study)} == {
            line.kind: (line.measurements, line.files) for line in before
        }
        assert all(line.files for line in before if line.outcome == "complete")
        assert study.front().hypervolume == front["hypervolume"]
        assert len(study.front().non_dominated) == len(front["members"])
    else:
        assert told(study) == before
        assert study.front(study.run_ids()).to_json("seeded") == front
        code, out, err = dux("resume", "seeded", "--home", home)
        assert (code, but_waiting(err)) == (0, "")
        assert out.startswith("seeded is finished: 4 of 4 trials are done; nothing to resume")


def test_the_live_progress_is_what_optuna_says_at_that_moment(story: Story) -> None:
    shown = [record for record in story.records if record["progress"]["phase"] == "trials"]
    assert len(shown) > 5
    for record in shown:
        progress, states = record["progress"], record["optuna"]
        ended = [
            (state, attributes)
            for _, state, attributes in states
            if state == "COMPLETE" or (state == "FAIL" and "reason" in attributes)
        ]
        assert progress["trials"] == TRIALS
        assert progress["done"] == sum(not {"point", "repeat"} & {*attributes} for _, attributes in ended)
        assert progress["failed"] == progress["stopped"] == 0
        assert progress["repeated"] == sum("repeat" in attrs and "point" not in attrs for _, attrs in ended)
        # a trial is asked for before a worker has it
        assert progress["running"] <= sum(state == "RUNNING" for _, state, _ in states) <= 2
    assert {record["progress"]["done"] for record in shown} > {TRIALS}
    assert any(record["progress"]["running"] == 2 for record in shown)
    repeating = [record["progress"] for record in shown if record["progress"]["repeats"]]
    assert repeating
    assert all(progress["done"] == TRIALS for progress in repeating)


def test_status_says_what_optuna_and_mlflow_say_all_the_time(story: Story) -> None:
    assert len(story.looks) > 5
    for look in story.looks:
        before, after = counted(look.before), counted(look.after)
        for name in before:
            assert before[name] <= look.said[name] <= after[name], name
        assert running(look.before) & running(look.after) <= {*look.said["running"]}
        began = {t.number for t in look.after} - {t.number for t in look.before}
        assert {*look.said["running"]} <= running(look.before) | running(look.after) | began
        assert look.said["state"] == "running"
        # MLflow is told after the ledger, never before it
        assert look.in_mlflow <= {t.number for t in look.before if t.state == TrialState.COMPLETE}
    assert any(look.said["running"] for look in story.looks)
    assert any(look.in_mlflow for look in story.looks)


def test_status_after_the_kill_and_at_the_end(story: Story) -> None:
    last = story.looks[-1].said
    assert story.killed["state"] == "interrupted"
    assert story.killed["running"] == []
    assert (story.killed["done"], story.killed["repeats"]) == (TRIALS, last["repeats"])
    assert last["repeated"] <= story.killed["repeated"] < last["repeats"]
    said, trials = status(story.study), from_optuna(story.study)
    assert said == {
        "study": "seeded",
        "state": "finished",
        "trials": TRIALS,
        **counted(trials),
        "stopped": 0,
        "repeats": last["repeats"],
        "repeats_failed": 0,
        "running": [],
        "front": [entry.trial for entry in story.study.front().non_dominated],
        "hypervolume": story.study.front().hypervolume,
        "broke_constraints": 0,
        "refused_by_mlflow": 0,
        "remarks": [],
    }
    assert said["repeated"] == said["repeats"]
    finished = {trial for trial, run in mlflow_runs(story.study).items() if run.info.status == "FINISHED"}
    complete = {t.number for t in trials if t.state == TrialState.COMPLETE}
    points = {line.trial for line in story.study.lines() if line.is_point}  # have runs if on the front
    assert (complete - points) | set(said["front"]) <= finished <= complete


def test_all_studies_are_listed_as_json_too(story: Story, dux: Callable[..., Said]) -> None:
    content = json.loads(dux("status", "--json", "--home", story.study.home)[1])
    assert content == [status(story.study)]
    assert json.loads(dux("status", "--json", "--home", story.study.home / "nowhere")[1]) == []
