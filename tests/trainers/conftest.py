"""Tasks small enough for a test: 200 digits and a teacher that trains in a second."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainers import Task, TaskSpec, TeacherSpec

RESNET = TeacherSpec(depth=8, width=0.25, epochs=4, batch_size=16)
MLP = TeacherSpec(family="mlp", depth=3, width=0.125, epochs=2, batch_size=16)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where teachers are kept."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def task(home: Path) -> Task:
    """A residual teacher of 84 % on digits, images augmented: knowledge comes from forward passes."""
    return Task.load(TaskSpec(train_limit=200, teacher=RESNET), home)


@pytest.fixture(scope="session")
def plain_task(home: Path) -> Task:
    """The same without augmentation: knowledge comes from the cache."""
    return Task.load(TaskSpec(train_limit=200, augment="none", teacher=RESNET), home)


@pytest.fixture(scope="session")
def mlp_task(home: Path) -> Task:
    """A fully connected teacher, images augmented."""
    return Task.load(TaskSpec(train_limit=200, teacher=MLP), home)
