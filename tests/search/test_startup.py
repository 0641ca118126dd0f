"""What a command does not wait for: libraries that take seconds, and a gigabyte, are imported by those that use them.

How long the commands take is in docs/startup.md.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import Finished

ROOT = Path(__file__).parents[2]
HEAVY = ("matplotlib", "mlflow", "onnx", "pandas", "plotly", "ray", "scipy.stats", "sklearn", "torch", "torchvision")
LEDGER = ("numpy", "optuna", "sqlalchemy")
"""What a study is looked at with; a third of a second."""


def imported(*arguments: object, folder: Path = ROOT) -> tuple[int, set[str]]:
    """The exit code of a command, and those of HEAVY and LEDGER that it had imported at its end."""
    program = (
        "import os, sys; import dux\n"
        f"known, end = {(*HEAVY, *LEDGER)}, os._exit\n"
        "def ended(code):\n"
        "    print('IMPORTED', *(name for name in known if name in sys.modules), flush=True)\n"
        "    end(code)\n"
        "os._exit = ended\n"
        "dux.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, set(done.stdout.splitlines()[-1].removeprefix("IMPORTED").split())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        (("search", "--help"), 0),
        (("methods", "--json"), 0),
        (("serach",), 2),
        (("status", "--home"), 2),
        (("init", "study.yaml"), 0),
    ],
)
def test_help_and_the_methods_wait_for_no_library(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    assert imported(*arguments, folder=tmp_path) == (code, set())


def test_the_names_of_studies_wait_for_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DUX_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "dux front ")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert imported() == (0, set())


def test_a_front_in_the_terminal_does_not_wait_for_mlflow(finished: Finished, tmp_path: Path) -> None:
    home = shutil.copytree(finished.home, tmp_path / "home")  # where MLflow's runs are not known: it would be asked
    code, modules = imported("front", "tiny", "--home", home)
    assert code == 0
    assert modules <= {*LEDGER}


@pytest.mark.parametrize("command", ["status", "front"])
def test_looking_at_a_study_waits_for_its_ledger_and_no_more(command: str, finished: Finished) -> None:
    for options in ((), ("--json",)):
        code, modules = imported(command, "tiny", "--home", finished.home, *options)
        assert code == 0
        assert modules <= {*LEDGER}


def test_a_student_that_was_changed_is_refused_before_torch_is_imported(finished: Finished, tmp_path: Path) -> None:
    home = shutil.copytree(finished.home, tmp_path / "home")
    for student in home.rglob("student.safetensors"):
        student.write_bytes(student.read_bytes()[:-1] + b"\x01")
    code, modules = imported("export", "tiny", "--home", home, "--out", tmp_path / "out")
    assert code == 1
    assert modules <= {*LEDGER}


BAD = {
    "a key": "nme: other",
    "a depth": "space: {student.depth: [9]}",
    "a parameter of a method": "space: {transfer: [kd], kd.temperature: [-1.0]}",
    "a method": "space: {transfer: [kt]}",
    "an objective": "objectives: {accuracy: min}",
    "a data set": "task: {dataset: digit}",
    "a folder": "task: {dataset: imagefolder, root: nowhere}",
    "a sampler": "search: {sampler: tpee}",
    "YAML": "space: [",
}


@pytest.mark.parametrize("mistake", BAD)
@pytest.mark.parametrize("command", ["search", "check"])
def test_a_mistake_in_a_study_file_is_told_before_torch_is_there(command: str, mistake: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"name: mistaken\n{BAD[mistake]}\n{'' if 'space' in BAD[mistake] else 'space: {}'}\n")
    code, modules = imported(command, file)
    assert code == 2
    assert modules <= {*LEDGER}


def test_reading_a_study_file_imports_neither_torch_nor_what_draws_or_tells() -> None:
    program = f"import sys, search.study_file\nprint(*({{*{(*HEAVY, 'moocore', 'rich', 'scipy')}}} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", ["resume", "export", "ui", "front"])
def test_a_study_that_is_not_there_is_told_before_torch_is_there(command: str, tmp_path: Path) -> None:
    code, modules = imported(command, "nobody", "--home", tmp_path)
    assert code == 2
    assert modules <= {*LEDGER}
