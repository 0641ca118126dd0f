"""The dry run: one tiny trial from end to end, before a cluster is asked for anything, and what the study will cost."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from search.errors import ExportRefused
from search.export import metadata_of, verify
from search.formats import DEFAULT, Format
from search.home import default_home
from search.preparation import needs_of
from search.study_file import StudyFile
from spaces import BadInput, Recipe
from trainers.computing import computing
from trainers.data import Dataset, pixels
from trainers.data.splits import limit_train
from trainers.files import scratch_folder
from trainers.knowledge import Knowledge
from trainers.loop import Diverged
from trainers.measure import batch_size, measure, predictions
from trainers.store import load_student, save_student
from trainers.task import Task
from trainers.task_spec import TaskSpec
from trainers.teacher_spec import TeacherSpec
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
    study_seconds: float
    """What the whole study takes on this machine at most, roughly: the teacher, and trials of the widest student.

    Repeats with other seeds are not in it: how many there will be depends on the front.
    """
    notes: tuple[str, ...] = ()
    """What the data's owner may not expect of them, a line each."""
    teacher_notes: tuple[str, ...] = ()
    """What the teacher's owner may want to know of it, a line each."""
    diverged: tuple[str, ...] = ()
    """What diverged with the study's own learning rates, a line each; the rest was tried with gentler ones."""


class _Clock:
    """What was done, and the seconds that each step took."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float]] = []
        self._began = time.monotonic()

    def did(self, what: str) -> float:
        """A step is over; returns its seconds."""
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        self.steps.append((what, seconds))
        return seconds


def check(file: StudyFile, format: Format = DEFAULT) -> Checked:
    """Train a tiny teacher and a tiny student, cut it, save, reload and export it; nothing is left behind, but images
    that are larger than `task.memory` in their files.

    Args:
        file: the study.
        format: in which the student is exported.

    Raises:
        BadInput: a method cannot work with a student of the space; a network diverges at gentle learning rates, too.
        ExportRefused: a step did not give back what it was given.
    """
    clock, diverged, spec = _Clock(), list[str](), file.task
    whole = spec.load_data(default_home())
    file.check_pairs(whole)
    images = len(whole.train)
    tiny = IMAGES if images >= IMAGES + whole.classes else images
    few = whole if tiny == images else limit_train(whole, tiny)
    clock.did(f"data: {images:,} images to train on, {len(whole.validation):,} to validate with")
    with scratch_folder() as scratch, computing(file.search.cpus):
        task, teacher_s = _tiny_task(spec, few, scratch, diverged)
        trained = sum(member.training_epochs for member in spec.teacher.each)
        accuracy = f"accuracy {task.teacher_measurements['accuracy']:.3f}, chance {1 / whole.classes:.3f}"
        clock.did(f"teacher: built, two epochs of {tiny} images" if trained else f"teacher: read, measured: {accuracy}")
        recipe = _recipe(file)
        result, both_s = _tiny_trial(recipe, task, file.search.cpus, diverged)
        units = f"{result.units_cut} of {result.units} units cut"
        clock.did(f"trial: {recipe.transfer}, two epochs, {units}, one epoch more")
        save_student(scratch / "trial", result.files(task))
        student = load_student(scratch / "trial")
        if measure(student, task.data.validation, ensemble_nlls=task.curve) != result.measurements:
            raise ExportRefused("a student that is saved and loaded must measure the same, but does not")
        validation_s = clock.did("saved, loaded, measured again: the same")
        content = format.write(student, pixels(task.data.validation.images[:2]), metadata_of(whole))
        verify(
            format.run(content, task.data.validation.images, batch_size(student, whole.image_shape)),
            predictions(student, task.data.validation),
            task.data.validation,
            result.measurements["accuracy"],
            f"the {format.title} file",
        )
        clock.did(f"exported to {format.title}, run by {format.runtime}: the same")
    names = ("training.epochs", "pruning.fine_tune_epochs")
    epochs = max(r.training.epochs + r.pruning.fine_tune_epochs for r in file.space.extremes(*names))
    # an epoch of a trial ends with a look at the validation data, whose number the tiny trial did not shrink
    trial_s = epochs * (max(0.0, both_s - validation_s) * images / tiny + validation_s)
    teacher_s *= images / tiny * trained
    study_s = teacher_s + trial_s * file.trials / file.search.at_a_time
    return Checked(tuple(clock.steps), study_s, whole.notes, task.notes, tuple(diverged))


def _tiny_task(spec: TaskSpec, few: Dataset, scratch: Path, diverged: list[str]) -> tuple[Task, float]:
    """The task with few images to train on and a teacher of two epochs, and the seconds of the second epoch: the first
    has start-up in it. A teacher that is not trained takes none."""
    ends: list[float] = []

    def teach(gentleness: float) -> Task:
        ends.clear()
        teaching = spec.model_copy(update={"teacher": _tiny_teacher(spec.teacher, gentleness)})
        return Task.load(teaching, scratch, lambda epoch, loss: ends.append(time.monotonic()), data=few)

    task = _gently(teach, "teacher", "task.teacher.learning_rate", spec.teacher.training_rate, diverged)
    return task, ends[1] - ends[0] if ends else 0.0


def _tiny_teacher(teacher: TeacherSpec, gentleness: float) -> TeacherSpec:
    """The same, each member that is trained at all trained for two epochs."""
    if isinstance(teacher.members, list):
        return teacher.model_copy(update={"members": [_tiny_teacher(one, gentleness) for one in teacher.members]})
    if not teacher.training_epochs:
        return teacher
    return teacher.model_copy(update={"epochs": 2, "learning_rate": teacher.training_rate * gentleness})


def _tiny_trial(recipe: Recipe, task: Task, threads: int, diverged: list[str]) -> tuple[TrialResult, float]:
    """What the trial leaves, and the seconds of its second epoch."""
    knowledge = Knowledge(task)
    ends: list[float] = []

    def study(gentleness: float) -> TrialResult:
        ends.clear()
        gentle = _gentler(recipe, gentleness)
        return run_trial(gentle, task, knowledge, lambda _: ends.append(time.monotonic()), threads=threads)

    result = _gently(study, "trial", "training.learning_rate", recipe.training.learning_rate, diverged)
    return result, ends[1] - ends[0]


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
