"""A ledger that another process has locked."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import Said

from search.ledger.ledger import Ledger
from search.ledger.locks import TRY_S, PatientConnection, notified_of_locks
from search.signals import catch_ctrl_c
from search.study import Study
from search.study_file import StudyFile
from spaces import Space

SPACE = Space.from_mapping({"student.width": {"low": 0.125, "high": 1.0}})


@contextmanager
def locked(file: Path, statement: str = "BEGIN EXCLUSIVE", seconds: float = 3 * TRY_S) -> Iterator[None]:
    """Inside, another connection has a lock, and gives it back after a while."""
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.executescript(statement)
    timer = threading.Timer(seconds, other.close)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        other.close()


def test_a_locked_ledger_is_waited_for_and_told(tmp_path: Path) -> None:
    file, told = tmp_path / "ledger.db", []
    ledger = Ledger(f"sqlite:///{file}", "study", {"accuracy": "max"}, "random", 0, SPACE)
    with locked(file), notified_of_locks(lambda: told.append(1)):
        number, _ = ledger.ask()
    assert told
    before = len(told)
    # one that only reads lets others write until they want to have it on the disk
    with locked(file, "BEGIN; SELECT * FROM trials"), notified_of_locks(lambda: told.append(1)):
        ledger.complete(number, {"accuracy": 0.5}, 1.0)
    assert len(told) > before
    assert [line.outcome for line in ledger.lines()] == ["complete"]


def test_ctrl_c_ends_the_wait_for_a_lock_also_where_a_library_has_made_something_else_of_it(tmp_path: Path) -> None:
    file, told = tmp_path / "file.db", threading.Event()
    connection = sqlite3.connect(file, timeout=TRY_S, factory=PatientConnection)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with catch_ctrl_c(), locked(file, seconds=60.0), notified_of_locks(told.set):
            signal.signal(signal.SIGINT, lambda *_: None)  # as Tune does
            press = threading.Thread(target=lambda: (told.wait(), os.kill(os.getpid(), signal.SIGINT)))
            press.start()
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                connection.execute("CREATE TABLE things (name)")
            assert time.monotonic() - began < 10.0
            press.join()
    finally:
        signal.signal(signal.SIGINT, before)
        connection.close()


def test_a_look_at_a_locked_ledger_says_that_it_waits(tmp_path: Path, dux: Callable[..., Said]) -> None:
    (tmp_path / "study.yaml").write_text("name: there\nspace: {student.width: [0.5]}")
    study = Study(StudyFile.read(tmp_path / "study.yaml"), tmp_path)
    study.folder.mkdir(parents=True)
    (study.folder / "study.json").write_text(study.file.to_json())
    study.ledger()
    with locked(tmp_path / "ledger.db"):
        code, out, err = dux("status", "there", "--home", tmp_path)
    assert (code, err) == (0, "dux: the ledger is locked by another process; waiting\n")
    assert out.startswith("there: interrupted; 0/")
