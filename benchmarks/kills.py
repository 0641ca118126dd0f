"""Studies killed at random moments and resumed: is every trial there exactly once? Writes docs/kills.md.

    python benchmarks/kills.py                 # half an hour on two cores; continues where it was interrupted
    python benchmarks/kills.py --minutes 10    # no new study after that
    python benchmarks/kills.py --quick         # two studies; writes no document
    python benchmarks/kills.py --table         # only writes the document, from existing results

Each study is small, real and killed seven times by SIGKILL: its driver, a worker process, Ray's daemon, server (GCS)
or agents, all of them, or all of them with the end of the newest file cut off, as by a power failure. Each time
`dux resume` continues it, in the end to completion. Then ledger, MLflow, files and front are compared with each other.
The test suite does the same on a smaller scale.
"""

import json
import math
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from common import ROOT, Line, arguments, commit, hardware, mean, read
from mlflow import MlflowClient
from mlflow.entities import Run
from processes import TASK, Command, alive, descendants, run

from search.ledger.lines import CurvePoint
from search.ledger.lines import Line as Trial
from search.study import Study
from trainers import load_student
from trainers.checkpoint import described
from trainers.measure import predictions, quality

DOCUMENT = ROOT / "docs" / "kills.md"
ROUNDS = 12
SOON_S = 15.0
"""After which a driver has ended whose Ray was killed."""

Kind = Literal["driver", "worker", "raylet", "gcs", "agents", "everything", "power"]
KINDS: Mapping[Kind, str] = {
    "driver": "the driver",
    "worker": "a worker process",
    "raylet": "Ray's daemon on the machine",
    "gcs": "Ray's server (GCS)",
    "agents": "Ray's agents",
    "everything": "driver, daemons and workers at once",
    "power": "all of these, and the newest file truncated",
}

SEARCH = "concurrent: 2, retries: 9, checkpoint_seconds: 0"
STUDIES: Mapping[str, str] = {
    "curves": f"""
{TASK}
space:
  student.width: {{low: 0.125, high: 0.5}}
  transfer: [none, kd, crd]
  kd.temperature: {{low: 1.0, high: 8.0}}
  crd.negatives: 64
  pruning.fraction: [0.3, 0.6]
  pruning.fine_tune_epochs: 2
  training.epochs: 14
  training.batch_size: 16
search: {{trials: 8, sampler: tpe, {SEARCH}}}
""",
    "stopped": f"""
{TASK}
space:
  student.width: [0.125, 0.25]
  transfer: [none, ab]
  training.epochs: 16
  training.batch_size: 16
  training.learning_rate: [0.1, 0.05, 1.0e-6, 2.0e-6]  # the last two learn nothing: others beat them
  pruning.fraction: [0.3, 0.6]
  pruning.fine_tune_epochs: 0
  seed: {{low: 0, high: 100000}}
search: {{trials: 10, sampler: random, stopping: pareto, min_epochs: 3, reduction: 2, {SEARCH}}}
""",
    "grid": f"""
{TASK}
space:
  student.width: [0.125, 0.25, 0.375]
  transfer: [none, factor, dkd]
  factor.paraphraser_steps: 400  # enough for this teacher; 200 are not
  factor.rate: 1.0
  training.epochs: 14
  training.batch_size: 16
search: {{trials: 9, sampler: grid, {SEARCH}}}
""",
}
"""Studies of trials that take seconds, by name; what they search is the rest of a study file."""


RAYS: Mapping[Kind, Callable[[str], bool]] = {
    "raylet": lambda called: called.split()[0].endswith("/raylet"),
    "gcs": lambda called: called.split()[0].endswith("/gcs_server"),
    "agents": lambda called: "DashboardAgent" in called or "RuntimeEnvAgent" in called,
}
"""Ray's own processes on the machine, by their command lines."""


@dataclass
class Kill:
    """One kill: what was there when it came, and what became of that."""

    kind: Kind
    moment: str
    ended: list[int]
    """Trials that the ledger knew had ended."""
    open: dict[int, tuple[int, int, int]]
    """Trials that it cut short -> the first of their recipe, epochs reported, epochs in a whole checkpoint."""
    torn: str = ""
    """The file that was cut, and to how many bytes."""
    lost: int = 0
    doubled: int = 0
    resumed: int = 0
    """Of the trials cut short: went on from a checkpoint."""
    epochs_twice: int = 0
    ended_s: float | None = None
    """Where the driver was to notice it: after how long it had ended."""


@dataclass
class Round:
    """One study, killed and resumed to its end."""

    study: Study
    kills: list[Kill] = field(default_factory=list)
    sessions: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    """What is not as it must be; nothing, if all is well."""


def carry_out(name: str, kinds: Sequence[Kind], seed: int, folder: Path) -> Round:
    """Run a study of STUDIES in an empty folder, kill it as often as there are kinds, resume it to its end, look at it.

    Args:
        name: in STUDIES.
        kinds: what is killed, in this order; none, where the study is done before.
        seed: of the moments, the victims and the study.
        folder: for the home and what the commands print.
    """
    began, draw, left = time.monotonic(), random.Random(seed), list(kinds)
    text = STUDIES[name].replace("search: {", f"search: {{seed: {seed}, ")
    (folder / "study.yaml").write_text(f"name: {name}{text}")
    home = folder / "home"
    command = Command(folder, "search", str(folder / "study.yaml"), "--home", str(home))
    try:
        while not (home / "studies" / name / "study.json").exists() and command.running:
            time.sleep(0.05)
        round = Round(Study.open(name, home))
        while True:
            round.sessions += 1
            while left and command.running:
                if kill := _kill(round.study, command, left[0], draw, last=len(left) == 1):
                    round.kills.append(kill)
                    left.pop(0)
            code = command.process.wait(600)
            if code == 0:
                break
            foreign = [line for line in command.err.split("\n") if line and not line.startswith("dux: ")]
            if code not in (130, -signal.SIGKILL) or command.out or foreign:
                said = (command.out + command.err).strip()[-500:]
                round.faults.append(f"session {round.sessions} ended with {code}: {said}")
            if round.kills and (round.kills[-1].ended_s or 0.0) > SOON_S:
                round.faults.append(f"session {round.sessions} ended after {round.kills[-1].ended_s:.0f} s")
            if round.sessions > 2 * len(kinds) + 2:
                round.faults.append("the study does not come to its end")
                return round
            command = Command(folder, "resume", name, "--home", str(home))
    finally:
        command.kill()
    round.faults += faults(round.study, any(kill.torn.startswith("spool.jsonl") for kill in round.kills))
    round.faults += _settled(round)
    round.faults += _resumed_again(round.study, folder)
    round.seconds = time.monotonic() - began
    return round


def _kill(study: Study, command: Command, kind: Kind, draw: random.Random, *, last: bool) -> Kill | None:
    """Wait for a moment, kill, and see what that left; None where the study was done before."""
    told = len(_told(study))
    if last and draw.random() < 0.3 and kind != "worker":
        pause, moment = draw.uniform(0.0, 1.0), "while the front is written"
        front = "front_members"
        _wait(lambda: front in {e["event"] for e in _told(study)[told:]} or not command.running, "the front")
    elif draw.random() < 0.2 and kind != "worker":
        pause = draw.uniform(0.0, 12.0)
        moment = f"{pause:.1f} s after the session's start, or the last kill"
    else:  # while trials run, somewhere between this event and one of the next
        events, pause = draw.randint(1, 16), draw.uniform(0.0, 0.5)
        _wait(lambda: len(_told(study)) >= told + events or not command.running, "trials to kill")
        moment = f"{pause:.1f} s after {events} events more"
    deadline = time.monotonic() + pause
    while time.monotonic() < deadline and command.running:
        time.sleep(0.02)
    # not earlier than the driver has it: the ledger is made by whoever looks first
    running = {line.trial for line in study.lines() if line.outcome == "running"} if _told(study) else set()
    processes = named(descendants(command.process.pid))
    workers = [pid for pid, called in sorted(processes.items()) if called.startswith("ray::ImplicitFunc")]
    victims = [pid for pid, called in processes.items() if kind in RAYS and RAYS[kind](called)]
    ended_s = None
    if kind == "worker":
        if not workers or not command.running:
            return None
        os.kill(draw.choice(workers), signal.SIGKILL)
        return _seen(study, kind, moment, running)
    if not command.running:
        return None
    if kind in RAYS:
        if not victims:
            return None
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        _wait(lambda: not command.running, "the driver to notice")
        ended_s = time.monotonic() - began
    elif kind == "driver":
        command.process.kill()
        command.process.wait()
    else:
        for pid in [command.process.pid, *processes]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        command.process.wait()
    with suppress(TimeoutError):
        _wait(lambda: not any(map(alive, processes)), "what the driver had started", 10.0)
    for pid in filter(alive, processes):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    torn = _tear(study, draw) if kind == "power" else ""
    return replace(_seen(study, kind, moment, running, torn), ended_s=ended_s)


def named(pids: Iterable[int]) -> dict[int, str]:
    """The command lines of processes."""
    listed = subprocess.run(["ps", "-wweo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    commands = {
        int(line.split()[0]): line.split(maxsplit=1)[1] for line in listed.splitlines() if len(line.split()) > 1
    }
    return {pid: commands[pid] for pid in pids if pid in commands}


def _seen(study: Study, kind: Kind, moment: str, running: set[int], torn: str = "") -> Kill:
    """What the kill found; `running`: the trials that ran just before."""
    lines = study.lines()
    steps: dict[int, int] = {line.trial: 0 for line in lines if line.outcome == "running" or line.trial in running}
    for event in _told(study):
        if event["event"] == "trial_reported" and event["trial"] in steps:
            steps[event["trial"]] = event["step"]
    trials = {
        line.trial: (line.root, steps[line.trial], _kept(study, line.root)) for line in lines if line.trial in steps
    }
    return Kill(kind, moment, [line.trial for line in lines if line.counts], trials, torn)


def _told(study: Study) -> list[dict[str, Any]]:
    """The events of the study's spool; a last line may be torn."""
    with suppress(FileNotFoundError):
        text = (study.folder / "spool.jsonl").read_text(errors="replace")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return []


def _kept(study: Study, root: int) -> int:
    """How many epochs a recipe's checkpoint has; 0 without one."""
    with suppress(FileNotFoundError, ValueError, KeyError, safetensors.SafetensorError):
        content = (study.files.checkpoints / f"{root}.safetensors").read_bytes()
        safetensors.torch.load(content)  # raises where it was cut
        return len(described(content)["reports"])
    return 0


def _tear(study: Study, draw: random.Random) -> str:
    """Cut the end off the youngest file that is not on the disk for certain when it has been written.

    Trials' files and the study's own are: they are synchronised before they get their name. A checkpoint is, too, but
    nothing must depend on it. What SQLite writes is SQLite's business.
    """
    files = [study.folder / name for name in ("spool.jsonl", "spool.sent", "runs.json")]
    files += [path for folder in (study.files.checkpoints, study.folder / "ray") for path in folder.rglob("*")]
    there = [path for path in files if path.is_file() and path.stat().st_size]
    if not there:
        return ""
    path = max(there, key=lambda path: path.stat().st_mtime_ns)
    size = draw.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"{path.relative_to(study.folder)} to {size}"


def faults(study: Study, spool_was_torn: bool = False) -> list[str]:
    """What of a finished study is not there exactly once, in ledger, MLflow and files alike, or not as it was measured.

    Args:
        study: that has come to its end.
        spool_was_torn: whether epochs that MLflow had not got by then may be missing there.
    """
    return list(_faults(study, spool_was_torn))


def _faults(study: Study, spool_was_torn: bool) -> Iterator[str]:
    lines = study.lines()
    asked, ended = study.file.trials, [line for line in lines if line.counts]
    if len(ended) != asked:
        yield f"{len(ended)} trials ended, but {asked} were asked for"
    for line in lines:
        if line.outcome == "running":
            yield f"trial {line.trial} seems to run"
    for root, count in Counter(line.root for line in ended).items():
        if count > 1:
            yield f"the recipe of trial {root} ended {count} times"
    finished = {line.root: line.recipe for line in ended}
    for line in lines:
        if line.outcome == "interrupted" and line.recipe is not None and finished.get(line.root) != line.recipe:
            yield f"trial {line.trial} was cut short and its recipe was not carried out"
    for trial, count in Counter(line.kind for line in lines if isinstance(line.kind, CurvePoint)).items():
        if count > 1:
            yield f"point {trial} of a curve is there {count} times"
    for line in lines:
        if line.outcome == "complete":
            yield from _file_faults(study, line)
    if study.files.checkpoints.exists():
        yield f"checkpoints are left: {sorted(path.name for path in study.files.checkpoints.iterdir())}"
    yield from _mlflow_faults(study, lines, spool_was_torn)
    yield from _front_faults(study, lines)


def _file_faults(study: Study, line: Trial) -> Iterator[str]:
    """Of a finished trial, or point of a curve: files that are not whole, or of another student than was measured."""
    folder = study.files.of(line)
    try:
        result = json.loads((folder / "result.json").read_text())
        recipe = json.loads((folder / "recipe.json").read_text())
        network = load_student(folder)
    except (OSError, ValueError) as error:
        yield f"trial {line.trial} has no whole files: {error}"
        return
    if result["measurements"] != line.measurements:
        yield f"trial {line.trial} has {result['measurements']} in its files, {dict(line.measurements)} in the ledger"
    if line.recipe is None or recipe != line.recipe.flat():
        yield f"trial {line.trial} has another recipe in its files than in the ledger"
    validation = study.file.task.load_data().validation
    accuracy = quality(predictions(network, validation), validation.labels)["accuracy"]
    parameters = sum(p.numel() for p in network.parameters())
    if (accuracy, parameters) != (line.measurements["accuracy"], line.measurements["parameters"]):
        yield f"trial {line.trial} has a student of accuracy {accuracy} and {parameters} parameters in its files"


def _runs(study: Study) -> list[Run]:
    client = MlflowClient(tracking_uri=study.files.tracking_uri)
    experiment = client.get_experiment_by_name(f"dux-{study.name}")
    runs: list[Run] = client.search_runs([experiment.experiment_id], max_results=10000)
    return runs


def _mlflow_faults(study: Study, lines: Sequence[Trial], spool_was_torn: bool) -> Iterator[str]:
    status = {
        "complete": ("FINISHED",),
        "stopped": ("KILLED",),
        "failed": ("FAILED",),
        "interrupted": ("KILLED", "FAILED"),
    }
    runs = _runs(study)
    parents = [run.info.status for run in runs if run.data.tags["dux.role"] == "study"]
    if parents != ["FINISHED"]:
        yield f"MLflow has {parents} for the study, and not one finished run"
    by_trial: dict[int, list[Run]] = {}
    for each in runs:
        if each.data.tags["dux.role"] == "trial":
            by_trial.setdefault(int(each.data.tags["dux.trial"]), []).append(each)
    if strangers := by_trial.keys() - {line.trial for line in lines}:
        yield f"MLflow has runs of trials that the ledger does not know: {sorted(strangers)}"
    client = MlflowClient(tracking_uri=study.files.tracking_uri)
    for line in lines:
        own = by_trial.get(line.trial, [])
        if len(own) > 1 or (line.ended and not line.is_point and not own):
            yield f"MLflow has {len(own)} runs of trial {line.trial}"
        for each in own:
            if each.info.status not in status[line.outcome]:
                yield f"trial {line.trial} is {line.outcome} and {each.info.status} in MLflow"
            if {name: each.data.metrics.get(name) for name in line.measurements} != dict(line.measurements):
                yield f"trial {line.trial} was measured otherwise in MLflow"
            if line.outcome == "complete" and not line.is_point:
                history = client.get_metric_history(each.info.run_id, "epoch.accuracy")
                steps = sorted(point.step for point in history)
                whole = list(range(1, len(steps) + 1)) == steps == list(range(1, _epochs(line) + 1))
                if not whole and not (spool_was_torn and len(set(steps)) == len(steps)):
                    yield f"MLflow has the epochs {steps} of trial {line.trial}, which had {_epochs(line)}"


def _epochs(line: Trial) -> int:
    """Of a trial that came to its end."""
    assert line.recipe is not None
    recipe = line.recipe
    pretraining = dict(recipe.options).get("pretraining_epochs", 4 if recipe.transfer == "ab" else 0)
    fine_tuning = recipe.pruning.fine_tune_epochs if recipe.pruning.fraction > 0 else 0
    return int(pretraining) + recipe.training.epochs + fine_tuning


def _front_faults(study: Study, lines: Sequence[Trial]) -> Iterator[str]:
    """The written front against one that is made of the trials' files alone, by comparing all with all."""
    points: dict[int, tuple[float, float]] = {}
    for line in lines:
        file = study.files.of(line) / "result.json"
        if line.outcome == "complete" and file.exists():
            measured = json.loads(file.read_text())["measurements"]
            points[line.trial] = (measured["accuracy"], -measured["parameters"])

    def beaten(trial: int) -> bool:
        a, p = points[trial]
        return any(
            other_a >= a and other_p >= p and ((other_a, other_p) != (a, p) or other < trial)
            for other, (other_a, other_p) in points.items()
        )

    expected = {trial for trial in points if not beaten(trial)}
    written = json.loads((study.folder / "front.json").read_text())
    if {member["trial"] for member in written["members"]} != expected:
        yield f"the front has {[member['trial'] for member in written['members']]} instead of {sorted(expected)}"
    runs = {int(run.data.tags["dux.trial"]): run for run in _runs(study) if run.data.tags["dux.role"] == "trial"}
    if (tagged := {trial for trial, run in runs.items() if run.data.tags["dux.pareto"] == "true"}) != expected:
        yield f"MLflow has {sorted(tagged)} on the front instead of {sorted(expected)}"


def _settled(round: Round) -> Iterator[str]:
    """Say of each kill what became of what it found, and what of that is wrong."""
    lines = {line.trial: line for line in round.study.lines()}
    ends = Counter(line.root for line in lines.values() if line.counts)
    last = {trial: kill for kill in round.kills for trial in kill.open}  # one that ran on was cut short by a later kill
    for kill in round.kills:
        cut_short = {trial for trial in kill.open if last[trial] is kill and lines[trial].outcome == "interrupted"}
        kill.open = {trial: seen for trial, seen in kill.open.items() if trial in cut_short}
        kill.lost = sum(not lines[trial].counts for trial in kill.ended)
        for trial, (root, reported, kept) in kill.open.items():
            kill.lost += ends[root] == 0
            kill.doubled += ends[root] > 1
            kill.epochs_twice += max(0, reported - kept)
            kill.resumed += kept > 0
            later = [line for line in lines.values() if line.root == root and line.trial > trial and not line.is_point]
            following = min(later, key=lambda line: line.trial, default=None)
            if following is not None and following.outcome == "complete":
                result = json.loads((round.study.files.trial(following.trial) / "result.json").read_text())
                if result["resumed_at"] != kept:
                    yield f"trial {following.trial} went on from {result['resumed_at']} epochs, but {kept} were kept"


def _resumed_again(study: Study, folder: Path) -> Iterator[str]:
    """A finished study that is resumed stays as it is, and says so."""

    def state() -> tuple[Any, ...]:
        runs = sorted((run.info.run_id, run.info.status, run.info.end_time) for run in _runs(study))
        return (
            study.lines(),
            runs,
            (study.folder / "front.json").read_bytes(),
            (study.folder / "spool.jsonl").read_bytes(),
        )

    before = state()
    done = run("resume", study.name, "--home", str(study.home), folder=folder)
    if done.returncode or "nothing to resume" not in done.stdout:
        yield f"resumed again it ended with {done.returncode} and said {done.stdout + done.stderr}"
    if state() != before:
        yield "resumed again, the finished study changed"


def _wait(condition: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)


@dataclass(frozen=True)
class Job:
    """One study to be killed."""

    name: str
    kinds: tuple[Kind, ...]
    seed: int

    @property
    def key(self) -> str:
        """In the file of results."""
        return f"{self.name} {self.seed}: {', '.join(self.kinds)}"


def jobs(rounds: int) -> Iterator[Job]:
    """Every kind of kill in every study, in another order each time."""
    for seed in range(rounds):
        kinds = list(KINDS)
        random.Random(seed).shuffle(kinds)
        yield Job(list(STUDIES)[seed % len(STUDIES)], tuple(kinds), seed)


def document(results: Sequence[Line]) -> str:
    """The table, in Markdown."""
    kills = [kill for line in results for kill in line["kills"]]
    rows = []
    for kinds, called in [*(((kind,), called) for kind, called in KINDS.items()), (tuple(KINDS), "all together")]:
        of = [kill for kill in kills if kill["kind"] in kinds]
        sums = [sum(kill[name] for kill in of) for name in ("lost", "doubled", "resumed", "epochs_twice")]
        cut_short = sum(len(kill["open"]) for kill in of)
        longest = max((kill["ended_s"] for kill in of if kill.get("ended_s") is not None), default=None)
        shown = "" if longest is None else f"{longest:.1f}"
        rows.append(f"| {called} | {len(of)} | {cut_short} | {' | '.join(map(str, sums))} | {shown} |")
    # of a traceback, its last line
    faults = [
        f"- {line['key']}: {fault.partition(': ')[0]}: {fault.strip().splitlines()[-1]}"
        for line in results
        for fault in line["faults"]
    ]
    torn = Counter(Path(kill["torn"].partition(" to ")[0]).parts[0] for kill in kills if kill["torn"])
    return "\n".join(
        [
            "# Studies, killed",
            "",
            "Written by `python benchmarks/kills.py`. Small studies, two trials at a time, are killed (SIGKILL) at "
            "random moments and resumed with `dux resume` until they are finished. A trial writes a checkpoint after "
            "every epoch of its training (`search.checkpoint_seconds: 0`). For SIGTERM and SIGINT see "
            "[interrupts.md](interrupts.md).",
            "",
            f"- {len(results)} studies, {sum(line['trials'] for line in results)} trials, {len(kills)} kills, "
            f"{sum(line['sessions'] for line in results)} sessions; "
            f"{mean(line['seconds'] for line in results):.0f} s per study.",
            f"- {hardware(results)}; Ray {version('ray')}, Optuna {version('optuna')}, MLflow {version('mlflow')}; "
            "ledger and MLflow in SQLite.",
            f"- Files truncated: {', '.join(f'{name} {count} times' for name, count in torn.most_common()) or 'none'}.",
            "",
            "| killed | n | cut short | lost | duplicated | continued from a checkpoint | epochs repeated "
            "| ended after, s |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "Cut short: trials created but not finished, including those that no worker had started. Lost: finished "
            "before the kill and different at the end, or cut short and never run. Duplicated: run to the end more "
            "than once. Epochs repeated: reported before the kill and not in the checkpoint, including those of "
            "fine-tuning, which has no checkpoints. Ended after: where only Ray's own processes were killed, the "
            "longest time until the command ended.",
            "",
            "## Faults at the end",
            "",
            "Checked in every study: there are as many trials as were asked for, each recipe once; for each trial "
            "there is one run in MLflow with its state, its measurements and every epoch once; files are whole, and "
            "their student has the ledger's accuracy and parameters; the front is the one that all files together "
            "give; trials continued from exactly what their checkpoint held; sessions ended with code 130, printing "
            "only Dux's own lines, within 15 s; another `dux resume` changes nothing and says so.",
            "",
            *(faults or ["No faults."]),
            "",
        ]
    )


def main() -> None:
    """The command."""
    given = arguments(
        "Studies killed at random moments and resumed.",
        lambda parser: parser.add_argument("--minutes", type=float, default=math.inf, help="begin no study after that"),
    )
    path = given.home / f"kills{'_quick' if given.quick else ''}.jsonl"
    done, began = read(path, "key"), time.monotonic()
    for job in () if given.table else jobs(2 if given.quick else ROUNDS):
        if job.key in done or time.monotonic() - began > 60 * given.minutes:
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            round = carry_out(job.name, job.kinds, job.seed, Path(folder))
            line = {
                "key": job.key,
                "trials": round.study.file.trials,
                "kills": [asdict(kill) for kill in round.kills],
                "sessions": round.sessions,
                "seconds": round.seconds,
                "faults": round.faults,
                "commit": commit(),
            }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"{job.key}: {len(round.kills)} kills, {round.seconds:.0f} s; {round.faults or 'all is well'}", flush=True
        )
    if results := list(read(path, "key").values()):
        text = document(results)
        if not given.quick:
            DOCUMENT.write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
