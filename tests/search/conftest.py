"""A tiny study, carried out once by the real command and looked at by many tests; and the command itself."""

import fcntl
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Command, Ended, run
from running import TINY, Finished, Said, Stand

from search.cli import main
from search.study import Study
from search.tracking.mlflow_view import make_store, quiet_mlflow

HOME = "a home, 100%41 #1? 'é'"
"""Whatever is made of a home's path must hold for any."""

SLOWEST = (
    "test_outage.py",
    "test_kills.py",
    "test_sessions.py",
    "test_seeds.py",
    "test_study.py",
    "test_attempts.py",
    "test_cluster.py",
    "test_local_ray.py",
    "test_tracking.py",
    "test_mlflow_view.py",
    "test_curve.py",
    "test_postgresql.py",
    "test_export.py",
    "test_cli.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that of two processes none waits long for the other at the end."""
    rank = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all of the tests' processes have."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def finished(shared: Path) -> Finished:
    """Carried out by the first of the tests' processes that wants it."""
    folder = shared / "tiny"
    file, home, kept = folder / "tiny.yaml", folder / "parent" / HOME, folder / "done.json"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            file.write_text(TINY)
            done = run("search", str(file), "--home", str(home), folder=folder)
            kept.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
            assert list(home.parent.iterdir()) == [home]
    done = Ended(*json.loads(kept.read_text()))
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(home, file, done)


@pytest.fixture(scope="session")
def empty_store(shared: Path) -> Path:
    """The file of an MLflow store with its tables and nothing else; making the tables takes MLflow seconds."""
    with quiet_mlflow():
        make_store(shared / "mlflow.db")
    return shared / "mlflow.db"


@pytest.fixture(scope="session")
def new_home(empty_store: Path) -> Callable[[Path], Path]:
    """Makes `home` in a folder: with an empty MLflow store, as any study but the first finds it."""

    def made(folder: Path) -> Path:
        home = folder / "home"
        home.mkdir()
        shutil.copy(empty_store, home)
        return home

    return made


@pytest.fixture
def home(tmp_path: Path, new_home: Callable[[Path], Path]) -> Path:
    return new_home(tmp_path)


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path_factory.mktemp("stand"), empty_store)
    yield stand
    stand.server.stop()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Starts a `dux` command in a subprocess; what still runs after the test is ended."""
    started: list[Command] = []

    def begin(*arguments: str, **how: Any) -> Command:
        started.append(Command(tmp_path_factory.mktemp("command"), *arguments, **how))
        return started[-1]

    yield begin
    for command in started:
        if command.running:
            command.kill()


@pytest.fixture
def dux(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """The real command in this process, for what starts no workers: in subprocesses a hundred would take minutes."""
    for name in ("DUX_HOME", "DUX_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["dux", *map(str, arguments)])
        code = main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
def dux_here(dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """The same, which carries studies out, too: in this process, without Ray."""
    for begin in (Study.search, Study.resume):
        monkeypatch.setitem(begin.__kwdefaults__, "backend", "local")
    return dux


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
