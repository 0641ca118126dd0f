"""Data of the user's own, from the study file to the exported file."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from running import search_here

from search.export import export
from search.removal import remove
from search.study_file import StudyFile
from spaces import BadInput
from trainers import TaskSpec

SPACE = """
space: {student.width: 0.25, transfer: [kd, attention], training.epochs: 1,
  pruning.fraction: 0.5, pruning.fine_tune_epochs: 1}
search: {trials: 2, sampler: grid, curve: false}
"""


def stripes(count: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images (N, H, W, 3) uint8, dark with one bright row or column, and which of the two, (N,)."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(90, size=(count, height, width, 3), dtype=np.uint8), np.arange(count) % 2
    for image, label, place in zip(images, labels, rng.integers(min(height, width), size=count), strict=True):
        image[:, place] += 160 * label.astype(np.uint8)
        image[place] += 160 * (1 - label).astype(np.uint8)
    return images, labels


def write_folder(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / "train" / ("row", "column")[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_oblong_images_larger_than_the_memory_go_from_the_folder_to_the_exported_file(
    tmp_path: Path, home: Path
) -> None:
    write_folder(tmp_path / "pictures", *stripes(120, 9, 14))
    study = search_here(
        "name: oblong\ntask: {dataset: imagefolder, root: pictures, image_size: [8, 12], memory: 10k, "
        "augment: crop_flip, teacher: {depth: 8, width: 0.25, epochs: 2, batch_size: 16}}" + SPACE,
        home,
    )
    entry = study.front().entries[0]
    card = json.loads(export(study, entry, tmp_path / "out", ["onnx", "pt2"])[-1].read_text())
    assert card["input"]["shape"] == ["batch", 3, 8, 12]
    assert card["images"]["preparation"].endswith("the middle 8 x 12 cut out")
    (file,) = (tmp_path / "out").glob("*.onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": torch.rand(3, 3, 8, 12).numpy()})
    assert logits.shape == (3, 2)
    with pytest.raises(Exception, match=r"Got: 12 Expected: 8|Got invalid dimensions"):
        session.run(["logits"], {"images": torch.rand(3, 3, 12, 8).numpy()})
    files = {path.parent.name for path in (study.home / "images").glob("*/images.npy")}
    assert files == {*study.files.task()["image_files"]}
    assert len(files) == 3
    other = shutil.copytree(study.folder, study.home / "studies" / "other")  # which uses the same
    remove(study.name, study.home)
    assert {path.parent.name for path in (study.home / "images").glob("*/images.npy")} == files
    shutil.copytree(other, study.folder)
    shutil.rmtree(other)
    remove(study.name, study.home)
    assert list((study.home / "images").iterdir()) == []


def test_where_images_are_held_makes_no_other_task_of_it() -> None:
    assert TaskSpec(memory=1e9).is_as(TaskSpec())
    assert not TaskSpec(memory=1e9).is_as(TaskSpec(train_limit=500))
    spec = StudyFile.from_mapping({"name": "a", "space": {}, "task": {"memory": "1.5G"}}).task
    assert spec.memory == 1.5e9
    for wrong in (0, -1, "much", "1T"):
        with pytest.raises(BadInput, match=r"^`task.memory` .*; leave it out for the default"):
            StudyFile.from_mapping({"name": "a", "space": {}, "task": {"memory": wrong}})


def test_a_function_beside_the_study_file_gives_the_data(tmp_path: Path) -> None:
    (tmp_path / "flowers.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n\n\ndef small():\n"
        "    images = torch.arange(60 * 64).reshape(60, 1, 8, 8) % 251\n"
        "    return TensorDataset(images.to(torch.uint8), torch.arange(60) % 2)\n"
    )
    (tmp_path / "study.yaml").write_text("name: flowers\ntask: {dataset: 'flowers:small'}\nspace: {}\n")
    file = StudyFile.read(tmp_path / "study.yaml")
    assert file.own_code == ["flowers:small"]
    assert StudyFile.from_json(file.to_json()) == file
    assert [len(part) for part in file.task.load_data().splits().values()] == [43, 5, 12]
