"""Ctrl-C and SIGTERM, sent to this very process."""

import os
import signal
import time

import pytest

from search.signals import ctrl_c_is_kept, raise_if_pressed


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
