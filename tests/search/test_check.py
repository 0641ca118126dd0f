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

from search.check import _recipe, check
from search.display import Silent
from search.errors import ExportRefused
from search.formats import DEFAULT
from search.study import Study
from search.study_file import StudyFile
from spaces import BadInput
from trainers import load_student
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
    assert all(re.match(r"\s*\d+\.\d s  \w", step) for step in steps)
    said = "\n".join(steps)
    for what in ("200 images to train on, 360 to validate with", "teacher", "units cut", "loaded", "ONNX Runtime"):
        assert what in said
    assert re.match(r"tiny is sound; 6 trials will take roughly (\d+:)+\d\d at most on this machine", last)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    # libraries' caches excepted; ONNX Runtime would leave a device id, were its telemetry not turned off
    assert {name for name in left if not name.startswith((".cache/matplotlib", ".config/matplotlib"))} == {"tiny.yaml"}


def test_an_export_that_is_not_what_was_measured_is_refused() -> None:
    file = StudyFile.from_mapping(yaml.safe_load(TINY))
    steps = [what for what, _ in check(file).steps]
    assert steps[-1].endswith("run by ONNX Runtime: the same")
    a_little_else = replace(DEFAULT, run=lambda *given: 1.001 * DEFAULT.run(*given))
    with pytest.raises(ExportRefused, match=r"must match the measured network within .* but differs by"):
        check(file, a_little_else)


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
    recipe = _recipe(tiny(training__learning_rate=rates, training__batch_size=sizes, training__momentum=0.5))
    assert recipe.training.learning_rate == pytest.approx(1e-3)
    assert (recipe.training.batch_size, recipe.training.momentum) == (32, 0.5)
    assert (recipe.student.width, recipe.transfer, recipe.training.epochs) == (0.5, "none", 2)
    assert _recipe(tiny(transfer=["factor"])).transfer == "none"
    assert dict(_recipe(tiny(transfer=["kd"])).options) == {"temperature": 4.5}


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
    assert (code, out, err.count("\n")) == (2, "", 1)
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
    raw = yaml.safe_load(TINY)
    short = check(StudyFile.from_mapping(raw)).study_seconds
    raw["space"]["training.epochs"] = 2000
    long = check(StudyFile.from_mapping(raw)).study_seconds
    assert long > 10 * short


def test_few_images_are_enough_and_are_all_that_is_trained_on() -> None:
    raw = yaml.safe_load(TINY)
    raw["task"]["train_limit"] = 12
    data, teacher, trial, *_, exported = (what for what, _ in check(StudyFile.from_mapping(raw)).steps)
    assert data == "data: 12 images to train on, 360 to validate with"
    assert teacher == "teacher: built, two epochs of 12 images"
    cut, units = map(int, re.findall(r"(\d+) of (\d+) units cut", trial)[0])
    assert 0 < cut < units
    assert exported == "exported to ONNX, run by ONNX Runtime: the same"


def test_a_student_that_measures_otherwise_when_it_is_loaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_and_spoil(folder: Path) -> Network:
        network = load_student(folder)
        with torch.no_grad():
            for parameter in network.classifier.parameters():
                parameter.neg_()
        return network

    monkeypatch.setattr("search.check.load_student", load_and_spoil)
    with pytest.raises(ExportRefused, match="a student that is saved and loaded must measure the same, but does not"):
        check(StudyFile.from_mapping(yaml.safe_load(TINY)))
