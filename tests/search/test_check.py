"""The dry run: it passes on what works, says what it did, and leaves nothing behind."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import environment
from running import TINY

from search.check import check
from search.study_file import StudyFile


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


def test_what_is_exported_is_what_was_measured() -> None:
    found = check(StudyFile.from_mapping(yaml.safe_load(TINY)))
    assert 0 <= found.largest_logit_difference <= 1e-4
    assert all(seconds >= 0 for _, seconds in found.steps)


def test_longer_training_is_estimated_to_take_longer() -> None:
    raw = yaml.safe_load(TINY)
    short = check(StudyFile.from_mapping(raw)).study_seconds
    raw["space"]["training.epochs"] = 2000
    long = check(StudyFile.from_mapping(raw)).study_seconds
    assert long > 10 * short


@pytest.mark.parametrize("train_limit", [12, 200])
def test_few_images_are_enough(train_limit: int) -> None:
    raw = yaml.safe_load(TINY)
    raw["task"]["train_limit"] = train_limit
    assert check(StudyFile.from_mapping(raw)).study_seconds > 0
