"""Students that start as the teacher against students from scratch; writes docs/start_from_teacher.md and .png.

    python benchmarks/start_from_teacher.py             # within an hour on 2 cores; continues where it was interrupted
    python benchmarks/start_from_teacher.py --quick     # minutes: does everything work? writes no document
    python benchmarks/start_from_teacher.py --table     # only writes the documents, from existing results

Digits and a stated part of Fashion-MNIST. A teacher is trained for each seed; its students have the same three widths,
hence as many parameters, and are trained for as many epochs, from scratch or from the teacher, with and without
knowledge distillation. The plain pipeline is Torch-Pruning's group magnitude on the teacher at its own defaults, then
the same fine-tuning with the same distillation. Accuracy on the whole test split, which is not used to select anything.
"""

import copy
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import pruning_criteria
import torch
import torch_pruning as tp
from common import (
    MILD_L2,
    ROOT,
    Line,
    against,
    arguments,
    hardware,
    load_task,
    loaded_task,
    mean,
    read,
    run_all,
    spread,
)
from torch import Tensor, nn

from search.fronts.pareto import Axis, hypervolume
from spaces import Recipe
from trainers import Knowledge, Task, TaskSpec, TeacherSpec, run_trial
from trainers.computing import computing
from trainers.data import pixels
from trainers.families import Network, capture
from trainers.files import digest
from trainers.loop import Batch, Schedule, fit
from trainers.measure import measure
from trainers.planning import taps
from trainers.spectral import cut, plan, recalibrate, spectralize, trace
from trainers.trainer import SEEN
from trainers.transfer import Shapes, method_of

DOCUMENT = ROOT / "docs" / "start_from_teacher.md"
FIGURE = ROOT / "docs" / "start_from_teacher.png"
DATA = {"digits": None, "fashion_mnist": 2000}
"""Data sets, and how many images each is trained on (None: all)."""
STARTS = {
    "scratch": ("scratch", "none"),
    "scratch, kd": ("scratch", "kd"),
    "teacher": ("teacher", "none"),
    "teacher, kd": ("teacher", "kd"),
}
PLAIN = "plain pipeline"
ARMS = (*STARTS, PLAIN)
CRITERIA = {
    "spectral": "spectral (batch-norm scale here)",
    "magnitude": "group L2 norm",
    "batch-norm scale": "batch-norm scale, mean over a group",
    "taylor": "first-order Taylor",
    "random": "random",
}


@dataclass(frozen=True)
class Setting:
    """What all trials have in common."""

    depth: int = 8
    teacher_width: float = 0.5
    teacher_epochs: int = 20
    epochs: int = 8
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Of the teacher's units that students have."""
    seeds: int = 5
    limit: int | None = None
    """Training images, where fewer are used than DATA says."""

    def spec(self, dataset: str, seed: int) -> TaskSpec:
        """The task of a seed."""
        teacher = TeacherSpec(depth=self.depth, width=self.teacher_width, epochs=self.teacher_epochs, seed=seed)
        return TaskSpec(dataset=dataset, train_limit=self.limit or DATA[dataset], augment="none", teacher=teacher)

    def recipe(self, arm: str, share: float, seed: int) -> Recipe:
        """One trial: the learning rates are the defaults of either start."""
        start, transfer = STARTS[arm]
        width = share if start == "teacher" else share * self.teacher_width
        own = {"student.start": start, "student.depth": self.depth, "student.width": width}
        return Recipe.from_flat({**MILD_L2, **own, "training.epochs": self.epochs, "transfer": transfer, "seed": seed})


QUICK = Setting(teacher_width=0.25, teacher_epochs=1, epochs=1, shares=(0.5,), seeds=2, limit=200)


@dataclass(frozen=True)
class Job:
    """One student, or the teacher cut by one criterion."""

    dataset: str
    seed: int
    arm: str
    share: float

    @property
    def key(self) -> str:
        """All that it depends on, but for the setting."""
        return json.dumps(asdict(self))


def jobs(setting: Setting) -> Iterator[Job]:
    """A seed after the other."""
    for seed in range(setting.seeds):
        for dataset in DATA:
            for share in setting.shares:
                yield from (Job(dataset, seed, arm, share) for arm in (*ARMS, *CRITERIA))


_setting, _home = Setting(), Path()


def load(setting: Setting, home: Path) -> None:
    """In each process, once."""
    global _setting, _home
    _setting, _home = setting, home
    torch.set_num_threads(1)


@cache
def task_of(dataset: str, seed: int) -> tuple[Task, Knowledge]:
    """A seed's task; its teacher is trained once."""
    spec = _setting.spec(dataset, seed)
    load_task(spec, _home)
    return loaded_task(spec)


@cache
def teacher_of(dataset: str, seed: int) -> Mapping[str, float]:
    """A teacher's measurements on the test split."""
    task, _ = task_of(dataset, seed)
    return measure(task.teacher, task.data.test)


def carry_out(job: Job) -> Line:
    """A line of the results."""
    task, knowledge = task_of(job.dataset, job.seed)
    began = time.monotonic()
    if job.arm in STARTS:
        network: nn.Module = run_trial(_setting.recipe(job.arm, job.share, job.seed), task, knowledge).network
    elif job.arm == PLAIN:
        network = plain(task, knowledge, job.share, job.seed)
    else:
        network = cut_alone(task, job)
    measured = measure(network, task.data.test)
    found = {"accuracy": measured["accuracy"], "parameters": measured["parameters"]}
    teacher = teacher_of(job.dataset, job.seed)
    whole = {"teacher_accuracy": teacher["accuracy"], "teacher_parameters": teacher["parameters"]}
    return {**asdict(job), "key": job.key, **found, **whole, "seconds": time.monotonic() - began}


def plain(task: Task, knowledge: Knowledge, share: float, seed: int) -> nn.Module:
    """Torch-Pruning's group magnitude on the teacher, each layer cut by the same share, fine-tuned by distillation."""
    network = copy.deepcopy(task.teacher).requires_grad_(True)
    pruner = tp.pruner.MetaPruner(
        network,
        torch.zeros(2, *task.data.image_shape),
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=1 - share,
        ignored_layers=[network.get_submodule(name) for name in network.heads],
    )
    pruner.step()
    recipe = _setting.recipe("teacher, kd", share, seed)
    generator = torch.Generator().manual_seed(seed)
    method_type, options = method_of(recipe)
    needs, shape = method_type.needs(options), task.data.image_shape
    shapes = Shapes(taps(network, shape), taps(task.teacher, shape), task.data.train.labels, 1, 1)
    method = method_type.make(options, shapes, generator=generator)
    training = recipe.training

    def loss(batch: Batch) -> Tensor:
        features, signals = capture(network, batch.images), knowledge.signals(needs, batch, generator)
        value: Tensor = method(features, signals, batch.labels)
        return value

    schedule = Schedule(
        training.epochs,
        training.batch_size,
        training.learning_rate,
        training.momentum,
        training.weight_decay,
        max_gradient_norm=training.max_gradient_norm,
    )
    with computing(1):
        fit(network, loss, task.data.train, schedule, policy="none", generator=generator, others=[method])
    return network.eval()


def cut_alone(task: Task, job: Job) -> Network:
    """The teacher cut by one criterion as students are that start as it, and not trained."""
    own = pruning_criteria.Setting(job.dataset, "test", _setting.limit or DATA[job.dataset], (), ())
    pruning_criteria.load(own, _home)
    with computing(1):
        whole = copy.deepcopy(task.teacher).requires_grad_(True)
        whole = spectralize(whole, keep=whole.heads)
        importance = pruning_criteria.CRITERIA[job.arm](whole, job.seed)
        traced = trace(whole, task.data.image_shape)
        cuts = plan(traced, 1 - job.share, floor=0.0, scope="layer", importance=importance)
        order = torch.randperm(len(task.data.train), generator=torch.Generator().manual_seed(job.seed))[:SEEN]
        images = pixels(task.data.train.images[order])
        smaller = cut(whole, cuts, images=images)
        recalibrate(smaller, images.split(64))
    return smaller


def run(setting: Setting, home: Path, path: Path, processes: int) -> None:
    """Do what is not done yet."""
    done = read(path, "key")
    left = [job for job in jobs(setting) if job.key not in done]
    if left:
        run_all(left, carry_out, path, processes, shown=shown, load=load, load_with=(setting, home))


def shown(line: Line) -> str:
    """A line for the terminal."""
    return f"{line['dataset']:14} seed {line['seed']} {line['arm']:17} {line['share']:.2f} {line['accuracy']:.4f}"


Results = Mapping[str, Line]


def accuracies(results: Results, dataset: str, arm: str, share: float) -> dict[int, float]:
    """In %, by seed."""
    own = [line for line in results.values() if (line["dataset"], line["arm"], line["share"]) == (dataset, arm, share)]
    return {line["seed"]: 100 * line["accuracy"] for line in own}


def hypervolumes(results: Results, dataset: str, arm: str) -> dict[int, float]:
    """Of the front of one arm's students, by seed: accuracy from 0 to 1, parameters from the teacher's to 1."""
    found: dict[int, list[Line]] = {}
    for line in results.values():
        if (line["dataset"], line["arm"]) == (dataset, arm):
            found.setdefault(line["seed"], []).append(line)
    return {
        seed: 100
        * hypervolume(
            [(line["accuracy"], line["parameters"]) for line in lines],
            [
                Axis("accuracy", "max", "linear", 0.0, 1.0),
                Axis("parameters", "min", "log", lines[0]["teacher_parameters"], 1.0),
            ],
        )
        for seed, lines in found.items()
    }


def tables(setting: Setting, results: Results, dataset: str) -> Iterator[str]:
    """The part of the document on one data set."""
    lines = [line for line in results.values() if line["dataset"] == dataset]
    teachers = {line["seed"]: (100 * line["teacher_accuracy"], line["teacher_parameters"]) for line in lines}
    images = setting.limit or DATA[dataset]
    yield f"## {dataset}, {'all' if images is None else f'{images:,}'} training images"
    yield ""
    yield (
        f"Teachers: {spread(accuracy for accuracy, _ in teachers.values())} %, "
        f"{next(iter(teachers.values()))[1]:,.0f} parameters."
    )
    yield ""
    sizes = {
        share: mean(line["parameters"] for line in lines if line["share"] == share and line["arm"] in ARMS)
        for share in setting.shares
    }
    heads = [f"{share:g} ({sizes[share]:,.0f} parameters)" for share in setting.shares]
    yield f"| arm | {' | '.join(heads)} | hypervolume, % |"
    yield f"| --- |{' --- |' * (len(heads) + 1)}"
    for arm in ARMS:
        cells = [spread(accuracies(results, dataset, arm, share).values()) for share in setting.shares]
        yield f"| {arm} | {' | '.join(cells)} | {spread(hypervolumes(results, dataset, arm).values())} |"
    yield ""
    yield "Differences, seed by seed, with the half-width of the 95 % interval (Student's t):"
    yield ""
    yield f"| | {' | '.join(f'{share:g}' for share in setting.shares)} | hypervolume |"
    yield f"| --- |{' --- |' * (len(heads) + 1)}"
    for ours, theirs in (
        ("teacher", "scratch"),
        ("teacher, kd", "scratch, kd"),
        ("teacher, kd", "teacher"),
        ("teacher, kd", PLAIN),
    ):
        cells = [
            against(accuracies(results, dataset, ours, share), accuracies(results, dataset, theirs, share))
            for share in setting.shares
        ]
        volumes = against(hypervolumes(results, dataset, ours), hypervolumes(results, dataset, theirs))
        yield f"| {ours} minus {theirs} | {' | '.join(cells)} | {volumes} |"
    yield ""
    yield "The teacher cut by other criteria, as students are that start as it, and not trained at all:"
    yield ""
    yield f"| ranked by | {' | '.join(f'{share:g}' for share in setting.shares)} |"
    yield f"| --- |{' --- |' * len(heads)}"
    for arm, name in CRITERIA.items():
        cells = [spread(accuracies(results, dataset, arm, share).values()) for share in setting.shares]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def document(setting: Setting, path: Path) -> str:
    """The tables, in Markdown."""
    results = read(path, "key")
    parts = [
        "# Students that start as the teacher",
        "",
        "Written by `python benchmarks/start_from_teacher.py`.",
        "",
        f"- Teachers: resnet {setting.depth}, width {setting.teacher_width:g}, {setting.teacher_epochs} epochs, one "
        f"for each of {setting.seeds} seeds. No augmentation. Accuracy in % on all test images: mean ± deviation "
        "over seeds.",
        f"- Students have the share of the teacher's units that the columns say, and are trained for {setting.epochs} "
        "epochs: from scratch with a learning rate of 0.1, from the teacher with 0.02 (the defaults of either); L2 of "
        "2.5e-4 on eigenvalues and eigenvectors.",
        "- The plain pipeline: Torch-Pruning's `MetaPruner` with `GroupMagnitudeImportance`, each layer by the same "
        f"share, then {setting.epochs} epochs of the same distillation with a learning rate of 0.02.",
        "- Hypervolume of the arm's three students: accuracy from 0 to 1, parameters on a logarithmic scale from the "
        "teacher's to 1.",
        f"- {hardware(results.values())}; one thread per trial.",
        "",
        "![Accuracy against parameters](start_from_teacher.png)",
        "",
    ]
    for dataset in DATA:
        parts += tables(setting, results, dataset)
    return "\n".join(parts)


def figure(setting: Setting, path: Path) -> None:
    """Accuracy against parameters, a line an arm."""
    results = read(path, "key")
    drawn, axes = plt.subplots(1, len(DATA), figsize=(10, 4), layout="constrained")
    for axis, dataset in zip(axes, DATA, strict=True):
        lines = [line for line in results.values() if line["dataset"] == dataset]
        for arm in ARMS:
            sizes = [
                mean(line["parameters"] for line in lines if (line["arm"], line["share"]) == (arm, share))
                for share in setting.shares
            ]
            values = [list(accuracies(results, dataset, arm, share).values()) for share in setting.shares]
            deviations = [math.sqrt(sum((v - mean(own)) ** 2 for v in own) / max(1, len(own) - 1)) for own in values]
            axis.errorbar(sizes, [mean(own) for own in values], deviations, marker="o", capsize=3, label=arm)
        axis.axhline(100 * mean(line["teacher_accuracy"] for line in lines), color="grey", ls=":", label="teacher")
        axis.set(xscale="log", xlabel="parameters", ylabel="test accuracy, %", title=dataset)
    axes[-1].legend()
    drawn.savefig(FIGURE, dpi=100)


def main() -> None:
    """The command."""
    given = arguments("Students that start as the teacher against students from scratch.")
    setting = QUICK if given.quick else Setting()
    path = given.home / f"start_from_teacher_{digest(asdict(setting))}.jsonl"
    if not given.table:
        run(setting, given.home, path, given.processes)
    text = document(setting, path)
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
        figure(setting, path)
    print(text)


if __name__ == "__main__":
    main()
