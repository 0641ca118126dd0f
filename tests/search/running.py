"""The tiny study that most tests look at.

Ray is never started in the tests' own process: every study that runs does so in a subprocess of its own.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processes import TASK, Ended

from search.mlflow_view import Server, serve
from search.study import Study

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

    def __init__(self, folder: Path) -> None:
        self.store = f"sqlite:///{folder / 'mlflow.db'}"
        self.server: Server = serve(self.store)
        self.empty = shutil.copy(folder / "mlflow.db", folder / "empty.db")
        """A store with its tables and nothing else; making the tables takes MLflow seconds."""

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
