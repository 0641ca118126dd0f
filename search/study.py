"""The study: many trials towards one front, resumable by its name. What the command line does is one call here."""

import fcntl
import importlib.util
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, Self

from filelock import FileLock, Timeout

from search.constraints import broken
from search.front import Entry, Front
from search.home import check_ray_folders, default_home, ledger_url, make_writable, shown_database
from search.ledger import Ledger, Line, Outcome, delete, grouped, in_ledger, lost_database, read_lines, why_lost
from search.locks import told_of_locks
from search.machine import check_loopback, usable_cpus
from search.pareto import Axis
from search.remarks import remarks
from search.secrets import redacted, sqlite_url, without_secrets
from search.selection import select
from search.signals import ctrl_c_is_kept, end, raise_if_pressed
from search.stopping import Halving
from search.study_file import StudyFile, check_name, find_modules_in, is_name
from search.tracking import ANSWER_S, Refused, Tracker, event_of, find_runs
from spaces import BadInput, Choice, Recipe, Space
from spaces.errors import known, shown
from trainers.files import (
    Damaged,
    check_hashes,
    check_kind,
    curve_folder,
    digest,
    listing,
    read_whole,
    sealed,
    sha256,
    unsealed,
    write_whole,
)
from trainers.metrics import TIMED

if TYPE_CHECKING:  # torch takes seconds, and a gigabyte, which looking at a study should not need
    from trainers.task import Task
    from trainers.transfer import Needs

FLUSH_S = 45.0
"""How long a study waits for MLflow at its end, in all; what is not sent by then goes out with `dux resume`."""
_SILENT_S = 3.0
"""How long of that without a word."""
_TRIAL_EVENTS = ("trial_started", "trial_finished")


_FILES = (
    *("study.json", "task.json", "data.json", "ledger.txt", "ledger.jsonl"),
    *("spool.jsonl", "spool.sent", "spool.refused.jsonl", "runs.json"),
    *("front.json", "front.html", "front.png"),
)
"""That a study's own folder may hold."""
_FOLDERS = ("trials", "checkpoints")
_SIGNS = ("study.json", "task.json", "ledger.jsonl", "trials")
"""That a folder is a study's: one of them is there."""


class AllFailed(RuntimeError):
    """Every trial of the study failed; the message has the reasons, grouped."""


class ExportRefused(RuntimeError):
    """The student's files, or the exported one, are not what was measured, or cannot be written; nothing was."""


class LedgerGone(BadInput):
    """The study's ledger is not where it was; the message says how to rebuild it."""


class RecordGone(BadInput):
    """What the study knows of its teacher is not there any more; the message says how to have it again."""


class LedgerLost(ConnectionError):
    """The ledger's database went away in mid-study; the message says how to go on."""


class Interrupted(RuntimeError):
    """The study was told to stop before it was finished; the message says how to go on."""


class NotStarted(Interrupted):
    """Ray, which carries trials out, does not start on this machine; the message says why."""


@dataclass(frozen=True)
class Progress:
    """How a study stands."""

    phase: str
    """What is going on, in words."""
    trials: int
    """How many were asked for."""
    done: int
    failed: int
    """Of those done."""
    stopped: int
    """Of those done: stopped early."""
    running: int
    """Trials and repeats."""
    best: Mapping[str, float]
    """Of the front's best member on the first objective; empty before there is one."""
    front_size: int
    hypervolume: float
    seconds_left: float | None
    """None while no trial is done."""
    repeats: int = 0
    """How many repeats with other seeds there will be; 0 until all trials are done."""
    repeated: int = 0
    """How many of those are done."""


@dataclass(frozen=True)
class Status:
    """How a study stands, by one look at its ledger."""

    state: Literal["running", "interrupted", "finished"]
    trials: int
    """How many were asked for."""
    done: int
    repeats: int
    """How many repeats with other seeds there will be; 0 until all trials are done."""
    repeated: int
    """How many of those are done."""
    lines: tuple[Line, ...]
    front: Front | None
    """None before there is a teacher."""
    refused: Refused | None = None
    """What MLflow will never take."""
    remarks: tuple[str, ...] = ()
    """What all trials so far show to be wrong."""

    def of(self, outcome: Outcome) -> list[Line]:
        """The trials and repeats that ended so, or run; without the points of their curves."""
        return [line for line in self.lines if line.outcome == outcome and line.point is None]

    def count(self, outcome: Outcome) -> int:
        """How many trials ended so, or run, repeats excluded."""
        return sum(line.repeat is None for line in self.of(outcome))

    @property
    def repeats_failed(self) -> int:
        """Of those done."""
        return sum(line.repeat is not None for line in self.of("failed"))

    def to_json(self, study: str) -> dict[str, object]:
        """What `json.dumps` takes."""
        return {
            "study": study,
            "state": self.state,
            "trials": self.trials,
            "done": self.done,
            "failed": self.count("failed"),
            "stopped": self.count("stopped"),
            "repeats": self.repeats,
            "repeated": self.repeated,
            "repeats_failed": self.repeats_failed,
            "running": [line.trial for line in self.of("running")] if self.state == "running" else [],
            "front": [] if self.front is None else [entry.trial for entry in self.front.members],
            "hypervolume": 0.0 if self.front is None else self.front.hypervolume,
            "broke_constraints": 0 if self.front is None else self.front.broken,
            "refused_by_mlflow": 0 if self.refused is None else self.refused.count,
            "remarks": [*self.remarks],
            **({} if self.refused is None else {"first_refused": self.refused.first}),
        }


class Display(Protocol):
    """Who shows progress; called often."""

    def show(self, progress: Progress) -> None:
        """The study stands like this now."""

    def say(self, line: str) -> None:
        """Something happened that the user is to know, and that stays on the screen."""


class Silent:
    """Shows nothing."""

    def show(self, progress: Progress) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Study:
    """One study in a home folder.

    Args:
        file: what the study is.
        home: where its folder, the teachers and the local stores are.
    """

    file: StudyFile
    home: Path = field(default_factory=default_home)

    @classmethod
    def open(cls, name: str, home: Path | None = None) -> Self:
        """The study of that name.

        Raises:
            BadInput: there is none, or it is damaged.
        """
        check_name(name)
        home = home or default_home()
        names = cls.names(home)
        if name not in names:
            way_out = (
                known(names, name) if names else f"there is none yet in {home}; begin one with `dux search STUDY.yaml`"
            )
            raise BadInput(f"a study must exist to be opened, but {name!r} does not; {way_out}")
        folder = home / "studies" / name
        try:
            for kind in (_FILES, _FOLDERS):
                for entry in kind:
                    check_kind(folder / entry, folder=kind is _FOLDERS)
            try:
                file = StudyFile.from_json(read_whole(folder / "study.json").decode())
            except BadInput as error:
                raise Damaged(f"study.json describes no study: {error}") from None
            if file.name != name:
                raise Damaged(f"study.json describes {file.name!r}")
        except FileNotFoundError:
            why = "study.json is gone"
        except UnicodeDecodeError:
            why = "study.json is not text"
        except Damaged as error:
            why = str(error)
        else:
            return cls(file, home)
        raise BadInput(
            f"the files of {name!r} must be as they were written, but in {folder} {why}; "
            f"put it back, or {_command('delete', name, home)} removes the study"
        )

    @staticmethod
    def names(home: Path) -> list[str]:
        """All studies of a home folder, the damaged ones included."""
        folders = (home / "studies").glob("*")
        return sorted(f.name for f in folders if is_name(f.name) and any(os.path.lexists(f / n) for n in _SIGNS))

    @property
    def name(self) -> str:
        """The study's name."""
        return self.file.name

    @property
    def folder(self) -> Path:
        """The study's own folder."""
        return self.home / "studies" / self.name

    def command(self, verb: str) -> str:
        """What to type to do `verb` with this study, for messages; names the home where it is not the usual one."""
        return _command(verb, self.name, self.home)

    @property
    def exists(self) -> bool:
        """Whether it was ever begun."""
        return (self.folder / "study.json").is_file()

    @property
    def tracking_uri(self) -> str:
        """Where MLflow's records go."""
        return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(self.home / "mlflow.db")

    @property
    def storage(self) -> str:
        """Where the ledger is."""
        return ledger_url(self.home)

    @property
    def journal(self) -> Path:
        """What the ledger can be rebuilt from."""
        return self.folder / "ledger.jsonl"

    def _check_database(self) -> None:
        note, here = self.folder / "ledger.txt", shown_database()
        try:
            there = read_whole(note).decode(errors="backslashreplace").strip()
        except FileNotFoundError:
            return
        except Damaged as error:
            raise BadInput(f"the database of {self.name!r} must be noted, but in {self.folder} {error}") from None
        if there != here:
            noted = shown(there, 300).strip("'") or "not set"
            raise BadInput(
                f"`DUX_STORAGE` must name the database that {self.name!r} was begun with, but is "
                f"{here or 'not set'} instead of {noted}; set it so, or, where the database has moved or "
                f"is gone, correct {note}"
            )

    def ledger(self) -> Ledger:
        """The study's ledger, for the process that works on it; made where there is none.

        Raises:
            BadInput: the study was begun with a ledger in another database, or the database does not answer.
        """
        search = self.file.search
        self._check_database()
        return Ledger(
            self.storage,
            self.name,
            self.file.objectives,
            search.sampler,
            search.seed,
            self.file.space,
            self.file.constraints,
            search.curve,
            self.journal,
        )

    def search(self, *, address: str | None = None, display: Display | None = None, verbose: bool = False) -> Front:
        """Begin the study and carry it out.

        Args:
            address: of a running Ray cluster; None computes on this machine. Where the cluster's head is silent for
                20 s, Ray's calls hang, and the process ends with a line and code 130; `resume` goes on.
            display: who shows progress.
            verbose: whether Ray's and MLflow's messages are shown.

        Raises:
            BadInput: a study of this name exists, or its data do not.
            Interrupted: it was told to stop; `resume` goes on.
            AllFailed: no trial succeeded.
            LedgerLost: the ledger's database went away.
        """
        if self.exists:
            raise BadInput(
                f"a new study must have a new name, but {self.name!r} exists in {self.home}; "
                f"{self.command('resume')} goes on with it, another `name:` begins anew"
            )
        if self.file.search.start_from is not None:
            self.earlier(self.file.search.start_from)
        data, display = self.file.task.load_data(), display or Silent()
        self.file.check_pairs(data)  # told now, before anything is written
        for note in data.notes:
            display.say(f"data: {note}")
        return self._run(address, display, verbose)

    def earlier(self, name: str) -> Self:
        """The study that this one starts from.

        Raises:
            BadInput: there is none of that name, or it has another task.
        """
        found = type(self).open(name, self.home)
        if found.file.task != self.file.task:
            raise BadInput(f"`search.start_from` must be a study of the same task, but {name!r} has another `task`")
        return found

    def resume(
        self,
        trials: int | None = None,
        *,
        address: str | None = None,
        display: Display | None = None,
        verbose: bool = False,
    ) -> Front:
        """Go on with a study after any interruption; a finished one is left as it is and its front returned.

        Args:
            trials: how many there are to be in all from now on; None leaves it at what was asked for.
            address: as in `search`.
            display: as in `search`.
            verbose: as in `search`.

        Raises:
            BadInput: another process works on it, or more trials are done than there are to be.
            Interrupted: it was told to stop again.
            AllFailed: no trial succeeded.
            LedgerLost: the ledger's database went away.
        """
        if trials is None or trials == self.file.search.trials:
            return self._run(address, display or Silent(), verbose)
        with suppress(LedgerGone):
            if trials < (done := sum(line.counts for line in self.lines())):
                raise BadInput(f"`--trials` must be at least the {done} that are done, but got {trials}; leave it out")
        search = self.file.search.model_copy(update={"trials": trials})
        longer = replace(self, file=self.file.model_copy(update={"search": search}))
        return longer._run(address, display or Silent(), verbose, carried_on=True)

    def front(self, run_ids: Mapping[int, str] | None = None, lines: Sequence[Line] | None = None) -> Front:
        """The front of what has finished so far.

        Args:
            run_ids: trial -> MLflow run, for the members.
            lines: the ledger's, where they have just been read.
        """
        axes = self.axes()
        lines = self.lines() if lines is None else lines
        complete = [line for line in lines if line.outcome == "complete" and line.repeat is None]
        kept = [line for line in complete if not broken(self.file.constraints, line.measurements)]
        entries = self._entries(run_ids or {}, kept, [line for line in lines if line.repeat is not None and line.ended])
        return Front.of(entries, self.file.objectives, axes, len(complete) - len(kept))

    def repeats(self, lines: Sequence[Line]) -> list[tuple[int, int]]:
        """Which trials are repeated with other seeds, and which repeat it is: of each trial that a student on the front
        comes from, all but one of `search.seeds`. None before the trials asked for are done, since only then the front
        is settled; a repeat never changes it.

        Args:
            lines: the ledger's.
        """
        seeds = self.file.search.seeds
        if seeds == 1 or sum(line.counts for line in lines) < self.file.trials:
            return []
        members = self.front(lines=lines).members
        trials = sorted({entry.trial if entry.curve_of is None else entry.curve_of for entry in members})
        return [(trial, repeat) for repeat in range(1, seeds) for trial in trials]

    def repeats_left(self, lines: Sequence[Line]) -> list[tuple[int, int]]:
        """Those of `repeats` that neither ended nor run."""
        there = {line.repeat for line in lines if line.point is None and (line.ended or line.outcome == "running")}
        return [repeat for repeat in self.repeats(lines) if repeat not in there]

    def status(self) -> Status:
        """How the study stands now."""
        at_work = self.at_work  # looked at first: what ends in between is rather called running than cut short
        lines = self.lines()
        done, front = sum(line.counts for line in lines), None
        if (self.folder / "task.json").exists() or any(line.ended for line in lines):  # else it has no teacher yet
            front = self.front(lines=lines)
        repeats = [] if front is None else self.repeats(lines)
        repeated = sum(line.repeat in repeats and line.ended and line.point is None for line in lines)
        ended = done >= self.file.trials and repeated == len(repeats)
        state: Literal["running", "interrupted", "finished"] = (
            "running" if at_work else "finished" if ended else "interrupted"
        )
        refused, said = Refused.of(self.folder), tuple(remarks(lines, self.file.constraints).values())
        return Status(state, self.file.trials, done, len(repeats), repeated, tuple(lines), front, refused, said)

    def axes(self) -> list[Axis]:
        """The objectives, from what is worth nothing to what nothing can beat."""
        record = self.task_record()
        return [
            Axis.of_metric(name, direction, record["teacher"], record["classes"])
            for name, direction in self.file.objectives.items()
        ]

    def run_ids(self, timeout_s: float = ANSWER_S, say: Callable[[str], object] = lambda line: None) -> dict[int, str]:
        """Trial -> MLflow run, as far as MLflow has them.

        Args:
            timeout_s: how long MLflow may take to answer, where it has to be asked.
            say: told in a line if it does not answer.
        """
        try:
            runs = find_runs(self.folder, self.name, self.tracking_uri, timeout_s)
        except ConnectionError as error:
            say(f"{error}; the MLflow runs of students are left out")
            return {}
        return {} if runs is None else runs.run_ids

    def task_record(self) -> dict[str, Any]:
        """What the study knows of its task: key, classes, image_shape, the teacher's measurements, the data."""
        try:
            record = unsealed(self.folder / "task.json")
            if not _is_task_record(record):
                raise Damaged("task.json is no record of a task")
            return record
        except FileNotFoundError:
            if (self.folder / "trials").exists():
                raise RecordGone(
                    f"the files of {self.name!r} must be as they were written, but in {self.folder} task.json is gone; "
                    f"{self.command('resume')} writes it anew"
                ) from None
            raise BadInput(
                f"study {self.name!r} must have its teacher before it has a front, but was stopped earlier; "
                f"{self.command('resume')} goes on"
            ) from None
        except Damaged as error:
            raise BadInput(
                f"the files of {self.name!r} must be as they were written, but in {self.folder} {error}; put it back, "
                f"or delete it, and {self.command('resume')} writes it anew"
            ) from None

    def check_data(self, key: str) -> None:
        """Whether the task is the one that the study's trials learned from, by `trainers.task.key_of` it.

        Raises:
            BadInput: it is another, since its data were changed; the message names files, where they are the user's.
        """
        if not (self.folder / "task.json").exists() or self.task_record()["key"] == key:
            return
        root, found = self.file.task.root, ""
        with suppress(FileNotFoundError, Damaged):
            before, now = unsealed(self.folder / "data.json"), listing(Path(root or "."))
            changed = [
                f"{name} is {'new' if name not in before else 'gone' if name not in now else 'another'}"
                for name in sorted(before.keys() | now.keys())
                if before.get(name) != now.get(name)
            ]
            found = ": " + ", ".join(changed[:3]) + (f", and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise BadInput(
            f"the data of {self.name!r} must be those that its trials learned from, but {root or 'its data set'} was "
            f"changed{found}; put it back, or begin anew under another name"
        )

    def trial_folder(self, trial: int) -> Path:
        """Where a trial's files are."""
        return self.folder / "trials" / str(trial)

    def check_student(self, entry: Entry) -> None:
        """Whether a student's files are those that its worker wrote; without torch, so that a refusal comes at once.

        Raises:
            ExportRefused: they are not, or nobody can say.
        """
        assert entry.folder is not None
        if not entry.files:
            raise ExportRefused(
                f"the files of {entry.called} must be known by their hashes, but an earlier Dux recorded none; "
                "run the study again, under another name"
            )
        try:
            check_hashes(entry.folder, entry.files)
        except (Damaged, FileNotFoundError) as error:
            why = error if isinstance(error, Damaged) else f"{Path(error.filename).name} is gone"
            raise ExportRefused(f"the files of {entry.called} must be those that were measured, but {why}") from None

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints of trials that have not ended are, each by the first trial that had the recipe."""
        return self.folder / "checkpoints"

    def line_folder(self, line: Line) -> Path:
        """Where the files of a line of the ledger are: a trial's, or of a point of its curve."""
        if line.point is None:
            return self.trial_folder(line.trial)
        trial, place = line.point
        return self.trial_folder(trial) / curve_folder(place)

    def lines(self) -> list[Line]:
        """Every trial of the ledger; a look that writes nothing.

        Raises:
            LedgerGone: the study had a ledger that is not there any more, or lacks trials.
            BadInput: as in `ledger`.
        """
        self._check_database()
        folders = [int(folder.name) for folder in (self.folder / "trials").glob("*") if folder.name.isdecimal()]
        lines = read_lines(self.storage, self.name)
        if (lines is None and self.journal.exists()) or max(folders, default=-1) > max(
            (line.trial for line in lines or ()), default=-1
        ):
            raise LedgerGone(
                f"the ledger of {self.name!r} must be in {without_secrets(self.storage)}, but "
                f"{'is' if lines is None else 'some of it is'} not there any more; "
                f"{self.command('resume')} rebuilds it from the study's files"
            )
        return lines or []

    @property
    def at_work(self) -> bool:
        """Whether a process works on the study now; a look, which somebody who may not write can take, too."""
        try:
            with self._lock_file.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _check_machine(self) -> None:
        """Raise BadInput where a trial wants more than this machine has: it would wait for ever, or fail."""
        check_ray_folders()
        check_loopback()
        import torch

        search, cpus = self.file.search, usable_cpus()
        if search.cpus > cpus:
            raise BadInput(
                f"`search.cpus` must be at most the {cpus} that this process may use here, but got {search.cpus}; "
                "lower it, or name a cluster by --address"
            )
        if search.gpus and not torch.cuda.is_available():
            raise BadInput(
                f"`search.gpus` must be 0 on a machine without a GPU that torch can use, but got {search.gpus:g}; "
                "set it to 0, or name a cluster by --address"
            )

    def _check_name_is_free(self) -> None:
        """Raise BadInput where a study that is to begin would come upon what is left of another."""
        if self.exists:
            return
        if in_ledger(self.storage, self.name):
            raise BadInput(
                f"a new study must have a new name, but the ledger knows a {self.name!r} whose folder is gone; "
                f"{self.command('delete')} has it forgotten, another `name:` begins anew"
            )
        if self.journal.exists() or (self.folder / "trials").exists():
            raise BadInput(
                f"a new study must have a new name, but {self.folder} holds trials of an earlier {self.name!r}; "
                f"{self.command('delete')} removes them, another `name:` begins anew"
            )

    def _end_at_once(self, why: str) -> NoReturn:
        """End the process, as a kill would: Ray's calls hang, and would end it later. The ledger has what ended."""
        end(f"stopped, because {why}; {self.command('resume')} goes on")

    def _lock(self) -> FileLock:
        return FileLock(self._lock_file)

    @property
    def _lock_file(self) -> Path:
        return self.folder / ".driver.lock"

    def _entries(self, run_ids: Mapping[int, str], lines: Sequence[Line], repeats: Sequence[Line]) -> list[Entry]:
        """The students of `lines`; `repeats`: those that ended, their points included."""
        failed = Counter(line.repeat[0] for line in repeats if line.repeat is not None and line.outcome == "failed")
        again: dict[tuple[int, int | None], list[Mapping[str, float]]] = {}
        for line in repeats:
            if line.repeat is not None and line.outcome == "complete":
                place = None if line.point is None else line.point[1]
                again.setdefault((line.repeat[0], place), []).append(line.measurements)
        return [
            Entry(
                line.trial,
                line.recipe.flat(),
                line.measurements,
                run_ids.get(line.trial),
                self.line_folder(line),
                None if line.point is None else line.point[0],
                tuple(again.get((line.trial, None) if line.point is None else line.point, ())),
                failed[line.trial if line.point is None else line.point[0]],
                line.files,
            )
            for line in lines
            if line.recipe is not None
        ]

    def _run(self, address: str | None, display: Display, verbose: bool, carried_on: bool = False) -> Front:
        self.file.task.check()
        if address is None:
            self._check_machine()
        if os.environ.get("DUX_STORAGE"):
            in_ledger(self.storage, self.name)  # a database that does not answer is told before anything is written
        with ExitStack() as stack:
            if address is not None:  # joined first: an address where nothing answers is told before anything is written
                from search import workers

                joined = workers.cluster(
                    address, cpus=0, gpus=0.0, store_bytes=0, verbose=verbose, on_death=self._end_at_once
                )
                stack.enter_context(joined)
            self._check_name_is_free()  # before anything is written, and again under the lock
            make_writable(self.folder, self.home)
            try:
                stack.enter_context(self._lock().acquire(timeout=0.5))  # `at_work` holds it for a moment, too
            except Timeout:
                raise BadInput(
                    f"one process at a time may work on a study, but another works on {self.name!r}; "
                    f"{self.command('status')} shows it"
                ) from None
            self._check_name_is_free()
            new = not self.exists
            try:
                if new:
                    write_whole(self.folder / "ledger.txt", shown_database())
                if new or carried_on:
                    write_whole(self.folder / "study.json", self.file.to_json())
            except OSError:
                if new:
                    shutil.rmtree(self.folder, ignore_errors=True)
                raise
            stack.enter_context(ctrl_c_is_kept())
            try:
                session = _Session(self, display, verbose)
                stack.enter_context(told_of_locks(session.locked))
                return session.run(address)
            except BadInput:
                if new and not self.lines():  # nothing was tried: the name stays free for the corrected file
                    delete(self.storage, self.name)
                    shutil.rmtree(self.folder)
                raise
            except Exception as error:
                if (lost := lost_database(error)) is None:
                    raise
                # whatever else was under way: nothing can be recorded
                raise LedgerLost(
                    f"the ledger's database does not work any more ({redacted(why_lost(lost), self.storage)}); "
                    f"{self.command('resume')} goes on when it does"
                ) from error
            except KeyboardInterrupt:  # while it waited for the ledger, or told to stop once more
                raise Interrupted(f"stopped; {self.command('resume')} goes on") from None


class _Session:
    """One process at work on a study: it is the watcher of the trials, and tells MLflow and the display."""

    def __init__(self, study: Study, display: Display, verbose: bool) -> None:
        self._study, self._display, self._verbose = study, display, verbose
        self._tracker = Tracker(study.folder, study.name, study.tracking_uri)
        self._ledger = study.ledger()
        self._phase = "checking"
        self._running: dict[int, float] = {}
        """Trial -> share of it that is done."""
        self._front: Front | None = None
        self._told_members: set[int] = set()
        """Those on the front by what MLflow was told last."""
        self._told_ends: set[int] = set()
        """Of which trials and points MLflow was told the end, in this session or an earlier one."""
        self._done = self._failed = self._stopped = 0
        self._done_before = 0
        self._repeats: list[tuple[int, int]] = []
        """That are to be carried out, those done included."""
        self._repeated = 0
        """How many are done."""
        self._began = time.monotonic()
        self._shown = 0.0
        self._waits_until: float | None = None
        """For MLflow, at the end; None before."""
        self._remarked: set[str] = set()
        """What was said of all trials so far."""
        self._stopped_by = Interrupted
        """What the study raises where it ends early."""
        self._gave_up = False
        """Whether Ctrl-C ended that."""

    def run(self, address: str | None) -> Front:
        """The whole study, or what is left of it."""
        trials, go_on = self._study.file.trials, f"{self._study.command('resume')} goes on"
        why = ""
        try:
            self._restore_ledger()
            self._tell_the_sampler()
        except BadInput:
            self._tracker.close(0.0)
            raise
        again = self._ledger.reconcile(self._finished)
        self._drop_checkpoints(self._count())
        # without its record the front is not known: it is written anew on the way
        complete = self._is_complete() and not again and (self._study.folder / "task.json").exists()
        if not (complete and self._is_written()):
            try:
                if complete:
                    self._start_telling()  # killed between the last trial and the front
                else:
                    why = self._carry_out(address)
            except (KeyboardInterrupt, SystemExit):
                pass  # Ctrl-C outside of Tune's own loop, or SIGTERM while Ray started: it exits then
            except BadInput:
                self._tracker.close(0.0)
                raise
            finally:
                self._ledger.reconcile(self._finished)  # what is still open was cut short; it is queued for next time
            self._count()
            complete = self._is_complete()
            if not (self._study.folder / "task.json").exists():
                self._tracker.close(1.0)
                raise Interrupted(f"stopped before the first trial; {go_on}")
            self._finish("FINISHED" if complete else "KILLED")
        elif self._await_mlflow() == 0 and self._has_other_runs():  # it has now what it had not at the study's end
            self._finish("FINISHED")
        unsent = self._await_mlflow()
        self._tracker.close(0.0)
        if refused := Refused.of(self._study.folder):
            self._display.say(str(refused))
        left = f"MLflow has not taken {unsent} event{'s' if unsent > 1 else ''} ({self._tracker.in_the_way})"
        if not complete:
            repeats = f" and {self._repeated} of {len(self._repeats)} repeats" if self._repeats else ""
            why += f"; {left}" if unsent else ""
            raise self._stopped_by(f"stopped after {self._done} of {trials} trials{repeats}{why}; {go_on}")
        if unsent and self._gave_up:
            raise Interrupted(f"stopped waiting; all trials are done, but {left}; {self._sends_the_rest}")
        if unsent:
            self._display.say(f"{left}; {self._sends_the_rest}")
        front = self._study.front(self._run_ids())
        if not front.entries and not front.broken:
            reasons = grouped([line for line in self._ledger.lines() if line.outcome == "failed"])
            ended = "failed" if not self._stopped else "failed or were stopped early"
            why = "; ".join(f"{len(which)} x {reason}" for reason, which in reasons[:3])
            others = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
            raise AllFailed(f"all {self._done} trials {ended}: {why}{others}")
        return front

    def _restore_ledger(self) -> None:
        """Have the ledger know again what the study's files know."""
        study = self._study
        events = [event for event in self._told() if event.get("event") in (*_TRIAL_EVENTS, "curve_measured")]
        told = [row["trial"] for event in events for row in (event, *event.get("points", ()))]
        self._told_ends = {event["trial"] for event in events if event["event"] == "trial_finished"}
        run_ids = study.run_ids() if told else {}
        if self._ledger.restore(study.folder / "trials", max([*told, *run_ids], default=-1) + 1):
            self._ledger.note_runs(run_ids)

    def _tell_the_sampler(self) -> None:
        """What to try first, and what an earlier study found."""
        study, search = self._study, self._study.file.search
        if search.start_from is not None and not self._ledger.has_learned:
            earlier = study.earlier(search.start_from)
            if not self._ledger.learn_from(earlier.name, earlier.lines()):
                raise BadInput(
                    f"`search.start_from` must be a study with a finished trial whose recipe is in this space, but "
                    f"{earlier.name!r} has none; leave it out"
                )
        self._ledger.try_first(search.first)

    def _carry_out(self, address: str | None) -> str:
        """All that Ray is needed for; returns why it ended early, where that is for the user to know."""
        self._find_own_code()
        from trainers.knowledge import Knowledge
        from trainers.loop import Diverged
        from trainers.store import weights_bytes
        from trainers.task import Task
        from trainers.transfer import StageFailed

        file, search = self._study.file, self._study.file.search
        self._now("reading the data, looking for the teacher")
        epochs = file.task.teacher.epochs * file.task.teacher.members

        def on_epoch(epoch: int, loss: float) -> None:
            raise_if_pressed()
            self._now(f"training the teacher: epoch {epoch} of {epochs}")

        try:
            task = Task.load(file.task, self._study.home, on_epoch, self._check_data)
        except Diverged as error:
            raise BadInput(f"`task.teacher` must be one that can be trained, but {error}") from None
        weights = sha256(weights_bytes(task.teacher))
        self._check_teacher(weights)
        record = {
            "key": task.key,
            "classes": task.data.classes,
            "class_names": list(task.data.class_names),
            "image_shape": list(task.data.image_shape),
            "images": {"colour": task.data.colour, "preparation": task.data.preparation},
            "notes": list(task.data.notes),
            "teacher": {**task.teacher_measurements, **self._teacher_latency(task)},
            "teacher_sha256": weights,
            "data": _described(task),
        }
        if file.task.root is not None and not self._ledger.lines():
            write_whole(self._study.folder / "data.json", sealed(listing(Path(file.task.root))))
        write_whole(self._study.folder / "task.json", sealed(record))
        knowledge = Knowledge(task, self._study.home / "knowledge", say=self._display.say)
        for method in file.space.methods:
            for needs in needs_of(file.space, method):
                self._now(f"computing what students learn of the teacher by {method}")
                try:
                    knowledge.prepare(needs)
                except StageFailed as error:
                    knowledge.forget()
                    raise BadInput(
                        f"`{method}` must be possible with this teacher, but {error}; the teacher is kept"
                    ) from None
        self._check_checkpoints()
        if file.remark:
            self._display.say(file.remark)
        self._now("starting the workers")
        # imported here: Ray takes seconds, which `dux front` and bad input need not wait for
        from search import workers

        arrays = {**task.arrays(), **{f"knowledge/{name}": array for name, array in knowledge.arrays().items()}}
        self._start_telling()
        concurrent = search.at_a_time
        size = sum(array.nbytes for array in arrays.values())
        try:
            with ExitStack() as stack:
                stack.enter_context(
                    workers.cluster(
                        address,
                        cpus=concurrent * search.cpus,
                        gpus=concurrent * search.gpus,
                        store_bytes=size,
                        verbose=self._verbose,
                        on_death=self._study._end_at_once,
                    )
                )
                job = workers.Job(
                    task=file.task,
                    task_key=task.key,
                    class_names=task.data.class_names,
                    teacher_measurements=dict(task.teacher_measurements),
                    teacher_curve=task.curve,
                    trials_folder=str(self._study.folder / "trials"),
                    checkpoints_folder=str(self._study.checkpoints),
                    checkpoint_seconds=search.checkpoint_seconds,
                    knowledge_folder=str(self._study.home / "knowledge"),
                    driver_node=workers.this_node(),
                    threads=search.cpus,
                    device="cuda" if search.gpus else "cpu",
                    curve=file.space.fractions() if search.curve else (),
                    timed=self._study.file.timed,
                    import_folders=tuple(sys.path),
                )
                self._began = time.monotonic()
                self._done_before = self._done + self._repeated
                workers.run(
                    job,
                    arrays,
                    self._ledger,
                    self,
                    self._halving(),
                    trials=file.trials,
                    concurrent=concurrent,
                    cpus=search.cpus,
                    gpus=search.gpus,
                    retries=search.retries,
                    trial_timeout=search.trial_timeout,
                    scratch=self._study.folder / "ray",
                )
        except (workers.RayDied, workers.RayDidNotStart) as error:
            self._stopped_by = NotStarted if isinstance(error, workers.RayDidNotStart) else Interrupted
            return f", because {error}"
        return ""

    def _find_own_code(self) -> None:
        """Say what of the user's will be imported, and from where, before it is."""
        find_modules_in(Path())
        for reference in self._study.file.own_code:
            module = reference.partition(":")[0].partition(".")[0]
            if module not in sys.modules:
                found = importlib.util.find_spec(module)
                where = "" if found is None else found.origin or next(iter(found.submodule_search_locations or ()), "")
                self._display.say(f"imports {reference}, which the study names, {f'from {where}' if where else ''}")

    def _check_data(self, key: str) -> None:
        """Raise BadInput where they are others than the study's trials learned from."""
        if self._ledger.lines():
            self._study.check_data(key)

    def _check_teacher(self, found: str) -> None:
        """Raise BadInput where the study's trials learned from another teacher: both would stand on one front."""
        study = self._study
        if not (study.folder / "task.json").exists() or not self._ledger.lines():
            return
        if study.task_record().get("teacher_sha256") != found:
            raise BadInput(
                f"the teacher of {study.name!r} must be the one that its trials learned from, but in "
                f"{study.home / 'teachers' / study.task_record()['key']} is another; put that one back, or begin anew "
                "under another name"
            )

    def _teacher_latency(self, task: "Task") -> dict[str, float]:
        """Measured once a study, if it asks for latency: the front is reckoned from it."""
        from trainers.computing import computing
        from trainers.measure import timings

        file = self._study.file
        if not file.timed:
            return {}
        try:
            teacher = self._study.task_record()["teacher"]
            return {name: teacher[name] for name in TIMED}
        except BadInput:
            with computing(file.search.cpus):
                return timings(task.teacher, task.data.image_shape)

    def _halving(self) -> Halving | None:
        """Early stopping as it stood when the last session ended."""
        search = self._study.file.search
        if search.stopping == "none":
            return None
        halving = Halving(self._study.axes(), search.min_epochs, search.reduction)
        for line in self._ledger.lines():
            if line.outcome in ("complete", "stopped"):
                for epoch, measured in line.rungs.items():
                    halving.add(line.trial, epoch, measured)
        return halving

    def repeats(self) -> list[tuple[int, int]]:
        """What the workers are to do when all trials are done."""
        return self._study.repeats_left(self._ledger.lines())

    def trial_started(self, trial: int, recipe: Recipe) -> None:
        """A worker has the trial."""
        self._phase = "trials"
        self._running[trial] = 0.0
        line = next(line for line in self._ledger.lines() if line.trial == trial)
        self._tell_start(line)

    def trial_reported(self, trial: int, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """An epoch is over."""
        self._running[trial] = step / steps
        self._tracker.trial_reported(trial, step, {f"epoch.{name}": value for name, value in metrics.items()})

    def trial_ended(self, trial: int) -> None:
        """The ledger has the trial's outcome: pass it on."""
        self._running.pop(trial, None)
        lines = self._count()
        found = {} if self._is_complete() else remarks(lines, self._study.file.constraints)
        for about in found.keys() - self._remarked:
            self._display.say(found[about])
        self._remarked |= found.keys()
        line = next(line for line in lines if line.trial == trial)
        self._drop_checkpoints([line])
        self._tell(line)
        self._tell_curve(trial, lines)
        if self._front is not None and line.counts:
            members = {entry.trial for entry in self._front.members}
            if members != self._told_members:
                self._tell_points(members, lines)
                self._tracker.front_members(members)
                self._told_members = members
            self._tracker.front_changed(self._done, self._front.hypervolume, len(members))

    def _check_checkpoints(self) -> None:
        """Delete those that were changed, with a line: their trials begin anew."""
        from trainers.checkpoint import is_sound

        for file in sorted(self._study.checkpoints.glob("*.safetensors")):
            with suppress(Damaged):
                if is_sound(read_whole(file)):
                    continue
            self._display.say(f"{file.name} was changed; the trial of that checkpoint begins anew (in {file.parent})")
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    def _drop_checkpoints(self, lines: Sequence[Line]) -> None:
        """Delete the checkpoints that no trial will go on from."""
        for line in lines:
            if line.ended and line.point is None:
                (self._study.checkpoints / f"{line.root}.safetensors").unlink(missing_ok=True)

    def _start_telling(self) -> None:
        file = self._study.file
        asked = str(file.search.trials)
        before = [event["parameters"] for event in self._told() if event.get("event") == "study_started"]
        parameters = _flattened(file)  # MLflow takes no other value than the first: what was carried on is in the tag
        parameters["search.trials"] = before[0].get("search.trials", asked) if before else asked
        tags = {**_versions(), "dux.trials": asked}
        self._tracker.study_started(parameters, tags, file.objectives, file.space)
        told, record = {event["event"] for event in self._told()}, self._study.task_record()
        if "data_described" not in told:  # once, in whichever session: another store gets the whole spool
            self._tracker.data_described(record["data"], record.get("class_names", ()), record.get("images", {}))
        if "teacher_measured" not in told:
            self._tracker.teacher_measured(record["teacher"], {"dataset": file.task.dataset, **vars(file.task.teacher)})

    def _tell_start(self, line: Line) -> None:
        assert line.recipe is not None
        self._tracker.trial_started(line.trial, line.recipe.flat(), None if line.repeat is None else line.repeat[0])

    def _tell_curve(self, trial: int, lines: Sequence[Line]) -> None:
        """All points of a trial's curve, as a table of its run."""
        points = [line for line in lines if line.point is not None and line.point[0] == trial]
        if points:
            rows = [
                {"trial": line.trial, **line.measurements, **line.recipe.flat()}
                for line in points
                if line.recipe is not None
            ]
            self._tracker.curve_measured(trial, rows)

    def _tell_points(self, members: set[int], lines: Sequence[Line]) -> None:
        """The points of curves that are on the front, as runs; of the others a study has some ten a trial."""
        for line in lines:
            if line.point is not None and line.trial in members - self._told_ends:
                self._tell_start(line)
                self._tell(line)

    def _tell(self, line: Line) -> None:
        self._told_ends.add(line.trial)
        trial, folder = line.trial, self._study.line_folder(line)
        files = folder if folder.is_dir() else None
        if line.outcome == "complete":
            limits = broken(self._study.file.constraints, line.measurements)
            tags = {"dux.broken_constraints": ", ".join(limits)} if limits else {}
            tags |= {} if line.point is None else {"dux.curve_of": str(line.point[0])}
            self._tracker.trial_finished(trial, "FINISHED", {**line.measurements, "seconds": line.seconds}, tags, files)
        elif line.outcome == "stopped":
            tags = {"dux.stopped_at": str(line.stopped_at)}
            self._tracker.trial_finished(trial, "KILLED", {"seconds": line.seconds}, tags, files)
        else:
            self._tracker.trial_finished(trial, "FAILED", {}, {"dux.reason": line.reason}, files)

    def _finished(self, trial: int) -> dict[str, Any] | None:
        """The result in a trial's files, which come from the worker and may be there when the driver is killed."""
        folder = self._study.trial_folder(trial)
        try:
            result = unsealed(folder / "result.json")
            check_hashes(folder, result["files"])
            for place, point in enumerate(result["curve"]):
                check_hashes(folder / curve_folder(place), point["files"])
            return result
        except FileNotFoundError as error:
            if not (folder / "result.json").exists():
                return None
            why = f"{Path(error.filename).name} is gone"
        except Damaged as error:
            why = str(error)
        self._display.say(f"{why}; trial {trial} is carried out again (in {folder})")
        return None

    def _told(self) -> list[dict[str, Any]]:
        """All events that MLflow has or will get, of this and earlier sessions; a damaged line is none."""
        with (self._study.folder / "spool.jsonl").open("rb") as spool:
            return [event for line in spool if (event := event_of(line)) is not None]

    def _is_written(self) -> bool:
        """Whether the end of the whole study was told; a kill may have come before."""
        last = (self._told() or [{}])[-1]
        return last.get("event") == "study_finished" and last["status"] == "FINISHED"

    def _tell_what_was_cut_short(self) -> None:
        """MLflow's runs after an interruption: those cut short are closed, and what a kill kept untold is told."""
        kinds = (*_TRIAL_EVENTS, "curve_measured")
        told = {kind: {event["trial"] for event in self._told() if event["event"] == kind} for kind in kinds}
        begun = told["trial_started"] | self._run_ids().keys()  # a power cut may take lines that were sent
        lines = self._ledger.lines()
        for line in lines:
            if line.trial in told["trial_finished"]:
                continue
            if line.point is not None and line.trial not in begun:
                continue  # it has no run unless it is on the front
            if line.ended:
                if line.recipe is not None:
                    self._tell_start(line)
                self._tell(line)
            elif line.trial in begun:
                self._tracker.trial_finished(line.trial, "KILLED", {}, {}, None)
        for trial in sorted({line.point[0] for line in lines if line.point is not None} - told["curve_measured"]):
            self._tell_curve(trial, lines)

    def tick(self) -> None:
        """Show how it goes, four times a second at most."""
        if time.monotonic() - self._shown > 0.25:
            self._shown = time.monotonic()
            self._display.show(self._progress())

    def locked(self) -> None:
        """Another process has the ledger's lock: what is shown until it is given back."""
        self._display.show(replace(self._progress(), phase="waiting: another process has locked the ledger"))

    def _now(self, phase: str) -> None:
        self._phase = phase
        self._display.show(self._progress())

    def _count(self) -> list[Line]:
        lines = self._ledger.lines()
        counting = [line for line in lines if line.counts]
        self._failed = sum(line.outcome == "failed" for line in counting)
        self._stopped = sum(line.outcome == "stopped" for line in counting)
        self._done = len(counting)
        if (self._study.folder / "task.json").exists():
            self._front = self._study.front(lines=lines)
            self._repeats = self._study.repeats(lines)
            ended = {line.repeat for line in lines if line.ended and line.point is None}
            self._repeated = sum(repeat in ended for repeat in self._repeats)
        return lines

    def _is_complete(self) -> bool:
        """Whether nothing is left to be carried out, by the last count."""
        return self._done >= self._study.file.trials and self._repeated == len(self._repeats)

    def _progress(self) -> Progress:
        trials, front = self._study.file.trials, self._front
        new = self._done + self._repeated - self._done_before
        seconds_left = None
        if new and self._phase == "trials":
            share = new + sum(self._running.values())
            left = trials + len(self._repeats) - self._done_before - share
            seconds_left = (time.monotonic() - self._began) / share * left
        leading: Mapping[str, float] = {}
        if front is not None and front.members:
            entry = select(front, {})
            leading = {name: entry.value(name) for name in front.objectives}
        return Progress(
            self._phase,
            trials,
            self._done,
            self._failed,
            self._stopped,
            len(self._running),
            leading,
            0 if front is None else len(front.members),
            0.0 if front is None else front.hypervolume,
            seconds_left,
            len(self._repeats),
            self._repeated,
        )

    @property
    def _sends_the_rest(self) -> str:
        return f"{self._study.command('resume')} sends the rest"

    def _patience(self) -> float:
        """For how many seconds MLflow is still waited for; they begin with the first call."""
        if self._waits_until is None:
            self._waits_until = time.monotonic() + FLUSH_S
        return max(0.0, self._waits_until - time.monotonic())

    def _await_mlflow(self) -> int:
        """Wait until MLflow has all that it was told, patience ends or Ctrl-C; returns how many events it has not."""
        silent = self._waits_until is None
        try:
            unsent = self._tracker.flush(min(_SILENT_S, self._patience()))
            if unsent and self._patience():
                if silent:
                    store = without_secrets(self._study.tracking_uri)
                    self._display.say(
                        f"waiting at most {self._patience():.0f} s for MLflow ({store}), which has not taken {unsent} "
                        f"events yet; Ctrl-C ends the waiting, and {self._sends_the_rest}"
                    )
                self._now("waiting for MLflow")
                unsent = self._tracker.flush(self._patience())
        except KeyboardInterrupt:
            self._gave_up, self._waits_until = True, 0.0
            unsent = self._tracker.flush(0.0)
        return unsent

    def _run_ids(self) -> dict[int, str]:
        return self._study.run_ids(min(ANSWER_S, self._patience()))

    def _has_other_runs(self) -> bool:
        """Whether MLflow's runs of the front's students are others than their file says."""
        run_ids = self._run_ids()
        try:
            members = json.loads(read_whole(self._study.folder / "front.json"))["members"]
            return any(member["mlflow_run_id"] != run_ids.get(member["trial"]) for member in members)
        except (FileNotFoundError, KeyError, RecursionError, TypeError, ValueError):
            return True

    def _finish(self, status: str) -> None:
        """Put the front beside the study and into MLflow."""
        self._now("writing the front")
        self._tell_what_was_cut_short()
        study, teacher = self._study, self._study.task_record()["teacher"]
        front = study.front()
        self._tell_points({entry.trial for entry in front.members}, self._ledger.lines())
        self._tracker.front_members([entry.trial for entry in front.members])
        self._await_mlflow()
        run_ids = self._run_ids()
        self._ledger.note_runs(run_ids)
        front = study.front(run_ids)
        paths = write_front(front, study.name, study.folder, teacher)
        rows = [
            {
                "trial": entry.trial,
                **front.seed_columns(entry),
                **entry.measurements,
                **entry.recipe,
                "mlflow_run_id": entry.run_id or "",
            }
            for entry in front.members
        ]
        if status == "FINISHED":
            shutil.rmtree(self._study.checkpoints, ignore_errors=True)
            finished = {event["trial"]: event for event in self._told() if event["event"] == "trial_finished"}
            for entry in front.members:
                end = finished[entry.trial]
                self._tracker.student_kept(entry.trial, entry.recipe, entry.measurements, end["step"], end["time"])
        self._tracker.study_finished("FINISHED" if status == "FINISHED" else "KILLED", paths, rows)


def _is_task_record(record: Mapping[str, Any]) -> bool:
    teacher = record.get("teacher")
    return (
        isinstance(record.get("key"), str)
        and isinstance(record.get("classes"), int)
        and isinstance(record.get("data", []), list)
        and isinstance(teacher, dict)
        and all(isinstance(value, int | float) for value in teacher.values())
    )


def _command(verb: str, name: str, home: Path) -> str:
    where = "" if home == default_home() else f" --home {shlex.quote(str(home))}"
    return f"`dux {verb} {name}{where}`"


def write_front(front: Front, study: str, folder: Path, teacher: Mapping[str, float]) -> list[Path]:
    """Write front.json, front.html and front.png into `folder`; returns their paths."""
    from search.page import front_html
    from search.png import front_png

    paths = [folder / f"front.{kind}" for kind in ("json", "html", "png")]
    write_whole(paths[0], json.dumps(front.to_json(study), indent=1))
    write_whole(paths[1], front_html(front, study, None, teacher))
    front_png(front, study, paths[2], teacher)
    return paths


def needs_of(space: Space, method: str) -> "list[Needs]":
    """What a method of the space needs of the teacher, as far as that can be listed before recipes are drawn.

    Empty where a stage depends on a parameter drawn from an interval: that is left to the first trial that needs it.
    """
    from trainers.transfer import method_named

    own = {key: domain for key, domain in space.parameters.items() if key.rpartition(".")[0] == method}
    options = [key.rpartition(".")[2] for key in own]
    combinations = itertools.product(*(domain.extremes() for domain in own.values()))
    method_type = method_named(method)
    parsed = [method_type.parse(dict(zip(options, values, strict=True))) for values in combinations]
    found = {method_type.needs(option) for option in parsed}
    listed = len(found) == 1 or all(isinstance(domain, Choice) for domain in own.values())
    return sorted(found, key=repr) if listed else []


def _described(task: "Task") -> list[dict[str, object]]:
    """What students are trained on and validated with, as `Tracker.data_described` takes it."""
    data, spec = task.data, task.spec
    return [
        {
            "name": spec.dataset,
            "digest": digest(split.images.numpy().tobytes(), split.labels.numpy().tobytes()),
            "context": context,
            "source": spec.root or spec.dataset,
            "image_shape": list(data.image_shape),
            "profile": {"num_rows": len(split), "classes": data.classes, "augmentation": augmentation},
        }
        for context, split, augmentation in (
            ("training", data.train, spec.policy),
            ("validation", data.validation, "none"),
        )
    ]


def _flattened(file: StudyFile) -> dict[str, str]:
    """The study file as parameters of a run: dotted names, values as text."""
    flat: dict[str, str] = {}

    def visit(prefix: str, value: object) -> None:
        if isinstance(value, Mapping) and prefix.count(".") < 1 + (prefix == "task.teacher"):
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = json.dumps(value) if isinstance(value, Mapping | list) else str(value)

    visit("", json.loads(file.to_json()))
    return flat


def _versions() -> dict[str, str]:
    """What computed, as tags: the versions and, where Dux is run from a checkout, its commit ("-dirty" if changed)."""
    tags = {"dux.version": version("dux-search"), "dux.version.python": platform.python_version()}
    tags |= {f"dux.version.{name}": version(name) for name in ("torch", "ray", "optuna", "mlflow")}
    here = Path(__file__).resolve()
    # a checkout, and not a repository that has Dux installed somewhere in it
    is_tracked = ["git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name]
    commit = ["git", "-C", str(here.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(is_tracked, capture_output=True, check=True, timeout=10.0)
        said = subprocess.run(commit, capture_output=True, check=True, timeout=10.0, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return tags
    return {**tags, "mlflow.source.git.commit": said}
