"""A study in several sessions: killed, interrupted at any moment, gone on with; nothing lost, nothing twice."""

import re
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from processes import TASK, Command, Ended, descendants, run
from running import HERE, Said, but_waiting, ended, result, resume_here, runs, trial_runs, wait_for

from search.ledger.lines import Line
from search.study import Study

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"), pytest.mark.timeout(1200)]


CUT = f"""
name: cut
{TASK}
space:
  student.width: {{low: 0.125, high: 0.5}}
  transfer: [none, kd]
  kd.temperature: {{low: 1.0, high: 8.0}}
  pruning.fraction: {{low: 0.0, high: 0.9}}
  pruning.fine_tune_epochs: 1
  training.epochs: 20
  training.batch_size: 16
  training.learning_rate: [0.1, 0.05, 1.0e+15]  # a third diverges, and the others go on
search: {{trials: 12, concurrent: 2, curve: false}}
"""
FULL = f"""
name: full
{TASK}
space: {{student.width: [0.125, 0.25, 0.5], training.epochs: 20, training.batch_size: 16}}
search: {{trials: 3, concurrent: 2, curve: false}}
"""


@dataclass(frozen=True)
class Session:
    """How one process that worked on the study ended, and what the ledger had then."""

    code: int | None
    """None for the last, which is in the tests' own process."""
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
        wait_for(lambda: study.files.at_work, "the second session")
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

        said = resume_here(study)
        ended = Session(None, "", said, 0.0, study.lines(), students())
        yield Story(study, killed, stopped, stopped_twice, ended, second_driver)
    finally:
        for command in commands:
            if command.running:
                command.kill()


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
    assert story.stopped.err.startswith(f"dux: stopped after {done} of 12 trials; `dux resume cut --home ")
    assert story.stopped.err.endswith("` continues\n")
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
        "dux: only one process may run a study at a time, but another is running 'cut'; "
        f"`dux status cut --home {story.study.home}` shows it\n"
    )


def test_the_resumed_study_ends_with_the_trials_asked_for_each_once(story: Story) -> None:
    assert but_waiting(story.ended.err) == ""
    lines = ended(story.ended.lines)
    assert len(lines) == 12
    assert len({line.recipe for line in lines}) == 12  # continuous, so two are equal only if one was repeated
    assert {line.outcome for line in story.ended.lines} == {"complete", "failed", "interrupted"}
    assert story.ended.students == {line.trial for line in lines if line.outcome == "complete"}


def test_what_was_cut_short_was_carried_out_later_once(story: Story) -> None:
    count = Counter(line.recipe for line in ended(story.ended.lines))
    cut_short = {line.recipe for line in story.ended.lines if line.outcome == "interrupted" and line.recipe is not None}
    assert cut_short
    assert {count[recipe] for recipe in cut_short} == {1}


def test_a_study_goes_on_when_some_of_its_trials_fail(story: Story) -> None:
    failed = [line for line in story.ended.lines if line.outcome == "failed"]
    assert 0 < len(failed) < 12
    for line in failed:
        assert line.recipe is not None
        assert line.recipe.training.learning_rate == 1e15
        assert line.reason.startswith("Diverged: ")
        assert "Traceback" in (story.study.files.trial(line.trial) / "error.txt").read_text()
    trials = {entry.trial for entry in story.study.front().entries}
    assert trials == {line.trial for line in story.ended.lines if line.outcome == "complete"}


def test_mlflow_has_every_ended_trial_once_and_none_that_seems_to_run(story: Story) -> None:
    actual = trial_runs(story.study)
    status = {"complete": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
    lines = {line.trial: line for line in story.ended.lines}
    assert {line.trial for line in ended(story.ended.lines)} <= set(actual)
    for trial, its_run in actual.items():
        assert its_run.info.status == status[lines[trial].outcome]
        measured = lines[trial].measurements
        assert {name: its_run.data.metrics[name] for name in measured} == measured
    (parent,) = (run for run in runs(story.study) if run.data.tags["dux.role"] == "study")
    assert parent.info.status == "FINISHED"
    assert not (story.study.folder / "spool.refused.jsonl").exists()


@pytest.mark.parametrize("in_background", [False, True])
def test_ctrl_c_or_sigterm_while_the_teacher_is_trained_can_be_resumed_too(
    in_background: bool, tmp_path: Path, start: Callable[..., Command], dux: Callable[..., Said]
) -> None:
    (tmp_path / "study.yaml").write_text(f"name: early\n{TASK.replace('epochs: 2', 'epochs: 100000')}\nspace: {{}}")
    home = tmp_path / "home"
    command = start("search", str(tmp_path / "study.yaml"), "--home", str(home), in_background=in_background)
    wait_for(lambda: (home / "teachers").is_dir() or not command.running, "the teacher's training")
    code, _, err = dux("resume", "early", "--home", home)
    assert (code, "another is running 'early'" in err) == (2, True)
    assert dux("status", "early", "--home", home)[1].startswith("early: running; 0/24 trials done")
    if in_background:
        command.process.terminate()
    else:
        command.interrupt()
    wait_for(lambda: not command.running, "the end", 60)
    assert command.process.returncode == 130
    resume = f"`dux resume early --home {home}`"
    assert (command.out, command.err) == ("", f"dux: stopped before the first trial; {resume} continues\n")
    assert dux("status", "early", "--home", home)[1].startswith("early: interrupted; 0/24 trials done")
    code, out, err = dux("front", "early", "--home", home)
    assert (code, out) == (2, "")
    assert "must have a teacher before it has a front" in err


STOPPED = f"""
name: halved
{TASK}
space:
  student.width: [0.125, 0.25]
  transfer: none
  training.epochs: 9
  training.batch_size: 16
  training.learning_rate: [0.1, 0.05, 1.0e-6, 2.0e-6, 3.0e-6]  # the last three learn nothing: others beat them
  seed: {{low: 0, high: 1000}}
constraints: {{latency_ms: {{max: 10000}}}}
search: {{trials: 14, concurrent: 2, sampler: random, stopping: pareto, min_epochs: 2, reduction: 2, seed: 1}}
"""


def test_a_killed_study_with_early_stopping_goes_on_and_stops_only_what_others_beat(
    tmp_path: Path, start: Callable[..., Command], dux_here: Callable[..., Said]
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
    code, _, err = dux_here("resume", "halved", "--home", home)
    assert (code, but_waiting(err)) == (0, "")

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
        assert not study.files.trial(line.trial).exists()
    assert {entry.trial for entry in study.front().entries} == {line.trial for line in complete}

    state, _, listed = dux_here("status", "halved", "--home", home)[1].partition("\n")
    assert state.startswith(
        f"halved: finished; 14/14 trials done, 0 of them failed, {len(stopped)} stopped early; front"
    )
    for line in stopped:
        assert re.search(rf"^  stopped after {line.stopped_at} epochs: (.*, )?{line.trial}(, |$)", listed, re.MULTILINE)
    runs = trial_runs(study)
    client = MlflowClient(tracking_uri=study.files.tracking_uri)
    for line in stopped:
        assert runs[line.trial].info.status == "KILLED"
        assert runs[line.trial].data.tags["dux.stopped_at"] == str(line.stopped_at)
        assert "accuracy" not in runs[line.trial].data.metrics
        history = client.get_metric_history(runs[line.trial].info.run_id, "epoch.accuracy")
        assert len(history) == line.stopped_at
    assert {runs[line.trial].info.status for line in complete} == {"FINISHED"}


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
        r"dux: stopped (before the first trial|after 0 of 24 trials); `dux resume .*` continues\n", command.err
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
    resume = f"`dux resume rayless --home {home}` continues"
    assert command.err.startswith("dux: stopped after 0 of 24 trials, because Ray did not start ([Errno 20] ")
    assert command.err.endswith(f"; {resume}\n")
    assert command.err.count("\n") == 1
    assert dux("status", "rayless", "--home", home)[1].startswith("rayless: interrupted; 0/24 trials done")


def test_a_study_that_finds_no_room_ends_in_one_line_and_goes_on_when_there_is_some(
    tmp_path: Path, start: Callable[..., Command], dux_here: Callable[..., Said]
) -> None:
    (tmp_path / "study.yaml").write_text(FULL)
    home = tmp_path / "home"
    told = home / "studies/full/spool.jsonl"
    command = start("search", str(tmp_path / "study.yaml"), "--home", str(home), program=HERE)
    wait_for(lambda: (told.exists() and "trial_started" in told.read_text()) or not command.running, "a trial")
    # as on a full disk
    resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    wait_for(lambda: not command.running, "the end of the session", 60)
    assert (command.process.returncode, command.out) == (1, "")
    assert re.fullmatch(
        r"dux: the ledger's database has stopped working \([^\n]+\); "
        r"`dux resume full --home [^\n]+` continues once it works\n",
        command.err,
    ), command.err
    code, _, err = dux_here("resume", "full", "--home", home)
    assert code == 0, err
    study = Study.open("full", home)
    assert sorted(line.outcome for line in study.lines() if line.counts) == ["complete"] * 3
    assert {*trial_runs(study)} >= {line.trial for line in study.lines() if line.counts}
