"""The dry run: all that a study needs is tried in small, before a cluster is asked for anything; every problem is told.

What can be seen without training comes first: the data, the teacher's weights and structure, whether each method can
work with each student. Only where all of that is sound is something trained.
"""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from search.errors import ExportRefused
from search.estimates import Needs, needs_of
from search.export import metadata_of, verify
from search.folder import StudyFolder
from search.formats import DEFAULT, Format
from search.home import default_home
from search.nodes import check_visible, files_of
from search.study_file import StudyFile
from search.tiny import GENTLER, Middle, gentler, tiny_data, tiny_recipe, tiny_task, tiny_trial
from search.tracking.mlflow_models import fetched
from spaces import BadInput, Recipe
from spaces.errors import Problems, brief
from trainers.computing import computing
from trainers.data import pixels
from trainers.data.dataset import Dataset, Split
from trainers.data.splits import shortlist
from trainers.families import Network, outline
from trainers.files import scratch_folder
from trainers.knowledge import Knowledge
from trainers.loop import Diverged
from trainers.measure import batch_size, measure, predictions
from trainers.store import load_student, save_student
from trainers.task import Task
from trainers.teacher import Teacher, together, untrained
from trainers.transfer import StageFailed
from trainers.trial import TrialResult, run_trial

STEP_IMAGES = 32
"""How many images each method takes a step with."""


@dataclass(frozen=True)
class Checked:
    """What the dry run found."""

    steps: tuple[tuple[str, float], ...]
    """What was done, and the seconds it took."""
    notes: tuple[str, ...]
    """What is to be known of the data, the teacher, and of what training did, a line each."""
    problems: tuple[str, ...]
    """What must be put right before the study can run, a line each; empty of a sound study."""
    diverged: tuple[str, ...] = ()
    """What diverged with the study's own learning rates, a line each; the rest was tried with gentler ones."""
    needs: Needs | None = None
    """Of this machine; None where the problems leave it open."""
    study_seconds: float = math.nan
    """What the whole study takes on this machine at most, roughly: the teacher, and trials of the widest student.

    Repeats with other seeds are not in it: how many there will be depends on the front.
    """


def check(file: StudyFile, format: Format = DEFAULT, home: Path | None = None, address: str | None = None) -> Checked:
    """Try all that the study will do, in small.

    Nothing is left behind but, in files, images larger than `task.memory` and, where machines of a cluster are asked
    for it, what MLflow stores of the teacher.

    Args:
        file: the study.
        format: in which a student is exported.
        home: where the study would be kept; None is the default.
        address: of a running Ray cluster, whose machines must see what workers open.

    Raises:
        ExportRefused: a step did not give back what it was given.
    """
    home = home or default_home()
    with scratch_folder() as scratch:
        run = _DryRun(file, format, home)
        with run.problems.noted():
            where = scratch if address is None else home  # machines must see it where the study will put it
            task = fetched(file.task, where / "networks", StudyFolder(file.name, home).tracking_uri)
            run.file = file.model_copy(update={"task": task})
        data = run.data()
        if address is not None:
            run.machines(address, data)
        if data is not None and not run.file.task.teacher.registered:
            run.structure(data)
            if not run.problems.lines:
                run.training(data)
    return Checked(
        tuple(run.steps),
        tuple(run.notes),
        tuple(run.problems.lines),
        tuple(run.diverged),
        run.needs,
        run.study_seconds,
    )


class _DryRun:
    """What is tried, step after step, and what came of it."""

    def __init__(self, file: StudyFile, format: Format, home: Path) -> None:
        self.file, self.format, self.home, self.problems = file, format, home, Problems()
        self.steps: list[tuple[str, float]] = []
        self.notes: list[str] = []
        self.diverged: list[str] = []
        self.needs: Needs | None = None
        self.study_seconds = math.nan
        self._began = time.monotonic()

    def did(self, what: str) -> float:
        """A step is over; returns its seconds."""
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        self.steps.append((what, seconds))
        return seconds

    def data(self) -> Dataset | None:
        """The data; where they are not as they must be, black images of their classes and size; None without these."""
        spec = self.file.task
        with self.problems.noted():
            data = spec.load_data(self.home)
            self.notes += [f"data: {note}" for note in data.notes]
            self.did(f"data: {len(data.train):,} images to train on, {len(data.validation):,} to validate with")
            return data
        stand_in = None
        with Problems().noted():  # which have been told
            stand_in = spec.stand_in()
        if stand_in is not None:
            self.did("data: not as they must be; what follows was tried with black images of their size")
        return stand_in

    def machines(self, address: str, data: Dataset | None) -> None:
        """Whether the machines of a cluster see what workers open."""
        from search.backends.cluster import cluster

        files = files_of(self.file)
        if data is not None:
            files += [part.file for part in data.splits().values() if part.file is not None]
        with self.problems.noted(), cluster(address, cpus=0, gpus=0.0, store_bytes=0, verbose=False):
            check_visible(files)
        self.did(f"cluster: asked for {len(files)} files that workers open")

    def structure(self, data: Dataset) -> None:
        """What needs no training: the teacher's weights, taps and groups, and whether each method fits each student."""
        spec = self.file.task
        with self.problems.noted():
            self.notes += [f"teacher: {note}" for note in Teacher(spec, data).notes]
        teacher = None
        with self.problems.noted():
            members = range(len(spec.teacher.each))
            teacher = together([untrained(spec, place, data.image_shape, data.classes) for place in members])
            self._describe(teacher, data)
        with self.problems.noted():
            self.file.check_pairs(data)
        if teacher is not None:
            with self.problems.noted():
                self._estimate(teacher, data)
        self.did("teacher and students: built, taps and groups found, each method asked")

    def _describe(self, teacher: Network, data: Dataset) -> None:
        """Note the taps, and what students that start as the teacher can be cut to."""
        if not any(member.network for member in self.file.task.teacher.each):
            return
        for network in [teacher] if teacher.members == 1 else list(teacher.children()):
            taps = ", ".join(tap.removeprefix("network.") for tap in getattr(network, "taps", ()))
            self.notes.append(f"teacher: taps {taps or 'none'}")
        if "teacher" in self.file.space.extremes_of("student.start") and teacher.members == 1:
            self.notes += [f"teacher: {line}" for line in _groups(teacher, data, self.file)]

    def _estimate(self, teacher: Network, data: Dataset) -> None:
        students = [
            teacher if student.start == "teacher" else outline(student, data.image_shape, data.classes)
            for student in self.file.students(max)
        ]
        self.needs = needs_of(self.file, data, teacher, students)
        self.needs.check(self.home)

    def training(self, data: Dataset) -> None:
        """A step of every method, one tiny trial from end to end, and what the study will take."""
        file, spec = self.file, self.file.task
        few = tiny_data(data)
        images, tiny = len(data.train), len(few.train)
        with self.problems.noted(), _as_problems(), scratch_folder() as scratch, computing(file.search.cpus):
            task, teacher_s = tiny_task(spec, few, scratch, self.diverged)
            self._teacher_measured(task, tiny)
            recipe = tiny_recipe(file)
            self._a_step_of_every_method(task, recipe)
            result, both_s = tiny_trial(recipe, task, file.search.cpus, self.diverged)
            units = f"{result.units_cut} of {result.units} units cut"
            self.did(f"trial: {recipe.transfer}, two epochs, {units}, one epoch more")
            validation_s = self._kept(result, task, scratch)
            names = ("student.start", "training.epochs", "pruning.fine_tune_epochs")
            epochs = max(r.training.epochs + r.pruning.fine_tune_epochs for r in file.space.extremes(*names))
            # an epoch of a trial ends with a look at the validation data, whose number the tiny trial did not shrink
            trial_s = epochs * (max(0.0, both_s - validation_s) * images / tiny + validation_s)
            teacher_s *= images / tiny * sum(member.training_epochs for member in spec.teacher.each)
            self.study_seconds = teacher_s + trial_s * file.trials / file.search.at_a_time

    def _teacher_measured(self, task: Task, images: int) -> None:
        """Say what the teacher is; one near chance is no teacher."""
        if any(member.training_epochs for member in task.spec.teacher.each):
            self.did(f"teacher: built, two epochs of {images} images")
            return
        accuracy, chance = task.teacher_measurements["accuracy"], 1 / task.data.classes
        self.did(f"teacher: read, measured: accuracy {accuracy:.3f}, chance {chance:.3f}")
        if task.doubt:
            self.problems.lines.append(f"`task.teacher` must be a network that knows these data, but {task.doubt}")

    def _a_step_of_every_method(self, task: Task, recipe: Recipe) -> None:
        """Each method of the space takes a step with the smallest student and few images."""
        train = task.data.train
        few = replace(task.data, train=Split(train.images[:STEP_IMAGES], train.labels[:STEP_IMAGES]))
        small = replace(task, data=few)
        methods = [method for method in self.file.space.methods if method != recipe.transfer]
        tiny = {"training.epochs": 1, "training.batch_size": STEP_IMAGES, "pruning.fraction": 0.0}
        students = {student.start: student for student in self.file.students(min)}
        for method, student in itertools.product(methods, students.values()):
            of = self.file.space.draw(Middle(method))
            step = Recipe.from_flat({**of.flat(), **tiny}).model_copy(update={"student": student})
            with self.problems.noted():
                try:
                    run_trial(gentler(step, GENTLER), small, Knowledge(small), threads=self.file.search.cpus)
                except StageFailed:  # of a teacher of two epochs, or of so few images; the study has more of either
                    self.notes.append(
                        f"{method}: no step was tried, since what it first learns needs more than a dry run"
                    )
                except (Diverged, RuntimeError) as error:
                    raise BadInput(
                        f"`{method}` must be possible with this teacher and these students, but a step of it is not: "
                        f"{' '.join(str(error).split())[:300]}"
                    ) from None
        if methods:
            self.did(f"a step of each: {', '.join(methods)}")

    def _kept(self, result: TrialResult, task: Task, scratch: Path) -> float:
        """Save, load and export a student; returns the seconds that measuring it takes."""
        save_student(scratch / "trial", result.files(task))
        student, validation = load_student(scratch / "trial"), task.data.validation
        if measure(student, validation, ensemble_nlls=task.curve) != result.measurements:
            raise ExportRefused("a student that is saved and loaded must measure the same, but does not")
        seconds = self.did("saved, loaded, measured again: the same")
        content = self.format.write(student, pixels(validation.images[:2]), metadata_of(task.data))
        verify(
            self.format.run(content, validation.images, batch_size(student, task.data.image_shape)),
            predictions(student, validation),
            validation,
            result.measurements["accuracy"],
            f"the {self.format.title} file",
        )
        self.did(f"exported to {self.format.title}, run by {self.format.runtime}: the same")
        return seconds


@contextmanager
def _as_problems() -> Iterator[None]:
    """Inside, what a network of somebody's raises is a BadInput."""
    try:
        yield
    except (BadInput, ExportRefused):
        raise
    except Exception as error:
        reason = brief(error, 300)
        raise BadInput(f"the study must run in small, but it does not: {reason}") from None


def _groups(teacher: Network, data: Dataset, file: StudyFile) -> list[str]:
    """What of the teacher can be cut, in a line; raises BadInput where nothing can, and it is to be.

    Args:
        teacher: a single network.
        data: of its task.
        file: of the study.
    """
    from trainers.spectral import cut, plan, spectralize, trace

    try:
        traced = trace(spectralize(teacher, keep=teacher.heads), data.image_shape)
        groups = plan(traced, 0.0, floor=0.0).groups
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:  # of the network's code, too
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"`student.start: teacher` must be of a network that can be traced, but {brief(error)}; "
            "have students start from scratch"
        ) from None
    units = sum(len(group.units) for group in groups)
    is_cut = min(file.space.extremes_of("student.width")) < 1 or max(file.space.extremes_of("pruning.fraction")) > 0
    if units and is_cut:
        cut(traced.network, plan(traced, 0.5, floor=0.0, scope="layer"))  # raises where it would compute something else
    if not units and is_cut:
        raise BadInput(
            "`student.start: teacher` must be of a network whose layers can be cut, but none of its "
            f"{len(traced.layers)} can; have students start from scratch, or fix `student.width` to 1 and "
            "`pruning.fraction` to 0"
        )
    reasons: dict[str, list[str]] = {}
    for name, why in traced.whole.items():
        reasons.setdefault(why, []).append(name.removeprefix("network."))
    return [
        f"{units:,} units in {len(groups)} groups can be cut",
        *(f"whole: {shortlist(names)} ({why})" for why, names in reasons.items()),
    ]
