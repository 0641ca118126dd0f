"""Ctrl-C that is not lost, and SIGTERM, which schedulers send, taken as Ctrl-C."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_OURS = (signal.SIGINT, signal.SIGTERM)
_pressed = threading.Event()


@contextmanager
def ctrl_c_is_kept() -> Iterator[None]:
    """Inside, in the main thread, SIGTERM is Ctrl-C, and `raise_if_pressed` knows of either; elsewhere nothing changes.

    A KeyboardInterrupt may be lost: where it meets an import that other code tries and goes on without (torch imports
    much in the middle of training), or a destructor.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    kept = signal.getsignal(signal.SIGINT)
    told = sys.unraisablehook
    if kept in (signal.default_int_handler, signal.SIG_IGN):  # ignored: then SIGTERM is what becomes an interrupt
        _pressed.clear()
        sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else told(lost)
    if kept is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        sys.unraisablehook = told
        signal.signal(signal.SIGTERM, before)
        if kept is signal.default_int_handler:
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


def _interrupted(*_: object) -> None:
    _pressed.set()
    raise KeyboardInterrupt


def _terminated(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.default_int_handler):
        signal.signal(signal.SIGINT, _interrupted)  # what a shell's script starts with & ignores Ctrl-C
    os.kill(os.getpid(), signal.SIGINT)
