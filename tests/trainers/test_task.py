"""The task: a teacher trained once and kept, under a name that says what made it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout

from spaces import BadInput, Recipe
from trainers import Task, TaskSpec, TeacherSpec
from trainers.families import DeepEnsemble
from trainers.files import write_hashed
from trainers.measure import measure
from trainers.store import weights_bytes
from trainers.task import key_of

QUICK = {"family": "mlp", "depth": 2, "width": 0.03, "epochs": 1}


def spec(teacher: dict[str, Any] | None = None, **fields: Any) -> TaskSpec:
    return TaskSpec(teacher=TeacherSpec(**{**QUICK, **(teacher or {})}), **{"train_limit": 100, **fields})


def test_the_teacher_is_trained_once_kept_and_loaded_as_it_was(tmp_path: Path) -> None:
    epochs: list[int] = []
    tasks = [
        Task.load(spec({"epochs": 2}), tmp_path, on_epoch=lambda epoch, loss: epochs.append(epoch)) for _ in range(2)
    ]
    assert epochs == [1, 2]
    one, other = tasks
    assert one.key == other.key
    assert weights_bytes(one.teacher) == weights_bytes(other.teacher)
    assert (
        one.teacher_measurements
        == other.teacher_measurements
        == measure(one.teacher, one.data.validation, ensemble_nlls=one.curve)
    )
    assert not one.teacher.training
    assert not any(p.requires_grad for p in one.teacher.parameters())


def test_a_teacher_learns(task: Task) -> None:
    assert task.teacher_measurements["accuracy"] > 0.3  # 0.47 when this was written; guessing is 0.1


def test_the_same_specification_makes_the_same_teacher_in_another_home(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = Task.load(spec(), tmp_path / "one")
    torch.manual_seed(2)
    other = Task.load(spec(), tmp_path / "other")
    assert (one.key, one.teacher_measurements) == (other.key, other.teacher_measurements)
    assert weights_bytes(one.teacher) == weights_bytes(other.teacher)


def test_whatever_makes_a_teacher_is_in_its_key(tmp_path: Path) -> None:
    changes: list[TaskSpec] = [
        spec(),
        spec({"seed": 1}),
        spec({"epochs": 2}),
        spec({"width": 0.04}),
        spec({"depth": 3}),
        spec({"members": 2}),
        spec({"learning_rate": 0.05}),
        spec({"weight_decay": 0.0}),
        spec({"batch_size": 32}),
        spec(augment="none"),
        spec(train_limit=101),
    ]
    keys = [Task.load(change, tmp_path).key for change in changes]
    assert len(set(keys)) == len(changes)
    assert {path.name for path in (tmp_path / "teachers").iterdir() if not path.name.startswith(".")} == set(keys)
    # digits are augmented by `crop` unless told otherwise: saying so is no change
    assert Task.load(spec(augment="crop"), tmp_path).key == keys[0]


def test_a_list_of_steps_is_the_policy_that_it_names_in_any_order(tmp_path: Path) -> None:
    keys = {}
    for augment in ("crop_flip", ["flip", "crop"], ["color", "flip", "resized_crop"], "resized_crop_flip_color"):
        given = TaskSpec.model_validate({**spec().model_dump(), "augment": augment})
        assert TaskSpec.model_validate_json(given.model_dump_json()) == given
        keys[str(augment)] = given.policy, key_of(given, given.load_data(), {})
    assert [policy for policy, _ in keys.values()] == ["crop_flip"] * 2 + ["resized_crop_flip_color"] * 2
    assert len(set(keys.values())) == 2


def test_a_teacher_whose_training_was_interrupted_is_trained_anew(tmp_path: Path) -> None:
    def interrupt(epoch: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Task.load(spec(), tmp_path, on_epoch=interrupt)
    assert list(tmp_path.rglob("teacher.*")) == []
    task = Task.load(spec(), tmp_path)
    # weights without a record are what a kill between the two leaves: they are whole
    (tmp_path / "teachers" / task.key / "teacher.json").unlink()
    again = Task.load(spec(), tmp_path, on_epoch=interrupt)
    assert again.teacher_measurements == task.teacher_measurements


def test_a_teacher_that_lacks_a_measurement_is_measured_again_and_not_trained(tmp_path: Path) -> None:
    def interrupt(epoch: int, loss: float) -> None:
        raise KeyboardInterrupt

    task = Task.load(spec(), tmp_path)
    file = tmp_path / "teachers" / task.key / "teacher.json"
    whole = file.read_bytes()
    record = json.loads(whole)
    for name in ("entropy", "balanced_accuracy", "macro_f1"):
        del record["measurements"][name]
    record["measurements"]["brier"] = 0.5  # what was recorded stays: another machine may round it differently
    write_hashed(file, json.dumps(record, indent=1))
    expected = {**task.teacher_measurements, "brier": 0.5}
    for _ in range(2):
        again = Task.load(spec(), tmp_path, on_epoch=interrupt)
        assert again.teacher_measurements == json.loads(file.read_bytes())["measurements"] == expected
    file.unlink()  # as a kill leaves it that comes while the record is written anew
    assert Task.load(spec(), tmp_path, on_epoch=interrupt).teacher_measurements == task.teacher_measurements
    assert file.read_bytes() == whole


def test_a_teacher_is_measured_again_by_one_process_while_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "teachers" / Task.load(spec(), tmp_path).key
    record = json.loads((folder / "teacher.json").read_bytes())
    del record["measurements"]["entropy"]
    write_hashed(folder / "teacher.json", json.dumps(record, indent=1))
    locked = []

    def measured(*args: Any, **kwargs: Any) -> dict[str, float]:
        with pytest.raises(Timeout):
            FileLock(folder.parent / f".{folder.name}.lock", timeout=0).acquire()
        locked.append(True)
        return measure(*args, **kwargs)

    monkeypatch.setattr("trainers.teacher.measure", measured)
    assert "entropy" in Task.load(spec(), tmp_path).teacher_measurements
    assert locked == [True]


def test_an_ensemble_is_of_networks_that_differ_the_first_of_which_is_the_single_teacher(
    tmp_path: Path,
) -> None:
    alone, ensemble = Task.load(spec(), tmp_path), Task.load(spec({"members": 3}), tmp_path)
    assert isinstance(ensemble.teacher, DeepEnsemble)
    networks = list(ensemble.teacher.networks)
    assert len({weights_bytes(network) for network in networks}) == len(networks) == 3
    assert weights_bytes(networks[0]) == weights_bytes(alone.teacher)
    actual = ensemble.teacher_measurements
    assert actual == measure(ensemble.teacher, ensemble.data.validation, ensemble_nlls=ensemble.curve)
    assert actual["parameters"] == 3 * alone.teacher_measurements["parameters"]
    assert actual["diversity"] > 0.0
    assert actual["deep_ensemble_equivalent"] == len(ensemble.curve) == 3


def test_a_kill_costs_the_member_that_was_being_trained_and_no_other(tmp_path: Path) -> None:
    def interrupt(epoch: int, loss: float) -> None:
        if epoch == 4:  # of two members' epochs, two each
            raise KeyboardInterrupt

    specification = spec({"members": 2, "epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        Task.load(specification, tmp_path, on_epoch=interrupt)
    epochs: list[int] = []
    task = Task.load(specification, tmp_path, on_epoch=lambda epoch, loss: epochs.append(epoch))
    assert epochs == [3, 4]
    undisturbed = Task.load(specification, tmp_path / "undisturbed")
    assert weights_bytes(task.teacher) == weights_bytes(undisturbed.teacher)


def swapped(folder: Path, other: Path) -> None:
    for name in ("teacher-0.safetensors", "teacher-0.safetensors.sha256"):  # its hash, too
        (folder / name).write_bytes((other / name).read_bytes())


def praised(folder: Path, other: Path) -> None:
    record = json.loads((folder / "teacher.json").read_text())
    record["measurements"]["accuracy"] = 0.999
    (folder / "teacher.json").write_text(json.dumps(record, indent=1))


def without_weights(folder: Path, other: Path) -> None:
    (folder / "teacher-0.safetensors").unlink()


def without_hash(folder: Path, other: Path) -> None:
    (folder / "teacher.json.sha256").unlink()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (swapped, r"teacher-0\.safetensors was changed"),
        (praised, r"teacher\.json was changed"),
        (without_weights, r"teacher-0\.safetensors is gone"),
        (without_hash, r"teacher\.json has no hash beside it"),
    ],
)
def test_a_teacher_that_was_changed_is_refused_and_not_trained_anew(
    change: Callable[[Path, Path], None], what: str, tmp_path: Path
) -> None:
    task, other = Task.load(spec(), tmp_path), Task.load(spec({"epochs": 2}), tmp_path)
    folder = tmp_path / "teachers" / task.key
    change(folder, tmp_path / "teachers" / other.key)
    epochs: list[int] = []
    with pytest.raises(BadInput, match=f"must be those that were trained, but in .*{task.key} {what}.*; put them back"):
        Task.load(spec(), tmp_path, on_epoch=lambda epoch, loss: epochs.append(epoch))
    assert epochs == []
    shutil.rmtree(folder)  # the way out that the line names
    assert Task.load(spec(), tmp_path).teacher_measurements == task.teacher_measurements


def test_a_member_that_was_changed_before_its_teacher_was_whole_is_trained_again(tmp_path: Path) -> None:
    task = Task.load(spec({"members": 2}), tmp_path)
    folder = tmp_path / "teachers" / task.key
    (folder / "teacher.json").unlink()
    (folder / "teacher-1.safetensors").write_bytes((folder / "teacher-0.safetensors").read_bytes())
    epochs: list[int] = []
    again = Task.load(spec({"members": 2}), tmp_path, on_epoch=lambda epoch, loss: epochs.append(epoch))
    assert epochs == [2]
    assert weights_bytes(again.teacher) == weights_bytes(task.teacher)


def test_an_ensemble_travels_as_arrays(tmp_path: Path) -> None:
    task = Task.load(spec({"members": 2}), tmp_path)
    there = Task.from_arrays(
        task.spec, task.teacher_measurements, task.curve, task.key, task.data.class_names, task.arrays()
    )
    assert weights_bytes(there.teacher) == weights_bytes(task.teacher)
    assert not any(p.requires_grad for p in there.teacher.parameters())
    assert there.teacher.members == 2


def test_two_processes_at_once_train_one_teacher(
    two_processes: tuple[TaskSpec, Recipe, list[dict[str, Any]]], task: Task
) -> None:
    specification, _, actual = two_processes
    assert sorted(len(one["epochs"]) for one in actual) == [0, specification.teacher.epochs]
    # and it is the one that this process made by itself
    assert specification == task.spec
    for one in actual:
        assert (one["key"], one["teacher"]) == (task.key, task.teacher_measurements)


def test_a_task_travels_as_arrays_that_may_be_read_only_without_its_test_split(task: Task) -> None:
    arrays = task.arrays()
    for array in arrays.values():
        assert isinstance(array, np.ndarray)
    shared = {name: array.copy() for name, array in arrays.items()}
    for array in shared.values():
        array.setflags(write=False)
    again = Task.from_arrays(task.spec, task.teacher_measurements, task.curve, task.key, task.data.class_names, shared)
    assert (again.spec, again.key, again.teacher_measurements) == (task.spec, task.key, task.teacher_measurements)
    assert weights_bytes(again.teacher) == weights_bytes(task.teacher)
    assert not again.teacher.training
    assert not any(p.requires_grad for p in again.teacher.parameters())
    for ours, theirs in ((again.data.train, task.data.train), (again.data.validation, task.data.validation)):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
    assert len(again.data.test) == 0
    assert len(task.data.test) > 0
    # images stay where they are; the teacher's weights do not, since somebody might write into them
    assert again.data.train.images.data_ptr() == shared["data/train.images"].ctypes.data
    pointers = {tensor.data_ptr() for tensor in again.teacher.state_dict().values()}
    assert pointers.isdisjoint({array.ctypes.data for array in shared.values()})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            spec(augment="flop"),
            r"`task\.augment` must be a known policy, but got 'flop'; did you mean `flip`\? known: color, crop, ",
        ),
        (spec({"family": "resnet", "depth": 9}), r"depth of a resnet must be 6n\+2"),
        (spec({"family": "vgh"}), "family of a network must be a known one, but got 'vgh'"),
        (spec(dataset="didgits"), r"task\.dataset must be one of .*did you mean digits"),
    ],
)
def test_a_task_that_cannot_be_is_refused_before_anything_is_read(
    wrong: TaskSpec, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        wrong.check()
    with pytest.raises(BadInput, match=message):
        Task.load(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []
