"""Why a worker process died, in words: by which signal, and for lack of memory only if that is known.

Ray says that the process is gone and guesses at three reasons. More can be learned from the process's last output, in
the file to which Ray writes its standard error: a handler names the signal of a crash there. SIGKILL leaves no output;
the kernel's count of out-of-memory kills shows whether it sent one.
"""

import re
from contextlib import suppress
from pathlib import Path

_TAIL = 100_000
_LESS = "lower search.concurrent, or take smaller batches or students"


def why_died(error: str, words: str, kernel_killed: bool | None) -> str:
    """Why a worker process died, in one line.

    Args:
        error: Ray's error message.
        words: the end of the process's standard error.
        kernel_killed: whether the kernel has killed for lack of memory since the trial began; None if unknown.
    """
    if "running low on memory" in error:
        return f"the worker process was ended by Ray, because the machine was running out of memory: {_LESS}"
    if crashed := re.search(r"\*\*\* (SIG[A-Z]+) received", words):
        if "bad_alloc" in words:
            return f"the worker process died by {crashed[1]}: it could not allocate memory (bad_alloc); {_LESS}"
        return f"the worker process crashed ({crashed[1]}) in compiled code{_where(words)}"
    if "SIGTERM" in error:
        return "the worker process was terminated (SIGTERM) by another process"
    if "creation task" in error:
        return f"the worker process could not start: {' '.join(error.strip().splitlines()[-1].split())[:200]}"
    if status := re.search(r"exit code (\d+)", error):
        return f"the worker process exited, with exit code {status[1]}"
    if kernel_killed:
        return f"the worker process was killed (SIGKILL) by the system for lack of memory: {_LESS}"
    if kernel_killed is None:
        return (
            "the worker process was killed (SIGKILL) by another process, or by the system for lack of memory; in that "
            f"case {_LESS}"
        )
    return "the worker process was killed (SIGKILL) by another process, or exited; the system did not lack memory"


def _where(words: str) -> str:
    """The topmost line of Python in a crash's stack."""
    place = re.search(r'^  File ".*?([^/"]+/[^/"]+)", line (\d+) in', words, re.MULTILINE)
    return f", called at {place[1]}:{place[2]}" if place else ""


def last_words(logs: Path, pid: int) -> str:
    """The end of a worker process's standard error, from Ray's log folder on its machine."""
    for file in logs.glob(f"worker-*-{pid}.err"):
        with suppress(OSError):
            return file.read_bytes()[-_TAIL:].decode(errors="replace")
    return ""
