"""Who shows how a study goes, while it goes."""

import time
from dataclasses import dataclass
from typing import Protocol

from search.standing import Standing


@dataclass(frozen=True)
class Progress:
    """How a study goes at this moment."""

    phase: str
    """What is going on, in words."""
    standing: Standing
    running: int
    """Trials and repeats that workers have."""
    seconds_left: float | None
    """None while no trial is done."""


class Display(Protocol):
    """Who shows progress; called often."""

    def show(self, progress: Progress) -> None:
        """The study stands like this now."""

    def say(self, line: str) -> None:
        """Something happened that the user is to know, and that stays on the screen."""


class Silent:
    """Shows nothing."""

    def show(self, progress: Progress) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Gauge:
    """Tells a display how a session goes.

    Args:
        display: who shows it.
        standing: how the study stands at any moment.
    """

    def __init__(self, display: Display, standing: Standing) -> None:
        self._display, self._standing = display, standing
        self._phase = "checking"
        self._shares: dict[int, float] = {}
        """Trial that runs -> share of it that is done."""
        self._began = self._shown = 0.0
        self._done_before = 0

    def now(self, phase: str) -> None:
        """Something else goes on from here on."""
        self._phase = phase
        self._show(phase)

    def begin(self) -> None:
        """The first of the session's trials is about to begin."""
        self._began, self._done_before = time.monotonic(), self._standing.done + self._standing.repeated

    def started(self, trial: int) -> None:
        """A worker has a trial."""
        self._phase = "trials"
        self._shares[trial] = 0.0

    def reached(self, trial: int, share: float) -> None:
        """So much of a trial is done."""
        self._shares[trial] = share

    def ended(self, trial: int) -> None:
        """A trial is over."""
        self._shares.pop(trial, None)

    def tick(self) -> None:
        """Show how it goes, four times a second at most."""
        if time.monotonic() - self._shown > 0.25:
            self._shown = time.monotonic()
            self._show(self._phase)

    def locked(self) -> None:
        """Another process has the ledger's lock: what is shown until it is given back."""
        self._show("waiting: another process has locked the ledger")

    def _show(self, phase: str) -> None:
        standing = self._standing
        new = standing.done + standing.repeated - self._done_before
        seconds_left = None
        if new and self._phase == "trials":
            share = new + sum(self._shares.values())
            left = standing.trials + len(standing.repeats) - self._done_before - share
            seconds_left = (time.monotonic() - self._began) / share * left
        self._display.show(Progress(phase, standing, len(self._shares), seconds_left))
