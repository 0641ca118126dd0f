"""What early stopping saves a study, and what it costs; writes docs/early_stopping.md and .png.

    python benchmarks/early_stopping.py             # about 40 minutes on 2 cores; continues where it was interrupted
    python benchmarks/early_stopping.py --quick     # a minute: does everything work? writes no document
    python benchmarks/early_stopping.py --table     # only writes the document, from existing results

A random sampler draws the same recipes whatever is stopped, and a trial's learning curve depends on its recipe alone.
So every recipe is run once, to its end, and its learning curve recorded; then each policy is replayed on the same
learning curves with two workers: which trials it would have stopped, when, and what the rest achieve. Policies are the
objects that a study uses: `search.stopping.Halving`, and Ray Tune's `AsyncHyperBandScheduler` on accuracy.
"""

import heapq
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import ROOT, Line, against, arguments, hardware, load_task, loaded_task, mean, read, run_all, spread
from matplotlib.figure import Figure

from search.fronts.pareto import Axis, hypervolume
from search.ledger.ledger import Ledger
from search.stopping import Halving
from search.study_file import StudyFile
from spaces import Recipe
from trainers import Report, run_trial
from trainers.files import digest
from trainers.loop import Diverged

DOCUMENT = ROOT / "docs" / "early_stopping.md"
FIGURE = DOCUMENT.with_suffix(".png")
MIN_EPOCHS, REDUCTION = 3, 3
"""The defaults of `search.min_epochs` and `search.reduction`, for both policies."""
WORKERS = 2

STUDIES: dict[str, dict[str, Any]] = {
    "digits": {
        "task": {"dataset": "digits", "augment": "none", "teacher": {"depth": 20, "width": 1.0, "epochs": 30}},
        "space": {
            "student.width": {"low": 0.125, "high": 1.0, "step": 0.125},
            "transfer": ["none", "kd", "factor"],
            "kd.temperature": {"low": 1.0, "high": 8.0},
            "factor.rate": [0.5, 1.0],
            "factor.paraphraser_steps": 800,
            "pruning.fraction": {"low": 0.0, "high": 0.9},
            "training.learning_rate": {"low": 0.003, "high": 1.0, "log": True},
        },
    },
    "fashion_mnist": {
        "task": {
            "dataset": "fashion_mnist",
            "augment": "none",
            "train_limit": 2000,
            "teacher": {"depth": 8, "width": 0.5, "epochs": 10, "batch_size": 64},
        },
        "space": {
            "student.width": {"low": 0.125, "high": 0.5, "step": 0.125},
            "transfer": ["none", "kd", "factor"],
            "kd.temperature": {"low": 1.0, "high": 8.0},
            "factor.rate": 0.5,
            "factor.paraphraser_steps": 1000,
            "pruning.fraction": {"low": 0.0, "high": 0.9},
            "training.learning_rate": {"low": 0.003, "high": 1.0, "log": True},
            "training.epochs": 9,
            "training.batch_size": 64,
            "pruning.fine_tune_epochs": 3,
        },
    },
}
"""The digits study with a learning rate to be found, as users search it; and a smaller task of the larger images."""


@dataclass(frozen=True)
class Setting:
    """How many studies, and how long."""

    trials: int = 24
    """Of one study; the recipes are the same for every policy."""
    seeds: int = 5
    quick: bool = False

    def file(self, name: str) -> StudyFile:
        """A study of STUDIES."""
        raw = json.loads(json.dumps({"name": name, **STUDIES[name]}))
        if self.quick:
            raw["task"] |= {"train_limit": 200, "teacher": {"depth": 8, "width": 0.25, "epochs": 2, "batch_size": 16}}
            raw["space"] |= {"transfer": ["none", "kd"], "training.epochs": 10, "pruning.fine_tune_epochs": 1}
            for key in [key for key in raw["space"] if key.startswith("factor.")]:
                del raw["space"][key]
        return StudyFile.from_mapping(raw)


QUICK = Setting(trials=6, seeds=2, quick=True)


@dataclass(frozen=True)
class Job:
    """One trial, carried out to its end."""

    study: str
    seed: int
    place: int
    quick: bool
    recipe: str

    @property
    def key(self) -> str:
        """Everything that it depends on."""
        return json.dumps(asdict(self), sort_keys=True)


def jobs(setting: Setting) -> Iterator[Job]:
    """All trials, a study after the other."""
    for study in STUDIES:
        for seed in range(setting.seeds):
            file = setting.file(study)
            with tempfile.TemporaryDirectory() as folder:
                ledger = Ledger(f"sqlite:///{folder}/l.db", study, file.objectives, "random", seed, file.space)
                for place in range(setting.trials):
                    yield Job(study, seed, place, setting.quick, ledger.ask()[1].to_json())


def load(setting: Setting, home: Path) -> None:
    """In each process, once."""
    for name in STUDIES:
        load_task(setting.file(name).task, home)


def carry_out(job: Job) -> Line:
    """A line of the measured: the course of a trial, and what it comes to."""
    file = Setting(quick=job.quick).file(job.study)
    task, knowledge = loaded_task(file.task)
    course: list[dict[str, Any]] = []
    began = time.monotonic()

    def report(report: Report) -> None:
        measured = {**report.metrics, **report.cost}
        course.append({"measured": measured, "seconds": time.monotonic() - began})

    measured: list[dict[str, float]] = []
    failed = ""
    try:
        measured = [run_trial(Recipe.from_json(job.recipe), task, knowledge, report).measurements]
    except Diverged as error:
        failed = str(error)
    kept = [{name: values[name] for name in file.objectives} for values in measured]
    axes = [
        astuple(Axis.of_metric(name, direction, task.teacher_measurements, task.data.classes))
        for name, direction in file.objectives.items()
    ]
    seconds = time.monotonic() - began
    return {"key": job.key, **asdict(job), "course": course, "found": kept, "failed": failed, "axes": axes} | {
        "seconds": seconds
    }


Policy = Callable[[int, int, Mapping[str, float], int], bool]
"""Of a trial, its epoch, what was measured and how many epochs there are: whether it goes on."""


def everything(axes: Sequence[Axis]) -> Policy:
    """Every trial to its end, as Ray Tune's FIFO scheduler has it."""
    return lambda trial, epoch, measured, steps: True


def pareto(axes: Sequence[Axis]) -> Policy:
    """`search.stopping: pareto`."""
    halving = Halving(axes, MIN_EPOCHS, REDUCTION)

    def policy(trial: int, epoch: int, measured: Mapping[str, float], steps: int) -> bool:
        if not halving.is_rung(epoch):
            return True
        halving.add(trial, epoch, measured)
        return epoch == steps or halving.should_continue(trial, epoch)

    return policy


def asha(axes: Sequence[Axis]) -> Policy:
    """Ray Tune's asynchronous successive halving on the first objective alone."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

    first = axes[0]
    scheduler = AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=first.name,
        mode=first.direction,
        grace_period=MIN_EPOCHS,
        reduction_factor=REDUCTION,
        max_t=1000,
    )
    known: dict[int, Any] = {}

    def policy(trial: int, epoch: int, measured: Mapping[str, float], steps: int) -> bool:
        if trial not in known:
            known[trial] = SimpleNamespace(trial_id=str(trial), config={})
            scheduler.on_trial_add(None, known[trial])
        result = {"epoch": epoch, first.name: measured[first.name]}
        said = scheduler.on_trial_result(None, known[trial], result)
        return epoch == steps or bool(said == TrialScheduler.CONTINUE)

    return policy


POLICIES: dict[str, Callable[[Sequence[Axis]], Policy]] = {
    "none (FIFO)": everything,
    "pareto": pareto,
    "ASHA on accuracy": asha,
}


UNITS = ("epochs", "seconds")
"""In which compute is reckoned: epochs of all trials, and seconds of all workers."""


@dataclass(frozen=True)
class Replayed:
    """What a study comes to under a policy."""

    spent: Mapping[str, float]
    """Of UNITS."""
    finished: int
    volumes: tuple[tuple[Mapping[str, float], float], ...]
    """(spent until then, hypervolume), from each trial that came to its end."""

    @property
    def volume(self) -> float:
        """At the end."""
        return self.volumes[-1][1] if self.volumes else 0.0

    def at(self, amount: float, unit: str) -> float:
        """The hypervolume when so much was spent."""
        return max((volume for spent, volume in self.volumes if spent[unit] <= amount), default=0.0)


def replay(lines: Sequence[Line], make: Callable[[Sequence[Axis]], Policy]) -> Replayed:
    """The trials in their order on WORKERS workers, each as fast as it was, under a policy.

    Args:
        lines: the trials of one study.
        make: of POLICIES.
    """
    axes = [Axis(*axis) for axis in lines[0]["axes"]]
    policy = make(axes)
    waiting = iter(range(len(lines)))
    events: list[tuple[float, int, int]] = []  # when, trial, epoch that is over then

    def begin(now: float) -> None:
        if (trial := next(waiting, None)) is not None:
            running.add(trial)
            follow(now, trial, 1)

    def follow(began: float, trial: int, epoch: int) -> None:
        starts[trial] = began if epoch == 1 else starts[trial]
        course = lines[trial]["course"]
        ends_at = course[epoch - 1]["seconds"] if epoch <= len(course) else lines[trial]["seconds"]
        heapq.heappush(events, (starts[trial] + ends_at, trial, epoch))

    starts: dict[int, float] = {}
    running: set[int] = set()
    for _ in range(WORKERS):
        begin(0.0)
    epochs, busy, finished = 0, 0.0, 0
    points: list[list[float]] = []
    volumes: list[tuple[Mapping[str, float], float]] = []
    while events:
        now, trial, epoch = heapq.heappop(events)
        line = lines[trial]
        course = line["course"]
        if epoch <= len(course):
            epochs += 1
            if policy(trial, epoch, course[epoch - 1]["measured"], len(course)):
                follow(starts[trial], trial, epoch + 1)
                continue
        else:
            finished += 1
            points += [[values[axis.name] for axis in axes] for values in line["found"]]
            seconds = busy + sum(now - starts[other] for other in running)
            volumes.append(({"epochs": epochs, "seconds": seconds}, hypervolume(points, axes)))
        busy += now - starts[trial]
        running.remove(trial)
        begin(now)
    return Replayed({"epochs": epochs, "seconds": busy}, finished, tuple(volumes))


def tables(setting: Setting, results: Mapping[str, Line]) -> tuple[list[str], dict[str, dict[str, list[Replayed]]]]:
    """The rows of the document, and the replays for its figure."""
    text: list[str] = []
    drawn: dict[str, dict[str, list[Replayed]]] = {}
    for study in STUDIES:
        whole = {}
        for seed in range(setting.seeds):
            lines = [line for line in results.values() if (line["study"], line["seed"]) == (study, seed)]
            if len(lines) == setting.trials:
                whole[seed] = sorted(lines, key=lambda line: int(line["place"]))
        if not whole:
            continue
        bad = sum(bool(line["failed"]) for lines in whole.values() for line in lines)
        replays = {
            name: {seed: replay(lines, make) for seed, lines in whole.items()} for name, make in POLICIES.items()
        }
        base = replays["none (FIFO)"]
        drawn[study] = {name: list(by_seed.values()) for name, by_seed in replays.items()}
        text += [
            "",
            f"## {study}",
            "",
            f"{len(whole)} studies of {setting.trials} trials; {bad} trials diverged in all.",
            "",
            "| stopping | trials completed | epochs | of FIFO's | seconds | of FIFO's | hypervolume "
            "| against FIFO on the same trials | against FIFO at the same epochs | at the same seconds |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        said: list[str] = []
        for name, by_seed in replays.items():
            same = {u: {seed: base[seed].at(r.spent[u], u) for seed, r in by_seed.items()} for u in UNITS}
            shares = {u: mean(r.spent[u] / base[seed].spent[u] for seed, r in by_seed.items()) for u in UNITS}
            volumes = {seed: r.volume for seed, r in by_seed.items()}
            is_base = by_seed is base
            text.append(
                f"| {name} | {spread((r.finished for r in by_seed.values()), 1)} "
                f"| {spread((r.spent['epochs'] for r in by_seed.values()), 0)} "
                f"| {shares['epochs']:.0%} "
                f"| {spread((r.spent['seconds'] for r in by_seed.values()), 0)} "
                f"| {shares['seconds']:.0%} "
                f"| {spread(volumes.values(), 4)} "
                f"| {'' if is_base else against(volumes, {seed: r.volume for seed, r in base.items()}, 4)} "
                f"| {'' if is_base else against(volumes, same['epochs'], 4)} "
                f"| {'' if is_base else against(volumes, same['seconds'], 4)} |"
            )
            if not is_base:
                said.append(
                    f"- {name} saves {1 - shares['epochs']:.0%} of the epochs and {1 - shares['seconds']:.0%} of the "
                    f"seconds, for a difference of {mean(volumes[s] - base[s].volume for s in volumes):+.4f} in "
                    "hypervolume."
                )
        text += ["", *said]
    return text, drawn


def document(setting: Setting, results: Mapping[str, Line], rows: Sequence[str]) -> str:
    """The page, in Markdown."""
    return "\n".join(
        [
            "# What early stopping saves, and what it costs",
            "",
            "Written by `python benchmarks/early_stopping.py`. Every recipe was run once, to its end; each policy is "
            f"then replayed on the same learning curves with {WORKERS} workers, from the first trial on.",
            "",
            "Recipes are drawn at random, so that all policies have the same ones; a learning sampler and the pruning "
            f"curve are not part of these figures. Rungs at {MIN_EPOCHS}, {MIN_EPOCHS * REDUCTION}, ... epochs for "
            "both. Hypervolume as in `dux front`. ± is the standard deviation over seeds; for differences, the "
            "half-width of a 95 % confidence interval for the mean of the paired differences.",
            "",
            f"- {hardware(results.values())}; one thread per trial; seconds are those of the full trials, measured "
            "on a machine that may have been doing other work.",
            *rows,
            "",
            f"![Hypervolume against epochs and seconds]({FIGURE.name})",
            "",
        ]
    )


def draw(drawn: Mapping[str, Mapping[str, Sequence[Replayed]]]) -> None:
    """The mean hypervolume against what was spent, as a share of what FIFO spends on all trials."""
    figure = Figure(figsize=(5 * len(drawn), 3.8 * len(UNITS)), layout="constrained")
    for unit, row in zip(UNITS, figure.subplots(len(UNITS), len(drawn), squeeze=False), strict=True):
        for axes, (study, policies) in zip(row, drawn.items(), strict=True):
            total = [r.spent[unit] for r in policies["none (FIFO)"]]
            shares = [place / 100 for place in range(101)]
            for name, replays in policies.items():
                means = [
                    statistics.fmean(r.at(share * whole, unit) for r, whole in zip(replays, total, strict=True))
                    for share in shares
                ]
                end = mean(r.spent[unit] / whole for r, whole in zip(replays, total, strict=True))
                shown = [place for place, share in enumerate(shares) if share <= end + 0.01]
                axes.plot([shares[place] for place in shown], [means[place] for place in shown], label=name)
            axes.set(title=study, xlabel=f"{unit}, as a share of FIFO's", ylabel="hypervolume")
            axes.legend()
    figure.savefig(FIGURE, dpi=150)


def main() -> None:
    """The command."""
    given = arguments("A study's trials under three ways to stop them.")
    setting = QUICK if given.quick else Setting()
    path = given.home / f"early_stopping_{digest(asdict(setting), STUDIES)}.jsonl"
    done = read(path, "key")
    if not given.table and (left := [job for job in jobs(setting) if job.key not in done]):
        load(setting, given.home)  # so that no two processes train the teacher at once

        def shown(line: Line) -> str:
            return f"{line['study']} {line['seed']}/{line['place']}: {line['failed'] or line['found'][0]['accuracy']}"

        run_all(left, carry_out, path, given.processes, shown=shown, load=load, load_with=(setting, given.home))
    results = read(path, "key")
    rows, drawn = tables(setting, results)
    text = document(setting, results, rows)
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
        draw(drawn)
    print(text)


if __name__ == "__main__":
    main()
