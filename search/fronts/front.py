"""The front: the students that no other student of the study beats on every objective.

Everything here is a pure function of what the study's students measured, computed anew whenever somebody looks;
nothing of it is stored.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from search.fronts.pareto import Axis, hypervolume, non_dominated
from search.fronts.quantities import show
from search.seeds import Spread, is_within_noise, spread
from spaces.errors import BadInput
from trainers.data.splits import counted, wilson
from trainers.metrics import Direction, Scale

INTERVAL = "95 % interval"
"""What pictures and tables call `Front.interval`."""


@dataclass(frozen=True)
class Entry:
    """A finished student: its recipe and its measurements."""

    trial: int
    recipe: Mapping[str, object]
    measurements: Mapping[str, float]
    run_id: str | None = None
    """Id of the trial's run in MLflow; None if there is none (yet)."""
    folder: Path | None = None
    curve_of: int | None = None
    """The trial whose pruning curve it is on: that trial's student, cut to another fraction and not fine-tuned, or
    between two rounds."""
    repeats: tuple[Mapping[str, float], ...] = ()
    """Measurements of the same recipe with other seeds, if its trial was repeated."""
    repeats_failed: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of each of the student's files, as written."""

    def spread(self, name: str) -> Spread:
        """A measurement over all seeds, the student's own first; what repeats did not measure counts as its own."""
        own = self.value(name)
        return spread([own, *(measured.get(name, own) for measured in self.repeats)])

    @property
    def called(self) -> str:
        """Its name in messages."""
        if self.curve_of is None:
            return f"trial {self.trial}"
        return f"student {self.trial} (from the curve of trial {self.curve_of})"

    def value(self, name: str) -> float:
        """The measurement, NaN if the student does not have it; "trial" is the trial's number."""
        return float(self.trial) if name == "trial" else float(self.measurements.get(name, math.nan))


@dataclass(frozen=True)
class Front:
    """All finished students of a study, and those of them on the front. Create it with `Front.of`."""

    objectives: dict[str, Direction]
    axes: tuple[Axis, ...]
    """One per objective, in the objectives' order."""
    entries: tuple[Entry, ...]
    """All finished students, by trial; those that diverged are included, but never on the front."""
    non_dominated: tuple[Entry, ...]
    """Sorted by the last objective (usually the size), then the first, then the trial."""
    hypervolume: float
    broken: int = 0
    """Number of finished students that break a constraint of the study; they are not among the entries."""
    validation_images: int | None = None
    """How many images the students were measured on; None if an earlier Dux did not record it."""

    @classmethod
    def of(
        cls,
        students: Sequence[Entry],
        objectives: Mapping[str, Direction],
        axes: Sequence[Axis],
        broken: int = 0,
        validation_images: int | None = None,
    ) -> "Front":
        """The front of the students, in whatever order they come.

        Args:
            students: those that meet the study's constraints.
            objectives: measurement -> "max" or "min", the most important first.
            axes: one per objective.
            broken: how many others do not meet the constraints.
            validation_images: how many images the students were measured on, if known.

        Raises:
            BadInput: the axes do not match the objectives in order and direction.
        """
        given = {axis.name: axis.direction for axis in axes}
        if not objectives or [*given.items()] != [*objectives.items()] or len(given) < len(axes):
            raise BadInput(
                f"objectives and axes must agree, but are {dict(objectives)} and {given}; give one Axis each"
            )
        entries = tuple(sorted(students, key=lambda entry: entry.trial))
        values = np.array([[entry.value(name) for name in objectives] for entry in entries])
        names = list(objectives)
        members = sorted(
            (entries[i] for i in non_dominated(values, list(objectives.values()))),
            key=lambda entry: (entry.value(names[-1]), entry.value(names[0]), entry.trial),
        )
        volume = hypervolume(values, axes)
        return cls(dict(objectives), tuple(axes), entries, tuple(members), volume, broken, validation_images)

    @property
    def is_repeated(self) -> bool:
        """Whether students on the front were trained again with other seeds, successfully or not."""
        return any(entry.repeats or entry.repeats_failed for entry in self.non_dominated)

    @cached_property
    def noisy(self) -> list[str]:
        """The objectives that differ between seeds for any student on the front."""
        return [
            name for name in self.objectives if any(entry.spread(name).deviation > 0 for entry in self.non_dominated)
        ]

    @cached_property
    def doubtful(self) -> dict[int, list[int]]:
        """Student on the front -> the students over which its lead is within the noise (`search.seeds`), by trials.

        Contains only students with such leads; empty without repeats. Each student on the front leads over every other
        on some objective: that is what puts it there.
        """
        if not self.is_repeated:
            return {}
        spreads = {e.trial: {name: e.spread(name) for name in self.objectives} for e in self.non_dominated}
        rivals = {
            trial: sorted(
                other
                for other in spreads
                if other != trial and is_within_noise(own, spreads[other], self.objectives, self.noisy)
            )
            for trial, own in spreads.items()
        }
        return {trial: others for trial, others in rivals.items() if others}

    def seed_columns(self, entry: Entry) -> dict[str, float | str]:
        """What the repeats say about a student on the front, for programs; empty if there are none.

        `accuracy.mean` and `accuracy.deviation` of every objective that depends on the seed, `seeds`, `repeats_failed`
        and `lead_within_noise_over` (trials).
        """
        if not self.is_repeated:
            return {}
        columns: dict[str, float | str] = {}
        for name in self.noisy:
            over = entry.spread(name)
            columns |= {f"{name}.mean": over.mean, f"{name}.deviation": over.deviation}
        return columns | {
            "seeds": 1 + len(entry.repeats),
            "repeats_failed": entry.repeats_failed,
            "lead_within_noise_over": ", ".join(map(str, self.doubtful.get(entry.trial, []))),
        }

    def seed_cells(self, entry: Entry) -> dict[str, str]:
        """The same for people: column -> text, with fewer columns."""
        if not self.is_repeated:
            return {}
        cells = {}
        for name in self.noisy:
            over = entry.spread(name)
            deviation = f"{over.deviation:,.0f}" if abs(over.mean) >= 1000 else show(over.deviation)
            cells[f"{name} over seeds"] = f"{show(over.mean)} ± {deviation}"
        failed = f" ({entry.repeats_failed} failed)" if entry.repeats_failed else ""
        cells["seeds"] = f"{1 + len(entry.repeats)}{failed}"
        if self.doubtful:
            cells["lead within noise over"] = ", ".join(map(str, self.doubtful.get(entry.trial, [])))
        return cells

    def axis(self, name: str) -> Axis:
        """The objective's axis; for any other measurement, one that spans the measured values.

        The latter is logarithmic if all values are positive and span more than a decade.
        """
        for axis in self.axes:
            if axis.name == name:
                return axis
        measured = [value for entry in self.entries if math.isfinite(value := entry.value(name))] or [0.0]
        low, high = min(measured), max(measured)
        scale: Scale = "log" if 0 < 10 * low < high else "linear"
        return Axis(name, "min", scale, worst=high if high > low else low + (abs(low) or 1.0), best=low)

    def known(self) -> list[str]:
        """The names of all measurements of any student, in order of appearance."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.measurements))

    def brief(self, entry: Entry) -> str:
        """The choices of the entry's recipe that differ between students of the study, in one line.

        Names are shown without their namespace ("width" for "student.width") if that is unambiguous.
        """
        varied = [
            name for name, value in entry.recipe.items() if any(e.recipe.get(name) != value for e in self.entries)
        ]
        ends = Counter(name.rpartition(".")[2] for name in entry.recipe)
        short = {name: end if ends[end := name.rpartition(".")[2]] == 1 else name for name in varied or entry.recipe}
        values = {name: f"{v:.3g}" if isinstance(v := entry.recipe[name], float) else str(v) for name in short}
        origin = ""
        if entry.curve_of is not None:
            tuned = entry.recipe["pruning.fine_tune_epochs"]
            way = f"after cut {entry.recipe['pruning.rounds']}" if tuned else "cut, not fine-tuned"
            origin = f" (from the curve of trial {entry.curve_of}, {way})"
        return " ".join(f"{short[name]}={values[name]}" for name in short) + origin

    def summary(self) -> str:
        """The front's size and hypervolume, in a line."""
        others = f"; {self.broken} more break a constraint" if self.broken else ""
        share = f"{len(self.non_dominated)} of {len(self.entries)} students on the front"
        return f"{share}, hypervolume {self.hypervolume:.4f}{others}"

    def interval(self, entry: Entry) -> tuple[float, float] | None:
        """The 95 % confidence interval of the student's accuracy; None without one, or if the images are not known."""
        accuracy = entry.value("accuracy")
        if not self.validation_images or not math.isfinite(accuracy):
            return None
        return wilson(accuracy, self.validation_images)

    def interval_cell(self, entry: Entry) -> str:
        """The same for people."""
        return "–" if (ends := self.interval(entry)) is None else f"{ends[0]:.3f}–{ends[1]:.3f}"

    def chosen_from(self) -> str:
        """From how many students the front was chosen, on how many images, in a line; empty if that is not known."""
        if not self.validation_images or not self.entries:
            return ""
        students, images = counted(len(self.entries), "student"), counted(self.validation_images, "validation image")
        return f"chosen from {students} on {images}, which flatters the best; {INTERVAL}s are Wilson's"

    def to_json(self, study: str) -> dict[str, object]:
        """The front as a value for `json.dumps`; counts are integers, values that are not finite are None."""
        counts = {name for name in self.known() if self._counts(name)}

        def finite(entry: Entry, names: Sequence[str]) -> dict[str, float | None]:
            numbers = {name: entry.value(name) for name in names}
            return {
                name: None if not math.isfinite(value) else int(value) if name in counts else value
                for name, value in numbers.items()
            }

        return {
            "study": study,
            "objectives": dict(self.objectives),
            "hypervolume": self.hypervolume,
            "trials": len(self.entries),
            "broke_constraints": self.broken,
            "validation_images": self.validation_images,
            "members": [
                {
                    "trial": entry.trial,
                    "recipe": dict(entry.recipe),
                    "objectives": finite(entry, [*self.objectives]),
                    "measurements": finite(entry, [n for n in entry.measurements if n not in self.objectives]),
                    "accuracy_interval": None if (ends := self.interval(entry)) is None else list(ends),
                    "mlflow_run_id": entry.run_id,
                    "curve_of": entry.curve_of,
                    **({"seeds": self._seeds_json(entry)} if self.is_repeated else {}),
                }
                for entry in self.non_dominated
            ],
        }

    def _seeds_json(self, entry: Entry) -> dict[str, object]:
        spreads = {name: entry.spread(name) for name in self.objectives}
        return {
            "n": 1 + len(entry.repeats),
            "failed": entry.repeats_failed,
            "objectives": {
                name: {"mean": over.mean, "deviation": over.deviation if over.seeds > 1 else None}
                for name, over in spreads.items()
            },
            "lead_within_noise_over": self.doubtful.get(entry.trial, []),
        }

    def _counts(self, name: str) -> bool:
        """Whether the measurement is a count: an integer for every student, and above 1 for one (unlike shares)."""
        values = [value for entry in self.entries if math.isfinite(value := entry.value(name))]
        return all(value.is_integer() for value in values) and max(values, default=0.0) > 1
