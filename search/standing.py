"""The state of a study, derived from the lines of its ledger."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from search.constraints import Limits, broken
from search.fronts.front import Entry, Front
from search.fronts.pareto import Axis
from search.ledger.lines import CurvePoint, Line, Outcome, Repeat, Trial
from trainers.metrics import Direction


class Standing:
    """Takes the ledger's lines one at a time, and always knows what is done, what is on the front and what is left.

    It reads and writes nothing: the terminal, JSON, MLflow, the scheduler and the end of a session all ask it. Adding a
    line costs the same however many there are; the front is recomputed if a line has changed it.

    Args:
        objectives: measurement -> "max" or "min", the most important first.
        constraints: measurement -> its limits.
        trials: how many were asked for.
        seeds: how many seeds the trials on the front are run with.
        trials_folder: the folder with the trials' files.
        lines: the existing lines.
    """

    def __init__(
        self,
        objectives: Mapping[str, Direction],
        constraints: Mapping[str, Limits],
        trials: int,
        seeds: int,
        trials_folder: Path,
        lines: Iterable[Line] = (),
    ) -> None:
        self.trials = trials
        self._objectives, self._constraints, self._seeds = dict(objectives), constraints, seeds
        self._trials_folder = trials_folder
        self._axes: tuple[Axis, ...] | None = None
        self._validation_images: int | None = None
        self._lines: dict[int, Line] = {}
        self._count: Counter[tuple[type, Outcome]] = Counter()
        self._running: dict[int, Line] = {}
        self._students: list[Line] = []
        """Candidates for the front."""
        self._broken = 0
        self._measured_again: dict[tuple[int, int | None], dict[int, Mapping[str, float]]] = {}
        """(trial, None), or (trial, place on its curve) -> number of a line -> its measurements with another seed."""
        self._failed_again: Counter[int] = Counter()
        """Trial -> how many of its repeats failed."""
        self._repeats_ended: set[Repeat] = set()
        self._front: Front | None = None
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """Take a line that is new or has changed; one that has ended never changes again."""
        before = self._lines.get(line.trial)
        if before is not None:
            if before.ended:
                return
            self._count[type(before.kind), before.outcome] -= 1
        self._lines[line.trial] = line
        self._count[type(line.kind), line.outcome] += 1
        self._running.pop(line.trial, None)
        if line.outcome == "running":
            self._running[line.trial] = line
        if not line.ended:
            return
        if isinstance(line.kind, Repeat):
            self._repeats_ended.add(line.kind)
        if (repeat := line.repeat) is not None:
            self._add_repeated(line, repeat)
        elif line.outcome == "complete":
            if broken(self._constraints, line.measurements):
                self._broken += 1
            elif line.recipe is not None:
                self._students.append(line)
        self._front = None

    def _add_repeated(self, line: Line, repeat: Repeat) -> None:
        place = line.kind.place if isinstance(line.kind, CurvePoint) else None
        if line.outcome == "failed":
            self._failed_again[repeat.of] += 1
        elif line.outcome == "complete":
            self._measured_again.setdefault((repeat.of, place), {})[line.trial] = line.measurements

    def measure_by(self, axes: Sequence[Axis], validation_images: int | None = None) -> None:
        """Set the axes of the objectives, one each: before that there is no front.

        `validation_images`: how many images students are measured on, if known.
        """
        self._axes, self._validation_images, self._front = tuple(axes), validation_images, None

    @property
    def lines(self) -> list[Line]:
        """Every line, by its number."""
        return [self._lines[trial] for trial in sorted(self._lines)]

    def line(self, trial: int) -> Line:
        """The line with this number."""
        return self._lines[trial]

    def of(self, outcome: Outcome) -> list[Line]:
        """The trials and repeats with this outcome, without the points of their curves."""
        return [line for line in self.lines if line.outcome == outcome and not line.is_point]

    def count(self, outcome: Outcome) -> int:
        """How many trials have this outcome, repeats excluded."""
        return self._count[Trial, outcome]

    @property
    def done(self) -> int:
        """How many of the trials asked for have ended, including failed ones."""
        return self.count("complete") + self.count("failed") + self.count("stopped")

    @property
    def left(self) -> int:
        """How many of the trials asked for have not ended."""
        return max(0, self.trials - self.done)

    @property
    def repeats_failed(self) -> int:
        """How many of the repeats that ended failed."""
        return self._count[Repeat, "failed"]

    @property
    def front(self) -> Front | None:
        """The front of what has finished so far; None before the axes are set."""
        if self._front is None and self._axes is not None:
            self._front = self.front_of_runs({})
        return self._front

    def front_of_runs(self, run_ids: Mapping[int, str]) -> Front:
        """The front, with each student's run in MLflow; `run_ids`: trial -> run."""
        assert self._axes is not None
        entries = [self._entry(line, run_ids.get(line.trial)) for line in self._students]
        return Front.of(entries, self._objectives, self._axes, self._broken, self._validation_images)

    @property
    def repeats(self) -> list[Repeat]:
        """The repeats with other seeds: one less than `search.seeds` of each trial that a student on the front comes
        from, including finished ones. Empty before the trials asked for are done, since only then is the front final; a
        repeat never changes it."""
        if self._seeds == 1 or self.left or self.front is None:
            return []
        members = self.front.non_dominated
        trials = sorted({entry.trial if entry.curve_of is None else entry.curve_of for entry in members})
        return [Repeat(trial, nth) for nth in range(1, self._seeds) for trial in trials]

    @property
    def repeated(self) -> int:
        """How many of `repeats` have ended."""
        return sum(repeat in self._repeats_ended for repeat in self.repeats)

    @property
    def repeats_left(self) -> list[Repeat]:
        """Those of `repeats` that have neither ended nor started."""
        if not (repeats := self.repeats):
            return []
        under_way = {line.kind for line in self._running.values()}
        return [repeat for repeat in repeats if repeat not in self._repeats_ended and repeat not in under_way]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to run."""
        return not self.left and all(repeat in self._repeats_ended for repeat in self.repeats)

    def _entry(self, line: Line, run_id: str | None) -> Entry:
        assert line.recipe is not None
        origin, place = (line.kind.of, line.kind.place) if isinstance(line.kind, CurvePoint) else (None, None)
        trial = line.trial if origin is None else origin
        return Entry(
            line.trial,
            line.recipe.flat(),
            line.measurements,
            run_id,
            line.folder(self._trials_folder),
            origin,
            tuple(measured for _, measured in sorted(self._measured_again.get((trial, place), {}).items())),
            self._failed_again[trial],
            line.files,
        )
