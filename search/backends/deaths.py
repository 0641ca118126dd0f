"""Why a worker process died, in words: by which signal, and for want of memory only where that is known.

Ray says that the process is gone and guesses at three reasons. What is known beyond that is in the process's own last
words, in the file that Ray keeps of its standard error: a handler there names the signal of a crash. SIGKILL leaves no
words; whether the kernel sent it for want of memory, its own count of such kills tells.
"""

import re
from contextlib import suppress
from pathlib import Path

_TAIL = 100_000
_LESS = "lower search.concurrent, or take smaller batches or students"


def why_died(error: str, words: str, kernel_killed: bool | None) -> str:
    """What is told of a worker process that died, in one line.

    Args:
        error: what Ray says.
        words: the end of what the process wrote to its standard error.
        kernel_killed: whether the kernel has killed for want of memory since the trial began; None where nobody knows.
    """
    if "running low on memory" in error:
        return f"the worker process was ended by Ray, since the machine was running out of memory: {_LESS}"
    if crashed := re.search(r"\*\*\* (SIG[A-Z]+) received", words):
        if "bad_alloc" in words:
            return f"the worker process died by {crashed[1]}: it wanted memory that there was not (bad_alloc); {_LESS}"
        return f"the worker process crashed ({crashed[1]}) in compiled code{_where(words)}"
    if "SIGTERM" in error:
        return "the worker process was ended (SIGTERM) by somebody"
    if "creation task" in error:
        return f"the worker process could not start: {' '.join(error.strip().splitlines()[-1].split())[:200]}"
    if status := re.search(r"exit code (\d+)", error):
        return f"the worker process ended itself, with exit code {status[1]}"
    if kernel_killed:
        return f"the worker process was killed (SIGKILL) by the system for want of memory: {_LESS}"
    if kernel_killed is None:
        return (
            f"the worker process was killed (SIGKILL): by somebody, or by the system for want of memory; then {_LESS}"
        )
    return "the worker process was killed (SIGKILL) by somebody, or ended itself; the system did not lack memory"


def _where(words: str) -> str:
    """The line of Python that a crash's stack begins with."""
    place = re.search(r'^  File ".*?([^/"]+/[^/"]+)", line (\d+) in', words, re.MULTILINE)
    return f", called at {place[1]}:{place[2]}" if place else ""


def last_words(logs: Path, pid: int) -> str:
    """The end of what a worker process wrote to its standard error, by Ray's folder of logs on its machine."""
    for file in logs.glob(f"worker-*-{pid}.err"):
        with suppress(OSError):
            return file.read_bytes()[-_TAIL:].decode(errors="replace")
    return ""
