"""Ctrl-C and SIGTERM, sent to this very process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Command, environment
from running import TINY, wait_for

from search.signals import BEGIN_ANEW, catch_ctrl_c, handlers_stay, raise_if_pressed, signals_wait
from trainers.files import remove_scratch, scratch_folder, write_whole

ROOT = Path(__file__).parents[2]


def test_a_ctrl_c_that_a_destructor_loses_is_raised_later(capsys: pytest.CaptureFixture[str]) -> None:
    class Loses:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # until Python has handled it

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with catch_ctrl_c():
            raise_if_pressed()
            loses = Loses()
            del loses
            with pytest.raises(KeyboardInterrupt):
                raise_if_pressed()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with catch_ctrl_c():
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
        with catch_ctrl_c(), pytest.raises(KeyboardInterrupt):
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
from search.backends.cluster import cluster
import ray
from search.signals import catch_ctrl_c

with catch_ctrl_c():
    try:
        with cluster(None, cpus=1, gpus=0, store_bytes=0, verbose=False):
            kept = [ray.put(1)]
            threading.Thread(target=lambda: (time.sleep(0.03), os.kill(os.getpid(), signal.SIGINT))).start()
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
        "from search.signals import catch_ctrl_c, raise_if_pressed\n"
        "class Thing: pass\n"
        "with catch_ctrl_c():\n"
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


# --- commands ---------------------------------------------------------------------------------------------------------

MET = """
import os, sys, signal

class Meets:
    def find_spec(self, name, *_):
        if name == MODULE:
            os.kill(os.getpid(), SIGNAL)

sys.meta_path.insert(0, Meets())
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that were started in the background ignore it
sys.argv[0] = "dux"
import dux
dux.main()
"""


@pytest.mark.parametrize(
    ("module", "by", "arguments"),
    [
        ("importlib.util", signal.SIGINT, ("--help",)),
        ("search.cli", signal.SIGTERM, ("--help",)),
        ("typer", signal.SIGINT, ("methods",)),
        ("trainers.catalogue", signal.SIGTERM, ("methods",)),
        ("numpy._core._multiarray_umath", signal.SIGINT, ("status",)),  # which shows a KeyboardInterrupt with its lines
        ("optuna", signal.SIGTERM, ("search", "study.yaml")),
        ("filelock", signal.SIGINT, ("resume", "study")),
    ],
)
def test_a_signal_that_meets_an_import_ends_the_command_in_one_line(
    module: str, by: signal.Signals, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    program = MET.replace("MODULE", repr(module)).replace("SIGNAL", str(int(by)))
    (tmp_path / "study.yaml").write_text(TINY)
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT), "DUX_HOME": str(tmp_path / "home")},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", f"dux: {BEGIN_ANEW}\n")
    assert not (tmp_path / "home").exists()


def test_a_signal_that_meets_the_end_of_a_command_is_told_in_one_line(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, dux\n"
        "class Output:\n"
        "    def __getattr__(self, name): return getattr(sys.__stdout__, name)\n"
        "    def flush(self): sys.__stdout__.flush(); os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.stdout = Output()\n"
        "dux.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "init"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT)},
    )
    assert (ended.returncode, ended.stderr) == (130, "dux: interrupted; digits.yaml is written\n")
    assert (tmp_path / "digits.yaml").stat().st_size


def test_the_launcher_imports_nothing_before_it_answers_signals() -> None:
    program = "import sys; before = {*sys.modules}; import dux; print({*sys.modules} - before - {'_signal'})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stdout == "{'dux'}\n"


def test_a_signal_that_meets_an_import_in_a_study_is_raised_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meets_a_signal.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.3)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def interrupted() -> None:
        import meets_a_signal

        assert meets_a_signal.whole
        time.sleep(60.0)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with catch_ctrl_c(), pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert sys.modules["meets_a_signal"].whole


def test_an_end_at_once_leaves_neither_halves_of_files_nor_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def ends_at_once(file: int) -> None:
        assert len(list(tmp_path.iterdir())) == 3
        remove_scratch()
        assert list(tmp_path.iterdir()) == [tmp_path / "whole"]
        raise KeyboardInterrupt

    (tmp_path / "whole").write_text("as it was")
    monkeypatch.setattr("os.fsync", ends_at_once)
    with scratch_folder() as folder:
        (folder / "something").write_text("of no use")
        with pytest.raises(KeyboardInterrupt):
            write_whole(tmp_path / "whole", "half")
    assert (tmp_path / "whole").read_text() == "as it was"
