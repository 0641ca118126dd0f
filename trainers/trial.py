"""A trial: one recipe carried out."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spaces import Pruning, Recipe
from trainers.computing import computing
from trainers.families import Features, Network, build, capture, check_student
from trainers.knowledge import Knowledge
from trainers.loop import Batch, Schedule, fit
from trainers.measure import cost, measure, predictions, quality
from trainers.spectral import Plan, cut, fold, plan, spectral_penalty, spectralize
from trainers.store import network_description, weights_bytes
from trainers.task import Task
from trainers.transfer import Method, Shapes, TeacherSignals, method_of


@dataclass(frozen=True)
class Report:
    """How a trial is getting on, after each epoch."""

    step: int
    """Epochs done, fine-tuning included, from 1."""
    steps: int
    """Epochs there will be."""
    phase: str
    """`pretrain` (of methods that have it), `train` or `fine_tune`."""
    metrics: dict[str, float]
    """loss (mean over the epoch), accuracy and nll on validation data of the network as it is."""
    cost: dict[str, float]
    """parameters, macs and size_bytes of what the student will be: `expected_cost` until it is cut, then exact."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial leaves: the measured network, and how it came about."""

    recipe: Recipe
    network: Network
    """The student: ordinary layers, physically cut, in eval mode."""
    measurements: dict[str, float]
    """Of `network` on validation data."""
    before_cut: dict[str, float]
    """Of the trained student before anything was cut."""
    units: int
    units_cut: int
    seconds: float

    def files(self, task: Task) -> dict[str, bytes]:
        """The trial's files by name: the recipe, the student (description and weights), the result."""
        description = network_description(self.recipe.student, task.data.image_shape, task.data.classes)
        result = {
            "measurements": self.measurements,
            "before_cut": self.before_cut,
            "units": self.units,
            "units_cut": self.units_cut,
            "seconds": self.seconds,
            "task": task.key,
        }
        return {
            "recipe.json": self.recipe.to_json().encode(),
            "student.json": json.dumps(description).encode(),
            "student.safetensors": weights_bytes(self.network),
            "result.json": json.dumps(result, indent=1).encode(),
        }


def run_trial(
    recipe: Recipe,
    task: Task,
    knowledge: Knowledge,
    report: Callable[[Report], object] = lambda report: None,
    *,
    threads: int = 1,
    device: str = "cpu",
) -> TrialResult:
    """Train a student by its recipe, cut it, fine-tune it, measure what is left.

    On a CPU the same recipe, task, knowledge and thread count give the same numbers, in whichever process: nothing is
    drawn from a global generator. torch's state is put back.

    Args:
        recipe: what to do.
        task: data and teacher; the test split is not read.
        knowledge: of this task's teacher.
        report: called after every epoch; what it raises ends the trial.
        threads: torch threads to compute with; sums are rounded differently with another number.
        device: where to train, as torch names it.

    Raises:
        BadInput: a network or a method that does not exist, an option that it does not take, or a method that cannot
            work with this student and teacher.
        Diverged: the loss, or what the student puts out, is no longer a number.
        StageFailed: what the method needs learned of the teacher was not learned.
    """
    check_student(recipe.student)
    method_type, options = method_of(recipe)
    with computing(threads):
        began = time.monotonic()
        generator = torch.Generator().manual_seed(recipe.seed)
        shape = task.data.image_shape
        pruned = recipe.pruning.fraction > 0
        fine_tune_epochs = recipe.pruning.fine_tune_epochs if pruned else 0
        needs = method_type.needs(options)
        knowledge.prepare(needs)

        student = build(recipe.student, shape, task.data.classes, generator=generator)
        student.set_normalization(*task.data.mean_std())
        student = spectralize(student, keep=[student.head]).to(device).to(memory_format=torch.channels_last)

        pretraining_epochs = method_type.pretraining_epochs(options)
        steps = pretraining_epochs + recipe.training.epochs + fine_tune_epochs
        costs = expected_cost(student, recipe.pruning, shape)

        def phase(
            name: str,
            network: Network,
            method: Method,
            objective: Callable[[Features, TeacherSignals, Tensor], Tensor],
            schedule: Schedule,
            before: int,
        ) -> None:
            """Train a network by one of its method's losses; `before`: epochs done."""

            def loss(batch: Batch) -> Tensor:
                value = objective(capture(network, batch.images), knowledge.signals(needs, batch), batch.labels)
                penalties = recipe.spectral
                return value + spectral_penalty(
                    network, eigenvector_l2=penalties.eigenvector_l2, eigenvalue_l2=penalties.eigenvalue_l2
                )

            def on_epoch(epoch: int, mean_loss: float) -> None:
                method.progress = min(1.0, (epoch + 1) / schedule.epochs)
                found = quality(predictions(network, task.data.validation), task.data.validation.labels)
                report(Report(before + epoch, steps, name, {"loss": mean_loss, **found}, costs))

            method.progress = 1 / schedule.epochs
            fit(
                network,
                loss,
                task.data.train,
                schedule,
                policy=task.spec.policy,
                generator=generator,
                others=[method],
                on_epoch=on_epoch,
            )

        def made_for(network: Network) -> Method:
            return method_type.make(options, _shapes(network, task), generator=generator).to(device)

        t, p = recipe.training, recipe.pruning
        method = made_for(student)
        schedule = Schedule(t.epochs, t.batch_size, t.learning_rate, t.momentum, t.weight_decay)
        if pretraining_epochs:
            first = replace(schedule, epochs=pretraining_epochs)
            phase("pretrain", student, method, method.pretraining_loss, first, 0)
        phase("train", student, method, method, schedule, pretraining_epochs)
        # contiguous, as a loaded student is: another memory layout may round differently, and the numbers are exact
        before_cut = measure(fold(student).to(memory_format=torch.contiguous_format), task.data.validation)
        cuts = plan(student, p.fraction, floor=p.floor, image_shape=shape)
        network = cut(student, cuts, image_shape=shape)
        if fine_tune_epochs:
            costs = cost(network, shape)
            network = network.to(memory_format=torch.channels_last)
            method = made_for(network)
            schedule = replace(schedule, epochs=fine_tune_epochs, learning_rate=p.fine_tune_learning_rate)
            phase("fine_tune", network, method, method, schedule, pretraining_epochs + t.epochs)
        network = network.to("cpu").to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
        measurements = measure(network, task.data.validation)
        seconds = time.monotonic() - began
    return TrialResult(recipe, network, measurements, before_cut, cuts.units, cuts.removed, seconds)


def expected_cost(student: Network, pruning: Pruning, image_shape: tuple[int, int, int]) -> dict[str, float]:
    """About what a student will cost when it has been cut; exact where nothing is.

    Which units go is known only when it is trained. Here they go evenly, the same share of every layer. That came
    closer than the rank of a fresh student's units: of 92 trained residual students the number of parameters was
    missed by a factor of 1.03 in the (geometric) mean, with a spread of 10 %, against 0.88 and 14 %.
    """
    cuts = []
    for group in plan(student, 0.0, floor=pruning.floor, image_shape=image_shape).cuts:
        stays = max(1, math.ceil(pruning.floor * group.units))
        removed = range(min(round(pruning.fraction * group.units), group.units - stays))
        cuts.append(replace(group, removed=tuple(removed)))
    return cost(cut(student, Plan(tuple(cuts)), image_shape=image_shape), image_shape)


def _shapes(network: Network, task: Task) -> Shapes:
    """(C, H, W) of every tap of the student and of the teacher, and the training images' classes."""
    found = []
    for model in (network, task.teacher):
        training = model.training
        parameter = next(model.parameters())
        with torch.no_grad():
            maps = capture(model.eval(), torch.zeros(2, *task.data.image_shape, device=parameter.device)).maps
        model.train(training)
        found.append(tuple((m.shape[1], m.shape[2], m.shape[3]) for m in maps))
    return Shapes(student=found[0], teacher=found[1], labels=task.data.train.labels)
