"""What looking along the pruning curve of every trained student is worth to a study; writes docs/pruning_curve.md.

    python benchmarks/pruning_curve.py             # about 20 minutes on two cores; goes on where it was interrupted
    python benchmarks/pruning_curve.py --quick     # minutes: is everything sound? writes no document
    python benchmarks/pruning_curve.py --table     # the document again, from what has been run

The study of examples/digits.yaml, one trial after the other, with the ledger and the sampler of a real study and
without Ray. With the curve, every trial is also measured at nine fractions without fine-tuning, and between the rounds
in which it is cut; the sampler learns of these, and the front has them. Both with the file's rounds and with one.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from common import ROOT, Line, against, arguments, hardware, load_task, loaded_task, read, run_all, spread

from search.front import Axis, hypervolume
from search.ledger import Ledger
from search.study_file import StudyFile
from spaces import Choice, Space
from trainers import METRICS, run_trial
from trainers.measure import ends
from trainers.store import digest

DOCUMENT = ROOT / "docs" / "pruning_curve.md"


@dataclass(frozen=True)
class Setting:
    """How many studies, and how long."""

    trials: int = 24
    """Of a study without the curve."""
    share: float = 1 / 2
    """Of them, a study with the curve has; looked at after a third, too."""
    seeds: int = 5
    epochs: int = 30
    teacher_epochs: int = 30

    def file(self, rounds: int | None = None) -> StudyFile:
        """The study, with `pruning.rounds` in place of the file's; the seed is its caller's."""
        file = StudyFile.read(ROOT / "examples" / "digits.yaml")
        if rounds is not None:
            parameters = {**file.space.parameters, "pruning.rounds": Choice((rounds,))}
            file = file.model_copy(update={"space": Space(parameters)})
        teacher = file.task.teacher.model_copy(update={"epochs": self.teacher_epochs})
        return file.model_copy(update={"task": file.task.model_copy(update={"teacher": teacher})})


QUICK = Setting(trials=3, seeds=1, epochs=2, teacher_epochs=8)


@dataclass(frozen=True)
class Job:
    """One study."""

    curve: bool
    rounds: int
    seed: int
    setting: Setting

    @property
    def name(self) -> str:
        """What its result is found by."""
        return f"{'with' if self.curve else 'without'} the curve, {self.rounds} rounds, seed {self.seed}"


def jobs(setting: Setting) -> Iterator[Job]:
    """All studies, a seed after the other."""
    (many,) = setting.file().space.parameters["pruning.rounds"].extremes()
    assert isinstance(many, int)
    for seed in range(setting.seeds):
        for rounds in (many, 1):
            for curve in (True, False):
                yield Job(curve, rounds, seed, setting)


def carry_out(job: Job) -> Line:
    """A line of the results: the hypervolume and the seconds after each trial."""
    task, knowledge = loaded_task()
    setting, file = job.setting, job.setting.file(job.rounds)
    axes = [
        Axis(name, direction, METRICS[name].scale, *ends(name, direction, task.teacher_measurements, task.data.classes))
        for name, direction in file.objectives.items()
    ]
    trials = round(setting.trials * setting.share) if job.curve else setting.trials
    began, reached, seconds = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/ledger.db"
        ledger = Ledger(storage, "study", file.objectives, "tpe", job.seed, file.space, curve=job.curve)
        for _ in range(trials):
            number, recipe = ledger.ask()
            training = recipe.training.model_copy(update={"epochs": setting.epochs})
            recipe = recipe.model_copy(update={"training": training})
            result = run_trial(recipe, task, knowledge, curve=file.space.fractions() if job.curve else ())
            ledger.complete(number, result.measurements, result.seconds, result.points())
            points = [[line.measurements[axis.name] for axis in axes] for line in ledger.lines()]
            reached.append(hypervolume(points, axes))
            seconds.append(time.monotonic() - began)
    return {"name": job.name, **asdict(job), "reached": reached, "spent": seconds, "seconds": seconds[-1]}


def document(setting: Setting, results: Mapping[str, Line]) -> str:
    """The table, in Markdown."""
    plain = {job.seed: results[job.name] for job in jobs(setting) if not job.curve and job.name in results}
    curved = {job.seed: results[job.name] for job in jobs(setting) if job.curve and job.name in results}
    seeds, third = sorted(plain.keys() & curved.keys()), round(setting.trials / 3)
    rows, needed = [], []
    for seed in seeds:
        goal, line = plain[seed]["reached"][-1], curved[seed]
        first = next((n for n, volume in enumerate(line["reached"], start=1) if volume >= goal), None)
        needed.append(first)
        spent = "" if first is None else format(line["spent"][first - 1], ".0f")
        rows.append(
            f"| {seed} | {plain[seed]['reached'][third - 1]:.4f} | {goal:.4f} | {line['reached'][third - 1]:.4f} "
            f"| {line['reached'][-1]:.4f} | {'not reached' if first is None else first} "
            f"| {plain[seed]['spent'][-1]:.0f} | {spent} |"
        )
    found = [n / setting.trials for n in needed if n is not None]
    goals = {seed: plain[seed]["reached"][-1] for seed in seeds}
    at_third = {seed: curved[seed]["reached"][third - 1] for seed in seeds}
    early = {seed: plain[seed]["reached"][third - 1] for seed in seeds}
    within = sum(n <= third for n in needed if n)
    half = round(setting.trials * setting.share)
    return "\n".join(
        [
            "# What the pruning curve is worth to a study",
            "",
            "Written by `python benchmarks/pruning_curve.py`: the study of `examples/digits.yaml`, one trial at a "
            f"time, TPE, {setting.epochs} epochs; {setting.trials} trials without the curve, {half} with it. "
            "Hypervolume as `dux front` reckons it. The same seed draws the same first ten recipes on both sides.",
            "",
            f"- {hardware(results.values())}; one thread a study; seconds include training and looking, on a machine "
            "that did other things, too.",
            "",
            f"| seed | without, after {third} | without, after {setting.trials} "
            f"| with, after {third} | with, after {half} | trials with it to get as far | s without | s with |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"Reached in {len(found)} of {len(needed)} studies, in {within} of them within a third of the trials; "
            f"share of the trials where reached: {spread(found) if found else 'none'} (n = {len(found)}). "
            f"Hypervolume after {third} trials with the curve, against {setting.trials} without: "
            f"{against(at_third, goals, 4)}; against {third} without: {against(at_third, early, 4)}.",
            "",
            "Where the rest is (seed 0): the curve of one student of width 0.625 has 97 % at 6,000 parameters and 93 % "
            "at 2,000, and fills that part of the front at once. Below, students that are narrow from the start are "
            "better: width 0.125 uncut has 98 % at 1,384 parameters, wide ones cut to 1,050 to 1,290 have 76 to 80 %. "
            "A study has to find the narrow ones and fine-tune what it cuts of them, with the curve or without.",
            "",
            "Tried on seed 0, 12 trials with the curve: TPE from the fifth trial on instead of the eleventh: 0.558 "
            "instead of 0.572 (points are not fine-tuned: it may learn from them that high fractions are poor); a "
            "Latin hypercube in place of the random start: 0.528.",
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
        load_task(setting.file().task, given.home)  # so that no two processes train the teacher

        def shown(line: Line) -> str:
            return f"{line['name']}: {line['reached'][-1]:.4f} after {len(line['reached'])}"

        run_all(
            left,
            carry_out,
            path,
            given.processes,
            shown=shown,
            load=load_task,
            load_with=(setting.file().task, given.home),
        )
    text = document(setting, read(path, "name"))
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
