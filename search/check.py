"""The dry run: one tiny trial from end to end, before a cluster is asked for anything, and what the study will cost."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from search.export import FORMATS, verify
from search.study import needs_of
from search.study_file import StudyFile
from spaces import Recipe
from trainers.computing import computing
from trainers.data import pixels
from trainers.knowledge import Knowledge
from trainers.measure import measure, predictions
from trainers.store import load_student, save_student
from trainers.task import Task
from trainers.trial import run_trial

IMAGES = 512
"""How many images the tiny trial trains on."""


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


def check(file: StudyFile) -> Checked:
    """Train a tiny teacher and a tiny student, cut it, save, reload and export it; nothing is left behind.

    Args:
        file: the study.

    Raises:
        BadInput: a method cannot work with a student of the space.
        ExportRefused, ValueError: a step did not give back what it was given.
    """
    steps: list[tuple[str, float]] = []
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
    with tempfile.TemporaryDirectory() as scratch, computing(file.search.cpus):
        small = spec.model_copy(update={"train_limit": limit, "teacher": spec.teacher.model_copy(update={"epochs": 2})})
        ends: list[float] = []
        task = Task.load(small, Path(scratch), lambda epoch, loss: ends.append(time.monotonic()))
        teacher_s = (ends[1] - ends[0]) * images / tiny  # an epoch; the first one has start-up in it
        did(f"teacher: built, two epochs of {tiny} images")
        recipe = _recipe(file)
        ends.clear()
        knowledge = Knowledge(task)
        result = run_trial(recipe, task, knowledge, lambda _: ends.append(time.monotonic()), threads=file.search.cpus)
        both_s = ends[1] - ends[0]
        did(f"trial: {recipe.transfer}, two epochs, {result.units_cut} of {result.units} units cut, one epoch more")
        save_student(Path(scratch) / "trial", result.files(task))
        student = load_student(Path(scratch) / "trial")
        if measure(student, task.data.validation, curve=task.curve) != result.measurements:
            raise ValueError("a student that is saved and loaded must measure the same, but does not")
        validation_s = did("saved, loaded, measured again: the same")
        write, run = FORMATS["onnx"]
        content = write(student, pixels(task.data.validation.images[:2]))
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
    return Checked(tuple(steps), difference, study_s)


def _recipe(file: StudyFile) -> Recipe:
    """The widest student, two epochs, half the units cut, an epoch more; by the first method that needs no stage."""
    methods = file.space.methods
    simple = [method for method in methods if not any(needs.stage for needs in needs_of(file.space, method))]
    student = {
        name: domain.extremes()[-1] for name, domain in file.space.parameters.items() if name.startswith("student.")
    }
    return Recipe.from_flat(
        {
            **student,
            "transfer": (simple or ["none"])[0],
            "training.epochs": 2,
            "pruning.fraction": 0.5,
            "pruning.fine_tune_epochs": 1,
        }
    )
