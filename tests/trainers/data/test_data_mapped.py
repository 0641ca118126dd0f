"""Images that are larger than `task.memory`: in a file, and the same for whoever uses them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spaces import BadInput, Recipe
from trainers import Knowledge, Task, TaskSpec, TeacherSpec, run_trial
from trainers.data import Dataset, Room, load_dataset
from trainers.data.mapped import ImageFile
from trainers.store import weights_bytes
from trainers.task import key_of

TEACHER = TeacherSpec(depth=8, width=0.25, epochs=1, batch_size=16)
BYTES = 120 * 3 * 10 * 12


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """120 of 10 x 12 pixels, some transparent, two classes; splits are drawn."""
    rng = np.random.default_rng(0)
    for number in range(120):
        path = tmp_path / "pictures" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(256, size=(10, 12, 3), dtype=np.uint8) // (1 + number % 2))
        if number % 10 == 0:
            image.putalpha(99)
        image.save(path)
    return tmp_path / "pictures"


def loaded(root: Path, memory: float, folder: Path, **options: Any) -> Dataset:
    return load_dataset("imagefolder", root=root, room=Room(memory, folder), **options)


def assert_same(one: Dataset, other: Dataset) -> None:
    for split, part in one.splits().items():
        assert torch.equal(part.images, other.splits()[split].images)
        assert torch.equal(part.labels, other.splits()[split].labels)
    assert (one.class_names, one.notes, one.preparation) == (other.class_names, other.notes, other.preparation)
    assert one.files == other.files


def test_images_are_held_in_memory_up_to_the_limit_and_mapped_beyond(pictures: Path, tmp_path: Path) -> None:
    held, too_many = loaded(pictures, BYTES, tmp_path / "home"), loaded(pictures, BYTES - 1, tmp_path / "home")
    assert [part.file for part in held.splits().values()] == [None] * 3
    for part in too_many.splits().values():
        assert part.file is not None
        assert part.file.is_relative_to(tmp_path / "home")
        assert part.file.stat().st_size == part.images.numel() + 128
    assert_same(held, too_many)
    for one, other in zip(held.mean_std(), too_many.mean_std(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{"train_limit": 20}, {"image_size": (8, 6)}])
def test_it_is_the_same_data_set_with_a_limit_and_another_size(
    options: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    assert_same(loaded(pictures, np.inf, tmp_path, **options), loaded(pictures, 1, tmp_path, **options))


@pytest.mark.parametrize("policy", ["none", "resized_crop_flip_color"])
def test_a_trial_on_mapped_images_is_the_trial_on_those_in_memory(policy: str, pictures: Path, tmp_path: Path) -> None:
    """To the bit: key, teacher, what is learned of it, weights and measurements; and so from a worker's arrays."""
    recipe = Recipe.from_flat(
        {
            "student.width": 0.25,
            "training.epochs": 2,
            "transfer": "kd",
            "pruning.fraction": 0.5,
            "pruning.fine_tune_epochs": 1,
            "training.batch_size": 16,
        }
    )
    outcomes = []
    for memory in (None, 10_000):
        home = tmp_path / f"home {memory}"
        spec = TaskSpec(dataset="imagefolder", root=str(pictures), memory=memory, augment=policy, teacher=TEACHER)
        task = Task.load(spec, home)
        assert (task.data.train.file is not None) == (home / "images").exists() == (memory is not None)
        arrays = task.arrays()
        worker = Task.from_arrays(spec, task.teacher_measurements, task.curve, task.key, task.data.class_names, arrays)
        assert len(worker.data.test) == 0
        assert worker.data.test.images.shape[1:] == task.data.image_shape
        for of in (task, worker):
            result = run_trial(recipe, of, Knowledge(of, home / "knowledge"))
            outcomes.append(
                (task.key, dict(task.teacher_measurements), result.measurements, weights_bytes(result.network))
            )
    assert sum(array.nbytes for name, array in arrays.items() if "images" in name or "file" in name) < 1000
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_images_are_decoded_once(pictures: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    room = Room(1, tmp_path / "home", lambda done, total: told.append((done, total)))
    first = load_dataset("imagefolder", root=pictures, room=room)
    assert told == [(number, 120) for number in range(1, 121)]
    told.clear()
    moved = shutil.copytree(pictures, tmp_path / "moved")
    assert_same(load_dataset("imagefolder", root=moved, room=room), first)
    assert told == []
    shutil.copy(moved / "train" / "a" / "0.png", moved / "train" / "a" / "2.png")
    changed = load_dataset("imagefolder", root=moved, room=room)
    assert len(told) == 120
    spec = TaskSpec(dataset="imagefolder", root=str(moved))
    assert key_of(spec, changed, {}) != key_of(spec, first, {})


@pytest.mark.parametrize("damage", ["a byte", "cut short", "no record", "another record"])
def test_a_file_that_was_changed_is_made_anew(damage: str, pictures: Path, tmp_path: Path) -> None:
    first = loaded(pictures, 1, tmp_path / "home")
    file = first.validation.file
    assert file is not None
    before = first.validation.images.clone()
    content, record = file.read_bytes(), file.with_name("record.json")
    if damage == "a byte":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut short":
        file.write_bytes(content[:-1])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"remarks": {}}))
    again = loaded(pictures, 1, tmp_path / "home").validation
    assert torch.equal(again.images, before)
    assert file.read_bytes() == content


def test_where_a_picture_cannot_be_read_no_file_is_left(pictures: Path, tmp_path: Path) -> None:
    (pictures / "train" / "b" / "77.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"but 1 of 120 are not: train/b/77.png \(no image, or its head is broken\)"):
        loaded(pictures, 1, tmp_path / "home")
    assert [path for path in (tmp_path / "home").rglob("*") if path.suffix == ".npy" and "77" in path.name] == []
    left = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert all(path.name in ("images.npy", "record.json") for path in left)  # of splits that were sound


def test_images_of_another_size_are_refused_each_time(pictures: Path, tmp_path: Path) -> None:
    """Also where those of the first split are in a file by then."""
    for number in range(20):
        path = pictures / "val" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 20), (number, 0, 0)).save(path)
    said = set()
    for _ in range(2):
        with pytest.raises(
            BadInput, match=r"must be of one size .* but are of 2: 12x10 \(\d+ images, train/a/"
        ) as raised:
            loaded(pictures, 1, tmp_path / "home")
        said.add(str(raised.value))
    assert len(said) == 1


def test_a_disk_without_room_is_one_line_beside_what_else_is_wrong(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=40_000))
    with pytest.raises(BadInput) as raised:
        loaded(pictures, 1, tmp_path / "home")
    assert str(raised.value) == (
        f"images that take more memory than `task.memory` must have room on the disk of {tmp_path / 'home'}, but of "
        "0.0 MB (3 x 10 x 12 each, `task.memory` is 0.0 MB) 0.0 MB are missing there and 0.0 MB are free; free some, "
        "name another home by --home or DUX_HOME, lower `task.image_size` or `task.train_limit`, or raise "
        "`task.memory`"
    )
    assert not (tmp_path / "home").exists()
    (pictures / "train" / "b" / "77.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"^2 problems: \(1\) images that .*; \(2\) all images of .*77.png \(empty\)"):
        loaded(pictures, 1, tmp_path / "home")


def test_what_is_there_already_needs_no_room(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loaded(pictures, 1, tmp_path / "home")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert_same(loaded(pictures, 1, tmp_path / "home"), first)


def test_a_worker_that_cannot_see_the_file_says_what_to_do(pictures: Path, tmp_path: Path) -> None:
    arrays = loaded(pictures, 1, tmp_path / "home").arrays()
    shutil.rmtree(tmp_path / "home")
    message = (
        r"^images that are larger than `task.memory` must be in .*images.npy on every machine that carries out trials, "
        r"but are not on this one; name a home that all machines share by --home or DUX_HOME, or raise `task.memory`$"
    )
    with pytest.raises(BadInput, match=message):
        Dataset.from_arrays("imagefolder", ("a", "b"), arrays)


def test_what_an_npz_holds_and_what_a_function_returns_is_mapped_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(256, size=(60, 5, 6), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(60) % 3)
    (tmp_path / "mapped_by_dux.py").write_text(
        "import numpy, torch\nfrom torch.utils.data import TensorDataset\n\n\ndef data(root):\n"
        "    file = numpy.load(root)\n"
        "    return TensorDataset(torch.from_numpy(file['images'])[:, None], torch.from_numpy(file['labels']))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    told: list[int] = []
    for name in ("npz", "mapped_by_dux:data"):
        root = tmp_path / "data.npz"
        held = load_dataset(name, root=root, room=Room())
        for _ in range(2):
            told.clear()
            room = Room(1, tmp_path / "home", lambda done, total: told.append(done))
            dataset = load_dataset(name, root=root, room=room)
            assert_same(dataset, held)
            assert dataset.train.file is not None
        assert told == []


def test_two_that_want_the_same_file_make_it_once(tmp_path: Path) -> None:
    file = ImageFile(tmp_path / "images" / "ab", (2, 1, 1, 3))
    with file.made_by_one() as remarks:
        assert remarks is None
        with file.written() as put:
            put(1, np.array([[[4, 5, 6]]], np.uint8))
            put(0, np.array([[[1, 2, 3]]], np.uint8))
        file.finish({"brightest": 7})
    with file.made_by_one() as remarks:
        assert remarks == {"brightest": 7}
    assert np.load(file.path).tolist() == [[[[1, 2, 3]]], [[[4, 5, 6]]]]
