"""The task: a data set with fixed splits, and its teacher, trained once and kept."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from spaces import BadInput
from trainers.computing import computing
from trainers.data.dataset import Dataset, shared_tensor
from trainers.families import DeepEnsemble, Network, build
from trainers.files import Damaged, digest, read_hashed, write_hashed
from trainers.loop import Batch, Schedule, fit
from trainers.measure import ensemble_nlls, measure, outputs
from trainers.metrics import METRICS, TIMED
from trainers.store import filled, network_description, weights_bytes
from trainers.task_spec import TaskSpec, TeacherSpec

FORMAT = 3
"""Of a teacher's folder; part of its name, so that no other is taken for one."""


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
        cls,
        spec: TaskSpec,
        home: Path,
        on_epoch: Callable[[int, float], object] = lambda epoch, loss: None,
        check: Callable[[str], object] = lambda key: None,
    ) -> Self:
        """The task, its teacher loaded from `home` or trained and kept there.

        Args:
            spec: data set and teacher.
            home: folder under which `teachers/KEY` is kept.
            on_epoch: called while a teacher trains, with the epoch (of all members' together) and its mean loss.
            check: called with the task's key when the data are read, before a teacher is looked for; may raise.

        Raises:
            BadInput: the data are not there, or the teacher is not a network we have, or was changed since it was
                trained.
        """
        spec.check()
        data = spec.load_data()
        key = key_of(spec, data)
        check(key)
        folder = home / "teachers" / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder.parent / f".{key}.lock"):
                if not (folder / "teacher.json").exists():
                    with computing(spec.teacher.threads):
                        _make_teacher(spec, data, folder, on_epoch)
                record = json.loads(read_hashed(folder / "teacher.json"))
                teacher = _teacher([_read_member(spec, data, file) for file in _files(spec.teacher, folder)])
                measurements = _measurements(record, teacher, data, folder, spec.teacher.threads)
        except (Damaged, FileNotFoundError) as error:
            # not trained anew by itself: the students of other studies learned from the one that was here
            why = error if isinstance(error, Damaged) else f"{Path(error.filename).name} is gone"
            raise BadInput(
                f"the files of a teacher must be those that were trained, but in {folder} {why}; "
                "put them back, or delete the folder to have it trained anew"
            ) from None
        return cls(spec, data, teacher, measurements, tuple(record["curve"]), key)

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
        class_names: tuple[str, ...],
        arrays: Mapping[str, np.ndarray],
    ) -> Self:
        """The task that `arrays` came from, without its test split; only the teacher's weights are copied."""

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        data = Dataset.from_arrays(spec.dataset, class_names, under("data/"))
        generator = torch.Generator().manual_seed(0)
        teacher = _teacher(
            [
                build(spec.teacher.student, data.image_shape, data.classes, generator=generator)
                for _ in range(spec.teacher.members)
            ]
        )
        teacher = filled(teacher, {name: shared_tensor(array) for name, array in under("teacher/").items()})
        return cls(spec, data, teacher.eval().requires_grad_(False), measurements, tuple(curve), key)


def key_of(spec: TaskSpec, data: Dataset) -> str:
    """`Task.key` of these data, which `spec` named."""
    arrays = data.arrays()
    shapes = {name: array.shape for name, array in arrays.items()}
    content = (arrays[name].tobytes() for name in sorted(arrays))
    return digest(FORMAT, *content, shapes, list(data.class_names), spec.policy, spec.teacher.model_dump())


def _teacher(members: Sequence[Network]) -> Network:
    teacher = members[0] if len(members) == 1 else DeepEnsemble(members)
    return teacher.eval().requires_grad_(False)


def _files(spec: TeacherSpec, folder: Path) -> list[Path]:
    return [folder / f"teacher-{member}.safetensors" for member in range(spec.members)]


def _read_member(spec: TaskSpec, data: Dataset, file: Path) -> Network:
    """A member of the teacher as it was trained; Damaged or FileNotFoundError where it is not there so."""
    generator = torch.Generator().manual_seed(0)
    network = build(spec.teacher.student, data.image_shape, data.classes, generator=generator)
    return filled(network, safetensors.torch.load(read_hashed(file))).eval()


def _make_teacher(spec: TaskSpec, data: Dataset, folder: Path, on_epoch: Callable[[int, float], object]) -> None:
    """Train the members that are not there yet, and write down what they are together."""
    members = []
    for member, file in enumerate(_files(spec.teacher, folder)):
        try:
            network = _read_member(spec, data, file)
        except (Damaged, FileNotFoundError):  # a kill costs the member that was being trained, and no other
            before = member * spec.teacher.epochs

            def report(epoch: int, loss: float, before: int = before) -> None:
                on_epoch(before + epoch, loss)

            write_hashed(file, weights_bytes(_trained(spec, data, member, report)))
            network = _read_member(spec, data, file)
        members.append(network)
    teacher = _teacher(members)
    nlls = ensemble_nlls(outputs(teacher, data.validation), data.validation.labels)
    record = {
        "network": network_description(spec.teacher.student, data.image_shape, data.classes),
        "measurements": measure(teacher, data.validation, ensemble_nlls=nlls),
        "curve": nlls,
        "spec": spec.model_dump(),
    }
    write_hashed(folder / "teacher.json", json.dumps(record, indent=1))


def _measurements(
    record: Mapping[str, Any], teacher: Network, data: Dataset, folder: Path, threads: int
) -> Mapping[str, float]:
    """The teacher's, by its record in `folder`; what that lacks, since Dux did not measure it then, is added to it."""
    recorded: Mapping[str, float] = record["measurements"]
    if METRICS.keys() - TIMED <= recorded.keys():
        return recorded
    with computing(threads):
        anew = measure(teacher, data.validation, ensemble_nlls=record["curve"])
    measurements = {**anew, **recorded}
    (folder / "teacher.json").unlink()  # a kill before the next is there costs measuring, and no training
    write_hashed(folder / "teacher.json", json.dumps({**record, "measurements": measurements}, indent=1))
    return measurements


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
