"""The dry run: it passes on what works, says what it did, and leaves nothing behind."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from running import TINY, Said

from search.check import check
from search.study_file import StudyFile


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; also the home, should anything be written to one."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("DUX_HOME", str(tmp_path / "home"))
    return folder


def test_a_dry_run_of_a_sound_study_says_so_and_leaves_nothing_behind(
    tmp_path: Path, scratch: Path, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = dux("check", "tiny.yaml")
    assert (code, err) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before
    *steps, last = out.splitlines()
    assert all(re.match(r"\s*\d+\.\d s  \w", step) for step in steps)
    said = "\n".join(steps)
    for what in ("200 images to train on, 360 to validate with", "teacher", "units cut", "loaded", "ONNX Runtime"):
        assert what in said
    assert re.match(r"tiny is sound; 6 trials will take roughly (\d+:)+\d\d at most on this machine", last)


def test_what_is_exported_is_what_was_measured(scratch: Path) -> None:
    found = check(StudyFile.from_mapping(yaml.safe_load(TINY)))
    assert 0 <= found.largest_logit_difference <= 1e-4
    assert all(seconds >= 0 for _, seconds in found.steps)
    assert list(scratch.iterdir()) == []


def test_longer_training_is_estimated_to_take_longer(scratch: Path) -> None:
    raw = yaml.safe_load(TINY)
    short = check(StudyFile.from_mapping(raw)).study_seconds
    raw["space"]["training.epochs"] = 200
    long = check(StudyFile.from_mapping(raw)).study_seconds
    assert long > 10 * short


@pytest.mark.parametrize("train_limit", [12, 200])
def test_few_images_are_enough(train_limit: int, scratch: Path) -> None:
    raw = yaml.safe_load(TINY)
    raw["task"]["train_limit"] = train_limit
    assert check(StudyFile.from_mapping(raw)).study_seconds > 0
