"""The tiny study that most tests look at, and what they ask of any.

Ray is never started in the tests' own process: every study that runs on it does so in a subprocess of its own.
"""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from processes import TASK, Ended

from search.ledger.lines import Line
from search.study import Study
from search.study_file import StudyFile
from search.tracking.mlflow_view import Server, serve

HERE = (str(Path(__file__).parent / "here.py"),)
"""What Python runs for the `dux` command whose studies need no Ray."""

TINY = f"""
name: tiny
{TASK}
space:
  student.width: {{low: 0.125, high: 0.5, step: 0.125}}
  transfer: [none, kd, factor]
  kd.temperature: {{low: 1.0, high: 8.0}}
  factor.rate: [0.5, 1.0]
  factor.paraphraser_steps: 400  # enough for this teacher; 200 are not
  pruning.fraction: {{low: 0.0, high: 0.9}}
  pruning.fine_tune_epochs: 1
  training.epochs: 2
  training.batch_size: 16
search: {{trials: 6, concurrent: 2, sampler: tpe, seed: 0, curve: false}}
"""


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
    """Return once the condition holds; fail where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
        time.sleep(0.1)


def but_waiting(err: str) -> str:
    """What a study said on standard error, but for waiting for MLflow, of which a slow machine makes it speak."""
    return "".join(line for line in err.splitlines(True) if not line.startswith("dux: waiting at most "))


def runs(study: Study) -> list[Run]:
    """Every run of the study's experiment."""
    client = MlflowClient(tracking_uri=study.files.tracking_uri)
    experiment = client.get_experiment_by_name(f"dux-{study.name}")
    runs: list[Run] = client.search_runs([experiment.experiment_id])
    return runs


def trial_runs(study: Study) -> dict[int, Run]:
    """Trial -> its run; fails where a trial has two."""
    of_trials = [run for run in runs(study) if run.data.tags["dux.role"] == "trial"]
    trials = [int(run.data.tags["dux.trial"]) for run in of_trials]
    assert len(set(trials)) == len(trials)
    return dict(zip(trials, of_trials, strict=True))


def search_here(text: str, home: Path) -> Study:
    """Carry out the study of a file, which is put beside its home, in this process."""
    file = home.parent / "study.yaml"
    file.write_text(text)
    study = Study(StudyFile.read(file), home)
    study.search(backend="local")
    return study


def resume_here(study: Study) -> str:
    """Carry the study out to its end, in this process; what was said on standard error."""
    with redirect_stderr(StringIO()) as said:
        study.resume(backend="local")
    return said.getvalue()


def result(study: Study, trial: int) -> dict[str, Any]:
    """What the trial left of its measurements."""
    content: dict[str, Any] = json.loads((study.files.trial(trial) / "result.json").read_text())
    return content


def ended(lines: list[Line]) -> list[Line]:
    """Those of trials that are over."""
    return [line for line in lines if line.ended]


@dataclass(frozen=True)
class Finished:
    """The tiny study after its end. To be read only: every test shares it."""

    home: Path
    file: Path
    done: Ended
    """What the command printed, and its exit code."""

    @property
    def study(self) -> Study:
        return Study.open("tiny", self.home)


class Stand:
    """A SQLite store and a server on it that a test may kill and start again at the same address."""

    def __init__(self, folder: Path, empty_store: Path) -> None:
        self.store = f"sqlite:///{shutil.copy(empty_store, folder)}"
        self.server: Server = serve(self.store)

    @property
    def url(self) -> str:
        return self.server.url

    def kill(self) -> None:
        self.server.guard.close()
        self.server.process.wait()

    def start(self) -> None:
        self.server = serve(self.store, int(self.url.rpartition(":")[2]))


Said = tuple[int, str, str]
"""Exit code, standard output, standard error."""
