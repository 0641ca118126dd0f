"""The dry run: one tiny trial from end to end, before a cluster is asked for anything, and what the study will cost."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from search.errors import ExportRefused
from search.export import FORMATS, metadata_of, verify
from search.preparation import needs_of
from search.study_file import StudyFile
from spaces import BadInput, Recipe
from trainers.computing import computing
from trainers.data import pixels
from trainers.files import scratch_folder
from trainers.knowledge import Knowledge
from trainers.loop import Diverged
from trainers.measure import measure, predictions
from trainers.store import load_student, save_student
from trainers.task import Task
from trainers.trial import TrialResult, run_trial

IMAGES = 512
"""How many images the tiny trial trains on."""
GENTLER = 0.01
"""What learning rates are multiplied with where the tiny training diverges: it has next to no warm-up, which a long one
has, so that a study need not be unsound for it."""
Made = TypeVar("Made")


@dataclass(frozen=True)
class Checked:
    """What the dry run found."""

    steps: tuple[tuple[str, float], ...]
    """What was done, and the seconds it took."""
    largest_logit_difference: float
    """Between the exported and the measured network."""
    study_seconds: float
    """What the whole study takes on this machine at most, roughly: the teacher, and trials of the widest student.

    Repeats with other seeds are not in it: how many there will be depends on the front.
    """
    notes: tuple[str, ...] = ()
    """What the data's owner may not expect of them, a line each."""
    diverged: tuple[str, ...] = ()
    """What diverged with the study's own learning rates, a line each; the rest was tried with gentler ones."""


def check(file: StudyFile) -> Checked:
    """Train a tiny teacher and a tiny student, cut it, save, reload and export it; nothing is left behind.

    Args:
        file: the study.

    Raises:
        BadInput: a method cannot work with a student of the space; a network diverges at gentle learning rates, too.
        ExportRefused: a step did not give back what it was given.
    """
    steps: list[tuple[str, float]] = []
    diverged: list[str] = []
    clock = time.monotonic()

    def did(what: str) -> float:
        nonlocal clock
        now = time.monotonic()
        steps.append((what, now - clock))
        seconds, clock = now - clock, now
        return seconds

    spec = file.task
    whole = spec.load_data()
    file.check_pairs(whole)
    images = len(whole.train)
    tiny = IMAGES if images >= IMAGES + whole.classes else images
    limit = spec.train_limit if tiny == images else tiny
    did(f"data: {images:,} images to train on, {len(whole.validation):,} to validate with")
    with scratch_folder() as scratch, computing(file.search.cpus):
        small = spec.model_copy(update={"train_limit": limit, "teacher": spec.teacher.model_copy(update={"epochs": 2})})
        ends: list[float] = []

        def teach(gentleness: float) -> Task:
            ends.clear()
            rate = small.teacher.learning_rate * gentleness
            teacher = small.teacher.model_copy(update={"learning_rate": rate})
            again = small.model_copy(update={"teacher": teacher})
            return Task.load(again, scratch, lambda epoch, loss: ends.append(time.monotonic()))

        task = _gently(teach, "teacher", "task.teacher.learning_rate", small.teacher.learning_rate, diverged)
        teacher_s = (ends[1] - ends[0]) * images / tiny  # an epoch; the first one has start-up in it
        did(f"teacher: built, two epochs of {tiny} images")
        recipe = _recipe(file)
        knowledge = Knowledge(task)

        def study(gentleness: float) -> TrialResult:
            ends.clear()
            return run_trial(
                _gentler(recipe, gentleness),
                task,
                knowledge,
                lambda _: ends.append(time.monotonic()),
                threads=file.search.cpus,
            )

        result = _gently(study, "trial", "training.learning_rate", recipe.training.learning_rate, diverged)
        both_s = ends[1] - ends[0]
        did(f"trial: {recipe.transfer}, two epochs, {result.units_cut} of {result.units} units cut, one epoch more")
        save_student(scratch / "trial", result.files(task))
        student = load_student(scratch / "trial")
        if measure(student, task.data.validation, curve=task.curve) != result.measurements:
            raise ExportRefused("a student that is saved and loaded must measure the same, but does not")
        validation_s = did("saved, loaded, measured again: the same")
        write, run = FORMATS["onnx"]
        content = write(student, pixels(task.data.validation.images[:2]), metadata_of(whole))
        difference = verify(
            run(content, task.data.validation.images),
            predictions(student, task.data.validation),
            task.data.validation,
            result.measurements["accuracy"],
            "the ONNX file",
        )
        did("exported to ONNX, run by ONNX Runtime: the same")
    names = ("training.epochs", "pruning.fine_tune_epochs")
    epochs = max(r.training.epochs + r.pruning.fine_tune_epochs for r in file.space.extremes(*names))
    # an epoch of a trial ends with a look at the validation data, whose number the tiny trial did not shrink
    trial_s = epochs * (max(0.0, both_s - validation_s) * images / tiny + validation_s)
    study_s = teacher_s * spec.teacher.epochs * spec.teacher.members + trial_s * file.trials / file.search.at_a_time
    return Checked(tuple(steps), difference, study_s, whole.notes, tuple(diverged))


def _gently(make: Callable[[float], Made], what: str, name: str, rate: float, diverged: list[str]) -> Made:
    """What `make` makes by the study's own learning rates or else, which is noted, by gentler ones.

    Args:
        make: is given what to multiply the rates with.
        what: is trained.
        name: of the learning rate in the study file.
        rate: its value.
        diverged: the notes.
    """
    try:
        return make(1.0)
    except Diverged:
        diverged.append(
            f"the tiny {what} diverges with `{name}` {rate:g}; lower it, unless you know that a longer training with "
            f"its longer warm-up bears it; all else was tried with {rate * GENTLER:g}"
        )
    try:
        return make(GENTLER)
    except Diverged as error:
        raise BadInput(
            f"a {what} must be one that can be trained, but a tiny one with a hundredth of `{name}` cannot: {error}"
        ) from None


def _gentler(recipe: Recipe, gentleness: float) -> Recipe:
    training, pruning = recipe.training, recipe.pruning
    rates = {
        "training.learning_rate": training.learning_rate * gentleness,
        "pruning.fine_tune_learning_rate": pruning.fine_tune_learning_rate * gentleness,
    }
    return Recipe.from_flat({**recipe.flat(), **rates})


def _recipe(file: StudyFile) -> Recipe:
    """The widest student, two epochs, half the units cut, an epoch more, by the first method that needs no stage; all
    else from the middle of the study's space."""
    space = file.space
    simple = [method for method in space.methods if not any(needs.stage for needs in needs_of(space, method))]
    flat = space.draw(_Middle(simple[0] if simple else space.methods[0])).flat()
    if not simple:
        flat = {name: value for name, value in flat.items() if name.rpartition(".")[0] != flat["transfer"]}
        flat["transfer"] = "none"
    tiny = {
        "training.epochs": 2,
        "pruning.fraction": 0.5,
        "pruning.rounds": 1,
        "pruning.fine_tune_epochs": 1,
    }
    return Recipe.from_flat({**flat, **tiny})


@dataclass(frozen=True)
class _Middle:
    """Draws the largest student and one transfer method, and of all else what is in the middle."""

    method: str

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if name.startswith("student."):
            return high
        if step is not None:
            return low + step * (round((high - low) / step) // 2)
        return math.sqrt(low) * math.sqrt(high) if log else (low + high) / 2

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        top = low + (high - low) // step * step
        if name.startswith("student."):
            return top
        return math.isqrt(low * high) if log else low + (high - low) // step // 2 * step

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name == "transfer":
            return self.method
        numbers = all(isinstance(choice, int | float) for choice in choices)
        if name.startswith("student."):
            return max(choices) if numbers else choices[-1]
        return sorted(choices)[len(choices) // 2] if numbers else choices[0]
