"""Every command interrupted at random moments: does it say so in one line, with code 130? Writes docs/interrupts.md.

    python benchmarks/interrupts.py                 # twenty minutes on two cores; continues where it was interrupted
    python benchmarks/interrupts.py --minutes 10    # nothing new after that
    python benchmarks/interrupts.py --quick         # each command once; writes no document
    python benchmarks/interrupts.py --table         # only writes the document, from existing results

Each command is first run without interruption, to see how long it takes. Then SIGTERM, or SIGINT to its process group
as a terminal sends it, arrives at moments drawn uniformly from that time, counted from when Python starts running
`dux.py`: the few hundredths of a second in which Python itself starts are not Dux's. An interrupted study is resumed to
its end.
"""

import json
import math
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, Line, arguments, commit, hardware, mean, read
from processes import TASK, Command, alive, descendants, run

DOCUMENT = ROOT / "docs" / "interrupts.md"
ROUNDS = 3
STUDY = f"""
name: small
{TASK}
space:
  student.width: {{low: 0.125, high: 0.5, step: 0.125}}
  transfer: [none, factor]
  factor.paraphraser_steps: 400
  factor.rate: [0.5, 1.0]
  training.epochs: 4
  training.batch_size: 16
search: {{trials: 4, concurrent: 2, sampler: random, seed: 0, curve: false}}
"""

COMMANDS = {
    "--help": ("--help",),
    "methods": ("methods",),
    "init": ("init", "written.yaml"),
    "status": ("status", "--home", "HOME"),
    "status NAME": ("status", "small", "--home", "HOME"),
    "front": ("front", "small", "--home", "HOME", "--html", "front.html", "--png", "front.png"),
    "check": ("check", "study.yaml"),
    "export": ("export", "small", "--home", "HOME", "--out", "exported"),
    "delete": ("delete", "small", "--home", "HOME", "--yes"),
    "ui": ("ui", "--home", "HOME", "--port", "0"),
    "search": ("search", "study.yaml", "--home", "HOME"),
    "resume": ("resume", "small", "--home", "HOME"),
}
"""What is typed, by what it is called here; HOME is a home of its own."""
STUDIES = ("search", "resume")
BEGUN = ("search", "check", "init", "--help", "methods")
"""Commands that want no study."""
UI_S = 4.0
"""How long `dux ui`, which has no end of its own, is left to serve, at most."""
PARTS = re.compile(r"/\.[^/]*\.[0-9a-f]{32}$|/temporary/dux-[^/]*$")
"""What a command has begun to write and not put into its place."""


class Stand:
    """What commands are carried out on.

    Args:
        folder: for the homes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.finished = folder, folder / "finished"
        (folder / "study.yaml").write_text(STUDY)
        done = run("search", "study.yaml", "--home", str(self.finished), folder=folder)
        while done.returncode == 130:  # a machine that is too busy for Ray
            done = run("resume", "small", "--home", str(self.finished), folder=folder)
        assert done.returncode == 0, done.stderr
        self.seconds: dict[str, float] = {}

    def home(self, name: str) -> Path:
        """A home that the command may work on, and the folder that it is carried out in is the home's own."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copy(self.folder / "study.yaml", place)
        (place / "temporary").mkdir()
        if name == "resume":
            began = Command(place, *COMMANDS["search"][:-1], str(place / "home"))
            while began.running and not any((place / "home").glob("studies/small/trials/*")):
                time.sleep(0.05)
            began.interrupt()
            began.process.wait(600)
        elif name not in BEGUN:
            shutil.copytree(self.finished, place / "home")
        return place

    def begin(self, name: str, place: Path) -> Command:
        """The command, as soon as Python is about to carry out what is ours."""
        command = Command(
            place,
            *(str(place / "home") if word == "HOME" else word for word in COMMANDS[name]),
            settings={"TMPDIR": str(place / "temporary")},
        )
        while command.running and not _catches(command.process.pid):
            time.sleep(0.001)
        return command

    def duration(self, name: str) -> float:
        """How long the command takes where nothing interrupts it, from that moment on."""
        if name not in self.seconds:
            command = self.begin(name, self.home(name))
            began = time.monotonic()
            while name == "ui" and command.running and "until Ctrl-C" not in command.out:
                time.sleep(0.05)
            self.seconds[name] = time.monotonic() - began + UI_S if name == "ui" else math.nan
            if name == "ui":
                command.interrupt()
            code = command.process.wait(600)
            if name != "ui":
                assert code == 0, command.err
                self.seconds[name] = time.monotonic() - began
        return self.seconds[name]


def _catches(pid: int) -> bool:
    """Whether the process has a handler of its own for SIGTERM."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def interrupt(stand: Stand, name: str, by: signal.Signals, share: float) -> Line:
    """Carry out a command, interrupt it after this share of its time, and see what comes of it."""
    moment, place = share * stand.duration(name), stand.home(name)
    command = stand.begin(name, place)
    began = time.monotonic()
    while command.running and time.monotonic() < began + moment:
        time.sleep(0.002)
    was_running, children = command.running, descendants(command.process.pid)
    sent = time.monotonic()
    if was_running:
        if by is signal.SIGINT:
            command.interrupt()
        else:
            os.kill(command.process.pid, by)
    code = command.process.wait(600)
    seconds = time.monotonic() - sent
    faults = []
    if was_running:
        lines = command.err.splitlines()
        if code != 130:
            faults.append(f"ended with {code}")
        if len(lines) != 1 or not re.match(r"dux: (interrupted|stopped)", lines[0]):
            faults.append(f"said {command.err.strip()[-500:] or 'nothing'!r}")
        deadline = time.monotonic() + 15.0
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.2)
        faults += [f"process {pid} is left" for pid in children if alive(pid)]
        faults += [f"{path.relative_to(place)} is left" for path in place.rglob("*") if PARTS.search(str(path))]
        if name in STUDIES:
            again = "resume" if (place / "home" / "studies" / "small" / "study.json").exists() else "search"
            words = [str(place / "home") if word == "HOME" else word for word in COMMANDS[again]]
            done = run(*words, folder=place)
            if done.returncode:
                faults.append(f"`dux {again}` ended with {done.returncode}: {done.stderr.strip()[-300:]}")
            elif (
                "4/4 trials done, 0 of them failed"
                not in run("status", "small", "--home", str(place / "home"), folder=place).stdout
            ):
                faults.append("the study did not come to its end")
    shutil.rmtree(place, ignore_errors=True)
    return {"moment": moment, "was_running": was_running, "code": code, "seconds": seconds, "faults": faults}


@dataclass(frozen=True)
class Job:
    """One interruption."""

    name: str
    by: signal.Signals
    round: int
    share: float

    @property
    def key(self) -> str:
        """In the file of results."""
        return f"{self.name} {self.by.name} {self.round}"


def jobs(rounds: int) -> Iterator[Job]:
    """Both signals for every command in each round; a command's moments are spread over its time. Studies, whose ends
    take long, come last."""
    for names in (COMMANDS.keys() - {*STUDIES}, STUDIES):
        for round in range(rounds):
            for name in (name for name in COMMANDS if name in names):
                draw = random.Random(f"{name} {round}")
                for by in (signal.SIGTERM, signal.SIGINT):
                    yield Job(name, by, round, (round + draw.random()) / rounds)


def document(results: Sequence[Line]) -> str:
    """The table, in Markdown."""
    sent = [line for line in results if line["was_running"]]
    rows = []
    for name in [*COMMANDS, "all together"]:
        of = [line for line in sent if name in (line["name"], "all together")]
        if of:
            well = sum(not line["faults"] for line in of)
            moments = [line["moment"] for line in of]
            rows.append(
                f"| {'' if name.startswith('all') else 'dux '}{name} | {len(of)} | {min(moments):.1f} to "
                f"{max(moments):.1f} | {well} | {mean(line['seconds'] for line in of):.2f} "
                f"| {max(line['seconds'] for line in of):.2f} |"
            )
    faults = [f"- {line['key']}, {line['moment']:.2f} s: {fault}" for line in sent for fault in line["faults"]]
    return "\n".join(
        [
            "# Commands, interrupted",
            "",
            "Written by `python benchmarks/interrupts.py`. Every command is interrupted at random moments, "
            "alternately by SIGTERM and SIGINT (Ctrl-C). It passes if it exits with code 130 and exactly one line, on "
            "standard error; leaves no process and no half-written file; and a study then continues to its end with "
            "all its trials, by `dux resume` or, if it had not begun, by the same command. For kills see "
            "[kills.md](kills.md).",
            "",
            f"- {len(sent)} interruptions; {len(results) - len(sent)} more came after the command had ended.",
            f"- {hardware(results)}.",
            "",
            "| command | interrupted | s after its start | passed | s until its end, mean | at most |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "Dux cannot handle signals that arrive while Python itself starts, before it runs `dux.py`.",
            "",
            *(faults or ["No faults."]),
            "",
        ]
    )


def main() -> None:
    """The command."""
    given = arguments(
        "Every command interrupted at random moments.",
        lambda parser: parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after that"),
    )
    path = given.home / f"interrupts{'_quick' if given.quick else ''}.jsonl"
    done, began = read(path, "key"), time.monotonic()
    left = [] if given.table else [job for job in jobs(1 if given.quick else ROUNDS) if job.key not in done]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        stand = Stand(Path(folder)) if left else None
        for job in left:
            if stand is None or time.monotonic() - began > 60 * given.minutes:
                break
            line = {"key": job.key, "name": job.name, **interrupt(stand, job.name, job.by, job.share)}
            with path.open("a") as file:
                file.write(json.dumps({**line, "commit": commit()}) + "\n")
            print(f"{job.key}: {line['moment']:.2f} s: {line['faults'] or 'all is well'}", flush=True)
    if results := list(read(path, "key").values()):
        text = document(results)
        if not given.quick:
            DOCUMENT.write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
