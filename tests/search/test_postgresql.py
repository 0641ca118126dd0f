"""The ledger on a real PostgreSQL server, as a team shares it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import TASK, Command
from running import HERE, Said, wait_for

from search.ledger.ledger import Ledger
from search.ledger.storage import delete, in_ledger, read_lines
from spaces import Space

SPACE = Space.from_mapping(
    {"student.width": {"low": 0.125, "high": 1.0}, "pruning.fraction": {"low": 0.0, "high": 0.9}}
)
OBJECTIVES = {"accuracy": "max", "parameters": "min"}
PASSWORD = "hush-hush"
LOST = f"""
name: lost
{TASK}
space: {{student.width: [0.125, 0.25, 0.5], training.epochs: 20, training.batch_size: 16}}
search: {{trials: 3, concurrent: 2, curve: false}}
"""


class Database:
    """An empty database on a server that a test may stop and start again at the same address."""

    def __init__(self) -> None:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        assert folders, "Debian's package postgresql must be installed"
        self._programs, self._user = folders[-1], "postgres" if os.geteuid() == 0 else None  # it refuses to be root
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "password").write_text(PASSWORD)
        for path in (self.folder, self.folder / "password"):
            if self._user:
                shutil.chown(path, self._user)
        initdb = [self._programs / "initdb", "-D", self.folder / "data", "-U", "dux", "-A", "password", "--no-sync"]
        subprocess.run(
            [*initdb, f"--pwfile={self.folder / 'password'}"],
            user=self._user,
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql://dux:{PASSWORD}@127.0.0.1:{self._port}/postgres"
        self.start()

    def start(self) -> None:
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        with (self.folder / "log").open("w") as log:
            self._server = subprocess.Popen(
                [self._programs / "postgres", "-D", self.folder / "data", "-p", str(self._port), *options],
                user=self._user,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: "ready to accept connections" in (self.folder / "log").read_text(), "PostgreSQL", 60)

    def stop(self) -> None:
        self._server.send_signal(signal.SIGINT)  # without waiting for whoever is connected
        self._server.wait(30)


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """One for the module, with whose end its server ends."""
    database = Database()
    yield database
    database.stop()
    shutil.rmtree(database.folder)


@pytest.fixture
def storage(database: Database) -> str:
    """The database's URL."""
    return database.url


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


def test_a_study_whose_database_goes_away_ends_in_one_line_and_goes_on_when_it_is_back(
    database: Database, tmp_path: Path, home: Path, start: Callable[..., Command]
) -> None:
    (tmp_path / "study.yaml").write_text(LOST)
    told = home / "studies/lost/spool.jsonl"
    where = {"settings": {"DUX_STORAGE": database.url}, "program": HERE}
    command = start("search", str(tmp_path / "study.yaml"), "--home", str(home), **where)
    wait_for(lambda: (told.exists() and "trial_started" in told.read_text()) or not command.running, "a trial")
    database.stop()
    try:
        wait_for(lambda: not command.running, "the end of the session", 60)
    finally:
        database.start()
    assert (command.process.returncode, command.out) == (1, "")
    assert re.fullmatch(
        r"dux: the ledger's database has stopped working \([^\n]+\); "
        r"`dux resume lost --home [^\n]+` continues once it works\n",
        command.err,
    ), command.err
    assert PASSWORD not in command.err
    again = start("resume", "lost", "--home", str(home), **where)
    wait_for(lambda: not again.running, "the end of the study")
    assert again.process.returncode == 0, again.err
    assert sorted(line.outcome for line in read_lines(database.url, "lost") if line.counts) == ["complete"] * 3
