"""What a study stores on disk: where it is, and whether it is still what was written."""

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from search.errors import ExportRefused, LedgerGone, RecordGone
from search.fronts.front import Entry
from search.home import default_home, ledger_url, shown_database
from search.ledger.lines import Line
from search.ledger.storage import in_ledger, read_lines
from search.secrets import sqlite_url, without_secrets
from search.study_file import StudyFile, check_name, is_name
from spaces import BadInput
from spaces.errors import known, shown
from trainers.files import Damaged, check_hashes, check_kind, curve_folder, listing, read_whole, unsealed, write_whole
from trainers.task_spec import TaskSpec

_FILES = (
    *("study.json", "task.json", "data.json", "ledger.txt", "ledger.jsonl"),
    *("spool.jsonl", "spool.sent", "spool.refused.jsonl", "runs.json"),
    *("front.json", "front.html", "front.png"),
)
"""Names of the files that a study's own folder may hold."""
_FOLDERS = ("trials", "checkpoints")
_SIGNS = ("study.json", "task.json", "ledger.jsonl", "trials")
"""One of these files marks a folder as a study's."""


class StudyFolder:
    """The files of one study in a home folder.

    Args:
        name: the study's name.
        home: where its folder, the teachers and the local stores are.
    """

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home = name, home
        self.path = home / "studies" / name
        self.trials = self.path / "trials"
        """One folder per trial, named by its number."""
        self.checkpoints = self.path / "checkpoints"
        """Checkpoints of unfinished trials, each named by the first trial with its recipe."""
        self.journal = self.path / "ledger.jsonl"
        """What the ledger can be rebuilt from."""
        self._lock_file = self.path / ".driver.lock"
        self.task_file = self.path / "task.json"
        self.data_file = self.path / "data.json"
        """Hashes of an image folder's files, so that changed ones can be named."""

    @staticmethod
    def names(home: Path) -> list[str]:
        """All studies of a home folder, including damaged ones."""
        folders = (home / "studies").glob("*")
        return sorted(f.name for f in folders if is_name(f.name) and any(os.path.lexists(f / n) for n in _SIGNS))

    def read(self) -> StudyFile:
        """The study's definition.

        Raises:
            BadInput: there is no study with this name, or it is damaged.
        """
        check_name(self.name)
        names = self.names(self.home)
        if self.name not in names:
            way_out = (
                known(names, self.name)
                if names
                else f"there is none yet in {self.home}; start one with `dux search STUDY.yaml`"
            )
            raise BadInput(f"a study must exist to be opened, but {self.name!r} does not; {way_out}")
        try:
            for kind in (_FILES, _FOLDERS):
                for entry in kind:
                    check_kind(self.path / entry, folder=kind is _FOLDERS)
            try:
                file = StudyFile.from_json(read_whole(self.path / "study.json").decode())
            except BadInput as error:
                raise Damaged(f"study.json does not describe a study: {error}") from None
            if file.name != self.name:
                raise Damaged(f"study.json describes the study {file.name!r}")
        except FileNotFoundError:
            why = "study.json is gone"
        except UnicodeDecodeError:
            why = "study.json is not text"
        except Damaged as error:
            why = str(error)
        else:
            return file
        raise BadInput(
            f"the files of {self.name!r} must be as they were written, but in {self.path} {why}; "
            f"put it back, or {self.command('delete')} removes the study"
        )

    def write_down(self, file: StudyFile, carried_on: bool) -> bytes | None:
        """Write down the study's definition, if it is not there yet; returns the previous content of a changed file.

        `carried_on`: whether the study file was changed since the study began.
        """
        new = not self.exists
        before = read_whole(self.path / "study.json") if carried_on else None
        try:
            if new:
                write_whole(self.path / "ledger.txt", shown_database())
            if new or carried_on:
                write_whole(self.path / "study.json", file.to_json())
        except OSError:
            if new:
                shutil.rmtree(self.path, ignore_errors=True)
            raise
        return before

    def command(self, verb: str) -> str:
        """The command that does `verb` with this study, for messages; names the home unless it is the default."""
        where = "" if self.home == default_home() else f" --home {shlex.quote(str(self.home))}"
        return f"`dux {verb} {self.name}{where}`"

    @property
    def exists(self) -> bool:
        """Whether it was ever started."""
        return (self.path / "study.json").is_file()

    @property
    def has_task(self) -> bool:
        """Whether the task, with its teacher, is on record."""
        return self.task_file.exists()

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI."""
        return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(self.home / "mlflow.db")

    @property
    def storage(self) -> str:
        """The URL of the ledger's database."""
        return ledger_url(self.home)

    def trial(self, number: int) -> Path:
        """The folder of a trial's files."""
        return self.trials / str(number)

    def of(self, line: Line) -> Path:
        """The folder of the files of a line of the ledger: a trial, or a point of its curve."""
        return line.folder(self.trials)

    def result(self, trial: int, say: Callable[[str], object]) -> dict[str, Any] | None:
        """What a trial's worker wrote at the end of the trial, or None; `say` reports files that were changed since."""
        folder = self.trial(trial)
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
        say(f"{why}; trial {trial} is run again (in {folder})")
        return None

    def drop_checkpoints(self, lines: Iterable[Line]) -> None:
        """Delete the checkpoints that no trial will continue from."""
        for line in lines:
            if line.ended and not line.is_point:
                (self.checkpoints / f"{line.root}.safetensors").unlink(missing_ok=True)

    def front_names(self, run_ids: Mapping[int, str]) -> bool:
        """Whether front.json names these runs of MLflow for its students; `run_ids`: trial -> run."""
        try:
            members = json.loads(read_whole(self.path / "front.json"))["members"]
            return all(member["mlflow_run_id"] == run_ids.get(member["trial"]) for member in members)
        except (FileNotFoundError, KeyError, RecursionError, TypeError, ValueError):
            return False

    @property
    def lock(self) -> FileLock:
        """Held by the one process that is running the study."""
        return FileLock(self._lock_file)

    @property
    def at_work(self) -> bool:
        """Whether a process is running the study now; works without write permission."""
        try:
            with self._lock_file.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def check_database(self) -> None:
        """Raise BadInput if the study was started with its ledger in another database."""
        note, here = self.path / "ledger.txt", shown_database()
        try:
            there = read_whole(note).decode(errors="backslashreplace").strip()
        except FileNotFoundError:
            return
        except Damaged as error:
            raise BadInput(f"the database of {self.name!r} must be on record, but in {self.path} {error}") from None
        if there != here:
            noted = shown(there, 300).strip("'") or "not set"
            raise BadInput(
                f"`DUX_STORAGE` must name the database that {self.name!r} was started with, but is "
                f"{here or 'not set'} instead of {noted}; set it so or, if the database has moved or "
                f"is gone, correct {note}"
            )

    def lines(self) -> list[Line]:
        """Every line of the ledger, without writing anything.

        Raises:
            LedgerGone: the study's ledger is gone, or trials are missing from it.
            BadInput: as in `ledger`.
        """
        self.check_database()
        folders = [int(folder.name) for folder in self.trials.glob("*") if folder.name.isdecimal()]
        lines = read_lines(self.storage, self.name)
        if (lines is None and self.journal.exists()) or max(folders, default=-1) > max(
            (line.trial for line in lines or ()), default=-1
        ):
            raise LedgerGone(
                f"the ledger of {self.name!r} must be in {without_secrets(self.storage)}, but "
                f"{'is' if lines is None else 'some of it is'} gone; "
                f"{self.command('resume')} rebuilds it from the study's files"
            )
        return lines or []

    def task(self) -> dict[str, Any]:
        """The study's record of its task: key, classes, image_shape, the teacher's measurements, the data."""
        try:
            record = unsealed(self.task_file)
            if not _is_task_record(record):
                raise Damaged("task.json is not the record of a task")
            return record
        except FileNotFoundError:
            if self.trials.exists():
                raise RecordGone(
                    f"the files of {self.name!r} must be as they were written, but in {self.path} task.json is gone; "
                    f"{self.command('resume')} writes it again"
                ) from None
            raise BadInput(
                f"study {self.name!r} must have a teacher before it has a front, but was stopped before that; "
                f"{self.command('resume')} continues"
            ) from None
        except Damaged as error:
            raise BadInput(
                f"the files of {self.name!r} must be as they were written, but in {self.path} {error}; put it back, "
                f"or delete it, and {self.command('resume')} writes it again"
            ) from None

    def teacher_identity(self, spec: TaskSpec) -> dict[str, Any]:
        """What made the teacher that the study's trials learned from; `spec` says all of one that Dux trained."""
        recorded: dict[str, Any] = (self.task() if self.has_task else {}).get("teacher_identity", {})
        return recorded or spec.teacher.identity()

    def check_data(self, key: str, spec: TaskSpec, identity: Mapping[str, Any]) -> None:
        """Whether the task is the one that the study's trials learned from, by `trainers.task.key_of` it.

        Args:
            key: of the task now.
            spec: of the task.
            identity: what makes its teacher now.

        Raises:
            BadInput: it is another, since its teacher or its data were changed; the message names files, where they
                are the user's.
        """
        if not self.has_task or self.task()["key"] == key:
            return
        root = spec.root
        if self.teacher_identity(spec) != identity:
            raise BadInput(
                f"the teacher of {self.name!r} must be the one that its trials learned from, but the weights or the "
                f"arguments of {', '.join(one.network or one.family for one in spec.teacher.each)} are others; put "
                "them back, or begin anew under another name"
            )
        what = ""
        with suppress(FileNotFoundError, Damaged):
            before, now = unsealed(self.data_file), listing(Path(root or "."))
            changed = [
                f"{name} is {'new' if name not in before else 'gone' if name not in now else 'another'}"
                for name in sorted(before.keys() | now.keys())
                if before.get(name) != now.get(name)
            ]
            what = ": " + ", ".join(changed[:3]) + (f", and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise BadInput(
            f"the data of {self.name!r} must be those that its trials learned from, but {root or 'its data set'} was "
            f"changed{what}; put it back, or start over under another name"
        )

    def check_student(self, entry: Entry) -> None:
        """Check that a student's files are those that its worker wrote; without torch, so that refusals come at once.

        Raises:
            ExportRefused: they are not, or there is no record of them.
        """
        assert entry.folder is not None
        if not entry.files:
            raise ExportRefused(
                f"the files of {entry.called} must have recorded hashes, but an earlier Dux recorded none; "
                "run the study again, under another name"
            )
        try:
            check_hashes(entry.folder, entry.files)
        except (Damaged, FileNotFoundError) as error:
            why = error if isinstance(error, Damaged) else f"{Path(error.filename).name} is gone"
            raise ExportRefused(f"the files of {entry.called} must be those that were measured, but {why}") from None

    def check_name_is_free(self) -> None:
        """Raise BadInput if a new study would collide with the remains of another."""
        if self.exists:
            return
        if in_ledger(self.storage, self.name):
            raise BadInput(
                f"a new study must have a new name, but the ledger has a {self.name!r} whose folder is gone; "
                f"{self.command('delete')} removes it, another `name:` starts a new study"
            )
        if self.journal.exists() or self.trials.exists():
            raise BadInput(
                f"a new study must have a new name, but {self.path} holds trials of an earlier {self.name!r}; "
                f"{self.command('delete')} removes them, another `name:` starts a new study"
            )


def _is_task_record(record: Mapping[str, Any]) -> bool:
    teacher = record.get("teacher")
    return (
        isinstance(record.get("key"), str)
        and isinstance(record.get("classes"), int)
        and isinstance(record.get("data", []), list)
        and isinstance(teacher, dict)
        and all(isinstance(value, int | float) for value in teacher.values())
    )
