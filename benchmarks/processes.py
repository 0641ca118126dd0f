"""The `dux` command in processes of its own, which can be interrupted and killed; for benchmarks and tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType

Ended = subprocess.CompletedProcess[str]

TASK = """
task:
  dataset: digits
  augment: none
  train_limit: 200
  teacher: {family: resnet, depth: 8, width: 0.25, epochs: 2, batch_size: 16}
"""
"""200 digits and a teacher that is trained in a second, for study files."""


def environment() -> dict[str, str]:
    """Of a subprocess: one thread, as the tests have, and no store but the home it is given."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DUX_", "MLFLOW_"))}
    # Ray's workers are nice to others by default, and starve beside the tests' own processes on two cores
    return {**kept, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}


def descendants(pid: int) -> set[int]:
    """The processes under `pid`, itself not included."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parent = {int(line.split()[0]): int(line.split()[1]) for line in listed.splitlines()}
    below: set[int] = set()
    while more := {child for child, of in parent.items() if of in below | {pid}} - below:
        below |= more
    return below


def alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(listed.strip()) and not listed.strip().startswith("Z")


class Command:
    """A `dux` command in a process of its own, which Ctrl-C and kills can be sent to.

    It leads a process group, as what a shell starts in the foreground does: Ctrl-C reaches all of the group; or it
    ignores Ctrl-C, as what a shell's script starts with `&` does.

    Args:
        folder: where it runs, and where its output is kept.
        arguments: of the command.
        program: what Python runs; a script of a test's own in place of the command.
        settings: more environment variables.
        in_background: whether it ignores Ctrl-C.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        program: Sequence[str] = ("-m", "dux"),
        settings: Mapping[str, str] = MappingProxyType({}),
        in_background: bool = False,
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
                # as a terminal has it; tests that were started in the background would pass on that it is ignored
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN if in_background else signal.SIG_DFL),
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


def run(*arguments: str, folder: Path, program: Sequence[str] = ("-m", "dux")) -> Ended:
    """A `dux` command in a subprocess, its output in pipes; `program`: what Python runs in place of it."""
    return subprocess.run(
        [sys.executable, *program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=550,
        check=False,
    )
