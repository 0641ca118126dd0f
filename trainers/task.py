"""The task: a data set with fixed splits, and its teacher, trained once and kept."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from pydantic import Field
from torch import Tensor

from spaces import BadInput, Student
from spaces.errors import known
from spaces.recipe import Part
from trainers.computing import computing
from trainers.data import AUGMENTATIONS, DATASETS, check_dataset, load_dataset
from trainers.data.dataset import Dataset, shared_tensor
from trainers.families import DeepEnsemble, Network, build, check_student
from trainers.loop import Batch, Schedule, fit
from trainers.measure import ensemble_curve, measure, outputs
from trainers.store import digest, filled, load_network, network_description, weights_bytes, write_whole

FORMAT = 2
"""Of a teacher's folder; part of its name, so that no other is taken for one."""


class TeacherSpec(Part):
    """The network to compress, and how it is trained."""

    family: str = "resnet"
    depth: int = Field(default=20, ge=2)
    width: float = Field(default=1.0, gt=0.0, le=64.0)
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=0.1, gt=0.0)
    weight_decay: float = Field(default=5e-4, ge=0.0)
    members: int = Field(default=1, ge=1, le=64)
    """Networks of an ensemble, each trained on its own from a seed of its own; their probabilities are averaged."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    threads: int = Field(default=1, ge=1)
    """Torch threads that it, and what is learned of it, are computed with; the last digits depend on their number."""

    @property
    def student(self) -> Student:
        """One member's shape in the words of a recipe."""
        return Student(family=self.family, depth=self.depth, width=self.width)


class TaskSpec(Part):
    """A task as a study file writes it."""

    dataset: str = "digits"
    root: str | None = None
    """The folder of the data set's files, where it needs one."""
    download: bool = False
    """Whether a missing data set may be fetched from its home on the internet."""
    train_limit: int | None = Field(default=None, ge=1)
    """Train on this many images only, drawn evenly over the classes."""
    image_size: int | None = Field(default=None, ge=1)
    """Side to which images of a folder are scaled and cropped."""
    augment: str | None = None
    """`none`, `crop` or `crop_flip`; left out, the data set's own."""
    teacher: TeacherSpec = TeacherSpec()

    def check(self) -> None:
        """Raise BadInput where the data or the teacher cannot be; cheap, reads no images."""
        check_dataset(
            self.dataset,
            root=None if self.root is None else Path(self.root),
            download=self.download,
            image_size=self.image_size,
        )
        if self.augment is not None and self.augment not in AUGMENTATIONS:
            way_out = known(AUGMENTATIONS, self.augment)
            raise BadInput(f"`task.augment` must be a known policy, but got {self.augment!r}; {way_out}")
        check_student(self.teacher.student)

    def load_data(self) -> Dataset:
        """The data set, read into memory.

        Raises:
            BadInput: its files are not there, or broken, or too few for `train_limit`.
        """
        return load_dataset(
            self.dataset,
            root=None if self.root is None else Path(self.root),
            download=self.download,
            train_limit=self.train_limit,
            image_size=self.image_size,
        )

    @property
    def policy(self) -> str:
        """The augmentation that holds."""
        return self.augment or DATASETS[self.dataset].augmentation


@dataclass(frozen=True)
class Task:
    """Data and teacher, loaded. The teacher is in eval mode and takes no gradient."""

    spec: TaskSpec
    data: Dataset
    teacher: Network
    teacher_measurements: Mapping[str, float]
    """Of the teacher on validation data."""
    curve: tuple[float, ...]
    """Of the teacher on validation data: calibrated negative log-likelihood of 1, 2, ... of its members."""
    key: str
    """Names the data, their augmentation and the teacher: what knowledge depends on."""

    @classmethod
    def load(
        cls, spec: TaskSpec, home: Path, on_epoch: Callable[[int, float], object] = lambda epoch, loss: None
    ) -> Self:
        """The task, its teacher loaded from `home` or trained and kept there.

        Args:
            spec: data set and teacher.
            home: folder under which `teachers/KEY` is kept.
            on_epoch: called while a teacher trains, with the epoch (of all members' together) and its mean loss.

        Raises:
            BadInput: the data are not there, or the teacher is not a network we have.
        """
        spec.check()
        data = spec.load_data()
        arrays = data.arrays()
        shapes = {name: array.shape for name, array in arrays.items()}
        content = (arrays[name].tobytes() for name in sorted(arrays))
        key = digest(FORMAT, *content, shapes, data.classes, spec.policy, spec.teacher.model_dump())
        folder = home / "teachers" / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{key}.lock"):
            if not (folder / "teacher.json").exists():
                with computing(spec.teacher.threads):
                    _make_teacher(spec, data, folder, on_epoch)
        record = json.loads((folder / "teacher.json").read_text())
        teacher = _teacher([load_network(record["network"], file) for file in _files(spec.teacher, folder)])
        return cls(spec, data, teacher, record["measurements"], tuple(record["curve"]), key)

    def arrays(self) -> dict[str, np.ndarray]:
        """The task's numbers, for Ray's object store: workers read them without a copy. The test split stays behind."""
        weights = {f"teacher/{name}": tensor.cpu().numpy() for name, tensor in self.teacher.state_dict().items()}
        data = {
            f"data/{name}": array[:0] if name.startswith("test.") else array
            for name, array in self.data.arrays().items()
        }
        return {**data, **weights}

    @classmethod
    def from_arrays(
        cls,
        spec: TaskSpec,
        measurements: Mapping[str, float],
        curve: Sequence[float],
        key: str,
        classes: int,
        arrays: Mapping[str, np.ndarray],
    ) -> Self:
        """The task that `arrays` came from, without its test split; only the teacher's weights are copied."""

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        data = Dataset.from_arrays(spec.dataset, classes, under("data/"))
        generator = torch.Generator().manual_seed(0)
        teacher = _teacher(
            [
                build(spec.teacher.student, data.image_shape, classes, generator=generator)
                for _ in range(spec.teacher.members)
            ]
        )
        teacher = filled(teacher, {name: shared_tensor(array) for name, array in under("teacher/").items()})
        return cls(spec, data, teacher.eval().requires_grad_(False), measurements, tuple(curve), key)


def _teacher(members: Sequence[Network]) -> Network:
    teacher = members[0] if len(members) == 1 else DeepEnsemble(members)
    return teacher.eval().requires_grad_(False)


def _files(spec: TeacherSpec, folder: Path) -> list[Path]:
    return [folder / f"teacher-{member}.safetensors" for member in range(spec.members)]


def _make_teacher(spec: TaskSpec, data: Dataset, folder: Path, on_epoch: Callable[[int, float], object]) -> None:
    """Train the members that are not there yet, and write down what they are together."""
    description = network_description(spec.teacher.student, data.image_shape, data.classes)
    files = _files(spec.teacher, folder)
    for member, file in enumerate(files):
        if not file.exists():  # a kill costs the member that was being trained, and no other
            before = member * spec.teacher.epochs

            def report(epoch: int, loss: float, before: int = before) -> None:
                on_epoch(before + epoch, loss)

            network = _trained(spec, data, member, report)
            write_whole(file, weights_bytes(network))
    teacher = _teacher([load_network(description, file) for file in files])
    curve = ensemble_curve(outputs(teacher, data.validation), data.validation.labels)
    record = {
        "network": description,
        "measurements": measure(teacher, data.validation, curve=curve),
        "curve": curve,
        "spec": spec.model_dump(),
    }
    write_whole(folder / "teacher.json", json.dumps(record, indent=1))


def _trained(spec: TaskSpec, data: Dataset, member: int, on_epoch: Callable[[int, float], object]) -> Network:
    """One member; the first is the network that the teacher's seed gives."""
    teacher = spec.teacher
    seed = teacher.seed if member == 0 else int(digest(teacher.seed, member)[:8], 16)
    generator = torch.Generator().manual_seed(seed)
    network = build(teacher.student, data.image_shape, data.classes, generator=generator)
    network.set_normalization(*data.mean_std())
    network.to(memory_format=torch.channels_last)

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(network(batch.images), batch.labels)

    schedule = Schedule(teacher.epochs, teacher.batch_size, teacher.learning_rate, 0.9, teacher.weight_decay)
    fit(network, loss, data.train, schedule, policy=spec.policy, generator=generator, on_epoch=on_epoch)
    return network.to(memory_format=torch.contiguous_format)
