"""What measuring every trained student's pruning curve is worth to a study; writes docs/pruning_curve.md.

    python benchmarks/pruning_curve.py             # about 20 minutes on two cores; continues where it was interrupted
    python benchmarks/pruning_curve.py --quick     # minutes: does everything work? writes no document
    python benchmarks/pruning_curve.py --table     # only writes the document, from existing results

The study of examples/digits.yaml, one trial after the other, with the ledger and the sampler of a real study and
without Ray. With the curve, every trial is also measured at nine fractions without fine-tuning, and between the rounds
in which it is cut; the sampler learns from these points, and they can be on the front. Each is run with the file's
rounds and with one.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from common import ROOT, Line, against, arguments, hardware, load_task, loaded_task, read, run_all

from search.fronts.pareto import Axis, hypervolume
from search.ledger.ledger import Ledger
from search.study_file import StudyFile
from spaces import Choice, Space
from trainers import run_trial
from trainers.files import digest

DOCUMENT = ROOT / "docs" / "pruning_curve.md"


@dataclass(frozen=True)
class Setting:
    """How many studies, and how long."""

    trials: int = 24
    """Of a study without the curve."""
    share: float = 1 / 2
    """Trials of a study with the curve, as a share of `trials`; it is also evaluated after a third of `trials`."""
    seeds: int = 5
    epochs: int = 30
    teacher_epochs: int = 30

    def file(self, rounds: int | None = None) -> StudyFile:
        """The study, of students from scratch, perhaps with other `pruning.rounds`; the seed is its caller's."""
        file = StudyFile.read(ROOT / "examples" / "digits.yaml")
        parameters = {**file.space.parameters, "student.start": Choice(("scratch",))}
        if rounds is not None:
            parameters["pruning.rounds"] = Choice((rounds,))
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
        Axis.of_metric(name, direction, task.teacher_measurements, task.data.classes)
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
    arms: dict[tuple[bool, int], dict[int, list[float]]] = {}
    for job in jobs(setting):
        if job.name in results:
            arms.setdefault((job.curve, job.rounds), {})[job.seed] = results[job.name]["reached"]
    many = max((rounds for _, rounds in arms), default=1)
    third, half = round(setting.trials / 3), round(setting.trials * setting.share)
    columns = [
        (f"without, {many} rounds, {third}", (False, many), third),
        (f"{setting.trials}", (False, many), setting.trials),
        (f"without, one cut, {third}", (False, 1), third),
        (f"{setting.trials}", (False, 1), setting.trials),
        (f"with, one cut, {third}", (True, 1), third),
        (f"with, {many} rounds, {third}", (True, many), third),
        (f"{half}", (True, many), half),
    ]
    ours = arms.get((True, many), {})
    goals = {rounds: {s: line[-1] for s, line in arms.get((False, rounds), {}).items()} for rounds in (many, 1)}
    needed = {
        rounds: {s: _first(ours[s], goal) for s, goal in by_seed.items() if s in ours}
        for rounds, by_seed in goals.items()
    }

    def needs(trials: int | None) -> str:
        return f"more than {half}" if trials is None else str(trials)

    rows = []
    for seed in range(setting.seeds):
        curves = [arms.get(arm, {}).get(seed, []) for _, arm, _ in columns]
        cells = [f"{line[after - 1]:.4f}" if line else "" for line, (_, _, after) in zip(curves, columns, strict=True)]
        cells += [needs(needed[rounds][seed]) if seed in needed[rounds] else "" for rounds in (many, 1)]
        rows.append(f"| {seed} | {' | '.join(cells)} |")
    ends = [f"trials to reach {setting.trials} without, {many} rounds", f"{setting.trials} without, one cut"]
    header = [name for name, _, _ in columns] + ends
    at_third = {seed: line[third - 1] for seed, line in ours.items()}
    verdicts = []
    for rounds, name in ((many, f"in {many} rounds"), (1, "once")):
        by_seed = needed[rounds]
        reached = [trials for trials in by_seed.values() if trials is not None]
        within = sum(trials <= third for trials in reached)
        verdicts.append(
            f"- The hypervolume of {setting.trials} trials without the curve that cut {name} is reached within {third} "
            f"trials with it, a third, in {within} of {len(by_seed)} studies (within {half}: {len(reached)}). "
            f"Hypervolume after {third} with it, against {setting.trials} without: "
            f"{against(at_third, goals[rounds], 4)}."
        )
    seconds: dict[tuple[bool, int], list[float]] = {arm: [] for arm in arms}
    for job in jobs(setting):
        if job.name in results:
            line = results[job.name]
            seconds[job.curve, job.rounds].append(line["seconds"] / len(line["reached"]))
    prices = "; ".join(
        f"{'with' if curve else 'without'}, {rounds} round{'s' * (rounds > 1)}: {statistics.median(curves):.1f}"
        for (curve, rounds), curves in sorted(seconds.items())
    )
    return "\n".join(
        [
            "# What the pruning curve is worth to a study",
            "",
            "Written by `python benchmarks/pruning_curve.py`: the study of `examples/digits.yaml` from scratch, one "
            f"trial at a time, TPE, {setting.epochs} epochs, {setting.seeds} seeds; {setting.trials} trials without "
            f"the curve, {half} with it; cut in the file's {many} rounds, and in one. Hypervolume as in `dux front`. "
            "The same seed draws the same first recipes everywhere, except for the fraction: with the curve and rounds "
            "the first ten trials are cut as far as the space allows, since every size along the way is on the curve.",
            "",
            f"- {hardware(results.values())}; one thread per study.",
            f"- Seconds per trial (median of the studies), on a machine that was doing other work: {prices}.",
            "",
            f"| seed | {' | '.join(header)} |",
            "| --- " * (1 + len(header)) + "|",
            *rows,
            "",
            *verdicts,
            "",
            "Why it helps: without rounds (one cut), no point is fine-tuned. Such points fill the front at the larger "
            "sizes at once, but not at the small ones, which decide: there fine-tuned students are far better. With "
            "rounds, the students between two cuts are fine-tuned, and each trial yields as many of them as there are "
            "rounds, for the same epochs. Rounds alone, without these points, do not help a study.",
            "",
        ]
    )


def _first(reached: Sequence[float], goal: float) -> int | None:
    """After how many trials."""
    return next((count for count, volume in enumerate(reached, start=1) if volume >= goal), None)


def main() -> None:
    """The command."""
    given = arguments("A study with and without the pruning curve.")
    setting = QUICK if given.quick else Setting()
    path = given.home / f"pruning_curve_{digest(asdict(setting))}.jsonl"
    done = read(path, "name")
    if not given.table and (left := [job for job in jobs(setting) if job.name not in done]):
        load_task(setting.file().task, given.home)  # so that no two processes train the teacher at once

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
