"""What each command costs before it does anything: CPU seconds and memory. Writes docs/startup.md.

    python benchmarks/startup.py            # a few minutes
    python benchmarks/startup.py --quick    # each command once; writes no document

Each command is run several times, in its own process; CPU seconds and peak resident memory are what the kernel counted
for it and the processes it started.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, arguments, hardware
from processes import TASK, environment, run

DOCUMENT = ROOT / "docs" / "startup.md"
TIMES = 5
STUDY = f"""
name: small
{TASK}
space: {{student.width: [0.125, 0.25], training.epochs: 2}}
search: {{trials: 4, concurrent: 2, sampler: random, seed: 0}}
"""


@dataclass(frozen=True)
class Goal:
    """A command, what it is to end with, and what it may cost."""

    words: tuple[str, ...]
    code: int = 0
    cpu_s: float = 0.4
    memory_mb: float = 60.0

    @property
    def called(self) -> str:
        """As it is typed."""
        return f"dux {' '.join(self.words)}"


GOALS = (
    Goal(("--help",)),
    Goal(("--version",)),
    Goal(("methods",)),
    Goal(("methods", "--json")),
    Goal(("serach",), code=2),
    Goal(("status",), cpu_s=1.2, memory_mb=250.0),
    Goal(("status", "small"), cpu_s=1.2, memory_mb=250.0),
    Goal(("front", "small"), cpu_s=1.2, memory_mb=250.0),
    Goal(("front", "small", "--json"), cpu_s=1.2, memory_mb=250.0),
    Goal(("front", "nobody"), code=2, cpu_s=1.0, memory_mb=250.0),
    Goal(("check", "mistaken.yaml"), code=2, cpu_s=1.0, memory_mb=250.0),
    Goal(("search", "mistaken.yaml"), code=2, cpu_s=1.0, memory_mb=250.0),
)


COUNTS = """
import os, sys
silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "dux", *sys.argv[1:]], os.environ, file_actions=silent)
_, status, used = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss)
"""
"""A small process in between: what is started has, for the kernel, been as large as who started it."""


def measured(goal: Goal, folder: Path) -> tuple[float, float]:
    """CPU seconds and MB of one process of the command, and of what it starts."""
    counted = subprocess.run(
        [sys.executable, "-S", "-c", COUNTS, *goal.words],
        cwd=folder,
        env={**environment(), "DUX_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    code, cpu_s, memory = counted.stdout.split()
    if int(code) != goal.code:
        raise RuntimeError(f"`{goal.called}` must end with {goal.code}, but ended with {code}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return float(cpu_s), int(memory) * unit / 1e6


def document(costs_of: dict[Goal, list[tuple[float, float]]], load: float) -> str:
    """The table, in Markdown."""
    rows = []
    for goal, costs in costs_of.items():
        cpu = [cost[0] for cost in costs]
        memory = statistics.median(cost[1] for cost in costs)
        kept = statistics.median(cpu) <= goal.cpu_s and memory <= goal.memory_mb
        rows.append(
            f"| `{goal.called}` | {statistics.median(cpu):.2f} | {min(cpu):.2f} to {max(cpu):.2f} | {goal.cpu_s:g} "
            f"| {memory:.0f} | {goal.memory_mb:g} | {'yes' if kept else 'no'} |"
        )
    times = len(next(iter(costs_of.values())))
    return "\n".join(
        [
            "# What a command costs before it does anything",
            "",
            "Written by `python benchmarks/startup.py`. CPU seconds (user and system) and peak resident memory in MB, "
            f"of each command and the processes it starts: medians of {times}. "
            "`mistaken.yaml` has an unknown key; `small` is a study of four trials.",
            "",
            f"- {hardware([{}])}; load average {load:.1f} (other work on the machine lengthens CPU seconds).",
            "",
            "| command | CPU s | range | goal | MB | goal | met |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "`tests/search/test_startup.py` says which modules no command may import.",
            "",
        ]
    )


def main() -> None:
    """The command."""
    given = arguments("What each command costs before it does anything.")
    times = 1 if given.quick else TIMES
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "study.yaml").write_text(STUDY)
        (folder / "mistaken.yaml").write_text(STUDY.replace("space:", "spaces:"))
        done = run("search", "study.yaml", "--home", str(folder / "home"), folder=folder)
        assert done.returncode == 0, done.stderr
        costs_of: dict[Goal, list[tuple[float, float]]] = {goal: [] for goal in GOALS}
        for _ in range(times):  # in turn, so that what else the machine does is shared out
            for goal in GOALS:
                costs_of[goal].append(measured(goal, folder))
        text = document(costs_of, os.getloadavg()[1])
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
