"""Imports go one way, search -> trainers -> spaces; libraries stay in their rooms; files and functions are short."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

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
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths, f"no files of {package}"
    return paths


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


@pytest.mark.parametrize(("library", "room"), [("optuna", "ledger"), ("mlflow", "tracking"), ("ray", "backends")])
def test_a_library_is_named_in_one_room_alone(library: str, room: str) -> None:
    naming = importers("search", library)
    assert naming
    assert {name for name in naming if not name.startswith(f"search/{room}/")} == set()


def test_ray_is_not_needed_where_this_process_carries_trials_out() -> None:
    without = {"local", "attempts", "backend", "messages", "worker", "deaths"}
    assert not importers("search", "ray") & {f"search/backends/{name}.py" for name in without}


def own_imports(tree: ast.AST) -> Iterator[str]:
    """What of ours is imported, functions included; not what type checkers alone import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in PACKAGES)
        yield from own_imports(node)


def import_graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports, of ours."""
    modules = {}
    for package in PACKAGES:
        for path in files(package):
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for name, path in modules.items():
        given = own_imports(ast.parse(path.read_text(encoding="utf-8")))
        graph[name] = {at if at in modules else at.rpartition(".")[0] for at in given} - {name}
    return graph


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = import_graph()
    cycles = []
    for name in graph:
        reached: set[str] = set()
        waiting = graph[name] & graph.keys()
        while waiting:
            reached |= waiting
            waiting = {other for one in waiting for other in graph[one] & graph.keys()} - reached
        if name in reached:
            cycles.append(name)
    assert cycles == []


def test_no_file_of_search_has_more_than_350_lines_and_no_function_more_than_60() -> None:
    long = []
    for path in files("search"):
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > 350:
            long.append((path.name, lines))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 60:
                long.append((f"{path.name}: {node.name}", lines))
    assert long == []


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


def test_every_name_that_a_package_offers_can_be_had() -> None:
    for package in ("search", "spaces", "trainers"):
        module = import_module(package)
        assert all(getattr(module, name) is not None for name in module.__all__)
