"""An ensemble distilled into a BatchEnsemble, on images perturbed in four ways; writes docs/ensembles.md.

    python benchmarks/ensembles.py             # about 20 minutes on two cores; continues where it was interrupted
    python benchmarks/ensembles.py --quick     # minutes: does everything work? writes no document
    python benchmarks/ensembles.py --table     # only writes the document, from existing results

G. Nam, J. Yoon, Y. Lee, J. Lee: Diversity matters when learning from ensembles, NeurIPS 2021 (arXiv 2110.14149), at a
scale that two cores can manage: fully connected networks, Fashion-MNIST, a stated subset, no augmentation, so that
teachers come close to memorising their training images. Everything is measured on the test split, which is not used to
select anything; temperatures are fitted on the validation split.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
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

from spaces import Recipe
from trainers import Task, TaskSpec, TeacherSpec, run_trial
from trainers.computing import computing
from trainers.data.dataset import Split, pixels
from trainers.families import combined
from trainers.files import digest
from trainers.loop import Diverged
from trainers.measure import all_quality, ensemble_nlls, measure, outputs
from trainers.predictions import Predictions, fitted_temperature
from trainers.transfer.perturbation import Perturbation

DOCUMENT = ROOT / "docs" / "ensembles.md"
KINDS: tuple[Literal["none", "gaussian", "ods", "conf_ods"], ...] = ("none", "gaussian", "ods", "conf_ods")
SHOWN = {
    "accuracy": ("accuracy, %", 100.0, 2),
    "nll": ("NLL", 1.0, 4),
    "calibrated_nll": ("calibrated NLL", 1.0, 4),
    "ece": ("ECE", 1.0, 4),
    "diversity": ("diversity", 1.0, 4),
    "fidelity": ("KL to its teachers", 1.0, 4),
    "deep_ensemble_equivalent": ("DEE", 1.0, 2),
}
"""Heading, factor and digits of what the tables show."""
LESS_IS_BETTER = ("nll", "calibrated_nll", "ece", "fidelity")


@dataclass(frozen=True)
class Setting:
    """What all trials have in common."""

    images: int = 2000
    depth: int = 3
    width: float = 0.25
    teacher_epochs: int = 30
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.02
    step_size: float = 8.0
    """eta in 1/255: the paper's 1 hardly moves images of 28 x 28."""
    temperatures: tuple[float, ...] = (1.0, 4.0)
    """The authors' for CIFAR-100 and for CIFAR-10."""
    seeds: tuple[int, ...] = (5, 5)
    """Of the students, by temperature."""

    @property
    def spec(self) -> TaskSpec:
        """The task."""
        teacher = TeacherSpec(
            family="mlp",
            depth=self.depth,
            width=self.width,
            epochs=self.teacher_epochs,
            learning_rate=self.learning_rate,
            members=4,
        )
        return TaskSpec(dataset="fashion_mnist", train_limit=self.images, augment="none", teacher=teacher)

    def recipe(self, kind: str, temperature: float, seed: int) -> Recipe:
        """One student: the teachers' own architecture, as in the paper."""
        return Recipe.from_flat(
            {
                **MILD_L2,
                "student.family": "mlp",
                "student.depth": self.depth,
                "student.width": self.width,
                "student.members": 4,
                "training.epochs": self.epochs,
                "training.batch_size": self.batch_size,
                "training.learning_rate": self.learning_rate,
                "transfer": "ensemble",
                "ensemble.perturbation": kind,
                "ensemble.step_size": self.step_size,
                "ensemble.temperature": temperature,
                "seed": seed,
            }
        )


QUICK = Setting(images=200, teacher_epochs=2, epochs=1, seeds=(2, 1))


@dataclass(frozen=True)
class Job:
    """One trial to be done."""

    kind: str
    temperature: float
    seed: int
    recipe: str


def jobs(setting: Setting) -> Iterator[Job]:
    """All trials, a seed of every arm before the next seed."""
    for temperature, seeds in zip(setting.temperatures, setting.seeds, strict=True):
        for seed in range(seeds):
            for kind in KINDS:
                yield Job(kind, temperature, seed, setting.recipe(kind, temperature, seed).to_json())


def fidelity(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Mean over members and images of KL(teacher_i || student_i) of logits (M, N, classes)."""
    log_p, log_q = teacher.double().log_softmax(2), student.double().log_softmax(2)
    return float((log_p.exp() * (log_p - log_q)).sum(2).mean())


def carry_out(job: Job) -> Line:
    """A line of the outcome."""
    task, knowledge = loaded_task()
    began = time.monotonic()
    unmoved: list[float] = []
    try:
        result = run_trial(
            Recipe.from_json(job.recipe),
            task,
            knowledge,
            lambda report: unmoved.append(report.metrics.get("unmoved", 0.0)),
        )
    except Diverged as error:
        outcome: dict[str, Any] = {"failed": str(error)}
    else:
        test, validation = task.data.test, task.data.validation
        ours, theirs = outputs(result.network, test), outputs(task.teacher, test)
        on_validation = outputs(result.network, validation)
        temperature = fitted_temperature(combined(on_validation.flatten(0, 1), 4), validation.labels)
        outcome = {
            **measure(result.network, test, temperature=temperature, ensemble_nlls=ensemble_nlls(theirs, test.labels)),
            "fidelity": fidelity(ours, theirs),
            "unmoved": mean(unmoved),
        }
    return {**asdict(job), **outcome, "seconds": time.monotonic() - began}


def diversity(members: torch.Tensor, labels: torch.Tensor) -> float:
    """Of logits (members, N, classes)."""
    return all_quality(Predictions(members, labels))["diversity"]


def disagreement(task: Task, images: int) -> dict[str, float]:
    """Diversity of the teacher on images it was trained on, moved in every way, and on as many of the test split."""
    train, test = (Split(s.images[:images], s.labels[:images]) for s in (task.data.train, task.data.test))
    diversities = {"test images": diversity(outputs(task.teacher, test), test.labels)}
    diversities["training images"] = diversity(outputs(task.teacher, train), train.labels)
    for kind in KINDS[1:]:
        assert kind != "none"
        for step_size in (1.0, 8.0):
            moved = Perturbation(kind, step_size, 1.0).apply(
                pixels(train.images), 4, task.teacher.member, torch.Generator().manual_seed(0)
            )
            with torch.no_grad():
                members = task.teacher.outputs(moved).view(4, len(moved), -1)
            diversities[f"training images, {kind} {step_size:g}/255"] = diversity(members, train.labels)
    return diversities


def rows(setting: Setting, results: Mapping[str, Line], temperature: float, seeds: int) -> list[str]:
    """A row for each way of moving images."""
    table = []
    for kind in KINDS:
        lines = [results.get(setting.recipe(kind, temperature, seed).to_json(), {}) for seed in range(seeds)]
        lines = [line for line in lines if "accuracy" in line]
        cells = [spread((line[name] * factor for line in lines), digits) for name, (_, factor, digits) in SHOWN.items()]
        still = f"{100 * mean(line['unmoved'] for line in lines):.1f}"
        table.append(
            f"| {kind} | {len(lines)} | {' | '.join(cells)} | {still} | {mean(line['seconds'] for line in lines):.0f} |"
        )
    return table


def verdicts(setting: Setting, results: Mapping[str, Line], temperature: float, seeds: int) -> list[str]:
    """conf_ods against each other way, seed by seed; what is less the better is turned around."""

    def by_seed(kind: str, name: str) -> dict[int, float]:
        sign = -1.0 if name in LESS_IS_BETTER else 1.0
        lines = {seed: results.get(setting.recipe(kind, temperature, seed).to_json(), {}) for seed in range(seeds)}
        return {seed: sign * SHOWN[name][1] * line[name] for seed, line in lines.items() if name in line}

    table = []
    for kind in KINDS[:-1]:
        cells = [against(by_seed("conf_ods", name), by_seed(kind, name), SHOWN[name][2]) for name in SHOWN]
        table.append(f"| {kind} | {' | '.join(cells)} |")
    return table


def ordering(setting: Setting, results: Mapping[str, Line]) -> list[str]:
    """What of the paper's ordering is seen: conf_ods before every other way, by more than the spread."""
    listed = []
    for tau, seeds in zip(setting.temperatures, setting.seeds, strict=True):
        for name in ("nll", "diversity", "fidelity", "accuracy"):
            heading = SHOWN[name][0].removesuffix(", %")
            cells = [row.split(" | ")[1 + [*SHOWN].index(name)] for row in verdicts(setting, results, tau, seeds)]
            said = [cell.removesuffix(" |").rpartition(", ")[2] for cell in cells]
            pairs = ", ".join(f"{word} ({kind})" for kind, word in zip(KINDS[:-1], said, strict=True))
            whole = "reproduced" if set(said) == {"better"} else "not reproduced"
            listed.append(f"- temperature {tau:g}, {heading}: {pairs}; the paper's ordering is {whole}")
    return listed


def document(setting: Setting, home: Path, results: Mapping[str, Line]) -> str:
    """The tables, in Markdown."""
    with computing(1):
        task = Task.load(setting.spec, home)
        test = task.data.test
        nlls = ensemble_nlls(outputs(task.teacher, test), test.labels)
        temperature = fitted_temperature(
            combined(outputs(task.teacher, task.data.validation).flatten(0, 1), 4), task.data.validation.labels
        )
        teacher = measure(task.teacher, test, temperature=temperature, ensemble_nlls=nlls)
        moved = disagreement(task, min(1000, setting.images))
        train = measure(task.teacher, task.data.train)
    headings = [heading for heading, _, _ in SHOWN.values()]
    of_teacher = [
        f"{teacher[name] * factor:.{digits}f}" if name in teacher else "0"
        for name, (_, factor, digits) in SHOWN.items()
    ]
    parts = [
        "# An ensemble, distilled",
        "",
        "Written by `python benchmarks/ensembles.py`. Nam et al. (NeurIPS 2021) find, on CIFAR-100 with wide residual "
        "networks, that a BatchEnsemble student learns more from an ensemble on images perturbed so that members "
        "disagree: `conf_ods` is best, then `ods`, both far ahead of `gaussian` and `none`. This is the same "
        "experiment at a small scale.",
        "",
        f"- Fashion-MNIST: {setting.images:,} training images, stratified by class, no augmentation; numbers are "
        f"for the {len(test):,} test images, after the last epoch.",
        f"- Teacher: 4 networks, mlp {setting.depth}, width {setting.width:g}, {setting.teacher_epochs} epochs; "
        f"{100 * train['accuracy']:.1f} % accuracy on the training images. One ensemble for all students: spreads "
        "are over the students' seeds.",
        f"- Student: BatchEnsemble of 4, mlp {setting.depth}, width {setting.width:g}; {setting.epochs} epochs, "
        f"batches of {setting.batch_size}, SGD {setting.learning_rate:g} with Nesterov momentum 0.9, warm-up and "
        "cosine decay; weight 0.9, fast weights initialised from N(1, 0.5), L2 of 2.5e-4 on eigenvalues and "
        f"eigenvectors, no pruning. Steps of {setting.step_size:g}/255 (the paper's 1/255 is below).",
        f"- {hardware(results.values())}; one thread per trial.",
        "",
        "Diversity: mean over pairs of members of KL(p_j ‖ p_i). DEE: deep-ensemble equivalent, of the four teachers. "
        "KL to its teachers: mean over members of KL(teacher_i ‖ student_i). Unmoved: images for which the chosen "
        "teacher had no gradient. Mean ± standard deviation over seeds.",
        "",
        "## What the teacher's members disagree on",
        "",
        "| images | diversity |",
        "| --- | --- |",
        *(f"| {name} | {value:.4f} |" for name, value in moved.items()),
    ]
    for tau, seeds in zip(setting.temperatures, setting.seeds, strict=True):
        parts += [
            "",
            f"## Temperature {tau:g}, {seeds} seeds",
            "",
            f"| images | n | {' | '.join(headings)} | unmoved, % | s per trial |",
            f"|{' --- |' * (len(SHOWN) + 4)}",
            f"| (the teacher) |  | {' | '.join(of_teacher)} |  |  |",
            *rows(setting, results, tau, seeds),
            "",
            "`conf_ods` against each of the others, seed by seed, with the half-width of the 95 % interval "
            "(Student's t); positive is better:",
            "",
            f"| against | {' | '.join(headings)} |",
            f"|{' --- |' * (len(SHOWN) + 1)}",
            *verdicts(setting, results, tau, seeds),
        ]
    parts += [
        "",
        "## The paper's ordering",
        "",
        "`conf_ods` against each of the others:",
        "",
        *ordering(setting, results),
    ]
    return "\n".join([*parts, ""])


def main() -> None:
    """The command."""
    given = arguments("An ensemble of four, distilled into a BatchEnsemble of four.")
    setting = QUICK if given.quick else Setting()
    path = given.home / f"ensembles_{digest(asdict(setting))}.jsonl"
    done = read(path, "recipe")
    if not given.table and (left := [job for job in jobs(setting) if job.recipe not in done]):
        load_task(setting.spec, given.home)  # so that no two processes train the teacher at once

        def shown(line: Line) -> str:
            said = f"{line['accuracy']:.4f}  nll {line['nll']:.4f}" if "accuracy" in line else line["failed"]
            return f"{line['kind']:9} tau {line['temperature']:g}  {said}"

        run_all(
            left, carry_out, path, given.processes, shown=shown, load=load_task, load_with=(setting.spec, given.home)
        )
    text = document(setting, given.home, read(path, "recipe"))
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
