"""A trial: one recipe carried out."""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice

import torch
from torch import Tensor, nn

from spaces import BadInput, Pruning, Recipe, Student
from trainers.checkpoint import Checkpoint, Kept
from trainers.computing import computing
from trainers.data.dataset import Dataset
from trainers.depths import check_student
from trainers.families import Features, Network, build, capture
from trainers.files import curve_folder, digest, hashes, sealed
from trainers.knowledge import Knowledge
from trainers.loop import Batch, Schedule, State, batches, fit
from trainers.measure import cost, measure, predictions, quality
from trainers.spectral import Plan, cut, fold, plan, reestimate, rescale, spectral_penalty, spectralize
from trainers.store import network_description, weights_bytes
from trainers.task import Task
from trainers.task_spec import TaskSpec
from trainers.transfer import Method, Shapes, TeacherSignals, method_of

MOST_PARAMETERS = 500_000_000
"""Of a network; with its gradients and momentum it has 6 GB."""
SEEN = 1024
"""Training images to which weights are fitted, and from which batch norm statistics are estimated, after a cut."""


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
    """loss (mean over the epoch), accuracy and nll on validation data of the network as it is; where images are
    perturbed, unmoved: the share of them that stayed as they were, for want of a gradient."""
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
    """In all the processes that worked on it."""
    resumed_at: int = 0
    """Epochs that were not done by this process, but taken from a checkpoint."""
    curve: tuple["TrialResult", ...] = ()
    """The same trained student cut at other fractions and not fine-tuned, then the students between the rounds of an
    iterative cut: what their own recipes make, to the bit."""

    def files(self, task: Task) -> dict[str, bytes]:
        """The trial's files by name: the recipe, the student (description and weights), the result; and its curve's.

        The result has all that the ledger records of the trial, the hashes of the other files among it.
        """
        description = network_description(self.recipe.student, task.data.image_shape, task.data.classes)
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
    """Train a student by its recipe, cut it, fine-tune it, measure what is left.

    On a CPU the same recipe, task, knowledge and thread count give the same numbers, in whichever process and however
    often interrupted: nothing is drawn from a global generator. torch's state is put back.

    Args:
        recipe: what to do.
        task: data and teacher; the test split is not read.
        knowledge: of this task's teacher.
        report: called after every epoch; what it raises ends the trial.
        curve: fractions at which the trained student is also cut and measured, at the price of inference; if there is
            one, the students between the rounds of an iterative cut are measured, too.
        checkpoint: where an interrupted trial left how far it had come; it goes on from there, and its epochs until
            then are reported again. Written until the student is trained: fine-tuning begins anew. None keeps nothing.
        threads: torch threads to compute with; sums are rounded differently with another number.
        device: where to train, as torch names it.
        timed: whether what is timed (`trainers.metrics`) is measured, too: on the CPU, with `threads`, as busy as the
            machine is.

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
        method_type.check_members(options, recipe.student.members, task.teacher.members)
        needs = method_type.needs(options)
        knowledge.prepare(needs)

        student = build(recipe.student, shape, task.data.classes, generator=generator)
        student.set_normalization(*task.data.mean_std())
        student = _spectral(student, recipe).to(device).to(memory_format=torch.channels_last)

        pretraining_epochs = method_type.pretraining_epochs(options)
        steps = pretraining_epochs + recipe.training.epochs + fine_tune_epochs
        costs = expected_cost(student, recipe.pruning, shape)
        reports: list[tuple[str, Mapping[str, float]]] = []

        def tell(name: str, metrics: Mapping[str, float]) -> None:
            reports.append((name, metrics))
            report(Report(len(reports), steps, name, dict(metrics), costs))

        def phase(
            name: str,
            network: Network,
            method: Method,
            objective: Callable[[Features, TeacherSignals, Tensor], Tensor],
            schedule: Schedule,
            start: State | None = None,
            on_state: Callable[[Callable[[], State]], object] = lambda state: None,
        ) -> None:
            """Train a network by one of its method's losses."""

            still: list[float] = []

            def loss(batch: Batch) -> Tensor:
                features, signals = capture(network, batch.images), knowledge.signals(needs, batch, generator)
                if signals.perturbed is not None:
                    features = replace(features, perturbed=network.outputs(signals.perturbed))
                    still.append((signals.perturbed == batch.images).flatten(1).all(1).float().mean().item())
                members = network.members
                value = objective(features, signals.repeated(members), batch.labels.repeat(members))
                penalties = recipe.spectral
                return value + spectral_penalty(
                    network, eigenvector_l2=penalties.eigenvector_l2, eigenvalue_l2=penalties.eigenvalue_l2
                )

            def on_epoch(epoch: int, mean_loss: float) -> None:
                method.progress = min(1.0, (epoch + 1) / schedule.epochs)
                found = quality(predictions(network, task.data.validation), task.data.validation.labels)
                if still:
                    found["unmoved"] = sum(still) / len(still)
                    still.clear()
                tell(name, {"loss": mean_loss, **found})

            done = 0 if start is None else start.epoch
            method.progress = min(1.0, (done + 1) / schedule.epochs)
            fit(
                network,
                loss,
                task.data.train,
                schedule,
                policy=task.spec.policy,
                generator=generator,
                others=[method],
                on_epoch=on_epoch,
                start=start,
                on_state=on_state,
            )

        def made_for(network: Network) -> Method:
            shapes = Shapes(_taps(network, shape), _taps(task.teacher, shape), task.data.train.labels)
            return method_type.make(options, shapes, generator=generator).to(device)

        t, p = recipe.training, recipe.pruning
        method = made_for(student)
        schedule = Schedule(
            t.epochs,
            t.batch_size,
            t.learning_rate,
            t.momentum,
            t.weight_decay,
            t.fast_learning_rate,
            t.fast_weight_decay,
        )
        trial = digest(recipe.flat(), task.key, threads, device)
        if not all(isinstance(value, Tensor) for value in method.state_dict().values()):
            checkpoint = None  # a method of the user's own; what is no tensor cannot be read back without pickle
        kept = None if checkpoint is None else _kept(checkpoint, trial, [student, method])
        if kept is not None:
            began -= kept.seconds
            for name, metrics in kept.reports:
                tell(name, metrics)
        resumed_at, saved = len(reports), time.monotonic()

        def keep(name: str, take: Callable[[], State]) -> None:
            """Save a checkpoint, if it is time for one."""
            nonlocal saved
            if checkpoint is None or time.monotonic() - saved < checkpoint.seconds:
                return
            checkpoint.save(Kept(name, take(), time.monotonic() - began, reports).to_bytes(trial))
            saved = time.monotonic()

        trainings: list[tuple[str, Callable[..., Tensor], Schedule]] = [("train", method, schedule)]
        if pretraining_epochs:
            trainings.insert(0, ("pretrain", method.pretraining_loss, replace(schedule, epochs=pretraining_epochs)))
        for name, objective, course in trainings:
            if kept is None or kept.phase == name:
                start = None if kept is None else kept.state
                phase(name, student, method, objective, course, start, partial(keep, name))
                kept = None
        # contiguous, as a loaded student is: another memory layout may round differently, and the numbers are exact
        whole = fold(student).to(memory_format=torch.contiguous_format)
        before_cut = measure(whole, task.data.validation, ensemble_nlls=task.curve)

        def smaller(network: Network, share: float, earlier: Plan | None, own: torch.Generator) -> tuple[Network, Plan]:
            cuts = plan(
                network,
                share,
                floor=p.floor,
                image_shape=shape,
                scope=p.scope,
                round_to=p.round_to,
                earlier=earlier,
            )
            if not cuts.removed:
                return cut(network, cuts, image_shape=shape), cuts
            seen = batches(task.data.train, t.batch_size, task.spec.policy, own, torch.device(device))
            images = [batch.images for batch in islice(seen, math.ceil(SEEN / t.batch_size))]
            network = cut(network, cuts, image_shape=shape, images=torch.cat(images) if p.reconstruct else None)
            reestimate(network, images)
            return network, cuts

        def finished(recipe: Recipe, network: Network, cuts: Plan, began: float) -> TrialResult:
            network = network.to("cpu").to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
            measurements = measure(network, task.data.validation, ensemble_nlls=task.curve, timed=timed)
            seconds = time.monotonic() - began
            return TrialResult(recipe, network, measurements, before_cut, cuts.units, cuts.removed, seconds, resumed_at)

        points = []
        for fraction in curve:
            plain = p.model_copy(update={"fraction": fraction, "fine_tune_epochs": 0, "rounds": 1})
            if (point := recipe.model_copy(update={"pruning": plain})) != recipe:
                asked = time.monotonic()
                points.append(finished(point, *smaller(student, fraction, None, generator.clone_state()), asked))

        network = student
        cuts: Plan | None = None
        rounds = p.rounds if pruned else 1
        for turn in range(1, rounds + 1):
            if cuts is not None:
                network = _spectral(network, recipe)  # to be ranked by what it learned since the last cut
            so_far = p.after(turn) if pruned else p
            network, cuts = smaller(network, so_far.fraction, cuts, generator)
            epochs = fine_tune_epochs // rounds + (turn <= fine_tune_epochs % rounds)
            costs = cost(network, shape) if turn == rounds else costs
            if epochs:
                rescale(network, image_shape=shape)
                network = network.to(memory_format=torch.channels_last)
                method = made_for(network)
                schedule = replace(schedule, epochs=epochs, learning_rate=p.fine_tune_learning_rate)
                phase("fine_tune", network, method, method, schedule)
            if curve and turn < rounds:
                asked = time.monotonic()
                point = recipe.model_copy(update={"pruning": so_far})
                points.append(finished(point, copy.deepcopy(network), cuts, asked))
        assert cuts is not None
        return replace(finished(recipe, network, cuts, began), curve=tuple(points))


def _kept(checkpoint: Checkpoint, trial: str, modules: Sequence[nn.Module]) -> Kept | None:
    """What an interrupted trial left, where it is of this very trial and of such modules."""
    content = checkpoint.load()
    kept = None if content is None else Kept.from_bytes(content, trial)
    return kept if kept is not None and kept.state.fits(modules) else None


def check_pair(recipe: Recipe, spec: TaskSpec, data: Dataset) -> None:
    """Raise BadInput where the recipe's method cannot work with its student and the task's teacher; trains nothing."""
    method_type, options = method_of(recipe)
    method_type.check_members(options, recipe.student.members, spec.teacher.members)
    student, teacher = (
        _planned(shape, data.image_shape, data.classes)[0] for shape in (recipe.student, spec.teacher.student)
    )
    method_type.check(Shapes(student, teacher, data.train.labels))


def check_size(shape: Student, data: Dataset) -> None:
    """Raise BadInput where a network has more parameters than any machine trains here."""
    _, parameters = _planned(shape, data.image_shape, data.classes)
    if parameters > MOST_PARAMETERS:
        raise BadInput(
            f"a network must have at most {MOST_PARAMETERS:,} parameters, but a {shape.family} of depth {shape.depth} "
            f"and width {shape.width:g} has {parameters:,}; lower its depth or width"
        )


@cache
def _planned(
    shape: Student, image_shape: tuple[int, int, int], classes: int
) -> tuple[tuple[tuple[int, int, int], ...], int]:
    """(C, H, W) of every tap, and the number of parameters, of a network that is not really built: it takes no memory.

    Its members are left out: they have the same taps, and few parameters of their own.
    """
    with torch.device("meta"):
        alone = shape.model_copy(update={"members": 1})
        network = build(alone, image_shape, classes, generator=torch.Generator("cpu").manual_seed(0))
        return _taps(network, image_shape), sum(parameter.numel() for parameter in network.parameters())


def _taps(network: Network, image_shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    """(C, H, W) of every tap."""
    training = network.training
    device = next(network.parameters()).device
    with torch.no_grad():
        maps = capture(network.eval(), torch.zeros(2, *image_shape, device=device)).maps
    network.train(training)
    return tuple((m.shape[1], m.shape[2], m.shape[3]) for m in maps)


def _spectral(network: Network, recipe: Recipe) -> Network:
    """The network with spectral layers, of which the recipe says what is trained."""
    parts = recipe.spectral
    return spectralize(
        network,
        keep=[network.head],
        train_inputs=parts.train_inputs,
        train_outputs=parts.train_outputs,
        train_eigenvectors=parts.train_eigenvectors,
    )


def expected_cost(student: Network, pruning: Pruning, image_shape: tuple[int, int, int]) -> dict[str, float]:
    """About what a student will cost when it has been cut; exact where nothing is.

    Which units go is known only when it is trained. Here they go evenly, the same share of every layer. That came
    closer than the rank of a fresh student's units: of 92 trained residual students the number of parameters was
    missed by a factor of 1.03 in the (geometric) mean, with a spread of 10 %, against 0.88 and 14 %.
    """
    cuts = []
    for group in plan(student, 0.0, floor=pruning.floor, image_shape=image_shape).cuts:
        stays = max(1, math.ceil(pruning.floor * group.units), group.units - round(pruning.fraction * group.units))
        stays = math.ceil(stays / pruning.round_to) * pruning.round_to
        cuts.append(replace(group, removed=tuple(range(max(0, group.units - stays)))))
    return cost(cut(student, Plan(tuple(cuts)), image_shape=image_shape), image_shape)
