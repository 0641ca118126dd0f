"""The commands as users meet them: what they print, where, and how they end."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import pytest
from processes import Command, alive, descendants, environment
from rich.console import Console
from running import TINY, Finished, Said, wait_for

from search.display import Progress
from search.fronts.pareto import Axis
from search.ledger.lines import Line, Outcome
from search.progress import Terminal, drawn, duration
from search.standing import Standing
from search.study_file import StudyFile
from spaces import Recipe
from trainers.transfer import METHODS

COMMANDS = ("search", "resume", "status", "front", "export", "check", "methods", "ui")

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=("dux", *COMMANDS))
def test_help_shows_what_there_is(command: tuple[str, ...], dux: Callable[..., Said]) -> None:
    code, out, err = dux(*command, "--help")
    assert (code, err) == (0, "")
    assert "Usage: dux" in out
    if not command:
        assert all(re.search(rf"^\s+{name}\s+\S", out, re.MULTILINE) for name in COMMANDS)


def test_version_is_a_line(dux: Callable[..., Said]) -> None:
    assert dux("--version") == (0, f"dux {version('dux-search')}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("ex",), {"export"}),
        (("front", ""), {"one", "other"}),
        (("resume", "ot"), {"other"}),
        (("search", "--from", "on"), {"one"}),
        (("status", "--home", "elsewhere", "s"), {"strange"}),
    ],
)
def test_a_shell_completes_commands_and_the_names_of_studies(
    shell: str,
    typed: tuple[str, ...],
    offered: set[str],
    tmp_path: Path,
    dux: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for study in ("home/studies/one", "home/studies/other", "elsewhere/studies/strange"):
        (tmp_path / study).mkdir(parents=True)
        (tmp_path / study / "study.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUX_HOME", str(tmp_path / "home"))
    words = ["dux", *typed]
    monkeypatch.setenv("_DUX_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(words))
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    code, out, err = dux()
    assert (code, err) == (0, "")
    assert offered <= {*re.findall(r"\w+", out)}
    assert not ({"one", "other", "strange"} - offered) & {*re.findall(r"\w+", out)}


def test_the_help_names_completion(dux: Callable[..., Said]) -> None:
    assert {"--install-completion", "--show-completion", "--version"} <= {*dux("--help")[1].split()}


def test_dux_alone_shows_its_help(dux: Callable[..., Said]) -> None:
    code, out, err = dux()
    assert (code, err) == (2, "")
    assert "Usage: dux" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serach", "study.yaml"), "No such command 'serach'"),
        (("search",), "Missing argument 'STUDY.yaml'"),
        (("front", "tiny", "--csv"), "No such option: --csv"),
        (("resume",), "Missing argument 'NAME'"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(
    arguments: tuple[str, ...], message: str, dux: Callable[..., Said]
) -> None:
    code, out, err = dux(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"dux: {message}")
    assert err.endswith("`dux --help` shows the commands, `dux COMMAND --help` their options\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [("resume",), ("status",), ("front",), ("export",), ("ui", "--port", "0")])
def test_a_study_that_is_not_there_ends_in_one_line(
    command: tuple[str, ...], finished: Finished, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    name, *options = command
    code, out, err = dux(name, "tinyy", "--home", finished.home, *options)
    assert (code, out) == (2, "")
    assert err == "dux: a study must exist to be opened, but 'tinyy' does not; did you mean `tiny`? known: tiny\n"
    code, _, err = dux(name, "tinyy", "--home", tmp_path / "none", *options)
    assert code == 2
    assert "there is none yet in" in err
    assert not (tmp_path / "none").exists()


def test_a_home_that_cannot_be_written_ends_in_one_line(tmp_path: Path, dux: Callable[..., Said]) -> None:
    (tmp_path / "study.yaml").write_text(TINY)
    (tmp_path / "home").write_text("a file")
    code, out, err = dux("search", tmp_path / "study.yaml", "--home", tmp_path / "home")
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"dux: `--home` must be a folder that can be written, but .* is not .*; name another by --home or DUX_HOME\n",
        err,
    )
    assert str(tmp_path / "home") in err


# --- search -----------------------------------------------------------------------------------------------------------


def test_search_in_a_pipe_prints_the_front_and_nothing_else(finished: Finished) -> None:
    out, err = finished.done.stdout, finished.done.stderr
    assert err == ""
    assert not [character for character in out if ord(character) < 32 and character != "\n"]
    lines = out.splitlines()
    assert lines[0].startswith("accuracy   ● front")
    assert finished.study.front().summary() in lines
    assert lines[-2:] == [
        f"the front as a page: {finished.study.folder / 'front.html'}",
        f"the study in MLflow: `dux ui tiny --home {shlex.quote(str(finished.home))}`",
    ]
    assert not re.search(
        r"(?i)\bray\b|warning|alembic|tune", out.replace("fine_tune", "").replace(str(finished.home), "")
    )


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_lists_all_studies(finished: Finished, dux: Callable[..., Said]) -> None:
    code, out, err = dux("status", "--home", finished.home)
    assert (code, err) == (0, "")
    header, _, row = (line.split() for line in out.strip().splitlines())
    assert header == ["study", "state", "done", "failed", "stopped", "front", "hypervolume"]
    front = finished.study.front()
    assert row == ["tiny", "finished", "6/6", "0", "0", str(len(front.non_dominated)), f"{front.hypervolume:.4f}"]


def test_the_table_of_studies_takes_a_hundred_columns_whatever_their_names(
    finished: Finished, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    name = "a-study-with-a-name-as-long-as-names-may-be-which-are-63-characters"[:63]
    (tmp_path / "studies" / name).mkdir(parents=True)
    record = StudyFile.read(finished.file).model_copy(update={"name": name}).to_json()
    (tmp_path / "studies" / name / "study.json").write_text(record)
    code, out, _ = dux("status", "--home", tmp_path)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    assert name in "".join(re.findall(r"^ (\S+)", out, re.MULTILINE))


def test_status_of_one_study_is_a_line(finished: Finished, dux: Callable[..., Said]) -> None:
    code, out, err = dux("status", "tiny", "--home", finished.home)
    assert (code, err) == (0, "")
    assert out.startswith("tiny: finished; 6/6 trials done, 0 of them failed; front of ")
    assert out.count("\n") == 1


def test_status_without_a_study_says_how_to_begin(tmp_path: Path, dux: Callable[..., Said]) -> None:
    code, out, err = dux("status", "--home", tmp_path)
    assert (code, out, err) == (0, f"no study in {tmp_path} yet; start one with `dux search STUDY.yaml`\n", "")
    assert not list(tmp_path.iterdir())


def test_home_may_come_from_the_environment(
    finished: Finished, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUX_HOME", str(finished.home))
    assert dux("status", "tiny")[1].startswith("tiny: finished")


# --- front ------------------------------------------------------------------------------------------------------------


def test_front_is_a_picture_and_a_table(finished: Finished, dux: Callable[..., Said]) -> None:
    code, out, err = dux("front", "tiny", "--home", finished.home)
    assert (code, err) == (0, "")
    front = finished.study.front()
    assert front.summary() in out
    for entry in front.non_dominated:
        ends = front.interval(entry)
        assert ends is not None
        cells = rf"{entry.trial}\s+{entry.measurements['accuracy']:.4f}\s+{ends[0]:.3f}–{ends[1]:.3f}\b"
        assert re.search(rf"^\s+{cells}", out, re.MULTILINE)
    images = len(finished.study.file.task.load_data().validation)
    assert f"chosen from {len(front.entries)} students on {images} validation images, " in out


def test_front_json_is_the_front_and_nothing_else(finished: Finished, dux: Callable[..., Said]) -> None:
    code, out, err = dux("front", "tiny", "--home", finished.home, "--json")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert content == json.loads((finished.study.folder / "front.json").read_text())
    assert [member["trial"] for member in content["members"]] == [e.trial for e in finished.study.front().non_dominated]
    for member in content["members"]:
        known = {"trial", "recipe", "objectives", "measurements", "accuracy_interval", "mlflow_run_id", "curve_of"}
        assert set(member) == known
        assert member["mlflow_run_id"] == finished.study.run_ids()[member["trial"]]


def test_front_writes_a_page_and_a_picture(finished: Finished, tmp_path: Path, dux: Callable[..., Said]) -> None:
    page, picture = tmp_path / "new" / "front.html", tmp_path / "new" / "front.png"
    code, out, err = dux("front", "tiny", "--home", finished.home, "--html", page, "--png", picture)
    assert (code, err) == (0, "")
    assert out == f"wrote {page}\nwrote {picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    text = page.read_text()
    assert "<html" in text
    assert not re.search(r"<(script|link)[^>]+(src|href)=\"?https?:", text)  # shows without internet
    code, out, _ = dux("front", "tiny", "--home", finished.home, "--json", "--png", picture)
    assert (code, json.loads(out)["study"]) == (0, "tiny")


# --- methods ----------------------------------------------------------------------------------------------------------


def test_methods_json_has_every_method_with_its_parameters_and_paper(dux: Callable[..., Said]) -> None:
    code, out, err = dux("methods", "--json")
    assert (code, err) == (0, "")
    listed = {method["name"]: method for method in json.loads(out)}
    assert set(listed) == set(METHODS)
    for name, method in METHODS.items():
        parameters = {parameter["name"]: parameter for parameter in listed[name]["parameters"]}
        defaults = {f"{name}.{option}": value for option, value in method.Options().model_dump().items()}
        assert {key: parameter["default"] for key, parameter in parameters.items()} == defaults
        assert all(parameter["range"] and parameter["description"] for parameter in parameters.values())
        assert listed[name]["paper"]["title"]
    assert listed["factor"]["paper"]["link"] == "arXiv:1802.04977"
    assert listed["kd"]["parameters"][0] | {"description": ""} == {
        "name": "kd.temperature",
        "default": 4.0,
        "range": "> 0",
        "search": {"low": 1.0, "high": 8.0},
        "description": "",
    }


def test_methods_for_people_names_the_same(dux: Callable[..., Said]) -> None:
    code, out, err = dux("methods")
    assert (code, err) == (0, "")
    for name, method in METHODS.items():
        assert re.search(rf"^{name}\b", out, re.MULTILINE)
        for option in method.Options.model_fields:
            assert f"  {name}.{option} = " in out
    assert "Paraphrasing complex network" in out


# --- ui ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_ui_prints_a_link_that_answers_and_ends_with_its_server(
    by: signal.Signals, finished: Finished, start: Callable[..., Command]
) -> None:
    command = start("ui", "tiny", "--home", str(finished.home), "--port", "0")
    wait_for(lambda: "until Ctrl-C" in command.out or not command.running, "the server")
    link = re.search(r"^tiny: (http://127\.0\.0\.1:\d+)/(#/experiments/(\d+)/runs\?\S+)$", command.out, re.MULTILINE)
    assert link, command.out + command.err
    with urllib.request.urlopen(link[1], timeout=60) as page:
        assert b"<html" in page.read().lower()
    with urllib.request.urlopen(
        f"{link[1]}/api/2.0/mlflow/experiments/get?experiment_id={link[3]}", timeout=60
    ) as each:
        assert json.loads(each.read())["experiment"]["name"] == "dux-tiny"
    servers = descendants(command.process.pid)
    assert servers
    os.kill(command.process.pid, by)
    wait_for(lambda: not command.running, "the end", 60)
    stopped = "dux: interrupted; no server is left running; run the same command to start one again\n"
    assert (command.process.returncode, command.err) == (130, stopped)
    assert not [pid for pid in servers if alive(pid)]


def test_ui_needs_a_study(tmp_path: Path, dux: Callable[..., Said]) -> None:
    code, _, err = dux("ui", "--home", tmp_path)
    assert code == 2
    assert err.startswith("dux: a study must exist to be shown, but there is none yet in")


# --- progress ---------------------------------------------------------------------------------------------------------

AXES = [Axis("accuracy", "max", "linear", 0.0, 1.0), Axis("parameters", "min", "log", 1e6, 1.0)]


def standing_of(*outcomes: Outcome) -> Standing:
    """Of 24 trials those that ended so; the complete ones are all on the front, the first the most accurate."""
    standing = Standing({"accuracy": "max", "parameters": "min"}, {}, 24, 1, Path("trials"))
    standing.measure_by(AXES)
    for trial, outcome in enumerate(outcomes):
        measured = (
            {"accuracy": 0.975 / (1 + trial), "parameters": 12345.0 / (1 + trial)} if outcome == "complete" else {}
        )
        standing.add(Line(trial, trial, outcome, Recipe(), measured, "", 1.0, None, {}))
    return standing


RUNNING = Progress("trials", standing_of("complete", "complete", "failed", "stopped", "stopped", "stopped"), 2, 75.0)


def test_progress_says_how_the_study_stands() -> None:
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(drawn("tiny", RUNNING, 3700.0))
    (bar, actual) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert re.match(r"tiny\s+\S+.*6/24 trials\s+2 running, 1 failed, 3 stopped\s+1:01:40 elapsed, 1:15 left\s*$", bar)
    # of the area, 0.975 high as far as 12,345 parameters, and half of that to 6,172
    sizes = [math.log(1e6 / parameters) / math.log(1e6) for parameters in (12345.0, 12345.0 / 2)]
    volume = 0.975 * sizes[0] + 0.975 / 2 * (sizes[1] - sizes[0])
    assert actual.strip() == f"front of 2, hypervolume {volume:.4f}; best accuracy 0.9750, parameters 12,345"


def test_progress_before_the_first_trial_says_what_goes_on() -> None:
    early = Progress("training the teacher: epoch 3 of 30", standing_of(), 0, None)
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(drawn("tiny", early, 5.0))
    bar, phase = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "0/24 trials" in bar
    assert bar.rstrip().endswith("0 running  0:05 elapsed")
    assert phase.strip() == "training the teacher: epoch 3 of 30 …"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.4, "0:00"), (59.6, "1:00"), (75.0, "1:15"), (4000.0, "1:06:40"), (-3.0, "0:00")],
)
def test_durations_read_like_a_clock(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_terminal_shows_progress_in_place_and_a_file_shows_none() -> None:
    terminal = Console(file=StringIO(), width=120, force_terminal=True)
    file = Console(file=StringIO(), width=120)
    for console in (terminal, file):
        with Terminal(console, "tiny") as display:
            display.show(RUNNING)
    assert "6/24 trials" in terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[" in terminal.file.getvalue()  # type: ignore[attr-defined]
    assert file.file.getvalue() == ""  # type: ignore[attr-defined]


# --- start ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["spaces", "trainers", "search"])
def test_a_package_that_shadows_ours_is_told_in_one_line_and_not_run(package: str, tmp_path: Path) -> None:
    foreign = tmp_path / "elsewhere" / package
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("raise RuntimeError('foreign code was run')")
    done = subprocess.run(
        [sys.executable, "-m", "dux", "methods"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(tmp_path / "elsewhere")},
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"dux: package `{package}` must be Dux's own, but {foreign / '__init__.py'} shadows")
    assert done.stderr.endswith("take it off PYTHONPATH, or install Dux into an environment of its own\n")
    assert done.stderr.count("\n") == 1


def test_dux_runs_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dux", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout
