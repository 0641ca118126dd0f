"""Tasks small enough for a test: 200 digits and a teacher that trains in a second."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spaces import Recipe
from trainers import Task, TaskSpec, TeacherSpec

RESNET = TeacherSpec(depth=8, width=0.25, epochs=4, batch_size=16)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def torch_seed() -> int:
    """For what a test draws from the global generator, such as the weights of layers that it makes."""
    seed = int(os.environ.get("TORCH_SEED", "0"))
    print(f"torch.manual_seed({seed})")
    torch.manual_seed(seed)
    return seed


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where teachers are kept."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def task(home: Path) -> Task:
    """A residual teacher, images augmented: knowledge comes from forward passes."""
    return Task.load(TaskSpec(train_limit=200, teacher=RESNET), home)


@pytest.fixture(scope="session")
def plain_task(home: Path) -> Task:
    """The same without augmentation: knowledge comes from the cache."""
    return Task.load(TaskSpec(train_limit=200, augment="none", teacher=RESNET), home)


OTHER_PROCESS = """
import hashlib, json, sys, time
from pathlib import Path
import torch
from spaces import Recipe
from trainers import Knowledge, Task, TaskSpec, run_trial
from trainers.data import load_dataset
from trainers.store import weights_bytes
home = Path(sys.argv[1])
spec, recipe = TaskSpec.model_validate_json(sys.argv[2]), Recipe.from_json(sys.argv[3])
load_dataset(spec.dataset)  # which takes seconds the first time
(home / f"ready-{sys.argv[4]}").touch()
while len(list(home.glob("ready-*"))) < 2:
    time.sleep(0.01)
epochs = []
torch.set_num_threads(1)  # a teacher's sums depend on it
task = Task.load(spec, home, on_epoch=lambda epoch, loss: epochs.append(epoch))
torch.set_num_threads(2)  # a trial's do not
result = run_trial(recipe, task, Knowledge(task, home / "knowledge"))
print(json.dumps({
    "epochs": epochs,
    "key": task.key,
    "teacher": dict(task.teacher_measurements),
    "measurements": result.measurements,
    "weights": hashlib.sha256(weights_bytes(result.network)).hexdigest(),
}))
"""


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskSpec, Recipe, list[dict[str, Any]]]:
    """A task and a recipe, and what two processes made of them that began at the same moment in an empty home."""
    home = tmp_path_factory.mktemp("two_processes")
    spec = TaskSpec(train_limit=200, teacher=RESNET)
    flat = {"student.width": 0.25, "training.epochs": 2, "transfer": "kd", "pruning.fraction": 0.5}
    recipe = Recipe.from_flat({**flat, "pruning.fine_tune_epochs": 1, "seed": 3})
    arguments = [str(home), spec.model_dump_json(), recipe.to_json()]
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OTHER_PROCESS, *arguments, str(number)],
            cwd=Path(__file__).parent.parent.parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outs = [process.communicate(timeout=300)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    return spec, recipe, [json.loads(out) for out in outs]
