"""Attempts at trials: which recipe is next, and what the end of an attempt means for the ledger. Knows no backend.

A trial whose worker dies, hangs or lacks memory is retried, as a new trial in the ledger. When all trials have ended,
repeats with other seeds follow, until none is due.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from search.backends.messages import EpochDone, Failed, Finished, Message
from search.ledger.ledger import Ledger
from search.ledger.lines import Repeat
from search.machine import oom_kills
from search.stopping import Halving
from spaces import Recipe


class Status(Enum):
    """The state of an attempt. The right column has the final states, as recorded in the ledger.

        ASKED ──► RUNNING ─────────────────────────────► COMPLETE  Finished, every objective a finite number
          │        │ │ │ ├───────────────────────────► FAILED    Failed; Finished, with an objective not finite
          │        │ │ │ └───────────────────────────► RETRIED   Failed for lack of memory or the like; it died
          │        │ │ └─► OVERDUE ──► any of these three          longer than `search.trial_timeout`: to be ended
          │        │ └───► STOPPING ─────────────────► STOPPED   at a rung where others were better
          │        └───────────────────────────────► LEFT      Ctrl-C, or the backend itself died
          └─► FAILED, RETRIED (its worker did not start), LEFT

    Once its retries are used up, an attempt is FAILED instead of RETRIED. One that is LEFT stays open in the ledger
    until `Ledger.reconcile` closes it.
    """

    ASKED = "the ledger has given its recipe"
    RUNNING = "a worker has it"
    STOPPING = "early stopping has ended it, but the worker does not know yet"
    OVERDUE = "it took too long, the worker is being ended"
    COMPLETE = "complete"
    FAILED = "failed"
    RETRIED = "failed, and its recipe is queued again"
    STOPPED = "stopped early"
    LEFT = "cut short, and open"


_ENDS = {Status.COMPLETE, Status.FAILED, Status.RETRIED}
_NEXT: Mapping[Status, set[Status]] = {
    Status.ASKED: {Status.RUNNING, Status.FAILED, Status.RETRIED, Status.LEFT},
    Status.RUNNING: {*_ENDS, Status.STOPPING, Status.OVERDUE, Status.LEFT},
    Status.OVERDUE: {*_ENDS, Status.LEFT},
    Status.STOPPING: {Status.STOPPED, Status.FAILED, Status.RETRIED, Status.LEFT},
    Status.LEFT: {Status.LEFT},
}


@dataclass(eq=False)
class Attempt:
    """One attempt to run a recipe."""

    trial: int
    """Its number in the ledger, which no other attempt has."""
    root: int
    """The first trial with the recipe, whose checkpoint it may continue from; its own number if it is the first."""
    recipe: Recipe
    repeat: Repeat | None
    """Which repeat it is, if it repeats a trial with another seed."""
    status: Status = Status.ASKED
    began: float = math.inf
    """When a worker started it, by `time.monotonic`."""
    stopped_at: int = 0
    """Epochs after which early stopping ended it."""
    _oom_kills: int | None = field(default_factory=oom_kills)

    def move_to(self, status: Status) -> None:
        """Change the status; raises RuntimeError if that is not a transition of `Status`."""
        if status not in _NEXT.get(self.status, ()):
            raise RuntimeError(f"attempt {self.trial} cannot be {status.name} after {self.status.name}")
        self.status = status

    @property
    def met_oom_kill(self) -> bool | None:
        """Whether the kernel has killed for lack of memory on this machine since the attempt was created; None if
        unknown."""
        now = oom_kills()
        return None if self._oom_kills is None or now is None else now != self._oom_kills


class Watcher(Protocol):
    """Notified of what happens to trials, in the driver's main thread; must neither raise nor wait."""

    def ready(self) -> None:
        """The backend is about to get the first trial."""

    def trial_started(self, trial: int, recipe: Recipe) -> None:
        """A worker has the trial."""

    def trial_reported(self, trial: int, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """An epoch is over."""

    def trial_ended(self, trial: int) -> None:
        """The ledger has the trial's outcome."""

    def left(self) -> int:
        """How many of the trials asked for have not ended; asked after `trial_ended`."""

    def repeats(self) -> list[Repeat]:
        """What is left to do once the trials asked for have ended: which trial to repeat, and which repeat of it that
        is; asked after `trial_ended`."""

    def tick(self) -> None:
        """Some time has passed."""


class Attempts:
    """The attempts of one session.

    Args:
        ledger: where recipes come from and outcomes go.
        watcher: notified of what happens; knows what is left.
        halving: stops trials early; knows the earlier ones. None runs every trial to its end.
        retries: how often a recipe is retried if its worker died, took too long or lacked memory.
        trial_timeout: seconds that an attempt may take; None for no limit.
    """

    def __init__(
        self,
        ledger: Ledger,
        watcher: Watcher,
        halving: Halving | None,
        *,
        retries: int,
        trial_timeout: float | None,
    ) -> None:
        self.watcher = watcher
        self._ledger, self._halving = ledger, halving
        self._retries = retries
        self._timeout = math.inf if trial_timeout is None else trial_timeout
        self._open: list[Attempt] = []
        self._count()

    def _count(self) -> None:
        self._left = self.watcher.left()
        # the watcher is notified when a worker starts it, which may be long after the ledger was asked
        asked = {attempt.repeat for attempt in self._open}
        self._repeats = [repeat for repeat in self.watcher.repeats() if repeat not in asked] if not self._left else []

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, and nothing is running whose end could require more."""
        return not self._left and not self._repeats and not self._open

    def next(self) -> Attempt | None:
        """What to run next; None if nothing is left, or everything that is left is running."""
        if self._repeats:
            repeat = self._repeats.pop(0)
            number, recipe = self._ledger.ask_again(repeat)
            attempt = Attempt(number, self._ledger.root(number), recipe, repeat)
        elif len(self._open) >= self._left:
            return None
        else:
            number, recipe = self._ledger.ask()
            attempt = Attempt(number, self._ledger.root(number), recipe, None)
        self._open.append(attempt)
        return attempt

    def started(self, attempt: Attempt) -> None:
        """A worker has started it."""
        attempt.move_to(Status.RUNNING)
        attempt.began = time.monotonic()
        self.watcher.trial_started(attempt.trial, attempt.recipe)

    def reported(self, attempt: Attempt, message: EpochDone) -> bool:
        """An epoch is over; returns whether the attempt should continue.

        At a rung it is compared with the trials that reached it before, which the ledger has on record. A trial at its
        last epoch takes part in comparisons, but is not stopped; repeats and overdue attempts do neither.
        """
        epoch, measured = message.step, {**message.metrics, **message.cost}
        compared = attempt.status is Status.RUNNING and attempt.repeat is None
        if compared and self._halving is not None and self._halving.is_rung(epoch):
            self._ledger.rung(attempt.trial, epoch, measured)
            self._halving.add(attempt.trial, epoch, measured)
            if epoch < message.steps and not self._halving.should_continue(attempt.trial, epoch):
                attempt.move_to(Status.STOPPING)
                attempt.stopped_at = epoch
        self.watcher.trial_reported(attempt.trial, epoch, message.steps, message.metrics)
        return attempt.status is not Status.STOPPING

    def overdue(self) -> list[Attempt]:
        """Attempts that have just become overdue: end their workers, then call `died`."""
        late = time.monotonic() - self._timeout
        overdue = [attempt for attempt in self._open if attempt.status is Status.RUNNING and attempt.began < late]
        for attempt in overdue:
            attempt.move_to(Status.OVERDUE)
        return overdue

    def ended(self, attempt: Attempt, message: Message | None) -> None:
        """The worker is finished with it: record the outcome.

        Args:
            attempt: the attempt.
            message: the worker's last message. If it is neither Finished nor Failed, the attempt was stopped early, or
                it was cut short and stays open.
        """
        number = attempt.trial
        match message:
            case Finished(measurements, curve, files, took):
                if self._ledger.complete(number, measurements, took, curve, files):
                    self._settle(attempt, Status.COMPLETE)
                else:
                    self._settle(attempt, Status.FAILED)
            case Failed(reason, again):
                self._fail(attempt, reason, again)
            case _ if attempt.status is Status.STOPPING:
                self._ledger.stop(number, attempt.stopped_at, time.monotonic() - attempt.began)
                self._settle(attempt, Status.STOPPED)
            case _:
                self.leave(attempt)

    def died(self, attempt: Attempt, why: str) -> None:
        """The worker is gone without reporting an outcome; `why` is ignored if it was ended for being overdue."""
        if attempt.status is Status.OVERDUE:
            why = f"took longer than search.trial_timeout, {self._timeout:g} s; raise it, or narrow the space"
        self._fail(attempt, why, True)

    def leave(self, attempt: Attempt) -> None:
        """It is cut short for reasons other than its own."""
        attempt.move_to(Status.LEFT)

    def _fail(self, attempt: Attempt, reason: str, again: bool) -> None:
        if again and self._ledger.tries(attempt.trial) < self._retries:
            self._ledger.retry(attempt.trial, reason)
            self._settle(attempt, Status.RETRIED)
        else:
            self._ledger.fail(attempt.trial, reason)
            self._settle(attempt, Status.FAILED)

    def _settle(self, attempt: Attempt, status: Status) -> None:
        """The ledger has the outcome."""
        attempt.move_to(status)
        if self._halving is not None and status in (Status.FAILED, Status.RETRIED):
            self._halving.forget(attempt.trial)
        self._open.remove(attempt)
        self.watcher.trial_ended(attempt.trial)
        self._count()
