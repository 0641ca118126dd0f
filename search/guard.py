"""Processes that end with this one, however it ends: after SIGKILL, too, where no `finally` is reached.

A small process of our own waits until this one is gone, and then ends whatever bears the mark that everything started
here inherits in its environment. Ids would not do: Ray's daemon starts others on its own, and an id is given anew.
Asking the kernel (PR_SET_PDEATHSIG) would not, either: it reaches children, and not theirs. This file is both sides:
the module, and the program of that small process, which knows nothing but the standard library.
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
    """Ends the processes that are started with `environment`, at the latest when this process is gone."""

    def __init__(self) -> None:
        # Ray's agents and workers give themselves names, which would be written over what they inherited, mark included
        self.environment: Mapping[str, str] = {_MARK: uuid.uuid4().hex, "SPT_NOENV": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.environment[_MARK]],
            stdin=subprocess.PIPE,  # its end is ours: it closes when we end
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != _MARK},  # it ends by itself
            start_new_session=True,  # Ctrl-C is not for it
        )

    def close(self) -> None:
        """End what is left; safe to call twice."""
        self._process.communicate()


@contextmanager
def children_end_with_us() -> Iterator[None]:
    """What is started inside, by whatever library, ends with this process; what is left at the end, then."""
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
    """The processes that have the mark in their environment, as far as this user may look."""
    marked = set()
    if Path("/proc/self/environ").exists():
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes():  # empty for one that has ended
                    marked.add(int(folder.name))
        return marked
    listed = subprocess.run(["/bin/ps", "-axEww", "-o", "pid=,command="], capture_output=True, check=False).stdout
    for line in listed.splitlines():
        if mark in line:
            marked.add(int(line.split()[0]))
    return marked


def _end(mark: bytes) -> None:
    """Kill all that bear the mark, and those that they were just starting."""
    deadline = time.monotonic() + _PATIENCE_S
    while (marked := _marked(mark)) and time.monotonic() < deadline:
        for pid in marked:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until there is nobody any more who could write
    _end(f"{_MARK}={sys.argv[1]}".encode())
