"""Ways to run the `dux` command, and the tiny study that most tests look at.

Ray is never started in the tests' own process: every study that runs does so in a subprocess of its own.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from search.mlflow_view import Server, serve
from search.study import Study

TASK = """
task:
  dataset: digits
  augment: none
  train_limit: 200
  teacher: {family: resnet, depth: 8, width: 0.25, epochs: 2, batch_size: 16}
"""
"""200 digits and a teacher that is trained in a second."""

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

Ended = subprocess.CompletedProcess[str]


def environment() -> dict[str, str]:
    """Of a subprocess: one thread, as the tests have, and no store but the home it is given."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DUX_", "MLFLOW_"))}
    # Ray's workers are nice to others by default, and starve beside the tests' own processes on two cores
    return {**kept, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}


def descendants(pid: int) -> set[int]:
    """The processes under `pid`, itself not included."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parent = {int(line.split()[0]): int(line.split()[1]) for line in listed.splitlines()}
    found: set[int] = set()
    while more := {child for child, of in parent.items() if of in found | {pid}} - found:
        found |= more
    return found


def alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(listed.strip()) and not listed.strip().startswith("Z")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
    """Return once the condition holds; fail where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
        time.sleep(0.1)


class Command:
    """A `dux` command in a process of its own, which Ctrl-C and kills can be sent to.

    It leads a process group, as what a shell starts in the foreground does: Ctrl-C reaches all of the group.

    Args:
        folder: where it runs, and where its output is kept.
        arguments: of the command.
        program: what Python runs; a script of a test's own in place of the command.
        settings: more environment variables.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        program: Sequence[str] = ("-m", "dux"),
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=environment() | settings,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def interrupt(self) -> None:
        """Ctrl-C."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL for the process, then for those it had started, each by its id, if they do not end by themselves."""
        children = descendants(self.process.pid)
        if self.running:
            self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 5.0
        while (children := {pid for pid in children if alive(pid)}) and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run(*arguments: str, folder: Path) -> Ended:
    """A `dux` command in a subprocess, its output in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "dux", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=550,
        check=False,
    )


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
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait()

    def start(self) -> None:
        self.server = serve(self.store, int(self.url.rpartition(":")[2]))


Said = tuple[int, str, str]
"""Exit code, standard output, standard error."""
