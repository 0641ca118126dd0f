"""What the benchmarks share: results as JSON lines, means and spreads, the line about the machine."""

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # so that a benchmark measures the checkout it lies in

import torch  # noqa: E402

from trainers import Knowledge, Task, TaskSpec  # noqa: E402

Job = TypeVar("Job")
Line = dict[str, Any]

MILD_L2 = {
    "spectral.eigenvector_l2": 2.5e-4,
    "spectral.eigenvalue_l2": 2.5e-4,
    "pruning.fine_tune_learning_rate": 0.02,  # nothing is pruned there, but it is a part of the recipe
}
"""What students that are compared by their transfer are trained with: weight decay's size, in place of the default."""

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t for a two-sided 95 % interval of the mean of n numbers."""


def read(path: Path, key: str) -> dict[str, Line]:
    """The results so far by their `key`; a line that was cut short does not count."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {line[key]: line for line in lines}


def run_all(
    left: Sequence[Job],
    work: Callable[[Job], Line],
    path: Path,
    processes: int,
    *,
    shown: Callable[[Line], str],
    load: Callable[..., None],
    load_with: tuple[Any, ...] = (),
) -> None:
    """Append the result of `work` on every job to `path` as it comes.

    Args:
        left: what is to be done.
        work: run in another process; its result is a line, to which the commit is added.
        path: the JSON-lines file.
        processes: jobs at a time.
        shown: what the terminal says of a line.
        load: called once in each process, with `load_with`.
        load_with: small values.
    """
    began, code = time.monotonic(), commit()
    # spawned: a fork of a process in which torch has computed may hang
    with multiprocessing.get_context("spawn").Pool(processes, load, load_with) as pool:
        for count, line in enumerate(pool.imap_unordered(work, left), start=1):
            with path.open("a") as file:
                file.write(json.dumps({**line, "commit": code}) + "\n")
            minutes = (time.monotonic() - began) / 60
            ahead = minutes / count * (len(left) - count)
            print(f"{count}/{len(left)}  {shown(line)}  {line['seconds']:.0f} s; {ahead:.0f} min left", flush=True)


_tasks: dict[str, tuple[Task, Knowledge]] = {}


def load_task(spec: TaskSpec, home: Path) -> None:
    """In each process, once; kept in `home`, where no second process trains the teacher."""
    torch.set_num_threads(1)
    task = Task.load(spec, home)
    _tasks[spec.model_dump_json()] = (task, Knowledge(task, home / "knowledge"))


def loaded_task(spec: TaskSpec | None = None) -> tuple[Task, Knowledge]:
    """What `load_task` left; None: the one there is."""
    if spec is not None:
        return _tasks[spec.model_dump_json()]
    (loaded,) = _tasks.values()
    return loaded


def arguments(
    description: str, more: Callable[[argparse.ArgumentParser], object] = lambda parser: None
) -> argparse.Namespace:
    """The command line of every benchmark; `more` adds to it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that everything works; prints the table")
    parser.add_argument("--table", action="store_true", help="only write the document, from existing results")
    parser.add_argument(
        "--home", type=Path, default=Path("~/.dux/benchmarks").expanduser(), help="where results are stored"
    )
    parser.add_argument("--processes", type=int, default=2, help="jobs at a time, one thread each")
    more(parser)
    given = parser.parse_args()
    given.home.mkdir(parents=True, exist_ok=True)
    return given


def mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    listed = list(values)
    return statistics.fmean(listed) if listed else math.nan


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    listed = list(values)
    deviation = f" ± {statistics.stdev(listed):.{digits}f}" if len(listed) > 1 else ""
    return f"{mean(listed):.{digits}f}{deviation}"


def against(ours: Mapping[int, float], theirs: Mapping[int, float], digits: int = 2) -> str:
    """The mean difference over the seeds of both, and whether it exceeds the spread."""
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if len(differences) < 2:
        return f"{mean(differences):+.{digits}f} (one seed)"
    half = T_95[len(differences)] * statistics.stdev(differences) / math.sqrt(len(differences))
    verdict = "better" if mean(differences) > half else "worse" if mean(differences) < -half else "within the spread"
    return f"{mean(differences):+.{digits}f} ± {half:.{digits}f}, {verdict}"


def commit() -> str:
    """The checkout's, and whether files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def hardware(lines: Iterable[Line]) -> str:
    """Processor, versions, and the commits under which `lines` were run."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    commits = sorted({str(line.get("commit", commit())) for line in lines})
    return (
        f"{names[0] if names else cpu}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, commit {', '.join(commits)}"
    )
