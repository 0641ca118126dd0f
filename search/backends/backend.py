"""Who carries out a study's trials: Ray Tune (`tuning.py` beside this file), or this very process (`local.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from trainers.task_spec import TaskSpec

if TYPE_CHECKING:  # a look at a study need not wait for them
    import numpy as np

    from search.backends.attempts import Attempts

BackendName = Literal["ray", "local"]


@dataclass(frozen=True)
class Job:
    """What every worker needs beside the task's numbers: what the task is, how to work on it, where results go."""

    task: TaskSpec
    task_key: str
    class_names: tuple[str, ...]
    teacher_measurements: Mapping[str, float]
    teacher_curve: tuple[float, ...]
    trials_folder: str
    checkpoints_folder: str
    checkpoint_seconds: float
    knowledge_folder: str
    threads: int
    device: str
    curve: tuple[float, ...]
    """Fractions at which every trained student is looked at."""
    timed: bool
    """Whether the study asks for students' latency."""
    import_folders: tuple[str, ...]
    """Where the driver finds modules, such as a user's own transfer method."""


class Backend(Protocol):
    """Carries out attempts at trials; the same recipe, task and thread count give the same numbers by any backend."""

    def run(self, job: Job, arrays: "Mapping[str, np.ndarray]", attempts: "Attempts") -> None:
        """Carry out what `attempts` asks for until nothing is left.

        Where it is cut short, by Ctrl-C or SIGTERM, it returns or raises KeyboardInterrupt, and what was under way
        stays open in the ledger, for `Ledger.reconcile`.

        Args:
            job: the task, and the folders.
            arrays: the task's and the knowledge's numbers.
            attempts: says what is next, and is told what becomes of it.

        Raises:
            BackendDidNotStart: no trial can be carried out on this machine.
            BackendDied: what carries them out is gone; what was under way stays open.
        """


class BackendDied(RuntimeError):
    """What carried trials out is gone, and no trial would ever run again; the message says why."""


class BackendDidNotStart(RuntimeError):
    """And nobody ended it: it would not start the next time, either, as things are. The message says why."""
