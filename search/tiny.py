"""Trainings so small that they end in seconds, for the dry run: of a study's teacher, and of one of its students."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from search.preparation import needs_of
from search.study_file import StudyFile
from spaces import BadInput, Recipe
from trainers.data.dataset import Dataset
from trainers.data.splits import limit_train
from trainers.knowledge import Knowledge
from trainers.loop import Diverged
from trainers.task import Task
from trainers.task_spec import TaskSpec
from trainers.teacher_spec import TeacherSpec
from trainers.trial import TrialResult, run_trial

IMAGES = 512
"""How many images are trained on; more if there are more classes."""
GENTLER = 0.01
"""What learning rates are multiplied with where the tiny training diverges: it has next to no warm-up, which a long one
has, so that a study need not be unsound for it."""
Made = TypeVar("Made")


def tiny_data(data: Dataset) -> Dataset:
    """The data with IMAGES of the train images, or one of each class if that is more; all if there are few."""
    images = max(IMAGES, data.classes)
    return limit_train(data, images) if len(data.train) >= images + data.classes else data


def tiny_task(spec: TaskSpec, few: Dataset, scratch: Path, diverged: list[str]) -> tuple[Task, float]:
    """The task with these few images and a teacher of two epochs, and the seconds of the second epoch: the first
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


def tiny_trial(recipe: Recipe, task: Task, threads: int, diverged: list[str]) -> tuple[TrialResult, float]:
    """What the trial leaves, and the seconds of its second epoch."""
    knowledge = Knowledge(task)
    ends: list[float] = []

    def study(gentleness: float) -> TrialResult:
        ends.clear()
        gentle = gentler(recipe, gentleness)
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


def gentler(recipe: Recipe, gentleness: float) -> Recipe:
    training, pruning = recipe.training, recipe.pruning
    rates = {
        "training.learning_rate": training.learning_rate * gentleness,
        "pruning.fine_tune_learning_rate": pruning.fine_tune_learning_rate * gentleness,
    }
    return Recipe.from_flat({**recipe.flat(), **rates})


def tiny_recipe(file: StudyFile) -> Recipe:
    """The widest student, two epochs, half the units cut, an epoch more, by the first method that needs no stage; all
    else from the middle of the study's space."""
    space = file.space
    simple = [method for method in space.methods if not any(needs.stage for needs in needs_of(space, method))]
    flat = space.draw(Middle(simple[0] if simple else space.methods[0])).flat()
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
class Middle:
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
