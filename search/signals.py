"""Makes sure that no Ctrl-C is lost, and treats SIGTERM, which schedulers send, like Ctrl-C.

A command ends at once with one line, whatever it is doing; a running study or server shuts down cleanly.
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
    """From now on Ctrl-C and SIGTERM end the process at once, with the line given to `say_if_interrupted`.

    Only for the command, not for a user's program. A KeyboardInterrupt in the middle of an import would be lost, or
    libraries would show their tracebacks. Ignored signals stay ignored, such as Ctrl-C for what a shell script starts
    with `&`.
    """
    for number in _OURS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end_at_once)


def say_if_interrupted(line: str | Callable[[], str]) -> None:
    """Set the line that reports an interruption from now on: what was written, and how to continue."""
    global _way_out
    _way_out = line


def if_interrupted() -> str:
    """The line given to `say_if_interrupted`."""
    return _way_out if isinstance(_way_out, str) else _way_out()


def end(line: str) -> NoReturn:
    """End the process now, like a kill, but with a line on standard error."""
    shown = "\x1b[?25h\n" if os.isatty(2) else ""  # show the cursor, which a progress line hides
    with suppress(OSError):
        os.write(2, f"{shown}dux: {line}\n".encode(errors="replace"))
    if files := sys.modules.get("trainers.files"):
        files.remove_scratch()
    os._exit(INTERRUPTED)


def is_being_reported() -> None:
    """The interruption is about to be reported: a second one is not reported again."""
    for number in _OURS:
        if signal.getsignal(number) is _end_at_once:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def catch_ctrl_c() -> Iterator[None]:
    """Inside, in the main thread, SIGTERM acts like Ctrl-C, and `raise_if_pressed` knows of both; other threads are
    unaffected.

    A KeyboardInterrupt may be lost in a destructor, or in code that catches everything. It is not raised during an
    import (torch imports a lot in the middle of training): libraries try imports and continue without them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    kept = signal.getsignal(signal.SIGINT)
    hook = sys.unraisablehook
    if kept in _REPLACED:
        _pressed.clear()
        sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else hook(lost)
        if kept is not signal.SIG_IGN:  # otherwise SIGTERM becomes the interrupt
            signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
        if kept in _REPLACED:
            _pressed.clear()
            signal.signal(signal.SIGINT, kept)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Inside, in the main thread, Ctrl-C and SIGTERM are held back; the first one received is sent again at the end.

    Ray's shutdown must not be cut short: after half a shutdown, the destruction of any Ray object silently ends the
    process.
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
    """At the end, in the main thread, the handlers of Ctrl-C and SIGTERM are what they were at the beginning."""
    before = {number: signal.getsignal(number) for number in _OURS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def ctrl_c_raises() -> Iterator[None]:
    """Inside, in the main thread, Ctrl-C and SIGTERM raise a KeyboardInterrupt at once; Tune would only note them until
    the next turn of its loop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) in _REPLACED:
        _pressed.clear()  # left over from the end of an earlier wait
    before = {number: signal.signal(number, _interrupted) for number in _OURS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_pressed() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed and the exception was lost."""
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
    """Whether the code being executed is part of an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def _terminated(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) in _REPLACED:
        signal.signal(signal.SIGINT, _interrupted)  # what a shell script starts with & ignores Ctrl-C
    os.kill(os.getpid(), signal.SIGINT)


_REPLACED = (signal.default_int_handler, signal.SIG_IGN, _end_at_once)
"""The handlers of SIGINT that may be replaced: nobody has set their own."""
