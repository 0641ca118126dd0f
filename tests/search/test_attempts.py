"""Trials that go wrong: what is tried again, what is not, and what is said of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import TASK, run
from running import HERE, Said, but_waiting, trial_runs

from search.study import Study

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"), pytest.mark.timeout(1200)]


TRICKS = """
import os, signal, time
from pathlib import Path
from pydantic import Field
from trainers.loop import Diverged
from trainers.transfer import Method, Needs, Options, Paper

class TrickOptions(Options):
    trick: str = "none"
    folder: str = ""

class Tricks(Method):
    name = "tricks"
    abbreviation = "T"
    paper = Paper("", "", "", "")
    Options = TrickOptions

    @classmethod
    def needs(cls, options):
        return Needs()

    def __init__(self, options, shapes):
        super().__init__(options, shapes)
        tried = Path(options.folder) / options.trick
        with tried.open("a") as file:
            file.write("x")
        tries, trick = len(tried.read_text()), options.trick
        if trick == "sleep" or (trick == "sleep once" and tries == 1):
            time.sleep(600)
        if trick == "die" or (trick == "die once" and tries == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if trick.startswith("SIG") and tries == 1:
            signal.raise_signal(getattr(signal, trick.split()[0]))  # in this thread, as a crash's are
            time.sleep(600)
        if trick == "no memory" or (trick == "no memory once" and tries == 1):
            raise MemoryError("none left")
        if trick == "wrong":
            raise KeyError("a mistake")
        if trick == "nan":
            raise Diverged("nan")

    def forward(self, student, teacher, labels):
        return student.logits.square().mean()
"""
TRIED = {
    "none": 1,
    "wrong": 1,
    "nan": 1,
    "sleep once": 2,
    "die once": 2,
    "SIGSEGV once": 2,
    "SIGABRT once": 2,
    "SIGTERM once": 2,
    "no memory once": 2,
    "sleep": 2,
    "die": 2,
    "no memory": 2,
}


def test_what_dies_hangs_or_lacks_memory_is_tried_again_and_what_is_wrong_is_not(
    tmp_path: Path, dux: Callable[..., Said]
) -> None:
    (tmp_path / "tricks.py").write_text(TRICKS)
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
search: {{sampler: grid, concurrent: 4, retries: 1, trial_timeout: 20}}
"""
    )
    home = tmp_path / "home"
    done = run("search", "study.yaml", "--home", str(home), folder=tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(r"dux: all \d so far are the same student, .* makes no difference\n", but_waiting(done.stderr))
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
    assert reasons["nan"] == "Diverged: nan"
    assert reasons["sleep"].startswith("took longer than search.trial_timeout, 20 s")
    assert reasons["die"].startswith("the worker process was killed (SIGKILL) by another process")
    for name in ("SIGSEGV", "SIGABRT"):
        line = next(place for place, text in enumerate(TRICKS.splitlines(), 1) if "getattr(signal" in text)
        where = rf"called at [^ /]+/tricks\.py:{line}"
        assert re.fullmatch(
            rf"the worker process crashed \({name}\) in compiled code, {where}", reasons[f"{name} once"]
        )
    assert reasons["SIGTERM once"] == "the worker process was terminated (SIGTERM) by another process"
    assert reasons["no memory"] == "MemoryError: none left"
    for trick in ("sleep", "die", "no memory"):
        assert by_trick[trick][1].reason == reasons[trick] == reasons[f"{trick} once"]
    status = dux("status", "tricky", "--home", home)[1]
    assert f"tricky: finished; {len(TRIED)}/{len(TRIED)} trials done, 5 of them failed; front of 1" in status
    pair = sorted(by_trick[trick][0].trial for trick in ("no memory", "no memory once"))
    assert f"  retried: {pair[0]}, {pair[1]}: MemoryError: none left\n" in status
    runs = trial_runs(study)
    assert {runs[line.trial].info.status for lines in by_trick.values() for line in lines[:-1]} == {"FAILED"}
    assert not (study.folder / "spool.refused.jsonl").exists()


def test_a_study_whose_trials_all_fail_says_why(tmp_path: Path, dux: Callable[..., Said]) -> None:
    (tmp_path / "study.yaml").write_text(
        f"name: hopeless\n{TASK}\nspace: {{training.learning_rate: 1.0e+15, training.epochs: 1, seed: [0, 1, 2]}}\n"
        "search: {trials: 3, concurrent: 1}"
    )
    home = tmp_path / "home"
    done = run("search", "study.yaml", "--home", str(home), folder=tmp_path, program=HERE)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("dux: all 3 trials failed: 3 x Diverged: the loss must be finite, but is ")
    assert done.stderr.count("\n") == 1
    assert dux("resume", "hopeless", "--home", home)[0] == 4  # it is no better the second time
    code, out, _ = dux("status", "hopeless", "--home", home)
    assert code == 0
    assert out.startswith("hopeless: finished; 3/3 trials done, 3 of them failed; front of 0")
    assert re.search(r"^  failed: 0, 1, 2: Diverged: the loss must be finite, but is ", out, re.MULTILINE)
    assert json.loads(dux("front", "hopeless", "--json", "--home", home)[1])["members"] == []
    code, _, err = dux("export", "hopeless", "--home", home, "--out", tmp_path / "out")
    assert (code, err) == (3, "dux: no student satisfies the bounds: none was measured yet\n")
    assert not (tmp_path / "out").exists()
