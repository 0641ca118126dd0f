"""What a study costs besides its trials; writes docs/overhead.md.

    python benchmarks/overhead.py             # about half an hour on two cores
    python benchmarks/overhead.py --quick     # a minute: does everything work? writes no document
    python benchmarks/overhead.py --table     # only writes the document, from existing results

Whole studies, as `dux search` runs them (Ray Tune, the ledger and MLflow on SQLite, the front), but without the trials'
work: a trial reports three epochs with numbers from its seed, and its result. In one study trials do nothing; in
another they sleep for thirty seconds, so that every second in which a worker does not sleep is overhead.
"""

import itertools
import json
import multiprocessing
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Line, arguments, commit, hardware, read
from ray import cloudpickle, tune

from search import Study, tuning
from search.backends.backend import Job as StudyJob
from search.backends.messages import EpochDone, Finished, to_tune
from search.study_file import StudyFile
from spaces import Recipe
from trainers.files import digest, sealed
from trainers.store import save_student

DOCUMENT = ROOT / "docs" / "overhead.md"
EPOCHS = 3


@dataclass(frozen=True)
class Job:
    """One study."""

    name: str
    trials: int
    sampler: str
    sleep: float = 0.0
    """Seconds of each trial's work."""
    concurrent: int = 2

    @property
    def key(self) -> str:
        """Everything that it depends on."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def file(self) -> StudyFile:
        """The study, on a tiny task: its teacher takes a second."""
        return StudyFile.from_mapping(
            {
                "name": "overhead",
                "task": {
                    "augment": "none",
                    "train_limit": 200,
                    "teacher": {"depth": 8, "width": 0.25, "epochs": 1, "batch_size": 64},
                },
                "space": {
                    "student.width": {"low": 0.125, "high": 1.0, "step": 0.125},
                    "transfer": ["none", "kd"],
                    "kd.temperature": {"low": 1.0, "high": 8.0},
                    "pruning.fraction": {"low": 0.0, "high": 0.9},
                },
                "search": {
                    "trials": self.trials,
                    "concurrent": self.concurrent,
                    "sampler": self.sampler,
                    "curve": False,
                },
            }
        )


FULL = (
    Job("30 s", 20, "tpe", sleep=30.0),
    Job("nothing, tpe", 1000, "tpe"),
    Job("nothing, random", 1000, "random"),
)
QUICK = (Job("nothing, tpe", 10, "tpe"), Job("1 s", 4, "tpe", sleep=1.0))


class Idle:
    """Stands for a trial."""

    def __init__(self, sleep: float) -> None:
        self.sleep = sleep

    def __call__(self, config: Mapping[str, Any], job: StudyJob) -> None:
        """As `search.backends.tuning` has it, without the work."""
        recipe = Recipe.from_json(config["recipe"])
        random = np.random.default_rng([config["trial"], len(config["recipe"])])
        size = float(random.uniform(3.0, 5.0))
        accuracy = float(np.clip(0.2 * size + random.normal(0.0, 0.05), 0.1, 1.0))
        measurements = {"accuracy": accuracy, "parameters": round(10**size), "nll": 1.0 - accuracy}
        began = time.time()
        for epoch in range(1, EPOCHS + 1):
            time.sleep(self.sleep / EPOCHS)
            tune.report(to_tune(EpochDone(epoch, EPOCHS, {"loss": 1 / epoch}, measurements)))
        result = {
            "measurements": measurements,
            "seconds": self.sleep,
            "files": {},
            "curve": [],
            "began": began,
            "ended": time.time(),
        }
        files = {"result.json": sealed(result), "recipe.json": recipe.to_json().encode()}
        save_student(Path(job.trials_folder) / str(config["trial"]), files)
        tune.report(to_tune(Finished(measurements, [], {}, self.sleep)))


def carry_out(job: Job) -> Line:
    """A line of the results: when trials ended, how busy workers were, and the driver's memory."""
    memory: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory.append((time.time(), pages * os.sysconf("SC_PAGE_SIZE") / 2**20))

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        idle = Idle(job.sleep)

        def stand_in(config: Mapping[str, Any], job: StudyJob, arrays: Mapping[str, np.ndarray], driver: str) -> None:
            idle(config, job)

        tuning._work = stand_in
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find this module
        threading.Thread(target=watch, daemon=True).start()
        began = time.monotonic()
        study = Study(job.file, home)
        front = study.search()
        seconds = time.monotonic() - began
        over.set()
        told = [json.loads(path.read_text()) for path in sorted((study.folder / "trials").glob("*/result.json"))]
        with closing(sqlite3.connect(home / "mlflow.db")) as db:
            (runs,) = db.execute("select count(*) from runs where status = 'FINISHED' and name like '%/%'").fetchone()
        unsent = (study.folder / "spool.jsonl").stat().st_size - json.loads((study.folder / "spool.sent").read_text())[
            "offset"
        ]
    ended = sorted(trial["ended"] for trial in told)
    return {
        "key": job.key,
        **asdict(job),
        "ended": [moment - ended[0] for moment in ended],
        "spans": sorted((trial["began"] - ended[0], trial["ended"] - ended[0]) for trial in told),
        "memory": [(moment - ended[0], size) for moment, size in memory],
        "front": len(front.non_dominated),
        "in_mlflow": runs,
        "unsent_bytes": unsent,
        "seconds": seconds,
    }


def busy(line: Line) -> float:
    """The share of the time in which workers were at work, from the first trial's start to the last one's end."""
    first, last = min(began for began, _ in line["spans"]), max(ended for _, ended in line["spans"])
    return float(sum(ended - began for began, ended in line["spans"]) / (line["concurrent"] * (last - first)))


def rows(results: Mapping[str, Line], jobs: tuple[Job, ...]) -> Iterator[str]:
    """The tables."""
    yield "| study | trials | s per trial, first tenth | last tenth | ratio | in all | in MLflow at the end |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for job in jobs:
        if job.sleep or job.key not in results:
            continue
        line = results[job.key]
        gaps = [later - earlier for earlier, later in itertools.pairwise(line["ended"])]
        tenth = max(1, len(gaps) // 10)
        first, last = statistics.fmean(gaps[:tenth]), statistics.fmean(gaps[-tenth:])
        yield (
            f"| {job.name} | {job.trials} | {first:.3f} | {last:.3f} | {last / first:.2f} | {sum(gaps) / 60:.1f} min | "
            f"{line['in_mlflow']}, {line['unsent_bytes']} bytes not yet sent |"
        )
    yield ""
    yield "| study | driver's memory at the first trial, MiB | after half | at the last trial | most |"
    yield "| --- | --- | --- | --- | --- |"
    for job in jobs:
        if job.key not in results:
            continue
        line = results[job.key]
        at = [
            next(
                (size for moment, size in line["memory"] if moment >= share * line["ended"][-1]), line["memory"][-1][1]
            )
            for share in (0.0, 0.5, 1.0)
        ]
        yield f"| {job.name} | {at[0]:.0f} | {at[1]:.0f} | {at[2]:.0f} | {max(s for _, s in line['memory']):.0f} |"
    yield ""
    for job in jobs:
        if job.sleep and job.key in results:
            yield (
                f"Trials of {job.sleep:g} s, {job.concurrent} at a time, {job.trials} of them: workers were busy "
                f"for {busy(results[job.key]):.1%} of the time from the first trial's start to the last one's end."
            )


def document(results: Mapping[str, Line], jobs: tuple[Job, ...]) -> str:
    """The page, in Markdown."""
    return "\n".join(
        [
            "# What a study costs besides its trials",
            "",
            "Written by `python benchmarks/overhead.py`: whole studies through Ray Tune, the ledger and MLflow on "
            f"SQLite, whose trials report {EPOCHS} epochs and a result but compute nothing. Seconds per trial are the "
            "mean time between the ends of trials, two at a time. One study each.",
            "",
            f"- {hardware(results.values())}; the machine may have been doing other work.",
            "",
            *rows(results, jobs),
            "",
        ]
    )


def main() -> None:
    """The command."""
    given = arguments("A study whose trials do nothing.")
    jobs = QUICK if given.quick else FULL
    path = given.home / f"overhead_{digest([asdict(job) for job in jobs])}.jsonl"
    if not given.table:
        for job in jobs:
            if job.key in read(path, "key"):
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh driver, whose memory is its own
                line = pool.apply(carry_out, (job,))
            with path.open("a") as file:
                file.write(json.dumps({**line, "commit": commit()}) + "\n")
            print(f"{job.name}: {line['seconds']:.0f} s", flush=True)
    text = document(read(path, "key"), jobs)
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
