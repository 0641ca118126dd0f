"""The ledger's database: opened, looked at, lost."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy

from search.ledger.lines import Line, is_own, line_of
from search.ledger.locks import TRY_S, PatientConnection
from search.secrets import redacted, without_secrets
from spaces import BadInput

LOST = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
"""What Optuna raises if a database's connection is lost."""


class NoAnswer(BadInput):
    """A ledger's database does not answer; the message says which, why, and the way out."""


def read_lines(storage: str, name: str) -> list[Line] | None:
    """A study's lines, without creating or writing anything; None if it is not in the storage."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = _look(storage)
    if opened is None or name not in optuna.get_all_study_names(storage=opened):
        return None
    trials = optuna.load_study(study_name=name, storage=opened).get_trials(deepcopy=False)
    return [line_of(trial) for trial in trials if is_own(trial)]


def in_ledger(storage: str, name: str) -> bool:
    """Whether the storage has a study with this name."""
    opened = _look(storage)
    return opened is not None and name in optuna.get_all_study_names(storage=opened)


def delete(storage: str, name: str) -> None:
    """Delete a study, if it exists."""
    if in_ledger(storage, name):
        optuna.delete_study(study_name=name, storage=open_storage(storage))


def _look(url: str) -> optuna.storages.RDBStorage | None:
    """A storage for reading; None if there is none yet."""
    with _as_bad_input(url):
        parsed = sqlalchemy.make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database and "uri" not in parsed.query:
            file = Path(parsed.database)
            if not file.exists():
                return None
            # another user's home must not be written to; one's own may, since a kill may have left a hot journal
            may_write = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
            way = {"mode": "rw" if may_write else "ro", "uri": "true"}
            parsed = parsed.set(database=f"file:{quote(str(file.absolute()))}").update_query_dict(way)
        url = parsed.render_as_string(hide_password=False)
        engine = sqlalchemy.create_engine(url, **_patience(url))
        try:
            if not sqlalchemy.inspect(engine).has_table("studies"):
                return None
        finally:
            engine.dispose()
    return open_storage(url)


@contextmanager
def _as_bad_input(url: str) -> Iterator[None]:
    try:
        yield
    except (*LOST, ImportError, ValueError) as error:
        why = redacted(str(getattr(error, "orig", error)).splitlines()[0], url)
        if isinstance(error, ImportError):
            way_out = "install its driver (for PostgreSQL `psycopg[binary]`)"
        elif url.startswith("sqlite"):
            way_out = "move the file away, and `dux resume NAME` rebuilds a study's ledger from its other files"
        else:
            way_out = "start it, or correct the URL"
        if os.environ.get("DUX_STORAGE"):
            way_out += ", or leave DUX_STORAGE out for a file in the home folder"
        raise NoAnswer(
            f"`DUX_STORAGE` must name a database that answers, but {without_secrets(url)} does not ({why}); {way_out}"
        ) from None


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """The storage at a database's URL, created if there is none. Raises NoAnswer if the database does not answer."""
    with _as_bad_input(url):
        parsed = sqlalchemy.make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database and "uri" not in parsed.query:
            with suppress(OSError):  # SQLite reports what is wrong
                os.close(os.open(parsed.database, os.O_RDONLY | os.O_CREAT, 0o600))
        return optuna.storages.RDBStorage(url, engine_kwargs=_patience(url))


def _patience(url: str) -> dict[str, Any]:
    """SQLAlchemy's connection settings, to wait for another process's lock on a SQLite file."""
    connect = {"timeout": TRY_S, "factory": PatientConnection}
    return {"connect_args": connect} if url.startswith("sqlite") else {}


def lost_database(error: BaseException | None) -> BaseException | None:
    """The error of a lost database behind another error, if any: Tune wraps what the ledger raises."""
    while error is not None and not isinstance(error, LOST):
        error = error.__cause__ or error.__context__
    return error


def why_lost(error: BaseException) -> str:
    """The original error of the database or the connection, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
