"""The interface of whatever shows a running study's progress."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from search.standing import Standing

LONG_S = 10.0
"""After how many seconds of reading images the user is told what takes so long."""


@dataclass(frozen=True)
class Progress:
    """A study's progress at one moment."""

    phase: str
    """What the study is doing, in words."""
    standing: Standing
    running: int
    """Trials and repeats that workers have."""
    seconds_left: float | None
    """None while no trial is done."""


class Display(Protocol):
    """Shows progress; called often."""

    def show(self, progress: Progress) -> None:
        """Show the study's current progress."""

    def say(self, line: str) -> None:
        """Show a line that the user should see, and that stays on the screen."""


class Silent:
    """Shows nothing."""

    def show(self, progress: Progress) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


def display_of_reading(say: Callable[[str], object]) -> Callable[[int, int], None]:
    """Is told how many images were read, of how many; where that takes long, it says so once."""
    began, said = time.monotonic(), list[int]()

    def told(done: int, total: int) -> None:
        if not said and time.monotonic() - began > LONG_S:
            said.append(done)
            say(f"data: reading {total:,} images; {done:,} were read in the first {LONG_S:.0f} s")

    return told


class Gauge:
    """Keeps a display up to date during a session.

    Args:
        display: what shows it.
        standing: the study's current state.
    """

    def __init__(self, display: Display, standing: Standing) -> None:
        self._display, self._standing = display, standing
        self._phase = "checking"
        self._shares: dict[int, float] = {}
        """Running trial -> the share of it that is done."""
        self._began = self._shown = 0.0
        self._done_before = 0

    def now(self, phase: str) -> None:
        """The study enters another phase."""
        self._phase = phase
        self._show(phase)

    def begin(self) -> None:
        """The session's first trial is about to begin."""
        self._began, self._done_before = time.monotonic(), self._standing.done + self._standing.repeated

    def started(self, trial: int) -> None:
        """A worker has a trial."""
        self._phase = "trials"
        self._shares[trial] = 0.0

    def reached(self, trial: int, share: float) -> None:
        """This share of a trial is done."""
        self._shares[trial] = share

    def ended(self, trial: int) -> None:
        """A trial is over."""
        self._shares.pop(trial, None)

    def tick(self) -> None:
        """Refresh the display, at most four times a second."""
        if time.monotonic() - self._shown > 0.25:
            self._shown = time.monotonic()
            self._show(self._phase)

    def locked(self) -> None:
        """Another process holds the ledger's lock: say so until it is released."""
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
