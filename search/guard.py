"""Processes that end with this one, however it ends, even by SIGKILL, after which no `finally` runs.

A small guard process waits until this one is gone, and then kills every process with the mark that everything started
here inherits in its environment. Process ids would not do: Ray's daemon starts processes of its own, and ids are
reused. Nor would asking the kernel (PR_SET_PDEATHSIG): it reaches children, but not their children. This file is both
the module and the program of the guard process, which uses only the standard library.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_MARK = "DUX_STARTED_BY"
_PATIENCE_S = 10.0


class Guard:
    """Ends the processes started with `environment`, at the latest when this process is gone."""

    def __init__(self) -> None:
        # Ray's agents and workers rename themselves, which would overwrite the inherited environment, mark included
        self.environment: Mapping[str, str] = {_MARK: uuid.uuid4().hex, "SPT_NOENV": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.environment[_MARK]],
            stdin=subprocess.PIPE,  # closes when this process ends
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != _MARK},  # the guard ends by itself
            start_new_session=True,  # out of reach of Ctrl-C
        )

    def close(self) -> None:
        """End the remaining processes; safe to call twice."""
        self._process.communicate()


@contextmanager
def children_end_with_us() -> Iterator[None]:
    """Processes started inside, by whatever library, end with this process, or when the block is left."""
    guard = Guard()
    before = {name: os.environ.get(name) for name in guard.environment}
    os.environ.update(guard.environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        guard.close()


def _marked(mark: bytes) -> set[int]:
    """The processes with the mark in their environment, as far as this user may see."""
    marked = set()
    if Path("/proc/self/environ").exists():
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes():  # empty if it has ended
                    marked.add(int(folder.name))
        return marked
    listed = subprocess.run(["/bin/ps", "-axEww", "-o", "pid=,command="], capture_output=True, check=False).stdout
    for line in listed.splitlines():
        if mark in line:
            marked.add(int(line.split()[0]))
    return marked


def _end(mark: bytes) -> None:
    """Kill all processes with the mark, and those that they were just starting."""
    deadline = time.monotonic() + _PATIENCE_S
    while (marked := _marked(mark)) and time.monotonic() < deadline:
        for pid in marked:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until no process is left that could write
    _end(f"{_MARK}={sys.argv[1]}".encode())
