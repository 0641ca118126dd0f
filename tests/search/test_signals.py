"""Ctrl-C and SIGTERM, sent to this very process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Command
from running import wait_for

from search.signals import ctrl_c_is_kept, handlers_stay, raise_if_pressed, signals_wait


def test_a_ctrl_c_that_a_destructor_loses_is_raised_later(capsys: pytest.CaptureFixture[str]) -> None:
    class Loses:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # until Python has handled it

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ctrl_c_is_kept():
            raise_if_pressed()
            loses = Loses()
            del loses
            with pytest.raises(KeyboardInterrupt):
                raise_if_pressed()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with ctrl_c_is_kept():
            raise_if_pressed()  # another one begins anew
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ignored", [False, True])
def test_sigterm_is_ctrl_c_even_where_that_is_ignored(ignored: bool) -> None:
    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        with ctrl_c_is_kept(), pytest.raises(KeyboardInterrupt):
            terminate()
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_wait_until_what_must_not_be_cut_short_is_done() -> None:
    done = False

    def interrupted() -> None:
        nonlocal done
        with signals_wait():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            done = True

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert done
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_others_make_of_signals_is_undone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handlers_stay():
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) is before


CUT_SHORT = """
import os, signal, sys, threading, time
from search import workers
import ray
from search.signals import ctrl_c_is_kept

with ctrl_c_is_kept():
    try:
        with workers.cluster(None, cpus=1, gpus=0, store_bytes=0, verbose=False):
            kept = [ray.put(1)]
            threading.Thread(target=lambda: (time.sleep(0.1), os.kill(os.getpid(), signal.SIGINT))).start()
    except KeyboardInterrupt:
        kept.clear()  # after half of a shutdown this ended the process with code 1, without a word
        time.sleep(0.5)
        print("and on", ray.is_initialized())
"""


def test_ctrl_c_while_ray_ends_waits_for_its_end(tmp_path: Path) -> None:
    command = Command(tmp_path, program=("-c", CUT_SHORT))
    try:
        wait_for(lambda: not command.running, "the end")
    finally:
        if command.running:
            command.kill()
    assert (command.process.returncode, command.out, command.err) == (0, "and on False\n", "")


def test_a_sigterm_that_a_destructor_swallows_says_nothing_where_ctrl_c_is_ignored_either() -> None:
    code = (
        "import os, signal, weakref\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # as a shell's script starts what it puts in the background
        "from search.signals import ctrl_c_is_kept, raise_if_pressed\n"
        "class Thing: pass\n"
        "with ctrl_c_is_kept():\n"
        "    thing = Thing()\n"
        "    ref = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))\n"
        "    del thing\n"
        "    try:\n"
        "        raise_if_pressed()\n"
        "    except KeyboardInterrupt:\n"
        "        print('told')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "told\n", "")
