"""A study in several sessions: killed, interrupted at any moment, gone on with; nothing lost, nothing twice."""

import re
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kills import named
from processes import TASK, Command, alive, descendants
from running import HERE, Said, but_waiting, ended, result, resume_here, runs, trial_runs, wait_for

from search.ledger.lines import Line
from search.study import Study
from spaces import BadInput

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
  training.epochs: 12
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
    left: list[str]
    """What of the killed session's Ray was still there after 15 s."""
    stopped: Session
    stopped_twice: Session
    ended: Session
    refusal: str
    """What another process was told that would resume the study while the second session was at work."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Path]) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("cut")
    file, home = folder / "cut.yaml", new_home(folder)
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
        of_ray = named(descendants(command.process.pid))
        signalled = time.monotonic()
        command.process.kill()
        killed = session(command, signalled)
        deadline = time.monotonic() + 15.0
        while any(map(alive, of_ray)) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = [called for pid, called in of_ray.items() if alive(pid)]

        command = begin("resume", "cut")
        wait_for(lambda: study.files.at_work, "the second session")
        with pytest.raises(BadInput) as refused:
            study.resume(backend="local")  # while the other one's Ray starts
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
        yield Story(study, killed, left, stopped, stopped_twice, ended, str(refused.value))
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


def test_a_killed_studys_ray_ends_with_it(story: Story) -> None:
    assert story.left == []


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
    assert story.refusal == (
        "only one process may run a study at a time, but another is running 'cut'; "
        f"`dux status cut --home {story.study.home}` shows it"
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


def test_a_study_that_finds_no_room_ends_in_one_line_and_goes_on_when_there_is_some(
    tmp_path: Path, home: Path, start: Callable[..., Command], dux_here: Callable[..., Said]
) -> None:
    (tmp_path / "study.yaml").write_text(FULL)
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
