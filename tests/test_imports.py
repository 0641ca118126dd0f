"""Imports go one way, search -> trainers -> spaces, and the trackers and tuners stay where they are needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("spaces", "trainers", "search")


def imported(path: Path) -> Iterator[str]:
    """First part of every import anywhere in a file, functions included; a relative one counts as its own package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0] if node.level == 0 else path.relative_to(ROOT).parts[0]


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no files of {package}"
    return found


def importers(package: str, of: str) -> set[str]:
    """The files of `package` that import `of`."""
    return {path.relative_to(ROOT).as_posix() for path in files(package) if of in imported(path)}


def test_spaces_knows_nothing_of_ours() -> None:
    assert importers("spaces", "trainers") | importers("spaces", "search") == set()


def test_trainers_knows_spaces_alone() -> None:
    assert importers("trainers", "search") == set()
    assert importers("trainers", "spaces") != set()


def test_only_search_names_ray_optuna_and_mlflow() -> None:
    for library in ("ray", "optuna", "mlflow"):
        assert importers("spaces", library) | importers("trainers", library) == set()


def test_optuna_is_named_in_the_ledger_and_its_journal_alone() -> None:
    assert importers("search", "optuna") == {"search/ledger.py", "search/journal.py"}


def test_mlflow_is_named_in_tracking_and_its_view_alone() -> None:
    assert importers("search", "mlflow") <= {"search/tracking.py", "search/mlflow_view.py"}
    assert "search/tracking.py" in importers("search", "mlflow")


def test_importing_trainers_loads_neither_ray_nor_mlflow_nor_optuna_and_prints_nothing() -> None:
    program = (
        "import sys, trainers\n"
        "heavy = {'ray', 'mlflow', 'optuna', 'sklearn', 'torchvision', 'matplotlib'}\n"
        "sys.exit(', '.join(sorted(heavy & {name.partition('.')[0] for name in sys.modules})) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
