"""What runs a study's trials: Ray Tune (`tuning.py` in this folder), or this process (`local.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from trainers.task_spec import TaskSpec

if TYPE_CHECKING:  # showing a study need not wait for them
    import numpy as np

    from search.backends.attempts import Attempts

BackendName = Literal["ray", "local"]


@dataclass(frozen=True)
class Job:
    """What every worker needs besides the task's arrays: the task, how to run trials, where results go."""

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
    """Pruning fractions at which every trained student is measured."""
    timed: bool
    """Whether the study measures students' latency."""
    import_folders: tuple[str, ...]
    """Where the driver finds modules, such as a user's own transfer method."""


class Backend(Protocol):
    """Runs attempts at trials; the same recipe, task and thread count give the same numbers with any backend."""

    def run(self, job: Job, arrays: "Mapping[str, np.ndarray]", attempts: "Attempts") -> None:
        """Run what `attempts` asks for until nothing is left.

        If interrupted by Ctrl-C or SIGTERM, it returns or raises KeyboardInterrupt, and running trials stay open in the
        ledger, for `Ledger.reconcile`.

        Args:
            job: the task, and the folders.
            arrays: of the task and the knowledge.
            attempts: says what is next, and is notified of the outcome.

        Raises:
            BackendDidNotStart: no trial can be run on this machine.
            BackendDied: the backend is gone; running trials stay open.
        """


class BackendDied(RuntimeError):
    """The backend is gone, and no trial would ever run again; the message says why."""


class BackendDidNotStart(RuntimeError):
    """The backend did not start, and would not start the next time either; the message says why."""
