"""Live progress in a terminal; nothing where output goes to a file or a pipe."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.display import Progress
from search.fronts.quantities import show
from search.fronts.selection import select
from spaces.errors import in_one_line


class Terminal:
    """Shows a study's progress in place while it is open. A `search.display.Display`."""

    def __init__(self, console: Console, study: str) -> None:
        self._console, self._study = console, study
        self._live: Live | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Show the study's current progress."""
        if self._live is not None:
            self._live.update(drawn(self._study, progress, time.monotonic() - self._began))

    def say(self, line: str) -> None:
        """A line that stays, above the progress if there is one."""
        self._console.print(Text(f"dux: {in_one_line(line)}"), soft_wrap=True)


def drawn(study: str, progress: Progress, elapsed_s: float) -> RenderableType:
    """Progress as a block of three lines."""
    standing, front = progress.standing, progress.standing.front
    failed, stopped, repeats = standing.count("failed"), standing.count("stopped"), standing.repeats
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(study, style="bold"),
        ProgressBar(total=standing.trials, completed=standing.done, width=32),
        Text(f"{standing.done}/{standing.trials} trials"),
        Text(
            f"{progress.running} running"
            + (f", {failed} failed" if failed else "")
            + (f", {stopped} stopped" if stopped else "")
            + (f"; {standing.repeated}/{len(repeats)} repeats" if repeats else "")
        ),
        Text(
            f"{duration(elapsed_s)} elapsed"
            + (f", {duration(progress.seconds_left)} left" if progress.seconds_left else "")
        ),
    )
    lines: list[RenderableType] = [head]
    if progress.phase != "trials":
        lines.append(Text(f"{progress.phase} …", style="dim"))
    if front is not None and front.non_dominated:
        best = select(front, {})
        leading = ", ".join(f"{name} {show(best.value(name))}" for name in front.objectives)
        lines.append(Text(f"front of {len(front.non_dominated)}, hypervolume {front.hypervolume:.4f}; best {leading}"))
    return Group(*lines)


def duration(seconds: float | None) -> str:
    """`75.0` is "1:15", `4000.0` is "1:06:40"; "–" for None."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
