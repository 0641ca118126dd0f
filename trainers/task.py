"""The task: a data set with fixed splits, and its teacher, made once and kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock

from spaces import BadInput
from trainers.computing import computing
from trainers.data.dataset import Dataset, Split, shared_tensor
from trainers.families import Network
from trainers.files import Damaged, digest
from trainers.store import filled, tensors_of
from trainers.task_spec import TaskSpec
from trainers.teacher import Teacher, together, untrained

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
    """Names the data, their augmentation, class weights and the teacher: what knowledge and trials depend on."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Of the teacher, in the key: JSON. Workers need none."""
    notes: tuple[str, ...] = ()
    """What the teacher's owner may want to know of how it was read, a line each."""
    doubt: str = ""
    """That the teacher, which somebody else trained, is near chance on these data, and why that may be."""

    @classmethod
    def load(
        cls,
        spec: TaskSpec,
        home: Path,
        on_epoch: Callable[[int, float], object] = lambda epoch, loss: None,
        check: Callable[[str, Mapping[str, Any]], object] = lambda key, teacher: None,
        *,
        data: Dataset | None = None,
        on_image: Callable[[int, int], object] = lambda done, total: None,
    ) -> Self:
        """The task, its teacher loaded from `home` or trained and kept there.

        Args:
            spec: data set and teacher.
            home: folder under which `teachers/KEY` is kept, and images that are larger than `spec.memory`.
            on_epoch: called while a teacher trains, with the epoch (of all members' together) and its mean loss.
            check: called with the task's key and what makes the teacher, before one is looked for; may raise.
            data: the task's; left out, they are read.
            on_image: called as they are read, with how many images were, of how many.

        Raises:
            BadInput: the data are not there, or the teacher is not a network we have, or was changed since it was
                trained.
        """
        spec.check()
        data = spec.load_data(home, on_image) if data is None else data
        teacher = Teacher(spec, data)
        identity = teacher.identity()
        key = key_of(spec, data, identity)
        check(key, identity)
        folder = home / "teachers" / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder.parent / f".{key}.lock"):
                if not (folder / "teacher.json").exists():
                    with computing(spec.teacher.threads):
                        teacher.make(folder, on_epoch)
                network, measurements, curve = teacher.read(folder)
        except (Damaged, FileNotFoundError) as error:
            # not trained anew by itself: the students of other studies learned from the one that was here
            why = error if isinstance(error, Damaged) else f"{Path(error.filename).name} is gone"
            raise BadInput(
                f"the files of a teacher must be those that were trained, but in {folder} {why}; "
                "put them back, or delete the folder to have it trained anew"
            ) from None
        return cls(spec, data, network, measurements, curve, key, identity, tuple(teacher.notes), teacher.doubt)

    def arrays(self) -> dict[str, np.ndarray]:
        """The task's numbers, for Ray's object store: workers read them without a copy. The test split stays behind."""
        weights = {f"teacher/{name}": tensor.cpu().numpy() for name, tensor in tensors_of(self.teacher).items()}
        seen = replace(self.data, test=Split(self.data.test.images[:0], self.data.test.labels[:0]))
        data = {f"data/{name}": array for name, array in seen.arrays().items()}
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
        teacher = together(
            [untrained(spec, index, data.image_shape, data.classes) for index in range(spec.teacher.count)]
        )
        teacher = filled(teacher, {name: shared_tensor(array) for name, array in under("teacher/").items()})
        return cls(spec, data, teacher.eval().requires_grad_(False), measurements, tuple(curve), key)


def key_of(spec: TaskSpec, data: Dataset, teacher: Mapping[str, Any]) -> str:
    """`Task.key` of these data, which `spec` named, and of the teacher by its identity."""
    content, shapes = data.content()
    weights = [] if spec.class_weights == "none" else [spec.class_weights]  # keys from before there were any still hold
    return digest(FORMAT, content, shapes, list(data.class_names), spec.policy, teacher, *weights)
