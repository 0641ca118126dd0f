"""Trials in this process, one after the other, for notebooks and tests: real ones, without Ray.

Differences from Ray: trials never run concurrently, whatever `search.concurrent` says, and whatever would end a worker
process (a crash, the kernel for lack of memory) ends the study here; it can be resumed. `search.trial_timeout` is
checked between epochs, so an attempt that hangs within an epoch is not ended.
"""

from collections.abc import Mapping

import numpy as np

from search.backends.attempts import Attempt, Attempts, Status
from search.backends.backend import Job
from search.backends.messages import EpochDone
from search.backends.worker import OwnDisk, Worker
from search.signals import raise_if_pressed


class LocalBackend:
    """A `search.backends.backend.Backend`."""

    def run(self, job: Job, arrays: Mapping[str, np.ndarray], attempts: Attempts) -> None:
        """As in `Backend`; Ctrl-C is a KeyboardInterrupt."""
        worker = Worker()
        attempts.watcher.ready()
        while (attempt := attempts.next()) is not None:
            _carry_out(attempt, worker, job, arrays, attempts)
            attempts.watcher.tick()


class _Ends(BaseException):
    """Ends a trial from outside; not an Exception, which would be the trial's own outcome."""


def _carry_out(
    attempt: Attempt, worker: Worker, job: Job, arrays: Mapping[str, np.ndarray], attempts: Attempts
) -> None:
    def report(message: EpochDone) -> None:
        raise_if_pressed()
        try:
            should_continue = attempts.reported(attempt, message)
        except Exception as error:
            raise _Ends from error
        attempts.watcher.tick()
        if attempts.overdue() or not should_continue:
            raise _Ends

    attempts.started(attempt)
    message = None
    try:
        message = worker.carry_out(attempt.trial, attempt.root, attempt.recipe, job, arrays, OwnDisk(), report)
    except _Ends as end:
        if end.__cause__ is not None:
            attempts.leave(attempt)
            raise end.__cause__ from None
    except Exception as error:  # of the worker, not an outcome of the trial: its files cannot be written
        attempts.died(attempt, f"{type(error).__name__}: {error}")
        return
    except BaseException:
        attempts.leave(attempt)
        raise
    if message is None and attempt.status is Status.OVERDUE:
        attempts.died(attempt, "it was ended")
    else:
        attempts.ended(attempt, message)
