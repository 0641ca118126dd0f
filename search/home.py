"""The home folder: where studies, teachers and the local databases are kept. Only its owner can read it."""

import os
from pathlib import Path

from search.secrets import sqlite_url, without_secrets
from spaces.errors import BadInput

_RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store.1"
_LONGEST_SOCKET = 107
"""Bytes, on Linux."""


def default_home() -> Path:
    """Where studies, teachers and the local databases are kept: `$DUX_HOME`, or `.dux` in the user's home."""
    return Path(os.environ.get("DUX_HOME") or Path.home() / ".dux").expanduser().absolute()


def ledger_url(home: Path) -> str:
    """The URL of the database with the home's ledgers: `$DUX_STORAGE`, or a file in the home folder."""
    return os.environ.get("DUX_STORAGE") or sqlite_url(home / "ledger.db")


def shown_database() -> str:
    """The value of `DUX_STORAGE` without secrets; empty if it is not set."""
    url = os.environ.get("DUX_STORAGE")
    return without_secrets(url) if url else ""


def make_writable(folder: Path, home: Path) -> None:
    """Create a folder in `home`, and `home` itself readable by its owner alone, unless they exist.

    Raises:
        BadInput: one of them cannot be created or written.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _refuse(home, f"{error.strerror}: {error.filename}")
    check_writable(home, folder)


def check_writable(home: Path, *folders: Path) -> None:
    """Raise BadInput if another user's files would have to be changed."""
    for each in (home, *folders):
        if each.exists() and not os.access(each, os.W_OK | os.X_OK):
            _refuse(home, f"{each} belongs to another user, or its disk is read-only")


def check_ray_folders() -> None:
    """Raise BadInput if a local Ray could not store its sockets or its token."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if name is not None:
        folder = os.environ[name]
        longest = len(os.fsencode(folder + _RAY_SOCKET.format(pid=os.getpid())))
        if longest > _LONGEST_SOCKET:
            raise BadInput(
                f"`{name}` must be short enough for Ray's socket paths to have at most {_LONGEST_SOCKET} bytes, but "
                f"{folder} makes them {longest}; set {name} to a shorter one, such as /tmp"
            )
        if os.path.lexists(folder) and not os.access(folder, os.W_OK | os.X_OK):
            raise BadInput(f"`{name}` must be a folder that can be written, but {folder} is not; set it to another")
    home = Path.home()
    own_token = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & {*os.environ}
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and not own_token:
        token = home / ".ray" / "auth_token"
        there = next(path for path in (token, *token.parents) if path.exists())
        if not os.access(there, os.R_OK if there == token else os.W_OK | os.X_OK):
            raise BadInput(
                f"`HOME` must be a folder that can be written, since Ray keeps its token there, but {home} is not; "
                "set HOME to one that can"
            )


def _refuse(home: Path, why: str) -> None:
    raise BadInput(
        f"`--home` must be a folder that can be written, but {home} is not ({why}); name another by --home or DUX_HOME"
    ) from None
