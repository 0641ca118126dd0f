"""The dry run: it passes on what works, says what it did, and leaves nothing behind."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from processes import environment
from running import TINY, Said

from search.check import check
from search.display import Silent
from search.errors import ExportRefused
from search.formats import DEFAULT
from search.study import Study
from search.study_file import StudyFile
from search.tiny import tiny_data, tiny_recipe
from spaces import BadInput
from trainers import load_student
from trainers.data import Dataset, Split
from trainers.families import Network


def test_a_dry_run_of_a_sound_study_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "tmp").mkdir()
    own = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(
        [sys.executable, "-m", "dux", "check", "tiny.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment(), **own},
        timeout=500,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *steps, last = done.stdout.splitlines()
    assert [re.sub(r"\d.*", "", step) for step in steps[-2:]] == ["memory: about ", "disk: at most about "]
    assert all(re.match(r"\s*\d+\.\d s  \w", step) for step in steps[:-2])
    said = "\n".join(steps)
    for what in ("200 images to train on, 360 to validate with", "teacher", "units cut", "loaded"):
        assert what in said
    assert steps[-3].endswith("run by ONNX Runtime: the same")
    assert re.match(r"tiny is sound; 6 trials will take roughly (\d+:)+\d\d at most on this machine", last)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    # libraries' caches excepted; ONNX Runtime would leave a device id, were its telemetry not turned off
    assert {name for name in left if not name.startswith((".cache/matplotlib", ".config/matplotlib"))} == {"tiny.yaml"}


def test_an_export_that_is_not_what_was_measured_is_refused() -> None:
    a_little_else = replace(DEFAULT, run=lambda *given: 1.001 * DEFAULT.run(*given))
    with pytest.raises(ExportRefused, match=r"must match the measured network within .* but differs by"):
        check(tiny(transfer=["none"]), a_little_else)


def tiny(**changed: object) -> StudyFile:
    """The tiny study with other parameters in its space."""
    raw = yaml.safe_load(TINY)
    raw["space"] |= {name.replace("__", "."): value for name, value in changed.items()}
    methods = raw["space"]["transfer"]
    raw["space"] = {
        name: value for name, value in raw["space"].items() if name.split(".")[0] not in {"kd", "factor"} - {*methods}
    }
    return StudyFile.from_mapping(raw)


def test_the_tiny_trial_takes_the_studys_own_values() -> None:
    rates, sizes = {"low": 1e-4, "high": 1e-2, "log": True}, [32, 16, 64]
    recipe = tiny_recipe(tiny(training__learning_rate=rates, training__batch_size=sizes, training__momentum=0.5))
    assert recipe.training.learning_rate == pytest.approx(1e-3)
    assert (recipe.training.batch_size, recipe.training.momentum) == (32, 0.5)
    assert (recipe.student.width, recipe.transfer, recipe.training.epochs) == (0.5, "none", 2)
    assert tiny_recipe(tiny(transfer=["factor"])).transfer == "none"
    assert dict(tiny_recipe(tiny(transfer=["kd"])).options) == {"temperature": 4.5}


@pytest.mark.parametrize("who", ["trial", "teacher"])
def test_what_diverges_is_said_in_a_line_and_the_rest_is_tried_all_the_same(
    who: str, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    raw = yaml.safe_load(TINY)
    where, name = (raw["space"], "training.") if who == "trial" else (raw["task"]["teacher"], "")
    where[f"{name}learning_rate"] = 1000.0
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    code, out, err = dux("check", tmp_path / "tiny.yaml")
    assert (code, err) == (0, "")
    *_, note, last = out.splitlines()
    assert note.startswith(f"the tiny {who} diverges with `{name or 'task.teacher.'}learning_rate` 1000; lower it, ")
    assert last.startswith("tiny is sound but for that; 6 trials")


def test_what_diverges_even_at_a_hundredth_of_its_learning_rate_is_one_line(
    tmp_path: Path, dux: Callable[..., Said]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY.replace("training.epochs: 2", "training.learning_rate: 100000.0"))
    code, out, err = dux("check", tmp_path / "tiny.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "is sound" not in out
    rule = "a trial must be one that can be trained, but a tiny one with a hundredth of `training.learning_rate` cannot"
    assert err.startswith(f"dux: {rule}: ")


@pytest.fixture
def folder(tmp_path: Path) -> StudyFile:
    """A study of 300 images of each of two classes to train on, and one of a third."""
    grey = np.random.default_rng(0).integers(256, size=(3, 300, 8, 8), dtype=np.uint8)
    for split, counts in (("train", (300, 300, 1)), ("val", (4, 4, 4)), ("test", (4, 4, 4))):
        for label, count in enumerate(counts):
            place = tmp_path / "data" / split / ("1", "2", "10")[label]
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(grey[label, i] // 2 + (split == "val")).save(place / f"{i}.png")
    (tmp_path / "data" / "Thumbs").mkdir()
    raw = yaml.safe_load(TINY)
    raw["task"] |= {"dataset": "imagefolder", "root": str(tmp_path / "data")}
    del raw["task"]["train_limit"]
    return StudyFile.from_mapping(raw)


NOTES = (
    "class folders are numbered in the order of their numbers: label 0 is 1, 1 is 2, 2 is 10",
    "1 folder left out, called neither train nor val nor test: Thumbs",
)


def test_a_class_of_one_image_to_train_on_is_no_hindrance_and_what_is_left_out_is_said(
    folder: StudyFile, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    (tmp_path / "tiny.yaml").write_text(folder.to_json())
    code, out, err = dux("check", tmp_path / "tiny.yaml")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("data: ")][:2] == [f"data: {note}" for note in NOTES]


def test_a_search_says_what_is_left_out_of_the_data(folder: StudyFile, tmp_path: Path) -> None:
    class Heard(Silent):
        lines: ClassVar[list[str]] = []

        def say(self, line: str) -> None:
            self.lines.append(line)

    (tmp_path / "home").write_text("no folder")
    with pytest.raises(BadInput, match="must be a folder that can be written"):
        Study(folder, tmp_path / "home").search(display=Heard())
    assert Heard.lines[:2] == [f"data: {note}" for note in NOTES]


def test_longer_training_is_estimated_to_take_longer() -> None:
    short, long = (check(tiny(transfer=["none"], training__epochs=epochs)).study_seconds for epochs in (2, 2000))
    assert long > 10 * short


def test_few_images_are_enough_and_are_all_that_is_trained_on() -> None:
    raw = yaml.safe_load(TINY)
    raw["task"]["train_limit"] = 12
    data, _, teacher, _, trial, *_, exported = (what for what, _ in check(StudyFile.from_mapping(raw)).steps)
    assert data == "data: 12 images to train on, 360 to validate with"
    assert teacher == "teacher: built, two epochs of 12 images"
    cut, units = map(int, re.findall(r"(\d+) of (\d+) units cut", trial)[0])
    assert 0 < cut < units
    assert exported == "exported to ONNX, run by ONNX Runtime: the same"


@pytest.mark.parametrize(("classes", "each", "kept"), [(2, 400, 512), (600, 3, 600), (600, 1, 600), (600, 2, 600)])
def test_of_many_classes_as_many_images_are_tried(classes: int, each: int, kept: int) -> None:
    labels = torch.arange(classes).repeat(each)
    split = Split(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)
    few = tiny_data(Dataset("made", tuple(map(str, range(classes))), split, split, split))
    assert len(few.train) == kept
    assert len(few.train.labels.unique()) == classes


def test_a_student_that_measures_otherwise_when_it_is_loaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_and_spoil(folder: Path) -> Network:
        network = load_student(folder)
        with torch.no_grad():
            for parameter in network.classifier.parameters():
                parameter.neg_()
        return network

    monkeypatch.setattr("search.check.load_student", load_and_spoil)
    with pytest.raises(ExportRefused, match="a student that is saved and loaded must measure the same, but does not"):
        check(tiny(transfer=["none"]))


BROKEN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(self.conv(x).relu().mean((2, 3)))


class Untraceable(Net):
    def forward(self, x):
        y = self.conv(x.detach()).relu().mean((2, 3)).detach().numpy()  # leaves torch
        return self.classifier(torch.from_numpy(y))


class Whole(Net):
    def forward(self, x):
        y = self.conv(x)
        return self.classifier(nn.functional.layer_norm(y, y.shape[1:]).mean((2, 3)))
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of pictures of one colour with noise, which a network can tell apart."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 20), ("test", 6)):
        for label, name in enumerate(("ape", "bee", "cat")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(120, size=(16, 16, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "nets.py").write_text(BROKEN)
    return tmp_path


def study_of(folder: Path, teacher: dict[str, object], space: dict[str, object] | None = None) -> Path:
    """A study file on the pictures with somebody's network as teacher."""
    raw = {
        "name": "mine",
        "task": {"dataset": "imagefolder", "root": "pictures", "augment": "none", "teacher": teacher},
        "space": {"student.start": "teacher", "student.width": 0.5, "training.epochs": 1, **(space or {})},
        "search": {"trials": 2},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(raw))
    return folder / "mine.yaml"


def problems_of(file: Path, dux: Callable[..., Said], *more: str) -> list[str]:
    code, _, err = dux("check", file, *more)
    assert code == 2
    assert all(line.startswith("dux: ") for line in err.splitlines())
    return [line.removeprefix("dux: ") for line in err.splitlines()]


def test_everything_that_is_wrong_is_told_in_one_run(pictures: Path, dux: Callable[..., Said]) -> None:
    (pictures / "pictures" / "train" / "ape" / "3.png").write_bytes(b"no picture")
    for image in (pictures / "pictures" / "val" / "bee").iterdir():
        image.unlink()
    torch.save({"conv.weight": torch.zeros(8, 3, 3, 3), "fc.weight": torch.zeros(5, 8)}, pictures / "other.pth")
    file = study_of(
        pictures,
        {"network": "nets:Whole", "weights": "other.pth"},
        {"transfer": ["none", "fsp"], "training.batch_size": 1_000_000},
    )
    found = problems_of(file, dux)
    for expected in (
        r"all images of .*pictures must be readable, but 1 of .* are not: train/ape/3.png",
        r"bee",
        r"`task.teacher.weights: .*other.pth` must belong to Whole .* it lacks classifier.bias, classifier.weight, ",
        r"whose layers can be cut, but none of its 2 can|same with units cut .*units of (network.)?conv",
        r"space: with a student that is .*`fsp`",
        r"memory must hold \d+ trials? at a time, about .* GiB, but .* are free",
    ):
        assert any(re.search(expected, line) for line in found), (expected, found)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            {"network": "nets:Net", "arguments": {"num_classes": 5}},
            r"must put out logits \(B, 3\), but puts out \(2, 5\)",
        ),
        (
            {"network": "nets:Untraceable"},
            r"`student.start: teacher` must be of a network (that can be traced|whose layers)",
        ),
        (
            {"network": "nets:Net"},
            r"`task.teacher` must be a network that knows these data, but its accuracy of .* is near",
        ),
    ],
)
def test_a_teacher_that_cannot_be_is_named(
    teacher: dict[str, object], message: str, pictures: Path, dux: Callable[..., Said]
) -> None:
    (problem,) = problems_of(study_of(pictures, teacher), dux)
    assert re.search(message, problem), problem


def test_a_disk_without_room_is_named(pictures: Path, dux: Callable[..., Said]) -> None:
    file = study_of(pictures, {"network": "nets:Net"})
    file.write_text(
        file.read_text().replace("trials: 2", "trials: 1000000").replace("nets:Net", "torchvision:resnet18")
    )
    found = problems_of(file, dux)
    assert any(
        re.search(r"the disk of .* must have room for the study, about .* GiB, but .* are free", line) for line in found
    )


def test_a_cluster_that_does_not_answer_is_a_problem_like_others(tmp_path: Path, dux: Callable[..., Said]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    code, out, err = dux("check", tmp_path / "tiny.yaml", "--home", tmp_path / "home", "--address", "127.0.0.1:9")
    assert (code, err.count("\n")) == (2, 1)
    assert "`--address` must be that of a running Ray cluster, but 127.0.0.1:9 does not answer" in err
    assert "teacher and students: built" in out
