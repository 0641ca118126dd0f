"""The ledger on a real PostgreSQL server, as a team shares it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Said, wait_for

from search.ledger import Ledger, delete, in_ledger
from spaces import Space

SPACE = Space.from_mapping(
    {"student.width": {"low": 0.125, "high": 1.0}, "pruning.fraction": {"low": 0.0, "high": 0.9}}
)
OBJECTIVES = {"accuracy": "max", "parameters": "min"}
PASSWORD = "hush-hush"


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """The URL of an empty database; the server ends with the module."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert found, "Debian's package postgresql must be installed"
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to be root
    folder = Path(tempfile.mkdtemp())
    (folder / "password").write_text(PASSWORD)
    for path in (folder, folder / "password"):
        if user:
            shutil.chown(path, user)
    initdb = [found[-1] / "initdb", "-D", folder / "data", "-U", "dux", "-A", "password", "--no-sync"]
    subprocess.run(
        [*initdb, f"--pwfile={folder / 'password'}"], user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [found[-1] / "postgres", "-D", folder / "data", "-p", str(port), *options],
            user=user,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: "ready to accept connections" in (folder / "log").read_text(), "PostgreSQL", 60)
        yield f"postgresql://dux:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # without waiting for whoever is connected
        server.wait(30)
        shutil.rmtree(folder)


def test_a_study_is_recorded_killed_and_gone_on_with_as_on_sqlite(storage: str, tmp_path: Path) -> None:
    def history(url: str) -> list[object]:
        def opened() -> Ledger:
            return Ledger(url, "study", OBJECTIVES, "tpe", 3, SPACE)

        ledger = opened()
        for turn in range(4):
            trial, recipe = ledger.ask()
            measured = {"accuracy": recipe.student.width, "parameters": 1e4 * recipe.student.width, "nll": 0.1}
            smaller = recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update={"fraction": 0.25})})
            point = {"recipe": smaller.flat(), "measurements": {**measured, "parameters": 10.0 + turn}, "seconds": 0.5}
            assert ledger.complete(trial, measured, 2.0, [point])
        ledger.fail(ledger.ask()[0], "Diverged: the loss is nan")
        ledger.retry(ledger.ask()[0], "the worker process died")
        again, _ = ledger.ask()
        assert ledger.tries(again) == 1
        ledger.rung(again, 3, {"accuracy": 0.5, "parameters": 9.0})
        ledger.stop(again, 3, 1.5)
        cut_short, recipe = ledger.ask()
        assert opened().reconcile() == 1  # as after a kill
        ledger = opened()
        trial, once_more = ledger.ask()
        assert once_more == recipe
        assert trial != cut_short
        ledger.complete(trial, {"accuracy": 0.1, "parameters": 5.0}, 1.0)
        assert ledger.done() == 7
        return [*opened().lines()]

    assert history(storage) == history(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert in_ledger(storage, "study")
    delete(storage, "study")
    assert not in_ledger(storage, "study")


def test_a_server_that_refuses_is_told_in_one_line_without_the_password(
    storage: str, tmp_path: Path, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.yaml").write_text("name: refused\nspace: {student.width: [0.5]}")
    for url in (storage.replace("hush", "wrong"), storage.replace("127.0.0.1", "127.0.0.2"), storage + "_not_there"):
        monkeypatch.setenv("DUX_STORAGE", url)
        code, out, err = dux("search", tmp_path / "study.yaml", "--home", tmp_path / "home")
        assert (code, out) == (2, "")
        assert err.startswith("dux: `DUX_STORAGE` must name a database that answers, but ")
        assert err.count("\n") == 1
        assert "hush" not in err
        assert "wrong" not in err
        assert not (tmp_path / "home/studies/refused").exists()
