"""Every transfer method on the same student, teacher, images and recipe; writes docs/transfer_methods.md.

    python benchmarks/transfer_methods.py             # about 40 minutes on 2 cores; continues where it was interrupted
    python benchmarks/transfer_methods.py --quick     # minutes: does everything work? writes no document
    python benchmarks/transfer_methods.py --table     # only writes the document, from existing results

Fashion-MNIST, a stated subset; accuracy on the whole test split, which is not used to select anything. Students with
one seed start from the same weights and see the same batches, so methods are compared seed by seed. Each finished trial
is a line of a JSON-lines file under --home, and is not run again; delete the file after changing a method.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

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

from spaces import Recipe, Scalar
from trainers import Task, TaskSpec, TeacherSpec, run_trial
from trainers.files import digest
from trainers.loop import Diverged
from trainers.measure import measure
from trainers.transfer import METHODS, StageFailed, method_of

DOCUMENT = ROOT / "docs" / "transfer_methods.md"
MAIN = ("none", "kd", "attention", "fitnet", "factor")
"""The methods that the factor-transfer paper compares."""


@dataclass(frozen=True)
class Setting:
    """What all trials have in common."""

    images: int = 4000
    teacher: tuple[int, float, int] = (14, 0.5, 15)
    """Depth, width, epochs."""
    student: tuple[int, float] = (8, 0.125)
    """Depth, width."""
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 0.05
    main_seeds: int = 5
    seeds: int = 3

    @property
    def spec(self) -> TaskSpec:
        """The task."""
        depth, width, epochs = self.teacher
        teacher = TeacherSpec(depth=depth, width=width, epochs=epochs)
        return TaskSpec(dataset="fashion_mnist", train_limit=self.images, augment="none", teacher=teacher)

    def recipe(self, transfer: str, options: dict[str, Scalar], seed: int, epochs: int | None = None) -> Recipe:
        """One trial; of the setting's epochs unless told otherwise."""
        return Recipe.from_flat(
            {
                **MILD_L2,
                "student.depth": self.student[0],
                "student.width": self.student[1],
                "training.epochs": epochs or self.epochs,
                "training.batch_size": self.batch_size,
                "training.learning_rate": self.learning_rate,
                "transfer": transfer,
                **{f"{transfer}.{name}": value for name, value in options.items()},
                "seed": seed,
            }
        )


QUICK = Setting(images=200, teacher=(8, 0.25, 2), epochs=1, main_seeds=2, seeds=1)

FEWER: dict[str, dict[str, Scalar]] = {"crd": {"negatives": 4096}}
"""Where a default is too slow for one core."""
TRIED: tuple[tuple[str, dict[str, Scalar]], ...] = (
    ("factor", {"weight": 0.06}),
    ("factor", {"weight": 1.0}),
    ("factor", {"rate": 1.0}),
    ("factor", {"soft_labels": 0.9}),
    ("attention", {"soft_labels": 0.9}),
    ("attention", {"weight": 50.0}),
    ("fitnet", {"weight": 10.0}),
)
"""Beside the defaults: what the claim of the factor-transfer paper might hang on."""
LONGER = (30, ("none", "kd", "factor"))
"""Epochs, and the methods that are trained for so long, too."""


@dataclass(frozen=True)
class Job:
    """One trial to be done."""

    label: str
    recipe: str


def jobs(setting: Setting) -> Iterator[Job]:
    """All trials, the most informative first."""

    def job(transfer: str, options: dict[str, Scalar], seed: int) -> Job:
        label = transfer + "".join(f", {name} {value}" for name, value in options.items())
        return Job(label, setting.recipe(transfer, options, seed).to_json())

    others = [name for name in METHODS if name not in MAIN]
    for seed in range(setting.seeds):
        yield from (job(name, {}, seed) for name in MAIN)
    for seed in range(setting.seeds):
        yield from (job(name, FEWER.get(name, {}), seed) for name in others)
    for seed in range(setting.seeds, setting.main_seeds):
        yield from (job(name, {}, seed) for name in MAIN)
    for seed in range(setting.seeds):
        yield from (job(name, options, seed) for name, options in TRIED)
    epochs, names = LONGER
    for seed in range(setting.seeds):
        for name in names:
            yield Job(longer(name), setting.recipe(name, {}, seed, epochs).to_json())


def longer(name: str) -> str:
    """The label of a method that was trained for longer."""
    return f"{name}, {LONGER[0]} epochs"


def carry_out(job: Job) -> Line:
    """A line of the outcome."""
    task, knowledge = loaded_task()
    began = time.monotonic()
    try:
        result = run_trial(Recipe.from_json(job.recipe), task, knowledge)
    except (Diverged, StageFailed) as error:
        outcome: Line = {"failed": str(error)}
    else:
        measured = measure(result.network, task.data.test)
        outcome = {"accuracy": measured["accuracy"], "nll": measured["nll"], "parameters": measured["parameters"]}
    return {**asdict(job), **outcome, "seconds": time.monotonic() - began}


def run(setting: Setting, home: Path, path: Path, processes: int) -> None:
    """Do what is not done yet."""
    torch.set_num_threads(1)
    done = read(path, "recipe")
    left = [job for job in jobs(setting) if job.recipe not in done]
    if not left:
        return
    load_task(setting.spec, home)
    _, knowledge = loaded_task()
    for recipe in {job.recipe for job in left}:  # so that processes do not wait for each other
        method, options = method_of(Recipe.from_json(recipe))
        knowledge.prepare(method.needs(options))
    run_all(left, carry_out, path, processes, shown=shown, load=load_task, load_with=(setting.spec, home))


def shown(line: Line) -> str:
    """A line for the terminal."""
    outcome = f"{line['accuracy']:.4f}" if "accuracy" in line else line["failed"]
    return f"{line['label']:32} {outcome}"


def document(setting: Setting, home: Path, path: Path) -> str:
    """The table, in Markdown."""
    results = read(path, "recipe")
    by_label: dict[str, dict[int, Line]] = {}
    for job in jobs(setting):
        if job.recipe in results:
            by_label.setdefault(job.label, {})[Recipe.from_json(job.recipe).seed] = results[job.recipe]
    accuracies = {
        label: {seed: 100 * line["accuracy"] for seed, line in lines.items() if "accuracy" in line}
        for label, lines in by_label.items()
    }
    task = Task.load(setting.spec, home)
    teacher = measure(task.teacher, task.data.test)
    student = next(line["parameters"] for lines in by_label.values() for line in lines.values() if "parameters" in line)
    base = accuracies["none"]
    rows = []
    long = {name: accuracies.pop(longer(name)) for name in LONGER[1] if longer(name) in accuracies}
    for label, each in sorted(accuracies.items(), key=lambda item: -mean(item[1].values())):
        failed = len(by_label[label]) - len(each)
        seconds = mean(line["seconds"] for line in by_label[label].values())
        rows.append(
            f"| {label} | {len(each)}{f' ({failed} failed)' if failed else ''} | {spread(each.values())} | "
            f"{'' if label == 'none' else against(each, base)} | {seconds:.0f} |"
        )
    compared = {
        other: [label for label in accuracies if label.split(",")[0] == other] for other in MAIN if other != "factor"
    }
    verdicts = {
        label: against(accuracies["factor"], accuracies[label]) for labels in compared.values() for label in labels
    }
    shown_by: dict[bool, list[str]] = {True: [], False: []}
    for other, labels in compared.items():  # at the best weight of those tried, not at the default alone
        shown_by[all(verdicts[label].endswith("better") for label in labels)].append(other)
    named = {which: ", ".join(f"`{name}`" for name in names) for which, names in shown_by.items()}
    conclusion = (
        f"At this scale, then, the claim is reproduced against {named[True] or 'no method'} and not reproduced against "
        f"{named[False] or 'any'}: factor transfer would have to beat each variant of a method by more than the "
        "spread."
    )
    depth, width, epochs = setting.teacher
    return "\n".join(
        [
            "# Transfer methods, one recipe",
            "",
            "Written by `python benchmarks/transfer_methods.py`. Every method at its defaults, none tuned here, unless "
            "the row names a parameter.",
            "",
            f"- Fashion-MNIST: {setting.images:,} training images, stratified by class, no augmentation; accuracy "
            f"on all {len(task.data.test):,} test images, after the last epoch.",
            f"- Teacher: resnet {depth}, width {width:g}, {epochs} epochs: {100 * teacher['accuracy']:.2f} %, "
            f"{teacher['parameters']:,.0f} parameters.",
            f"- Student: resnet {setting.student[0]}, width {setting.student[1]:g}, {student:,.0f} parameters; "
            f"{setting.epochs} epochs, batches of {setting.batch_size}, SGD {setting.learning_rate:g} with Nesterov "
            "momentum 0.9, warm-up and cosine decay, L2 of 2.5e-4 on eigenvalues and eigenvectors, no pruning.",
            "- Students with one seed start from the same weights and see the same batches (except for `ab` and `fsp`, "
            f"which train longer). Seeds: {setting.main_seeds} for {', '.join(MAIN)}, {setting.seeds} for the others.",
            f"- {hardware(results.values())}; one thread per trial.",
            "",
            "## All methods",
            "",
            "Accuracy in %: mean ± standard deviation over seeds. Difference: mean over seeds of the difference from "
            "`none` of the same seed, with the half-width of its 95 % interval (Student's t); where the interval "
            "contains 0, the difference does not exceed the spread.",
            "",
            "| method | n | accuracy | difference from none | s per trial |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            "## The claim of the factor-transfer paper",
            "",
            "Factor transfer against each of the methods it was compared with, seed by seed:",
            "",
            "| factor against | difference |",
            "| --- | --- |",
            *(f"| {label} | {verdict} |" for label, verdict in verdicts.items()),
            "",
            conclusion,
            "",
            f"After {LONGER[0]} epochs instead of {setting.epochs}, {setting.seeds} seeds:",
            "",
            "| method | accuracy | difference from none |",
            "| --- | --- | --- |",
            *(
                f"| {name} | {spread(each.values())} | {'' if name == 'none' else against(each, long['none'])} |"
                for name, each in long.items()
            ),
            "",
            "The first table shows what was tried for the claim besides the defaults: other values for the weight of "
            "`factor` (its default is the authors' 500 in their reduction) and for its rate, additional soft labels, "
            "and other weights for the methods it is compared with.",
            "",
        ]
    )


def main() -> None:
    """The command."""
    given = arguments("All transfer methods, one recipe.")
    setting = QUICK if given.quick else Setting()
    path = given.home / f"transfer_methods_{digest(asdict(setting))}.jsonl"
    if not given.table:
        run(setting, given.home, path, given.processes)
    text = document(setting, given.home, path)
    if not given.quick:
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
