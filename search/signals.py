"""Ctrl-C that is not lost, and SIGTERM, which schedulers send, taken as Ctrl-C.

A command ends at once, in a line, whatever it is doing; a study that is under way, and a server, end tidily.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""The exit code."""
BEGIN_ANEW = "interrupted before anything was written; run the same command again"

_OURS = (signal.SIGINT, signal.SIGTERM)
_IMPORT_S = 0.1
_pressed = threading.Event()
_way_out: str | Callable[[], str] = BEGIN_ANEW


def end_at_once() -> None:
    """From now on Ctrl-C and SIGTERM end the process at once, in the line that `say_if_interrupted` was given.

    For the command alone, not for a user's program. A KeyboardInterrupt in the middle of an import would be lost, or
    shown by libraries with all their lines. Not where the signal is ignored, as a shell's script has Ctrl-C ignored for
    what it starts with `&`.
    """
    for number in _OURS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end_at_once)


def say_if_interrupted(line: str | Callable[[], str]) -> None:
    """What an interruption is told by from now on: what was written, and how to go on."""
    global _way_out
    _way_out = line


def if_interrupted() -> str:
    """The line that `say_if_interrupted` was given."""
    return _way_out if isinstance(_way_out, str) else _way_out()


def end(line: str) -> NoReturn:
    """End the process now, as a kill would, but with a line on standard error."""
    shown = "\x1b[?25h\n" if os.isatty(2) else ""  # the cursor, which a progress line hides
    with suppress(OSError):
        os.write(2, f"{shown}dux: {line}\n".encode(errors="replace"))
    if files := sys.modules.get("trainers.files"):
        files.remove_scratch()
    os._exit(INTERRUPTED)


def is_told() -> None:
    """The interruption is about to be told in a line: another one is told no second time."""
    for number in _OURS:
        if signal.getsignal(number) is _end_at_once:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def ctrl_c_is_kept() -> Iterator[None]:
    """Inside, in the main thread, SIGTERM is Ctrl-C, and `raise_if_pressed` knows of either; elsewhere nothing changes.

    A KeyboardInterrupt may be lost where it meets a destructor, or what catches everything. It does not meet an import
    (torch imports much in the middle of training), which libraries try and go on without.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    kept = signal.getsignal(signal.SIGINT)
    told = sys.unraisablehook
    if kept in _REPLACED:
        _pressed.clear()
        sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else told(lost)
        if kept is not signal.SIG_IGN:  # else SIGTERM is what becomes an interrupt
            signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        sys.unraisablehook = told
        signal.signal(signal.SIGTERM, before)
        if kept in _REPLACED:
            _pressed.clear()
            signal.signal(signal.SIGINT, kept)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Inside, in the main thread, Ctrl-C and SIGTERM do nothing; the first that came is sent anew at the end.

    Ray's shutdown must not be cut short: whatever of Ray's objects dies after half of one ends the process, silently.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _OURS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            os.kill(os.getpid(), came[0])


@contextmanager
def handlers_stay() -> Iterator[None]:
    """At the end, in the main thread, Ctrl-C and SIGTERM do what they did at the beginning."""
    before = {number: signal.getsignal(number) for number in _OURS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def ctrl_c_raises() -> Iterator[None]:
    """Inside, in the main thread, Ctrl-C and SIGTERM are a KeyboardInterrupt at once; Tune only makes a note of them,
    for when its loop turns again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) in _REPLACED:
        _pressed.clear()  # which an earlier wait was ended by
    before = {number: signal.signal(number, _interrupted) for number in _OURS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_pressed() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed, and what it raised then was lost."""
    if _pressed.is_set():
        raise KeyboardInterrupt


def _end_at_once(*_: object) -> NoReturn:
    end(if_interrupted())


def _interrupted(number: int, frame: FrameType | None) -> None:
    _pressed.set()
    if _importing(frame):
        again = threading.Timer(_IMPORT_S, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
        return
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    """Whether what is being executed is a part of an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def _terminated(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) in _REPLACED:
        signal.signal(signal.SIGINT, _interrupted)  # what a shell's script starts with & ignores Ctrl-C
    os.kill(os.getpid(), signal.SIGINT)


_REPLACED = (signal.default_int_handler, signal.SIG_IGN, _end_at_once)
"""What SIGINT does where nobody wants it to do anything else."""
