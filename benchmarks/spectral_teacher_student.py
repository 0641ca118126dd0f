"""Does a spectral student of any width prune to its teacher's size? Writes docs/spectral_teacher_student.md and .png.

    python benchmarks/spectral_teacher_student.py             # about an hour on two cores; continues where interrupted
    python benchmarks/spectral_teacher_student.py --quick     # a minute: does everything work? writes no document
    python benchmarks/spectral_teacher_student.py --table     # only writes the document, from existing results

L. Giambagli, L. Buffoni, L. Chicchi, D. Fanelli: How a student becomes a teacher, NeurIPS 2023 (arXiv 2310.12612), with
the settings of the authors' code: x ~ N(0, I_10); a teacher 10 -> 20 -> 20 -> 1 of ReLU units without biases, its last
layer all ones, Glorot-uniform and fixed; a student 10 -> h -> 20 -> 1 whose first layer is spectral, whose second is
dense and unregularised, and whose last is all ones. (The teacher's second width is missing from the authors'
configuration: 20 is ours.) Units are ranked and masked by the project's own layers and importances; nothing is
retrained.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from common import ROOT, Line, arguments, hardware, mean, read, run_all, spread
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from trainers.computing import computing
from trainers.files import digest
from trainers.seeding import seeded
from trainers.spectral import SpectralLinear, importances, spectral_penalty, trace

DOCUMENT = ROOT / "docs" / "spectral_teacher_student.md"
FIGURE = DOCUMENT.with_suffix(".png")
INPUTS = 10
SECOND = 20
"""Units of the second layer, of teacher and student alike."""
COUNTED = 0.05
"""A unit counts towards the effective size from this share of the largest importance on."""
STACKED = 1000
"""Units, of all students of a job together, beyond which training them side by side gains nothing."""
ADAM_EPSILON = 1e-7
"""Keras's."""


@dataclass(frozen=True)
class Arm:
    """One way to train a student; the defaults are the paper's for a spectral one."""

    width: int
    spectral: bool = True
    """Whether eigenvalues are trained; fixed at 1 the layer is an ordinary ("direct") one."""
    learning_rate: float = 0.005
    batch_size: int = 300
    eigenvector_l2: float = 0.01
    eigenvalue_l2: float = 5e-4
    lasso: float = 0.0
    """Coefficient of the sum of the units' norms ||w_i||."""
    teacher: int = 20
    """Units of the teacher's first layer."""
    teacher_seed: int = 0


@dataclass(frozen=True)
class Setting:
    """What all runs have in common."""

    epochs: int = 2000
    train: int = 8000
    test: int = 10_000
    widths: tuple[int, ...] = (40, 100, 200, 800)
    seeds: int = 5
    fewer: int = 3
    """Seeds of the arms beside the spectral ones."""


QUICK = Setting(epochs=20, widths=(40, 100), seeds=2, fewer=1)
SPECTRAL = "spectral, the paper's settings"
LASSO = 2 * math.sqrt(0.01 * 5e-4)
"""What the two penalties on lambda_i phi_i amount to (see `spectral_penalty`)."""


def arms(setting: Setting) -> dict[str, list[tuple[Arm, int]]]:
    """Each arm and its number of seeds, by the table that it stands in."""
    direct, few = Arm(100, spectral=False), setting.fewer
    slow: dict[str, Any] = {"learning_rate": 0.002, "batch_size": 500}
    return {
        SPECTRAL: [(Arm(width), setting.seeds) for width in setting.widths],
        "spectral, the direct settings": [(Arm(100, **slow), few)],
        "direct, the direct settings": [(replace(direct, width=width, **slow), few) for width in (100, 200)],
        "direct, the spectral settings": [(direct, few)],
        "direct, group lasso": [(replace(direct, eigenvector_l2=0.0, lasso=LASSO), few)],
        "spectral, no L2": [(Arm(100, eigenvector_l2=0.0, eigenvalue_l2=0.0), few)],
        "spectral, other teachers of 20": [(Arm(100, teacher_seed=seed), 1) for seed in range(1, 1 + few)],
        "spectral, a teacher of 10": [(Arm(100, teacher=10), few)],
        "spectral, a teacher of 40": [(Arm(200, teacher=40), few)],
    }


@dataclass(frozen=True)
class Job:
    """Students of one arm, trained side by side: small layers cost a processor hardly more for several than for one."""

    arm: Arm
    seeds: tuple[int, ...]
    epochs: int
    train: int
    test: int

    @property
    def key(self) -> str:
        """Everything that it depends on."""
        return json.dumps(asdict(self), sort_keys=True)


def jobs(setting: Setting) -> Iterator[tuple[str, Job]]:
    """Every job with the name of its arms."""
    for name, members in arms(setting).items():
        for arm, seeds in members:
            beside = max(1, STACKED // arm.width)
            for first in range(0, seeds, beside):
                numbers = tuple(range(first, min(seeds, first + beside)))
                yield name, Job(arm, numbers, setting.epochs, setting.train, setting.test)


class Shallow(nn.Module):
    """inputs -> units -> SECOND -> 1 without biases, ReLU between, the last layer ones."""

    def __init__(self, units: int, generator: torch.Generator) -> None:
        """Glorot-uniform weights drawn from `generator`."""
        super().__init__()
        self.first: nn.Module = nn.Linear(INPUTS, units, bias=False)
        self.second = nn.Linear(units, SECOND, bias=False)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., inputs); returns (...)."""
        out: Tensor = self.second(self.first(x).relu()).relu().sum(-1)
        return out


class Objective(nn.Module):
    """What a student is trained on."""

    def __init__(self, arm: Arm, student: Shallow) -> None:
        """The student's first layer becomes spectral here."""
        super().__init__()
        self.arm, self.student = arm, student
        student.first = SpectralLinear(student.first, train_outputs=arm.spectral)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (B, inputs); y: (B,); returns ()."""
        arm = self.arm
        loss = F.mse_loss(self.student(x), y)
        if arm.eigenvector_l2 or arm.eigenvalue_l2:
            loss = loss + spectral_penalty(
                self.student, eigenvector_l2=arm.eigenvector_l2, eigenvalue_l2=arm.eigenvalue_l2
            )
        if arm.lasso:
            loss = loss + arm.lasso * self.student.first.weight.norm(dim=1).sum()
        return loss


def trained(job: Job) -> tuple[list[Shallow], Tensor, Tensor]:
    """The students, and for each test inputs (S, test, inputs) and outputs (S, test)."""
    arm, generators = job.arm, [torch.Generator().manual_seed(seed) for seed in job.seeds]
    with seeded(torch.Generator().manual_seed(0)):  # what layers are made with is drawn over at once
        teacher = Shallow(arm.teacher, torch.Generator().manual_seed(1_000_000 + arm.teacher_seed)).requires_grad_(
            False
        )
        objectives = [Objective(arm, Shallow(arm.width, generator)) for generator in generators]
    x = torch.stack([torch.randn(job.train + job.test, INPUTS, generator=generator) for generator in generators])
    y = teacher(x).detach()
    parameters, _ = stack_module_state(objectives)  # (S, ...) each
    losses = vmap(lambda own, inputs, outputs: functional_call(objectives[0], own, (inputs, outputs)))
    # each student's gradient is of its own loss, and Adam goes number by number: nothing passes between them
    optimizer = torch.optim.Adam(
        [parameter for parameter in parameters.values() if parameter.requires_grad],
        lr=arm.learning_rate,
        eps=ADAM_EPSILON,
        fused=True,
    )
    student = torch.arange(len(job.seeds))[:, None]
    for _ in range(job.epochs):
        order = torch.stack([torch.randperm(job.train, generator=generator) for generator in generators])
        for index in order.split(arm.batch_size, dim=1):
            optimizer.zero_grad()
            losses(parameters, x[student, index], y[student, index]).sum().backward()
            optimizer.step()
    for number, objective in enumerate(objectives):
        objective.load_state_dict({name: parameter[number] for name, parameter in parameters.items()})
    return [objective.student for objective in objectives], x[:, job.train :], y[:, job.train :]


def curve(student: Shallow, importance: Tensor, x: Tensor, y: Tensor) -> list[float]:
    """Mean squared error with the n most important units alone, at index n = 0 .. width."""
    first = student.first
    assert isinstance(first, SpectralLinear)
    errors = []
    with torch.no_grad():
        kept = first.eigenvalues_out.clone()
        for unit in [*importance.argsort().tolist(), None]:
            errors.append(float((student(x) - y).square().mean()))
            if unit is not None:
                first.eigenvalues_out[unit] = 0.0
        first.eigenvalues_out.copy_(kept)
    return errors[::-1]


def carry_out(job: Job) -> Line:
    """A line of the results."""
    began = time.monotonic()
    with computing(1):
        students, x, y = trained(job)
        runs = []
        for number, student in enumerate(students):
            (importance,) = importances(trace(student, (INPUTS,))).values()
            runs.append(
                {
                    "errors": curve(student, importance, x[number], y[number]),
                    "importances": sorted(importance.tolist(), reverse=True),
                    "variance": float(y[number].var()),
                }
            )
    return {"key": job.key, "runs": runs, "seconds": time.monotonic() - began}


def effective(run: Line) -> int:
    """Units at or above COUNTED of the largest."""
    return sum(importance >= COUNTED for importance in run["importances"])


def smallest(run: Line) -> int:
    """Fewest top units whose error is at most twice that of all, here and at every larger number."""
    errors = run["errors"]
    return 1 + max((n for n, error in enumerate(errors) if error > 2 * errors[-1]), default=-1)


def shown(line: Line) -> str:
    """A line for the terminal."""
    arm, runs = json.loads(line["key"])["arm"], line["runs"]
    return (
        f"width {arm['width']:3}  {'spectral' if arm['spectral'] else 'direct':8}  "
        f"error {mean(run['errors'][-1] for run in runs):.4f}  "
        f"effective {[effective(run) for run in runs]}, smallest {[smallest(run) for run in runs]}"
    )


def nothing() -> None:
    """There is nothing to load."""


def listed(numbers: Iterable[int]) -> str:
    """Median, smallest and largest: sizes are whole and not normal."""
    ordered = sorted(numbers)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return f"{middle:g} ({ordered[0]} to {ordered[-1]})"


def ratio(run: Line, units: int) -> float:
    """Error with so many top units over that with all."""
    return float(run["errors"][units] / run["errors"][-1])


def excess(run: Line, units: int) -> float:
    """By how much the error is larger with so many top units, in variances of what is to be learned."""
    return float((run["errors"][units] - run["errors"][-1]) / run["variance"])


def document(setting: Setting, results: dict[str, Line]) -> str:
    """The tables, in Markdown, of what has been run."""
    rows, collection = [], collected(setting, results)
    for (name, arm), runs in collection.items():
        h = arm.teacher
        rows.append(
            f"| {name} | {h} | {arm.width} | {arm.learning_rate:g}, {arm.batch_size} | {len(runs)} | "
            f"{spread((run['errors'][-1] / run['variance'] for run in runs), 4)} | {listed(map(effective, runs))} | "
            f"{listed(map(smallest, runs))} | {spread((ratio(run, h - 1) for run in runs), 1)} | "
            f"{spread((ratio(run, h + 4) for run in runs), 1)} |"
        )
    ours = {arm: runs for (name, arm), runs in collection.items() if name == SPECTRAL}
    every = [(arm.teacher, run) for arm, runs in ours.items() for run in runs]
    steps = (8, 4, 2, 1, 0, -1, -2, -3, -4, -6, -8, -10)
    knee = [
        " | ".join([f"| {20 + step}", *(spread((excess(run, 20 + step) for run in runs), 4) for runs in ours.values())])
        + " |"
        for step in steps
    ]
    claims = {
        "effective size from 18 to 30": sum(18 <= effective(run) <= 30 for _, run in every),
        "smallest set from 18 to 24": sum(18 <= smallest(run) <= 24 for _, run in every),
        "with 19 units at least twice the error of all": sum(ratio(run, h - 1) >= 2 for h, run in every),
        "with 24 units at most twice the error of all": sum(ratio(run, h + 4) <= 2 for h, run in every),
    }
    missing = sum(len(job.seeds) for _, job in jobs(setting)) - sum(map(len, collection.values()))
    return "\n".join(
        [
            "# How a student becomes a teacher",
            "",
            "Written by `python benchmarks/spectral_teacher_student.py`: the task of L. Giambagli, L. Buffoni, L. "
            "Chicchi and D. Fanelli (NeurIPS 2023, [arXiv 2310.12612](https://arxiv.org/abs/2310.12612)) with the "
            "settings of their published code, through this project's layers.",
            "",
            f"- Inputs of {INPUTS} standard normal numbers; {setting.train:,} for training, {setting.test:,} new ones "
            "for the mean squared error.",
            f"- Teacher: {INPUTS} -> 20 -> {SECOND} -> 1, ReLU, no biases, last layer all ones, Glorot-uniform. The "
            f"authors' configuration lacks its second width: {SECOND} is ours. One teacher for all students unless the "
            "row says otherwise.",
            f"- Student: {INPUTS} -> width -> {SECOND} -> 1. Its first layer is spectral, or the same with eigenvalues "
            "fixed at 1 (direct); its second is dense and unregularised, its last is all ones.",
            f"- Adam, {setting.epochs:,} epochs; 0.01 sum phi² + 0.0005 sum lambda² of the first layer added to the "
            f"loss unless the row says otherwise. Group lasso: {LASSO:.4f} sum ||w_i|| instead, to which the two "
            "penalties amount.",
            "- A unit's importance is |lambda_i| ||phi_i||. Effective size: units with at least 5 % of the largest. "
            "Smallest set: the fewest of the most important units with at most twice the error of all; the others' "
            "eigenvalues are set to 0, without retraining.",
            "- n: seeds, each with its own data, order and initial weights. Sizes: median (smallest to largest); "
            "others: mean ± standard deviation.",
            *([f"- {missing} of the script's runs are not included yet."] if missing else []),
            f"- {hardware(results.values())}; one thread per process.",
            "",
            "![Error against units kept](spectral_teacher_student.png)",
            "",
            "| arm | teacher | width | rate, batch | n | error, all units / variance | effective size | smallest set "
            "| error ratio, one unit fewer than the teacher | four more |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "## What the paper predicts, in the spectral runs at its settings",
            "",
            "| of a teacher of 20 | runs |",
            "| --- | --- |",
            *(f"| {claim} | {held} of {len(every)} |" for claim, held in claims.items()),
            "",
            "## The transition",
            "",
            "Error with the n most important units minus that with all, in variances of the teacher's output, by "
            "student width:",
            "",
            "| n | " + " | ".join(str(arm.width) for arm in ours) + " |",
            "| --- |" + " --- |" * len(ours),
            *knee,
            "",
        ]
    )


def collected(setting: Setting, results: dict[str, Line]) -> dict[tuple[str, Arm], list[Line]]:
    """The runs of each arm; other teachers of one size are one arm."""
    collection: dict[tuple[str, Arm], list[Line]] = {}
    for name, job in jobs(setting):
        if job.key in results:
            collection.setdefault((name, replace(job.arm, teacher_seed=0)), []).extend(results[job.key]["runs"])
    return collection


def draw(setting: Setting, results: dict[str, Line]) -> None:
    """The figure."""
    collection = collected(setting, results)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for (name, arm), runs in collection.items():
        kept = range(min(arm.width, 60) + 1)
        errors = [mean(run["errors"][n] / run["variance"] for run in runs) for n in kept]
        if name == SPECTRAL:
            left.plot(kept, errors, label=f"width {arm.width}, n = {len(runs)}")
        if arm.width == 100 and arm.teacher == 20 and "other" not in name:
            middle.plot(kept, errors, label=name)
            right.plot([mean(run["importances"][n] for run in runs) for n in range(arm.width)], label=name)
    for axes in (left, middle):
        axes.set(xlabel="units kept, the most relevant", ylabel="error / variance", yscale="log")
    left.set_title("spectral students of a teacher of 20")
    middle.set_title("width 100, however trained")
    right.set(xlabel="unit", ylabel="importance, share of the largest", title="spectrum at width 100")
    right.axhline(COUNTED, color="grey", linestyle=":")
    for axes in (left, middle, right):
        axes.axvline(20, color="grey", linestyle=":")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    """The command."""
    given = arguments("Does a spectral student of any width prune to its teacher's size?")
    setting = QUICK if given.quick else Setting()
    path = given.home / f"spectral_teacher_student_{digest(asdict(setting))}.jsonl"
    done = read(path, "key")
    if not given.table:
        left = sorted((job for _, job in jobs(setting) if job.key not in done), key=lambda job: job.arm.width)
        run_all(left, carry_out, path, given.processes, shown=shown, load=nothing)
    wanted = {job.key for _, job in jobs(setting)}
    results = {key: line for key, line in read(path, "key").items() if key in wanted}
    text = document(setting, results)
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
        draw(setting, results)
    print(text)


if __name__ == "__main__":
    main()
