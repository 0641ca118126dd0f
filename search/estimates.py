"""What a study will need of a machine, estimated before it runs: memory of its workers, room on disk."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from search.machine import free_memory
from search.study_file import StudyFile
from spaces import BadInput
from trainers.data.dataset import Dataset
from trainers.families import Network
from trainers.measure import Sizes

PROCESS = 600 * 2**20
"""Bytes of a worker before it holds a network: Python, torch and Ray. About 550 MB on Linux (torch 2.15, Ray 2.60)."""
DRIVER = 1200 * 2**20
"""Bytes of the driver, Ray's own processes and MLflow's."""
OF_A_PARAMETER = 4 * 4
"""Bytes: the value, its gradient, the momentum, and a copy while the network is traced or cut."""
FLOAT = 4


@dataclass(frozen=True)
class Needs:
    """Bytes that a study needs, each more likely too high than too low; what a transfer method adds is not in them."""

    worker: int
    workers: int
    shared: int
    """The data and the teacher, which all workers share, and the driver."""
    disk: int
    """Students, curves and checkpoints, if each trial leaves as much as the largest."""

    @property
    def memory(self) -> int:
        """Of all processes together."""
        return self.shared + self.worker * self.workers

    def lines(self) -> list[str]:
        """For the terminal."""
        return [
            f"memory: about {_size(self.memory)} ({self.workers} x {_size(self.worker)}, and {_size(self.shared)} that "
            "is there once), by the largest student; what a transfer method adds is not in it",
            f"disk: at most about {_size(self.disk)}, if every student is as large as the largest",
        ]

    def check(self, home: Path) -> None:
        """Raise BadInput where this machine has not so much: all that is missing at once."""
        problems, free = [], free_memory()
        if free is not None and self.memory > free:
            fit = max(0, (free - self.shared) // self.worker)
            way_out = (
                f"set `search.concurrent: {fit}`" if fit else "take smaller images or students, or another machine"
            )
            problems.append(
                f"memory must hold {self.workers} trials at a time, about {_size(self.memory)}, but {_size(free)} are "
                f"free; {way_out}"
            )
        place = next(folder for folder in (home, *home.parents) if folder.exists())
        room = shutil.disk_usage(place).free
        if self.disk > room:
            problems.append(
                f"the disk of {home} must have room for the study, about {_size(self.disk)}, but {_size(room)} are "
                "free; name another home with `--home`, or ask for fewer trials"
            )
        if problems:
            raise BadInput(*problems)


def needs_of(file: StudyFile, data: Dataset, teacher: Network, students: Sequence[Network]) -> Needs:
    """What the study needs, by networks that may be of shapes alone.

    Args:
        file: the study.
        data: its task's.
        teacher: its task's.
        students: the largest ones of its space.
    """
    images = sum(split.images.numel() for split in data.splits().values())
    held = images if data.train.file is None else 0  # a file is read as it is needed
    batch = max(int(size) for size in file.space.extremes_of("training.batch_size"))
    largest = max(_training(student, data.image_shape, batch) for student in students)
    weights = max(_parameters(student) for student in students) * FLOAT
    points = 1 + len(file.space.fractions()) if file.search.curve else 1
    workers = min(file.search.at_a_time, file.trials)
    return Needs(
        worker=PROCESS + largest + _parameters(teacher) * FLOAT + _passing(teacher, data.image_shape) * batch,
        workers=workers,
        shared=DRIVER + held + _parameters(teacher) * FLOAT,
        disk=file.trials * weights * points + workers * 3 * weights + images // 8 + _parameters(teacher) * FLOAT,
    )


def _training(network: Network, image_shape: tuple[int, int, int], batch: int) -> int:
    """Bytes that training a network takes: its parameters, and all that a batch leaves for the backward pass."""
    return _parameters(network) * OF_A_PARAMETER + sum(_made(network, image_shape)) * FLOAT * batch


def _passing(network: Network, image_shape: tuple[int, int, int]) -> int:
    """Bytes of an image's largest maps on their way through a network, of which some are there at a time."""
    return 5 * max(_made(network, image_shape)) * FLOAT


def _parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _made(network: Network, image_shape: tuple[int, int, int]) -> list[int]:
    """How many numbers each tensor has that a forward pass of one image makes."""
    device, training = next(network.parameters()).device, network.training
    with torch.no_grad(), Sizes() as seen:
        network.eval()(torch.zeros(1, *image_shape, device=device))
    network.train(training)
    numbers: list[int] = seen.numbers
    return numbers


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{max(1, number // 2**20):,} MiB"
