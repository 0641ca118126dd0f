"""Class weights: scikit-learn's, in the loss of teachers and students, and in the key only of tasks that have them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from spaces import Recipe
from trainers import Knowledge, Task, TaskSpec, TeacherSpec, run_trial
from trainers.class_weights import balanced, class_weights, label_loss
from trainers.data.dataset import Dataset, Split
from trainers.files import digest
from trainers.store import weights_bytes
from trainers.task import FORMAT, key_of

TEACHER = TeacherSpec(family="mlp", depth=2, width=0.1, epochs=8, batch_size=16)
RARE = 6


def spec(**fields: object) -> TaskSpec:
    return TaskSpec.model_validate({"augment": "none", "teacher": TEACHER, **fields})


def unbalanced() -> Dataset:
    """Digits, of which four in ten are seldom trained on."""
    data = spec(train_limit=500).load_data()
    labels = data.train.labels
    rank = torch.stack([(labels[: place + 1] == label).sum() for place, label in enumerate(labels)])
    kept = (labels > 3) | (rank <= RARE)
    return replace(data, train=Split(data.train.images[kept], labels[kept]))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    home, data = tmp_path_factory.mktemp("home"), unbalanced()
    return {each: Task.load(spec(class_weights=each), home, data=data) for each in ("none", "balanced")}


def test_they_are_scikit_learns() -> None:
    labels = torch.tensor([2, 0, 0, 1, 0, 2, 0, 0])
    actual = balanced(labels, 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    torch.testing.assert_close(actual, torch.from_numpy(expected).float())
    assert actual[labels].mean() == pytest.approx(1.0)  # what an image counts on average


def test_a_class_without_images_changes_nothing_for_the_others() -> None:
    labels = torch.tensor([3, 0, 0, 1, 0])
    expected = balanced(torch.tensor([2, 0, 0, 1, 0]), 3)
    assert torch.equal(balanced(labels, 5), torch.tensor([*expected[:2], 0.0, expected[2], 0.0]))


def test_batches_have_the_loss_of_the_whole_on_average() -> None:
    """Whatever is in them: it is not divided by the weights in a batch, which would make up for rare classes twice."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(24, 3, generator=generator), torch.tensor([0] * 18 + [1] * 4 + [2] * 2)
    weights = balanced(labels, 3)

    def of(index: Tensor) -> float:
        return float(label_loss(logits[index], labels[index], weights))

    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    of_classes = torch.stack([each[labels == label].mean() for label in range(3)])
    assert of(torch.arange(24)) == pytest.approx(float(of_classes.mean()))
    assert sum(map(of, torch.arange(24).split(6))) / 4 == pytest.approx(of(torch.arange(24)))


def test_they_are_in_the_key_only_where_there_are_some(tasks: dict[str, Task]) -> None:
    assert tasks["none"].key != tasks["balanced"].key
    content, shapes = tasks["none"].data.content()
    identity = TEACHER.identity()
    before = digest(FORMAT, content, shapes, list(tasks["none"].data.class_names), "none", identity)
    assert tasks["none"].key == key_of(spec(), tasks["none"].data, identity) == before
    assert class_weights(spec(), tasks["none"].data) is None


@pytest.mark.parametrize("of", ["teacher", "student"])
def test_rare_classes_are_recognised_more_often(of: str, tasks: dict[str, Task]) -> None:
    recipe = Recipe.from_flat({"student.family": "mlp", "student.depth": 2, "student.width": 0.1, "training.epochs": 8})
    measured, weights = {}, {}
    for name, task in tasks.items():
        if of == "teacher":
            measured[name], weights[name] = task.teacher_measurements, weights_bytes(task.teacher)
        else:
            result = run_trial(recipe, task, Knowledge(task))
            measured[name], weights[name] = result.measurements, weights_bytes(result.network)
    assert weights["none"] != weights["balanced"]
    assert measured["balanced"]["balanced_accuracy"] > measured["none"]["balanced_accuracy"] + 0.02


def test_a_worker_has_them_too(tasks: dict[str, Task], tmp_path: Path) -> None:
    task = tasks["balanced"]
    worker = Task.from_arrays(
        task.spec, task.teacher_measurements, task.curve, task.key, task.data.class_names, task.arrays()
    )
    ours, theirs = class_weights(task.spec, task.data), class_weights(worker.spec, worker.data)
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)
