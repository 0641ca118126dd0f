"""What a command does not wait for: libraries that take seconds, and a gigabyte, are imported by those that use them.

How long the commands take is in docs/startup.md.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from running import Finished

ROOT = Path(__file__).parents[2]
HEAVY = ("matplotlib", "mlflow", "onnx", "pandas", "plotly", "ray", "scipy.stats", "sklearn", "torch", "torchvision")
LEDGER = ("numpy", "optuna", "sqlalchemy")
"""What a study is looked at with; a third of a second."""


def imported(*commands: Sequence[object], folder: Path = ROOT) -> list[tuple[int, set[str]]]:
    """Of several commands, carried out one after the other in one process: the exit code of each, and those of HEAVY
    and LEDGER that it or one before it had imported at its end."""
    program = (
        "import json, os, sys; import dux\n"
        "class Ended(BaseException): pass\n"
        "def ended(code):\n"
        f"    print('ENDED', json.dumps([code, [name for name in {(*HEAVY, *LEDGER)} if name in sys.modules]]))\n"
        "    raise Ended\n"
        "os._exit = ended\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['dux', *arguments]\n"
        "    try: dux.main()\n"
        "    except Ended: pass\n"
    )
    listed = json.dumps([[str(argument) for argument in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", program, listed],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    lines = [line.removeprefix("ENDED ") for line in done.stdout.splitlines() if line.startswith("ENDED ")]
    assert len(lines) == len(commands), done.stderr
    return [(code, set(modules)) for code, modules in map(json.loads, lines)]


def test_help_and_the_methods_wait_for_no_library(tmp_path: Path) -> None:
    commands = {
        ("--help",): 0,
        ("--version",): 0,
        ("search", "--help"): 0,
        ("methods", "--json"): 0,
        ("serach",): 2,
        ("status", "--home"): 2,
        ("init", "study.yaml"): 0,
    }
    assert imported(*commands, folder=tmp_path) == [(code, set()) for code in commands.values()]


def test_the_names_of_studies_wait_for_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DUX_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "dux front ")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert imported(()) == [(0, set())]


def test_a_front_in_the_terminal_does_not_wait_for_mlflow(finished: Finished, tmp_path: Path) -> None:
    home = shutil.copytree(finished.home, tmp_path / "home")  # where MLflow's runs are not known: it would be asked
    ((code, modules),) = imported(("front", "tiny", "--home", home))
    assert code == 0
    assert modules <= {*LEDGER}


def test_looking_at_a_study_waits_for_its_ledger_and_no_more(finished: Finished) -> None:
    looks = [(command, "tiny", "--home", finished.home) for command in ("status", "front")]
    for code, modules in imported(*looks, *((*look, "--json") for look in looks)):
        assert code == 0
        assert modules <= {*LEDGER}


def test_a_student_that_was_changed_is_refused_before_torch_is_imported(finished: Finished, tmp_path: Path) -> None:
    home = shutil.copytree(finished.home, tmp_path / "home")
    for student in home.rglob("student.safetensors"):
        student.write_bytes(student.read_bytes()[:-1] + b"\x01")
    ((code, modules),) = imported(("export", "tiny", "--home", home, "--out", tmp_path / "out"))
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


@pytest.mark.parametrize("command", ["search", "check"])
def test_a_mistake_in_a_study_file_is_told_before_torch_is_there(command: str, tmp_path: Path) -> None:
    commands = []
    for mistake, text in BAD.items():
        file = tmp_path / f"{mistake}.yaml"
        file.write_text(f"name: mistaken\n{text}\n{'' if 'space' in text else 'space: {}'}\n")
        commands.append((command, file))
    for mistake, (code, modules) in zip(BAD, imported(*commands), strict=True):
        assert (code, modules <= {*LEDGER}) == (2, True), (mistake, modules)


def test_reading_a_study_file_imports_neither_torch_nor_what_draws_or_tells() -> None:
    program = f"import sys, search.study_file\nprint(*({{*{(*HEAVY, 'moocore', 'rich', 'scipy')}}} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []


def test_a_study_that_is_not_there_is_told_before_torch_is_there(tmp_path: Path) -> None:
    commands = [(command, "nobody", "--home", tmp_path) for command in ("resume", "export", "ui", "front")]
    for command, (code, modules) in zip(commands, imported(*commands), strict=True):
        assert (code, modules <= {*LEDGER}) == (2, True), (command, modules)
