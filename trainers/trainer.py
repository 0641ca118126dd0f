"""Training the networks of one trial: by their transfer method, reported epoch by epoch, kept in checkpoints."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from spaces import Recipe
from trainers.checkpoint import Checkpoint, Kept
from trainers.class_weights import class_weights
from trainers.families import Features, Network, build, capture
from trainers.knowledge import Knowledge
from trainers.loop import Batch, Schedule, State, batches, fit
from trainers.measure import batch_size, predictions, quality
from trainers.planning import taps
from trainers.spectral import Plan, Traced, cut, plan, recalibrate, rescale, spectral_penalty, spectralize, trace
from trainers.task import Task
from trainers.transfer import Method, Shapes, TeacherSignals, method_of

EACH_EPOCH = ("accuracy", "balanced_accuracy", "macro_f1", "nll")
"""Measurements that take next to no time once there are predictions: early stopping compares trials by them."""
SEEN = 1024
"""Training images to which weights are fitted, and from which batch norm statistics are estimated, after a cut."""
SEEN_AT_ONCE = 2**26
"""Numbers in the largest tensor that they make, all at once: 256 MiB. Of images that make larger ones there are fewer:
of 224 x 224 in a residual network of 16 channels, 83, rounded up to whole batches."""


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
    """loss (mean over the epoch), and EACH_EPOCH on validation data of the network as it is; where images are
    perturbed, unmoved: the share of them that stayed as they were, for want of a gradient."""
    cost: dict[str, float]
    """parameters, macs and size_bytes of what the student will be: `expected_cost` until it is cut, then exact."""


class Log:
    """The epochs of a trial: reported, and kept in checkpoints.

    Args:
        report: called after every epoch.
        steps: epochs there will be.
        costs: about what the student will cost; set anew when it is known.
        began: when the trial did, by `time.monotonic`.
    """

    def __init__(self, report: Callable[[Report], object], steps: int, costs: dict[str, float], began: float) -> None:
        self._report, self._steps = report, steps
        self.costs, self.began = costs, began
        """As if one process had done all of it."""
        self.resumed_at = 0
        """Epochs that were taken from a checkpoint."""
        self._epochs: list[tuple[str, Mapping[str, float]]] = []
        self._checkpoint: Checkpoint | None = None
        self._trial = ""
        self._saved = math.inf

    def resume(self, checkpoint: Checkpoint | None, trial: str, modules: Sequence[nn.Module]) -> Kept | None:
        """Report the epochs of an interrupted process again, and return where it was; keep checkpoints from now on.

        Args:
            checkpoint: where they are; None keeps none.
            trial: all that makes the trial's result; checkpoints of another are none.
            modules: that are trained.
        """
        tensors = (value for module in modules for value in module.state_dict().values())
        if checkpoint is None or not all(isinstance(value, Tensor) for value in tensors):
            return None  # a method of the user's own; what is no tensor cannot be read back without pickle
        self._checkpoint, self._trial = checkpoint, trial
        content = checkpoint.load()
        kept = None if content is None else Kept.from_bytes(content, trial)
        if kept is not None and not kept.state.fits(modules):
            kept = None
        if kept is not None:
            self.began -= kept.seconds
            for phase, metrics in kept.reports:
                self.add(phase, metrics)
            self.resumed_at = len(self._epochs)
        self._saved = time.monotonic()
        return kept

    def add(self, phase: str, metrics: Mapping[str, float]) -> None:
        """An epoch is over."""
        self._epochs.append((phase, metrics))
        self._report(Report(len(self._epochs), self._steps, phase, dict(metrics), self.costs))

    def save(self, phase: str, take: Callable[[], State]) -> None:
        """Save a checkpoint, if it is time for one."""
        if self._checkpoint is None or time.monotonic() - self._saved < self._checkpoint.seconds:
            return
        kept = Kept(phase, take(), time.monotonic() - self.began, self._epochs)
        self._checkpoint.save(kept.to_bytes(self._trial))
        self._saved = time.monotonic()


@dataclass
class _Loss:
    """A network's loss on a batch: its method's, and the spectral penalty."""

    network: Network
    objective: Callable[[Features, TeacherSignals, Tensor], Tensor]
    signals: Callable[[Batch], TeacherSignals]
    penalty: Callable[[Network], Tensor]

    def __post_init__(self) -> None:
        self._unmoved: list[float] = []

    def __call__(self, batch: Batch) -> Tensor:
        features, signals = capture(self.network, batch.images), self.signals(batch)
        if signals.perturbed is not None:
            features = replace(features, perturbed=self.network.outputs(signals.perturbed))
            self._unmoved.append((signals.perturbed == batch.images).flatten(1).all(1).float().mean().item())
        members = self.network.members
        value = self.objective(features, signals.repeated(members), batch.labels.repeat(members))
        return value + self.penalty(self.network)

    def unmoved(self) -> dict[str, float]:
        """`unmoved` since it was asked for last: the share of images that perturbing left as they were."""
        if not self._unmoved:
            return {}
        share = sum(self._unmoved) / len(self._unmoved)
        self._unmoved.clear()
        return {"unmoved": share}


class Trainer:
    """Builds, trains and cuts the networks of one trial; all chance comes from one generator, in the order of calls.

    Args:
        recipe: what to do.
        task: data and teacher.
        knowledge: of this task's teacher; what the method needs is made ready.
        device: where to train.
    """

    def __init__(self, recipe: Recipe, task: Task, knowledge: Knowledge, device: str) -> None:
        self._recipe, self._task, self._knowledge, self._device = recipe, task, knowledge, device
        self._shape = task.data.image_shape
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self._method_type, self._options = method_of(recipe)
        self._needs = self._method_type.needs(self._options)
        knowledge.prepare(self._needs)
        t = recipe.training
        self._schedule = Schedule(
            t.epochs,
            t.batch_size,
            t.learning_rate,
            t.momentum,
            t.weight_decay,
            t.fast_learning_rate,
            t.fast_weight_decay,
            t.max_gradient_norm,
        )
        self._pretraining_epochs = self._method_type.pretraining_epochs(self._options)
        self.epochs = self._pretraining_epochs + t.epochs
        """Of all training before the cut."""

    def build(self) -> Network:
        """A student with spectral layers."""
        if self._recipe.student.start == "teacher":
            student = self._of_teacher()
        else:
            student = build(self._recipe.student, self._shape, self._task.data.classes, generator=self.generator)
            student.set_normalization(*self._task.data.mean_std())
        return self.spectral(student).to(self._device).to(memory_format=torch.channels_last)

    def _of_teacher(self) -> Network:
        """The teacher with its weights, in each group of coupled units the share of the student's width."""
        whole = copy.deepcopy(self._task.teacher).to(self._device).requires_grad_(True)
        p, share = self._recipe.pruning, self._recipe.student.width
        if share == 1.0:
            return whole
        whole = self.spectral(whole)
        cuts = plan(self.trace(whole), 1.0 - share, floor=0.0, scope="layer", round_to=p.round_to)
        return self._without(whole, cuts, self.generator)

    def spectral(self, network: Network) -> Network:
        """The network with spectral layers, of which the recipe says what is trained."""
        parts = self._recipe.spectral
        return spectralize(
            network,
            keep=network.heads,
            train_inputs=parts.train_inputs,
            train_outputs=parts.train_outputs,
            train_eigenvectors=parts.train_eigenvectors,
        )

    def method_for(self, network: Network) -> Method:
        """The transfer method, made for a network's shapes."""
        teacher = self._task.teacher
        shapes = Shapes(
            taps(network, self._shape),
            taps(teacher, self._shape),
            self._task.data.train.labels,
            network.members,
            teacher.members,
            class_weights(self._task.spec, self._task.data),
        )
        return self._method_type.make(self._options, shapes, generator=self.generator).to(self._device)

    def train(self, student: Network, method: Method, log: Log, kept: Kept | None) -> None:
        """Pretrain where the method asks for that, then train; from where a checkpoint was taken, if one was."""
        courses: list[tuple[str, Callable[..., Tensor], Schedule]] = [("train", method, self._schedule)]
        if self._pretraining_epochs:
            before = replace(self._schedule, epochs=self._pretraining_epochs)
            courses.insert(0, ("pretrain", method.pretraining_loss, before))
        names = [name for name, _, _ in courses]
        first = 0 if kept is None else names.index(kept.phase)
        for place, (name, objective, schedule) in enumerate(courses):
            if place >= first:
                start = kept.state if kept is not None and place == first else None
                self._fit(name, student, method, objective, schedule, log, start, partial(log.save, name))

    def trace(self, network: Network) -> Traced:
        """A network with spectral layers and the dependencies between its channels."""
        return trace(network, self._shape)

    def fine_tune(self, network: Network, traced: Traced, epochs: int, log: Log) -> Network:
        """Train a network, cut from a traced one, with the same method, built anew for it; returns it."""
        rescale(network, traced)
        network = network.to(memory_format=torch.channels_last)
        method = self.method_for(network)
        rate = self._recipe.pruning.fine_tune_learning_rate
        schedule = replace(self._schedule, epochs=epochs, learning_rate=rate)
        self._fit("fine_tune", network, method, method, schedule, log)
        return network

    def _fit(
        self,
        phase: str,
        network: Network,
        method: Method,
        objective: Callable[[Features, TeacherSignals, Tensor], Tensor],
        schedule: Schedule,
        log: Log,
        start: State | None = None,
        on_state: Callable[[Callable[[], State]], object] = lambda state: None,
    ) -> None:
        """Train a network by one of its method's losses."""
        data, penalties = self._task.data, self._recipe.spectral
        loss = _Loss(
            network,
            objective,
            lambda batch: self._knowledge.signals(self._needs, batch, self.generator),
            partial(spectral_penalty, eigenvector_l2=penalties.eigenvector_l2, eigenvalue_l2=penalties.eigenvalue_l2),
        )

        def on_epoch(epoch: int, mean_loss: float) -> None:
            method.progress = min(1.0, (epoch + 1) / schedule.epochs)
            measured = quality(predictions(network, data.validation), data.validation.labels, EACH_EPOCH)
            log.add(phase, {"loss": mean_loss, **measured, **loss.unmoved()})

        done = 0 if start is None else start.epoch
        method.progress = min(1.0, (done + 1) / schedule.epochs)
        fit(
            network,
            loss,
            data.train,
            schedule,
            policy=self._task.spec.policy,
            generator=self.generator,
            others=[method],
            on_epoch=on_epoch,
            start=start,
            on_state=on_state,
        )

    def cut(
        self, network: Network, traced: Traced, fraction: float, earlier: Plan | None, generator: torch.Generator
    ) -> tuple[Network, Plan]:
        """The network without its least important units, weights fitted and batch norms recalibrated; and the plan.

        Args:
            network: trained, with spectral layers.
            traced: this network.
            fraction: share of the units that there were at first.
            earlier: the plan of the cut before, if there was one.
            generator: chooses the images that the cut network is fitted to.
        """
        p = self._recipe.pruning
        cuts = plan(traced, fraction, floor=p.floor, scope=p.scope, round_to=p.round_to, earlier=earlier)
        return self._without(network, cuts, generator), cuts

    def _without(self, network: Network, cuts: Plan, generator: torch.Generator) -> Network:
        """The network without the planned units, weights fitted and batch norms recalibrated."""
        if not cuts.removed:
            return cut(network, cuts)
        size, data = self._recipe.training.batch_size, self._task.data
        at_once = batch_size(network, self._shape, SEEN_AT_ONCE, most=SEEN)
        seen = batches(data.train, size, self._task.spec.policy, generator, torch.device(self._device))
        images = [batch.images for batch in islice(seen, math.ceil(at_once / size))]
        smaller = cut(network, cuts, images=torch.cat(images) if self._recipe.pruning.reconstruct else None)
        recalibrate(smaller, images)
        return smaller
