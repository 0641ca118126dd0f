"""What looking along the pruning curve of every trained student is worth to a study; writes docs/pruning_curve.md.

    python benchmarks/pruning_curve.py             # about 20 minutes on two cores; goes on where it was interrupted
    python benchmarks/pruning_curve.py --quick     # minutes: is everything sound? writes no document
    python benchmarks/pruning_curve.py --table     # the document again, from what has been run

The study of examples/digits.yaml, one trial after the other, with the ledger and the sampler of a real study and
without Ray. With the curve, every trial is also measured at nine fractions without fine-tuning; the sampler learns of
these, and the front has them.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from common import ROOT, Line, against, arguments, hardware, load_task, loaded_task, read, run_all, spread

from search.front import Axis, hypervolume
from search.ledger import Ledger
from search.study_file import StudyFile
from trainers import METRICS, run_trial
from trainers.measure import ends
from trainers.store import digest

DOCUMENT = ROOT / "docs" / "pruning_curve.md"
SAMPLERS = ("tpe", "random")
"""With the curve."""


@dataclass(frozen=True)
class Setting:
    """How many studies, and how long."""

    trials: int = 24
    """Of a study without the curve."""
    share: float = 1 / 2
    """Of them, a study with the curve has; looked at after a third, too."""
    seeds: int = 3
    epochs: int = 30
    teacher_epochs: int = 30

    @property
    def file(self) -> StudyFile:
        """The study; the seed is its caller's."""
        file = StudyFile.read(ROOT / "examples" / "digits.yaml")
        teacher = file.task.teacher.model_copy(update={"epochs": self.teacher_epochs})
        return file.model_copy(update={"task": file.task.model_copy(update={"teacher": teacher})})


QUICK = Setting(trials=3, seeds=1, epochs=2, teacher_epochs=8)


@dataclass(frozen=True)
class Job:
    """One study."""

    name: str
    curve: bool
    sampler: str
    seed: int
    setting: Setting


def jobs(setting: Setting) -> Iterator[Job]:
    """All studies, the long ones of a seed first."""
    for seed in range(setting.seeds):
        yield Job(f"without the curve, seed {seed}", False, "tpe", seed, setting)
        for sampler in SAMPLERS:
            yield Job(f"with the curve, {sampler}, seed {seed}", True, sampler, seed, setting)


def carry_out(job: Job) -> Line:
    """A line of the results: the hypervolume and the seconds after each trial."""
    task, knowledge = loaded_task()
    setting, file = job.setting, job.setting.file
    axes = [
        Axis(name, direction, METRICS[name].scale, *ends(name, direction, task.teacher_measurements, task.data.classes))
        for name, direction in file.objectives.items()
    ]
    trials = round(setting.trials * setting.share) if job.curve else setting.trials
    began, reached, seconds = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(f"sqlite:///{folder}/ledger.db", "study", file.objectives, job.sampler, job.seed, file.space)
        for _ in range(trials):
            number, recipe = ledger.ask()
            training = recipe.training.model_copy(update={"epochs": setting.epochs})
            recipe = recipe.model_copy(update={"training": training})
            result = run_trial(recipe, task, knowledge, curve=file.space.fractions() if job.curve else ())
            ledger.complete(number, result.measurements, result.seconds, result.points())
            points = [[line.measurements[axis.name] for axis in axes] for line in ledger.lines()]
            reached.append(hypervolume(points, axes))
            seconds.append(time.monotonic() - began)
    return {**asdict(job), "reached": reached, "spent": seconds, "seconds": seconds[-1]}


def document(setting: Setting, results: Mapping[str, Line]) -> str:
    """The tables, in Markdown."""
    plain = {job.seed: results[job.name] for job in jobs(setting) if not job.curve and job.name in results}
    third = round(setting.trials / 3)
    rows, summaries = [], []
    for sampler in SAMPLERS:
        curved = {
            job.seed: results[job.name]
            for job in jobs(setting)
            if job.curve and job.sampler == sampler and job.name in results and job.seed in plain
        }
        needed = []
        for seed, line in curved.items():
            goal = plain[seed]["reached"][-1]
            first = next((n for n, volume in enumerate(line["reached"], start=1) if volume >= goal), None)
            needed.append(first)
            spent = "" if first is None else format(line["spent"][first - 1], ".0f")
            rows.append(
                f"| {seed} | {goal:.4f} after {setting.trials} | {sampler} "
                f"| {line['reached'][third - 1]:.4f} after {third} "
                f"| {line['reached'][-1]:.4f} after {len(line['reached'])} "
                f"| {'not reached' if first is None else first} | {plain[seed]['spent'][-1]:.0f} | {spent} |"
            )
        found = [n / setting.trials for n in needed if n is not None]
        goals = {seed: line["reached"][-1] for seed, line in plain.items() if seed in curved}
        same = {seed: plain[seed]["reached"][third - 1] for seed in goals}
        at_third = {seed: line["reached"][third - 1] for seed, line in curved.items()}
        within = sum(n <= third for n in needed if n)
        summaries.append(
            f"- {sampler}: reached in {len(found)} of {len(needed)} studies, in {within} of them within a third of the "
            f"trials; share of the trials where reached: {spread(found)} (n = {len(found)}). Hypervolume after {third} "
            f"trials with the curve: {against(at_third, goals, 4)} than after {setting.trials} without; "
            f"{against(at_third, same, 4)} than after {third} without."
        )
    return "\n".join(
        [
            "# What the pruning curve is worth to a study",
            "",
            "Written by `python benchmarks/pruning_curve.py`: the study of `examples/digits.yaml`, one trial at a "
            f"time, {setting.epochs} epochs; {setting.trials} trials without the curve by TPE, "
            f"{round(setting.trials * setting.share)} with it, by TPE or drawn at random. Hypervolume as `dux front` "
            "reckons it; the same seed draws the same first recipe everywhere.",
            "",
            f"- {hardware(results.values())}; one thread a study; seconds include training and looking, on a machine "
            "that did other things, too.",
            "",
            f"| seed | hypervolume without | with the curve, by | after a third | after {setting.share:.0%} "
            "| trials with it to reach what was reached without | s without | s with, until then |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            *summaries,
            "",
        ]
    )


def main() -> None:
    """The command."""
    given = arguments("A study with and without the pruning curve.")
    setting = QUICK if given.quick else Setting()
    path = given.home / f"pruning_curve_{digest(asdict(setting))}.jsonl"
    done = read(path, "name")
    if not given.table and (left := [job for job in jobs(setting) if job.name not in done]):
        load_task(setting.file.task, given.home)  # so that no two processes train the teacher

        def shown(line: Line) -> str:
            return f"{line['name']}: {line['reached'][-1]:.4f} after {len(line['reached'])}"

        run_all(
            left,
            carry_out,
            path,
            given.processes,
            shown=shown,
            load=load_task,
            load_with=(setting.file.task, given.home),
        )
    text = document(setting, read(path, "name"))
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
