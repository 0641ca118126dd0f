"""A trial: running one recipe."""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from spaces import Recipe
from trainers.checkpoint import Checkpoint
from trainers.computing import computing
from trainers.families import Network
from trainers.files import curve_folder, digest, hashes, sealed
from trainers.knowledge import Knowledge
from trainers.measure import cost, measure
from trainers.planning import TeacherShape, check_pair, expected_cost
from trainers.spectral import Plan, fold
from trainers.store import network_description, weights_bytes
from trainers.task import Task
from trainers.trainer import Log, Report, Trainer


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial: the measured network, and how it came about."""

    recipe: Recipe
    network: Network
    """The student: ordinary layers, physically cut, in eval mode."""
    measurements: dict[str, float]
    """Of `network`, on validation data."""
    before_cut: dict[str, float]
    """Of the trained student before anything was cut."""
    units: int
    units_cut: int
    seconds: float
    """Time taken in all processes that ran it."""
    resumed_at: int = 0
    """Epochs that were not run by this process, but taken from a checkpoint."""
    curve: tuple["TrialResult", ...] = ()
    """The same trained student cut to other fractions and not fine-tuned, then the students between the rounds of an
    iterative cut: exactly what their own recipes would give."""

    def files(self, task: Task) -> dict[str, bytes]:
        """The trial's files by name: the recipe, the student (description and weights), the result; and its curve's.

        The result has everything that the ledger records of the trial, including the hashes of the other files.
        """
        spec, data = task.spec, task.data
        description = network_description(
            self.recipe.student,
            data.image_shape,
            data.classes,
            spec.teacher.each[0],
            reordered=spec.classes is not None,
        )
        own = {
            "recipe.json": self.recipe.to_json().encode(),
            "student.json": json.dumps(description).encode(),
            "student.safetensors": weights_bytes(self.network),
        }
        points = [point.files(task) for point in self.curve]
        result = {
            "measurements": self.measurements,
            "before_cut": self.before_cut,
            "units": self.units,
            "units_cut": self.units_cut,
            "seconds": self.seconds,
            "resumed_at": self.resumed_at,
            "task": task.key,
            "files": hashes(own),
            "curve": [
                {
                    "recipe": point.recipe.flat(),
                    "measurements": point.measurements,
                    "seconds": point.seconds,
                    "files": hashes(files),
                }
                for point, files in zip(self.curve, points, strict=True)
            ],
        }
        of_points = {
            f"{curve_folder(place)}/{name}": content
            for place, files in enumerate(points)
            for name, content in files.items()
        }
        return {**own, "result.json": sealed(result), **of_points}


def run_trial(
    recipe: Recipe,
    task: Task,
    knowledge: Knowledge,
    report: Callable[[Report], object] = lambda report: None,
    *,
    curve: Sequence[float] = (),
    checkpoint: Checkpoint | None = None,
    threads: int = 1,
    device: str = "cpu",
    timed: bool = False,
) -> TrialResult:
    """Train a student by its recipe, cut it, fine-tune it, measure the pruned network.

    On a CPU the same recipe, task, knowledge and thread count give the same numbers, in any process and however often
    interrupted: nothing is drawn from a global generator. torch's state is restored.

    Args:
        recipe: what to do.
        task: data and teacher; the test split is not read.
        knowledge: of this task's teacher.
        report: called after every epoch; what it raises ends the trial.
        curve: fractions to which the trained student is also cut and measured, at the cost of inference; if there are
            any, the students between the rounds of an iterative cut are also measured.
        checkpoint: where an interrupted trial has saved its state; it continues from there, and the earlier epochs are
            reported again. Written while the student is trained: fine-tuning starts over. None saves nothing.
        threads: torch threads to compute with; sums are rounded differently with another number.
        device: where to train, as torch names it.
        timed: whether to include timed measurements (`trainers.metrics`): on the CPU, with `threads`, under the
            machine's current load.

    Raises:
        BadInput: an unknown network or method, an option that it does not take, or a method that cannot work with this
            student and teacher.
        Diverged: the loss, or the student's output, is no longer finite.
        StageFailed: a stage that the method needs failed to learn from the teacher.
    """
    check_pair(recipe, TeacherShape.of(task.teacher, task.data.image_shape), task.data)
    shape, pruning = task.data.image_shape, recipe.pruning
    rounds = pruning.schedule()
    with computing(threads):
        began = time.monotonic()
        trainer = Trainer(recipe, task, knowledge, device)
        student = trainer.build()
        method = trainer.method_for(student)
        steps = trainer.epochs + sum(epochs for _, epochs in rounds)
        traced = trainer.trace(student)
        log = Log(report, steps, expected_cost(traced, pruning), began)
        kept = log.resume(checkpoint, digest(recipe.flat(), task.key, threads, device), [student, method])
        trainer.train(student, method, log, kept)
        # contiguous, like a loaded student: another memory layout may round differently, and the numbers must be exact
        whole = fold(student).to(memory_format=torch.contiguous_format)
        results = _Results(task, timed, measure(whole, task.data.validation, ensemble_nlls=task.curve), log.resumed_at)

        points = []
        for fraction in curve:
            plain = pruning.model_copy(update={"fraction": fraction, "fine_tune_epochs": 0, "rounds": 1})
            if (point := recipe.model_copy(update={"pruning": plain})) != recipe:
                asked = time.monotonic()
                chance = trainer.generator.clone_state()
                points.append(results.of(point, *trainer.cut(student, traced, fraction, None, chance), asked))

        network, cuts = trainer.cut(student, traced, rounds[0].so_far.fraction, None, trainer.generator)
        for turn, (so_far, epochs) in enumerate(rounds, 1):
            if turn > 1:  # to rank it by what it has learned since the last cut
                student = trainer.spectral(network)
                traced = trainer.trace(student)
                network, cuts = trainer.cut(student, traced, so_far.fraction, cuts, trainer.generator)
            if turn == len(rounds):
                log.costs = cost(network, shape)
            if epochs:
                network = trainer.fine_tune(network, traced, epochs, log)
            if curve and turn < len(rounds):
                asked = time.monotonic()
                point = recipe.model_copy(update={"pruning": so_far})
                points.append(results.of(point, copy.deepcopy(network), cuts, asked))
        return replace(results.of(recipe, network, cuts, log.began), curve=tuple(points))


@dataclass(frozen=True)
class _Results:
    """Measures the students of one trial."""

    task: Task
    timed: bool
    before_cut: dict[str, float]
    resumed_at: int

    def of(self, recipe: Recipe, network: Network, cuts: Plan, began: float) -> TrialResult:
        """A student's result; `began`: when work on it started, by `time.monotonic`."""
        network = network.to("cpu").to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
        measurements = measure(network, self.task.data.validation, ensemble_nlls=self.task.curve, timed=self.timed)
        seconds = time.monotonic() - began
        return TrialResult(
            recipe, network, measurements, self.before_cut, cuts.units, cuts.removed, seconds, self.resumed_at
        )
