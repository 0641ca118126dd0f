"""The Ray that a study starts on this machine: who may talk to it, and what becomes of the study when Ray does not
start or a part of it is killed. One study, ended several times and gone on with.

What becomes of Ray when the study is killed is in test_sessions.py.
"""

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import pytest
from kills import named
from processes import TASK, Command, alive, descendants
from running import Said, wait_for

STUDY = f"""
name: local
{TASK}
space: {{student.width: 0.25, training.epochs: 2000, training.batch_size: 16}}
search: {{trials: 1}}
"""
SOON_S = 15.0

pytestmark = pytest.mark.timeout(600)


class Story:
    """The study, and what its sessions leave."""

    def __init__(self, home: Path, start: Callable[..., Command]) -> None:
        self.folder, self.home, self._start = home.parent, home, start
        (self.folder / "study.yaml").write_text(STUDY)

    def begin(self, settings: Mapping[str, str] = MappingProxyType({})) -> Command:
        what = ("resume", "local") if (self.home / "studies").exists() else ("search", str(self.folder / "study.yaml"))
        return self._start(*what, "--home", str(self.home), settings={"HOME": str(self.folder), **settings})

    def session(self, until: str = "ray::ImplicitFunc.") -> tuple[Command, dict[int, str]]:
        """The study at work on its trial, or come as far as another program, and the processes that it has started."""
        command = self.begin()
        processes: dict[int, str] = {}

        def at_work() -> bool:
            processes.update(named(descendants(command.process.pid)))
            return any(until in called for called in processes.values())

        wait_for(lambda: at_work() or not command.running, "a trial")
        assert command.running, command.err
        return command, {pid: called for pid, called in processes.items() if alive(pid)}

    def ended(self, command: Command, processes: dict[int, str]) -> None:
        """Soon, in one line that says how to go on, and nothing is left."""
        began = time.monotonic()
        wait_for(lambda: not command.running, "the end", 60.0)
        assert time.monotonic() - began < SOON_S
        assert (command.process.returncode, command.out) == (130, "")
        assert re.fullmatch(
            r"\n?dux: stopped.*, because Ray's own processes on this machine died; "
            rf"`dux resume local --home {re.escape(str(self.home))}` continues\n",
            command.err,
        ), command.err
        self.nothing_is_left(processes)

    def nothing_is_left(self, processes: dict[int, str]) -> None:
        wait_for(lambda: not any(map(alive, processes)), f"the end of {processes}", SOON_S)


def test_a_local_ray_is_nobody_elses_and_a_study_ends_in_one_line_whichever_part_of_it_fails(
    home: Path, start: Callable[..., Command], dux: Callable[..., Said]
) -> None:
    story = Story(home, start)
    resume = f"`dux resume local --home {home}` continues"

    # where Ray does not start
    command = story.begin({"RAY_TMPDIR": "/dev/null/there"})
    wait_for(lambda: not command.running, "the end")
    assert (command.process.returncode, command.out) == (1, "")
    assert command.err.startswith("dux: stopped after 0 of 1 trials, because Ray did not start ([Errno 20] ")
    assert command.err.endswith(f"; {resume}\n")
    assert command.err.count("\n") == 1
    assert dux("status", "local", "--home", home)[1].startswith("local: interrupted; 0/1 trials done")

    # SIGTERM while it starts
    command, processes = story.session("/gcs_server ")
    command.process.terminate()
    wait_for(lambda: not command.running, "the end", 120)
    assert (command.process.returncode, command.out) == (130, "")
    assert command.err == f"dux: stopped after 0 of 1 trials; {resume}\n"
    story.nothing_is_left(processes)
    assert dux("status", "local", "--home", home)[1].startswith("local: interrupted; 0/1 trials done")

    command, processes = story.session()
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    where = [
        line.split()[3].rpartition(":")[0]
        for line in listening
        if {int(pid) for pid in re.findall(r"pid=(\d+)", line)} & {command.process.pid, *processes}
    ]
    assert len(where) > 3
    assert {*where} <= {"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"}
    token = story.folder / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600

    for pid, called in processes.items():
        if "/gcs_server " in called:
            os.kill(pid, signal.SIGKILL)
    story.ended(command, processes)

    command, processes = story.session()
    for pid, called in processes.items():
        if "Agent" in called:
            os.kill(pid, signal.SIGKILL)
    story.ended(command, processes)

    # while it starts: its server, then all that is there when its daemon is
    for until in ("/gcs_server ", "/raylet/raylet "):
        command, processes = story.session(until)
        for pid, called in processes.items():
            if until in called or ("raylet" in until and "ray" in called and "guard.py" not in called):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        story.ended(command, processes)
