"""SQLite's locks, waited for as long as they last.

Another process may hold one for minutes: a backup, a browser of databases. SQLite itself waits for a fixed time, deaf
to Ctrl-C, and gives up then, in the middle of a study.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from search.signals import ctrl_c_raises, raise_if_pressed

TRY_S = 0.5
"""How long SQLite waits by itself."""

Result = TypeVar("Result")

_tell: ContextVar[Callable[[], object]] = ContextVar("_tell", default=lambda: None)


@contextmanager
def told_of_locks(tell: Callable[[], object]) -> Iterator[None]:
    """Inside, in this thread, `tell` is called every TRY_S while a database is locked."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


class PatientConnection(sqlite3.Connection):
    """A connection that waits for locks; `sqlite3.connect(file, timeout=TRY_S, factory=PatientConnection)`.

    A statement that meets a lock has done nothing and can be said again: one that writes takes its lock when it begins,
    and Python opens no transaction before such a one. So does COMMIT, which leaves the transaction as it was.
    """

    def cursor(self, factory: Any = None) -> Any:
        """A cursor that waits, too."""
        return super().cursor(factory or _PatientCursor)

    def execute(self, *arguments: Any) -> Any:
        """As of any connection."""
        return self.cursor().execute(*arguments)

    def commit(self) -> None:
        """As of any connection."""
        _patiently(super().commit)


class _PatientCursor(sqlite3.Cursor):
    def execute(self, *arguments: Any) -> Any:
        return _patiently(super().execute, *arguments)

    def executemany(self, *arguments: Any) -> Any:
        return _patiently(super().executemany, *arguments)


def _patiently(call: Callable[..., Result], *arguments: Any) -> Result:
    """What the call returns, once it meets no lock."""
    try:
        return call(*arguments)
    except sqlite3.OperationalError as error:
        if not _is_locked(error):
            raise
    with ctrl_c_raises():
        while True:
            _tell.get()()
            raise_if_pressed()
            try:
                return call(*arguments)
            except sqlite3.OperationalError as error:
                if not _is_locked(error):
                    raise


def _is_locked(error: sqlite3.OperationalError) -> bool:
    """Whether another process has a lock that it will give back; not a snapshot that is out of date, which stays so."""
    code = error.sqlite_errorcode
    return code & 0xFF == sqlite3.SQLITE_BUSY and code != sqlite3.SQLITE_BUSY_SNAPSHOT
