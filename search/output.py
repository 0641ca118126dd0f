"""Standard output and error as users have them: closed early, on a full disk, or with a small character set.

`dux front | head -1` is not an error. What cannot be printed is dropped, and no study ends because of it. A character
that the output cannot encode is replaced by a plain one.
"""

import codecs
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

WIDTH = 100
"""Maximum width of a table in characters, unless a terminal says otherwise."""

_PLAIN = {
    **dict.fromkeys("‐‑‒–—―─━═╌╸╺−", "-"),
    **dict.fromkeys("│┃║╎", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛", "+"),
    **dict.fromkeys("‘’‚′", "'"),
    **dict.fromkeys("“”„″", '"'),
    **dict.fromkeys("●■▲◆▼★✚", "*"),
    **dict.fromkeys("○□△◇▽☆◌", "o"),
    **dict.fromkeys("·•∙", "."),
    "…": "...",
    "×": "x",
    "±": "+-",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "ß": "ss",
}


class NobodyReads(Exception):
    """The reader of standard output is gone, like `head` once it has its lines."""


class NotWritten(Exception):
    """Standard output cannot be written; the message says why."""


def plain(text: str) -> str:
    """`text` in ASCII, as well as possible; a character without an equivalent becomes a question mark."""
    characters = []
    for character in text:
        like = _PLAIN.get(character) or unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        characters.append(like or ("" if unicodedata.combining(character) else "?"))
    return "".join(characters)


def _encoded_otherwise(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    wrong = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in wrong):  # from a file name: its own bytes
        return wrong.encode("utf-8", "surrogateescape"), error.end
    return plain(wrong), error.end


codecs.register_error("dux.plain", _encoded_otherwise)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Inside, printing works as well as the streams allow.

    Raises:
        NobodyReads: the reader of standard output is gone.
        NotWritten: standard output cannot be written.
    """
    out, err = sys.stdout, sys.stderr
    for stream in (out, err):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="dux.plain")
    sys.stdout, sys.stderr = cast(TextIO, _Stream(out, is_heard=True)), cast(TextIO, _Stream(err, is_heard=False))
    try:
        yield
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = out, err


def open_closed_streams() -> None:
    """If a shell has closed a standard stream (`>&-`), put the null device in its place, so that no file of ours gets
    its number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


class _Stream:
    """A stream whose errors can be distinguished from those of files and connections.

    It has no `buffer`, through which others could write around it.
    """

    def __init__(self, stream: TextIO, *, is_heard: bool) -> None:
        self._stream, self._is_heard = stream, is_heard

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._told():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_heard:
                return
            if isinstance(error, BrokenPipeError):
                raise NobodyReads from None
            raise NotWritten(f"standard output cannot be written ({error.strerror})") from None
