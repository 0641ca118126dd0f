"""The worker: runs one trial from its recipe to its files. Does not know what started it."""

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from search.backends.backend import Job
from search.backends.messages import EpochDone, Failed, Finished
from spaces import Recipe
from trainers import Checkpoint, Knowledge, Report, Task, run_trial, save_student
from trainers.files import Damaged, read_whole, write_whole


class Disk(Protocol):
    """The driver's disk, to which a trial's files go, whichever machine the worker is on."""

    def load(self, file: Path) -> bytes | None:
        """A checkpoint; None if there is none."""

    def save(self, file: Path, content: bytes) -> None:
        """Write a checkpoint. If that fails or takes long, training continues without one."""

    def settle(self) -> None:
        """Wait for pending checkpoints: none may arrive after the trial's end, when its checkpoint is deleted."""

    def write(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Write a trial's files."""


def content_of(file: Path) -> bytes | None:
    """The content of a file on this machine; None if it cannot be read."""
    with suppress(OSError, Damaged):
        return read_whole(file)
    return None


class OwnDisk:
    """The disk of the worker's own machine."""

    def load(self, file: Path) -> bytes | None:
        """As in `Disk`."""
        return content_of(file)

    def save(self, file: Path, content: bytes) -> None:
        """As in `Disk`."""
        with suppress(OSError):
            write_whole(file, content)

    def settle(self) -> None:
        """Nothing is pending."""

    def write(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """As in `Disk`."""
        save_student(folder, files)


class Worker:
    """Runs trials of one study, one after the other; they share the task, which is created once.

    Args:
        transient: errors of the backend that may not occur in another attempt.
    """

    def __init__(self, transient: tuple[type[Exception], ...] = ()) -> None:
        self._transient = transient
        self._made: tuple[str, Task, Knowledge] | None = None

    def carry_out(
        self,
        trial: int,
        root: int,
        recipe: Recipe,
        job: Job,
        arrays: Mapping[str, np.ndarray],
        disk: Disk,
        report: Callable[[EpochDone], object],
    ) -> Finished | Failed:
        """Run one trial. Whatever goes wrong in it is the trial's outcome, not the study's.

        Args:
            trial: its number.
            root: the first trial with the recipe.
            recipe: what to do.
            job: the task and the folders.
            arrays: of the task and the knowledge; read-only memory is fine.
            disk: where its files go, before its end is reported.
            report: called after every epoch; what it raises ends the trial, and is re-raised unless it is an Exception.
        """
        folder = Path(job.trials_folder) / str(trial)
        file = Path(job.checkpoints_folder) / f"{root}.safetensors"
        # the first trial of a recipe has no checkpoint, and need not ask another machine
        load = (lambda: disk.load(file)) if root != trial else lambda: None
        try:
            sys.path += [path for path in job.import_folders if path not in sys.path]
            task, knowledge = self._task(job, arrays)
            result = run_trial(
                recipe,
                task,
                knowledge,
                lambda epoch: report(_epoch_done(epoch)),
                curve=job.curve,
                checkpoint=Checkpoint(load, lambda content: disk.save(file, content), job.checkpoint_seconds),
                threads=job.threads,
                device=job.device,
                timed=job.timed,
            )
            disk.settle()
            files = result.files(task)
            disk.write(folder, files)
            recorded = json.loads(files["result.json"])
            return Finished(recorded["measurements"], recorded["curve"], recorded["files"], recorded["seconds"])
        except Exception as error:
            disk.write(folder, {"error.txt": traceback.format_exc().encode()})
            lacked = isinstance(error, MemoryError | torch.OutOfMemoryError | OSError)
            again = lacked or isinstance(error, self._transient)
            return Failed(f"{type(error).__name__}: {error}", again)

    def _task(self, job: Job, arrays: Mapping[str, np.ndarray]) -> tuple[Task, Knowledge]:
        if self._made is None or self._made[0] != job.task_key:
            task = Task.from_arrays(
                job.task, job.teacher_measurements, job.teacher_curve, job.task_key, job.class_names, arrays
            )
            cached = {
                name.removeprefix("knowledge/"): array
                for name, array in arrays.items()
                if name.startswith("knowledge/")
            }
            self._made = (job.task_key, task, Knowledge(task, Path(job.knowledge_folder), cached))
        return self._made[1:]


def _epoch_done(report: Report) -> EpochDone:
    return EpochDone(report.step, report.steps, report.metrics, report.cost)
