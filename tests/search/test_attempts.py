"""Trials that go wrong: what is tried again, what is not, and what is said of it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tricks
from processes import TASK, run
from running import Said, but_waiting, trial_runs

from search.study import Study

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"), pytest.mark.timeout(1200)]


TRIED = {"none": 1, "wrong": 1, "no memory": 2, "hang once": 2, "die once": 2, "SIGSEGV once": 2, "SIGTERM once": 2}
"""Tricks, and how often each is tried; what needs no worker process of its own, test_local.py has."""


def test_what_dies_hangs_or_lacks_memory_is_tried_again_and_what_is_wrong_is_not(
    tmp_path: Path, home: Path, dux: Callable[..., Said]
) -> None:
    code = shutil.copy(tricks.__file__, tmp_path)
    tries = tmp_path / "tries"
    tries.mkdir()
    (tmp_path / "study.yaml").write_text(
        f"""
name: tricky
{TASK}
space:
  transfer: tricks:Tricks
  tricks:Tricks.trick: [{", ".join(TRIED)}]
  tricks:Tricks.folder: {tries}
  training.epochs: 1
search: {{sampler: grid, concurrent: 2, retries: 1, trial_timeout: 30}}
"""
    )
    done = run("search", "study.yaml", "--home", str(home), folder=tmp_path)
    assert done.returncode == 0
    remarks = r"dux: (all \d so far are the same student|none of \d trials so far succeeded), .*\n"
    assert re.fullmatch(rf"({remarks})*", but_waiting(done.stderr))
    assert "(raylet)" not in done.stdout
    assert {file.name: len(file.read_text()) for file in tries.iterdir()} == TRIED
    study = Study.open("tricky", home)
    assert study.file.trials == len(TRIED)
    by_trick = {
        trick: [
            line for line in study.lines() if line.recipe is not None and dict(line.recipe.options)["trick"] == trick
        ]
        for trick in TRIED
    }
    assert {trick: len(lines) for trick, lines in by_trick.items()} == TRIED
    for trick, lines in by_trick.items():
        good = trick == "none" or "once" in trick
        assert [line.outcome for line in lines] == ["interrupted"] * (len(lines) - 1) + [
            "complete" if good else "failed"
        ]
    reasons = {trick: lines[0].reason for trick, lines in by_trick.items()}
    assert reasons["none"] == ""
    assert reasons["wrong"] == "KeyError: 'a mistake'"
    assert reasons["hang once"].startswith("took longer than search.trial_timeout, 30 s")
    assert reasons["die once"].startswith("the worker process was killed (SIGKILL) by another process")
    number = next(n for n, line in enumerate(Path(code).read_text().splitlines(), 1) if "raise_signal" in line)
    assert re.fullmatch(
        rf"the worker process crashed \(SIGSEGV\) in compiled code, called at [^ /]+/tricks\.py:{number}",
        reasons["SIGSEGV once"],
    )
    assert reasons["SIGTERM once"] == "the worker process was terminated (SIGTERM) by another process"
    assert reasons["no memory"] == "MemoryError: none left"
    assert by_trick["no memory"][1].reason == reasons["no memory"]
    status = dux("status", "tricky", "--home", home)[1]
    assert f"tricky: finished; {len(TRIED)}/{len(TRIED)} trials done, 2 of them failed; front of 1" in status
    assert f"  retried: {by_trick['no memory'][0].trial}: MemoryError: none left\n" in status
    runs = trial_runs(study)
    assert {runs[line.trial].info.status for lines in by_trick.values() for line in lines[:-1]} == {"FAILED"}
    assert not (study.folder / "spool.refused.jsonl").exists()


def test_a_study_whose_trials_all_fail_says_why(tmp_path: Path, home: Path, dux_here: Callable[..., Said]) -> None:
    (tmp_path / "study.yaml").write_text(
        f"name: hopeless\n{TASK}\nspace: {{training.learning_rate: 1.0e+15, training.epochs: 1, seed: [0, 1, 2]}}\n"
        "search: {trials: 3, concurrent: 1}"
    )
    code, out, err = dux_here("search", tmp_path / "study.yaml", "--home", home)
    assert (code, out) == (4, "")
    assert err.startswith("dux: all 3 trials failed: 3 x Diverged: the loss must be finite, but is ")
    assert err.count("\n") == 1
    assert dux_here("resume", "hopeless", "--home", home)[0] == 4  # it is no better the second time
    code, out, _ = dux_here("status", "hopeless", "--home", home)
    assert code == 0
    assert out.startswith("hopeless: finished; 3/3 trials done, 3 of them failed; front of 0")
    assert re.search(r"^  failed: 0, 1, 2: Diverged: the loss must be finite, but is ", out, re.MULTILINE)
    assert json.loads(dux_here("front", "hopeless", "--json", "--home", home)[1])["members"] == []
    code, _, err = dux_here("export", "hopeless", "--home", home, "--out", tmp_path / "out")
    assert (code, err) == (3, "dux: no student satisfies the bounds: none was measured yet\n")
    assert not (tmp_path / "out").exists()
