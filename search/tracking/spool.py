"""A study's events on disk: what happened, how much was sent to MLflow, and what it will never accept."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from search.tracking.events import (
    CurveMeasured,
    DataDescribed,
    Record,
    StudyFinished,
    StudyStarted,
    TeacherMeasured,
    TrialFinished,
    TrialStarted,
    Unsendable,
    decode,
    encode,
    is_of_later_version,
)
from spaces import BadInput
from trainers.files import Damaged, read_whole

UNREADABLE = (AttributeError, FileNotFoundError, KeyError, RecursionError, TypeError, ValueError)
"""The errors of reading a JSON file that is missing or damaged; `Damaged` is a ValueError."""


class History:
    """What was recorded of a study, in this and earlier sessions."""

    def __init__(self) -> None:
        self.started: set[int] = set()
        """Trials whose start was recorded, including curve points that have their own runs."""
        self.ends: dict[int, tuple[int, TrialFinished]] = {}
        """Trial -> its end, and the time of that."""
        self.curves: set[int] = set()
        """Trials whose curve was recorded."""
        self.numbers_given = 0
        """The number after that of the last trial, as far as events name it."""
        self.first_start: StudyStarted | None = None
        self.has_data = self.has_teacher = False
        self._last: Record | None = None

    def take(self, record: Record) -> None:
        """One more event."""
        self._last = record
        match record.event:
            case StudyStarted() as start:
                self.first_start = self.first_start or start
            case DataDescribed():
                self.has_data = True
            case TeacherMeasured():
                self.has_teacher = True
            case TrialStarted(trial=trial):
                self.started.add(trial)
                self._number(trial)
            case TrialFinished(trial=trial) as end:
                self.ends[trial] = record.time, end
                self._number(trial)
            case CurveMeasured(trial=trial, points=points):
                self.curves.add(trial)
                self._number(trial, *(int(str(point["trial"])) for point in points))

    def _number(self, *trials: int) -> None:
        self.numbers_given = max(self.numbers_given, *(trial + 1 for trial in trials))

    @property
    def is_finished(self) -> bool:
        """Whether the last thing recorded is the end of the whole study; a kill may have come before."""
        last = None if self._last is None else self._last.event
        return isinstance(last, StudyFinished) and last.status == "FINISHED"


def history_of(folder: Path) -> History:
    """The history in the spool of a study's folder; damaged lines, and an incomplete last one, are ignored.

    Raises:
        BadInput: a later version of Dux wrote one.
    """
    history, path = History(), folder / "spool.jsonl"
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break  # torn by a kill: `Spool` drops it
            if is_of_later_version(line):
                raise BadInput(
                    f"the events of a study must be of a version that this Dux knows, but {path} has some of a later "
                    "one; use the version of Dux that wrote them"
                )
            with suppress(Unsendable):
                history.take(decode(line))
    return history


class Spool:
    """The events of one study, one JSON object a line, and how many bytes of them have been sent.

    `spool.jsonl` only grows. An incomplete last line was torn by a kill in the middle of a write and is dropped.
    `spool.sent` names the store besides the count, so that another store is sent everything from the start.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "spool.jsonl"
        self._sent_path = folder / "spool.sent"
        self._refused_path = folder / "spool.refused.jsonl"
        self._file = self._path.open("ab", buffering=0)
        self.end = self._path.read_bytes().rfind(b"\n") + 1
        """Size in bytes, always after a whole line."""
        self._file.truncate(self.end)

    def append(self, record: Record) -> None:
        """Adds an event; raises OSError, and adds nothing, if the disk has no room for it."""
        line = encode(record)
        if self._file.write(line) != len(line):
            self._file.truncate(self.end)
            raise OSError(f"no room for an event of {len(line)} bytes in {self._path}")
        self.end += len(line)

    def read(self, offset: int) -> bytes:
        """The line that starts at `offset`."""
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.readline()

    def count(self, offset: int) -> int:
        """The number of lines from `offset` on."""
        with self._path.open("rb") as file:
            file.seek(offset)
            return sum(1 for _ in file)

    def load_sent(self, store: str) -> int:
        """How many bytes `store` has; 0 if that is not known, since sending again does no harm."""
        try:
            note = json.loads(read_whole(self._sent_path))
            offset = int(note["offset"]) if note["store"] == store else 0
        except (*UNREADABLE, OverflowError):
            return 0
        if 0 <= offset <= self.end:
            return offset
        self.save_sent(
            store, 0
        )  # a power failure destroyed lines that were sent; as the spool grows, the count would seem right
        return 0

    def save_sent(self, store: str, offset: int) -> None:
        """Notes that `store` has the first `offset` bytes."""
        replace_json(self._sent_path, {"store": store, "offset": offset})

    def refuse(self, line: bytes, why: str) -> None:
        """Sets aside a line that the store will never accept."""
        with self._refused_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"why": why, "line": line.decode(errors="replace").rstrip("\n")}) + "\n")

    def forget_refused(self) -> None:
        """Forgets refusals; call this when a store is sent everything again from the start."""
        self._refused_path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Refused:
    """The events of a study that MLflow will never accept; `str` describes them in a line."""

    count: int
    first: str
    """Which event it was, and why."""
    path: Path
    """Where all of them are."""

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """The events set aside in a study's folder; None if there are none."""
        path = folder / "spool.refused.jsonl"
        try:
            lines = read_whole(path).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return None
        except Damaged as error:
            return cls(1, str(error), path)
        if not lines:
            return None
        first = "a line that cannot be read"
        with suppress(*UNREADABLE):
            note = json.loads(lines[0])
            first = in_short(str(note["why"]))
            event = json.loads(note["line"])
            of_trial = f" of trial {event['trial']}" if "trial" in event else ""
            first = f"{event['event']}{of_trial}: {first}"
        return cls(len(lines), first, path)

    def __str__(self) -> str:
        which = "1 event for good" if self.count == 1 else f"{self.count} events for good, the first"
        return f"MLflow refused {which}: {self.first}; see {self.path}"


def replace_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes JSON so that a reader, or a kill, finds either the old file or the new one."""
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.write_text(json.dumps(content), encoding="utf-8")
    fresh.replace(path)


def in_short(text: str) -> str:
    """The text in one line of at most 300 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"
