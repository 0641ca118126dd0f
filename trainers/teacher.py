"""The teacher: trained or loaded, stored once, and read back."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from spaces import BadInput, Student
from spaces.errors import Problems, shown
from trainers.class_weights import class_weights, label_loss
from trainers.computing import computing
from trainers.data import source_of
from trainers.data.dataset import Dataset, pixels
from trainers.families import DeepEnsemble, Network, OwnNetwork, build
from trainers.files import Damaged, digest, read_hashed, sha256, write_hashed
from trainers.loop import Batch, Schedule, fit
from trainers.measure import ensemble_nlls, measure, outputs, predictions
from trainers.metrics import METRICS, TIMED
from trainers.networks import load_weights, named_network, own_network_of, read_weights, usual_normalization
from trainers.seeding import seeded
from trainers.store import filled, network_description, weights_bytes
from trainers.task_spec import TaskSpec
from trainers.teacher_spec import DOWNLOADED, TeacherSpec

OnEpoch = Callable[[int, float], object]
"""Called with the epoch, of all members' together, and its mean loss."""


class Teacher:
    """A task's teacher before it is trained or read: its data, and the networks trained outside Dux.

    Args:
        spec: of the task.
        data: its data set.

    Raises:
        BadInput: a network does not exist, its weights do not fit it, or it is not for such data.
    """

    def __init__(self, spec: TaskSpec, data: Dataset) -> None:
        self.spec, self.data = spec, data
        self.notes: list[str] = []
        """What its owner may want to know, one line each."""
        self.doubt = ""
        """Why it may not be what its owner believes, known once it is read; empty if there is no doubt."""
        self._own: dict[int, OwnNetwork] = {}
        problems = Problems()
        for index, member in enumerate(spec.teacher.each):
            if member.network is not None:
                with problems.noted():
                    self._own[index] = self._loaded(member)
                    self._check_rebuilt(index)
        problems.check()

    def identity(self) -> dict[str, Any]:
        """Everything that defines it, as JSON."""
        own = {str(index): sha256(weights_bytes(network)) for index, network in self._own.items()}
        return self.spec.teacher.identity() | ({"weights": own} if own else {})

    def make(self, folder: Path, on_epoch: OnEpoch) -> None:
        """Train the missing members, and record what they are together."""
        members, done = [], 0
        for index, (member, file) in enumerate(
            zip(self.spec.teacher.each, files_of(self.spec.teacher, folder), strict=True)
        ):
            try:
                network = self._read(index, file)
            except (Damaged, FileNotFoundError):  # a kill costs only the member that was being trained

                def report(epoch: int, loss: float, done: int = done) -> None:
                    on_epoch(done + epoch, loss)

                write_hashed(file, weights_bytes(self._trained(index, report)))
                network = self._read(index, file)
            members.append(network)
            done += member.training_epochs
        teacher = together(members)
        nlls = ensemble_nlls(outputs(teacher, self.data.validation), self.data.validation.labels)
        first = self.spec.teacher.each[0]
        record = {
            "network": network_description(Student(start="teacher"), self.data.image_shape, self.data.classes, first),
            "measurements": measure(teacher, self.data.validation, ensemble_nlls=nlls),
            "curve": nlls,
            "spec": self.spec.model_dump(),
        }
        write_hashed(folder / "teacher.json", json.dumps(record, indent=1))

    def read(self, folder: Path) -> tuple[Network, Mapping[str, float], tuple[float, ...]]:
        """The teacher, its measurements and its ensemble NLLs, as stored by `make`.

        Raises:
            Damaged, FileNotFoundError: a file was changed or is missing.
        """
        record = json.loads(read_hashed(folder / "teacher.json"))
        files = files_of(self.spec.teacher, folder)
        teacher = together([self._read(index, file) for index, file in enumerate(files)])
        measurements = self._measurements(record, teacher, folder)
        self.doubt = self._near_chance(teacher, measurements["accuracy"])
        return teacher, measurements, tuple(record["curve"])

    def _read(self, index: int, file: Path) -> Network:
        """A member as it was trained; raises Damaged or FileNotFoundError if its file was changed or is missing."""
        content = read_hashed(file)
        network = untrained(self.spec, index, self.data.image_shape, self.data.classes)
        return filled(network, safetensors.torch.load(content)).eval()

    def _loaded(self, member: TeacherSpec) -> OwnNetwork:
        """A network trained outside Dux, with its weights, normalisation and class order."""
        assert member.network is not None
        with torch.device("cpu"), seeded(torch.Generator().manual_seed(member.seed)):
            inner = named_network(
                member.network, member.arguments, self.data.classes, downloaded=member.weights == DOWNLOADED
            )
        called = f"`task.teacher.network: {member.network}`"
        if member.weights not in (None, DOWNLOADED):
            weights = f"`task.teacher.weights: {member.weights}`"
            self.notes += load_weights(inner, read_weights(Path(str(member.weights))), weights)
        c, *sides = self.data.image_shape
        size = member.input.size
        if size is not None and sides != ([size, size] if isinstance(size, int) else list(size)):
            written = size if isinstance(size, int) else list(size)
            scaled = "image_size" in source_of(self.spec.dataset).options
            raise BadInput(
                f"`task.teacher.input.size` must match the images, but is {written} and they are {sides[0]} x "
                f"{sides[1]}; {f'set `task.image_size: {written}`, or ' if scaled else ''}leave it out"
            )
        network = OwnNetwork(
            inner,
            self.data.image_shape,
            self.data.classes,
            called=called,
            taps=member.taps,
            reordered=self.spec.classes is not None,
        )
        mean, std = member.input.mean, member.input.std
        if mean is None or std is None:
            usual = usual_normalization(member.network, inner)
            fits = usual is not None and len(usual.mean) == c
            mean, std = (list(part) for part in (usual if usual is not None and fits else self.data.mean_std()))
        if len(mean) != c or len(std) != c:
            raise BadInput(f"`task.teacher.input` must have a mean and a std for each of {c} channels, but has {mean}")
        network.set_normalization(torch.tensor(mean), torch.tensor(std))
        if self.spec.classes is not None:
            network.set_order(_order(Path(self.spec.classes), self.data.class_names))
        return network.eval()

    def _check_rebuilt(self, index: int) -> None:
        """Raise BadInput where another process would build another network: all that counts must be in its tensors."""
        own, images = self._own[index], pixels(self.data.validation.images[:2])
        again = untrained(self.spec, index, self.data.image_shape, self.data.classes)
        again = filled(again, safetensors.torch.load(weights_bytes(own)), self.data.image_shape).eval()
        with torch.no_grad():
            if not torch.equal(again(images), own(images)):
                reference = self.spec.teacher.each[index].network
                raise BadInput(
                    f"`task.teacher.network: {reference}` must be the same network each time it is built, but is not; "
                    "register what is random, or read from elsewhere, as a buffer"
                )

    def _trained(self, index: int, on_epoch: OnEpoch) -> Network:
        """One member; the first of a family is initialised from the teacher's seed itself."""
        member = self.spec.teacher.each[index]
        generator = torch.Generator().manual_seed(_seed(member, index))
        if index in self._own:
            network: Network = self._own[index]
        else:
            network = build(member.student, self.data.image_shape, self.data.classes, generator=generator)
            network.set_normalization(*self.data.mean_std())
        if not member.training_epochs:
            return network
        network.to(memory_format=torch.channels_last)

        weights = class_weights(self.spec, self.data)

        def loss(batch: Batch) -> Tensor:
            return label_loss(network(batch.images), batch.labels, weights)

        schedule = Schedule(member.training_epochs, member.batch_size, member.training_rate, 0.9, member.weight_decay)
        fit(network, loss, self.data.train, schedule, policy=self.spec.policy, generator=generator, on_epoch=on_epoch)
        return network.to(memory_format=torch.contiguous_format)

    def _measurements(self, record: Mapping[str, Any], teacher: Network, folder: Path) -> Mapping[str, float]:
        """The teacher's measurements from its record; those that an earlier Dux did not measure are added to it."""
        recorded: Mapping[str, float] = record["measurements"]
        if METRICS.keys() - TIMED <= recorded.keys():
            return recorded
        with computing(self.spec.teacher.threads):
            anew = measure(teacher, self.data.validation, ensemble_nlls=record["curve"])
        measurements = {**anew, **recorded}
        (folder / "teacher.json").unlink()  # a kill before it is replaced costs measuring, not training
        write_hashed(folder / "teacher.json", json.dumps({**record, "measurements": measurements}, indent=1))
        return measurements

    def _near_chance(self, teacher: Network, accuracy: float) -> str:
        """A note if a network trained outside Dux is near chance on the data, with a possible reason; else empty."""
        labels, classes = self.data.validation.labels, self.data.classes
        chance = float(torch.bincount(labels, minlength=classes).max()) / len(labels)
        if not self._own or accuracy > chance + 3 * math.sqrt(chance * (1 - chance) / len(labels)):
            return ""
        taken = predictions(teacher, self.data.validation).argmax(1)
        counts = torch.zeros(classes, classes).index_put_((taken, labels), torch.ones(len(labels)), accumulate=True)
        permuted = float(counts[linear_sum_assignment(counts.numpy(), maximize=True)].sum()) / len(labels)
        says = f"its accuracy of {accuracy:.3f} is near chance ({chance:.3f})"
        if permuted > accuracy + 0.3:
            return (
                f"{says}, but would be {permuted:.3f} with its classes in another order; name a file with its classes "
                "in `task.classes`, one per line in the order of its outputs"
            )
        return f"{says}; do its weights belong to `network`, and its images match `task.teacher.input`?"


def untrained(spec: TaskSpec, index: int, image_shape: tuple[int, int, int], classes: int) -> Network:
    """A member of the teacher with only the right shapes, to be filled by the caller.

    Args:
        spec: of the task.
        index: which member.
        image_shape: (C, H, W).
        classes: of the data.
    """
    member = spec.teacher.each[index]
    if member.network is None:
        return build(member.student, image_shape, classes, generator=torch.Generator().manual_seed(0))
    return own_network_of(member.network, member.arguments, image_shape, classes, member.taps, spec.classes is not None)


def together(members: Sequence[Network]) -> Network:
    """One teacher made of its members, in eval mode and without gradients."""
    teacher = members[0] if len(members) == 1 else DeepEnsemble(members)
    return teacher.eval().requires_grad_(False)


def files_of(spec: TeacherSpec, folder: Path) -> list[Path]:
    """The files of the members' weights."""
    return [folder / f"teacher-{member}.safetensors" for member in range(spec.count)]


def _seed(spec: TeacherSpec, index: int) -> int:
    return spec.seed if index == 0 else int(digest(spec.seed, index)[:8], 16)


def _order(file: Path, class_names: Sequence[str]) -> list[int]:
    """For each class of the data, the index of its line in the file."""
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"`task.classes` must be a text file, but {file}: {error}") from None
    if sorted(names) != sorted(class_names):
        lacks, more = (sorted({*one} - {*other}) for one, other in ((class_names, names), (names, class_names)))
        differs = [f"it lacks {shown(lacks)}"] * bool(lacks) + [f"the data have no {shown(more)}"] * bool(more)
        raise BadInput(
            f"`task.classes` must have each class of the data once, but {'; '.join(differs) or 'a name appears twice'} "
            f"({file})"
        )
    place = dict(zip(names, itertools.count()))
    return [place[name] for name in class_names]
