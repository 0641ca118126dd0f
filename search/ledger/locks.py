"""Waiting for SQLite's locks as long as they last.

Another process, such as a backup or a database browser, may hold a lock for minutes. SQLite itself waits for a fixed
time, ignoring Ctrl-C, and then gives up in the middle of a study.
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

_notify: ContextVar[Callable[[], object]] = ContextVar("_notify", default=lambda: None)


@contextmanager
def notified_of_locks(notify: Callable[[], object]) -> Iterator[None]:
    """Inside, in this thread, `notify` is called every TRY_S while a database is locked."""
    token = _notify.set(notify)
    try:
        yield
    finally:
        _notify.reset(token)


class PatientConnection(sqlite3.Connection):
    """A connection that waits for locks; `sqlite3.connect(file, timeout=TRY_S, factory=PatientConnection)`.

    A statement that meets a lock has done nothing and can be repeated: a writing statement takes its lock when it
    begins, and Python opens no transaction before it. The same holds for COMMIT: the transaction stays as it was.
    """

    def cursor(self, factory: Any = None) -> Any:
        """A cursor that also waits."""
        return super().cursor(factory or _PatientCursor)

    def execute(self, *arguments: Any) -> Any:
        """As for any connection."""
        return self.cursor().execute(*arguments)

    def commit(self) -> None:
        """As for any connection."""
        _patiently(super().commit)


class _PatientCursor(sqlite3.Cursor):
    def execute(self, *arguments: Any) -> Any:
        return _patiently(super().execute, *arguments)

    def executemany(self, *arguments: Any) -> Any:
        return _patiently(super().executemany, *arguments)


def _patiently(call: Callable[..., Result], *arguments: Any) -> Result:
    """Repeat the call until it meets no lock; returns its result."""
    try:
        return call(*arguments)
    except sqlite3.OperationalError as error:
        if not _is_locked(error):
            raise
    with ctrl_c_raises():
        while True:
            _notify.get()()
            raise_if_pressed()
            try:
                return call(*arguments)
            except sqlite3.OperationalError as error:
                if not _is_locked(error):
                    raise


def _is_locked(error: sqlite3.OperationalError) -> bool:
    """Whether another process holds a lock that it will release; not an outdated snapshot, which stays outdated."""
    code = error.sqlite_errorcode
    return code & 0xFF == sqlite3.SQLITE_BUSY and code != sqlite3.SQLITE_BUSY_SNAPSHOT
