"""What is reported of a study to MLflow, in this and earlier sessions."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from search.constraints import broken
from search.display import Display
from search.folder import StudyFolder
from search.fronts.front import Front
from search.ledger.lines import CurvePoint, Line
from search.provenance import flattened, versions
from search.secrets import without_secrets
from search.standing import Standing
from search.study_file import StudyFile
from search.tracking.events import (
    CurveMeasured,
    DataDescribed,
    FrontChanged,
    FrontMembers,
    StudentKept,
    StudyFinished,
    StudyStarted,
    TeacherMeasured,
    TrialFinished,
    TrialReported,
    TrialStarted,
)
from search.tracking.mlflow_runs import ANSWER_S, find_runs
from search.tracking.tracker import Tracker

FLUSH_S = 45.0
"""How long a study waits for MLflow when it ends, in all; `dux resume` sends what is left."""
SILENT_S = 3.0
"""How long of that before it says so."""


class Reporter:
    """Turns what happens in a study into the tracker's events.

    Args:
        file: the study.
        files: its files.
        display: shows lines to the user.
    """

    def __init__(self, file: StudyFile, files: StudyFolder, display: Display) -> None:
        self._file, self._files, self._display = file, files, display
        self._tracker = Tracker(files.path, file.name, files.tracking_uri)
        self._reported_members: set[int] = set()
        """The members of the front as last reported to MLflow."""
        self._steps: dict[int, int] = {}
        """Running trial -> the last step that was reported."""
        self._waits_until: float | None = None
        """Until when to wait for MLflow at the end; None before."""
        self.gave_up = False
        """Whether Ctrl-C ended the wait."""

    @property
    def numbers_given(self) -> int:
        """The number after that of the last trial that was reported."""
        return self._tracker.history.numbers_given

    @property
    def is_finished(self) -> bool:
        """Whether the end of the whole study was reported."""
        return self._tracker.history.is_finished

    def start(self) -> None:
        """Report the study, its data and its teacher."""
        file, history, record = self._file, self._tracker.history, self._files.task()
        asked = str(file.search.trials)
        before = {} if history.first_start is None else history.first_start.parameters
        parameters = flattened(
            file
        )  # MLflow keeps the first value: the number of trials of an extended study is in the tag
        parameters["search.trials"] = str(before.get("search.trials", asked))
        tags = {**versions(), "dux.trials": asked}
        self._tracker.record(StudyStarted.of(parameters, tags, file.objectives, file.space))
        if not history.has_data:  # only once over all sessions: another store is sent the whole spool
            names, images = record.get("class_names", ()), record.get("images", {})
            self._tracker.record(DataDescribed(record["data"], names, images))
        if not history.has_teacher:
            metrics = {f"teacher.{name}": value for name, value in record["teacher"].items()}
            self._tracker.record(TeacherMeasured(metrics, {"dataset": file.task.dataset, **vars(file.task.teacher)}))

    def began(self, line: Line) -> None:
        """A worker has the trial."""
        assert line.recipe is not None
        repeat_of = None if line.repeat is None else line.repeat.of
        self._tracker.record(TrialStarted.of(line.trial, line.recipe.flat(), self._file.space, repeat_of))

    def reached(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        """An epoch is over."""
        self._steps[trial] = step
        self._tracker.record(TrialReported(trial, step, {f"epoch.{name}": value for name, value in metrics.items()}))

    def ended(self, line: Line, points: Sequence[Line], standing: Standing) -> None:
        """A trial has its outcome; `points`: the points of its curve."""
        self._end(line)
        self._curve(line.trial, points)
        front = standing.front
        if front is not None and line.counts:
            members = {entry.trial for entry in front.non_dominated}
            if members != self._reported_members:
                self._points(members, standing)
                self._tracker.record(FrontMembers(sorted(members)))
                self._reported_members = members
            self._tracker.record(FrontChanged(standing.done, front.hypervolume, len(members)))

    def _curve(self, trial: int, points: Sequence[Line]) -> None:
        """Report all points of a trial's curve, as a table of its run."""
        if points:
            rows = [
                {"trial": point.trial, **point.measurements, **point.recipe.flat()}
                for point in points
                if point.recipe is not None
            ]
            self._tracker.record(CurveMeasured(trial, rows))

    def _points(self, members: set[int], standing: Standing) -> None:
        """Report curve points on the front as runs; the others would be about ten per trial."""
        for trial in sorted(members - self._tracker.history.ends.keys()):
            line = standing.line(trial)
            if line.is_point:
                self.began(line)
                self._end(line)

    def _end(self, line: Line) -> None:
        trial, folder = line.trial, self._files.of(line).absolute()
        files, step = folder if folder.is_dir() else None, self._steps.pop(trial, 0)
        if line.outcome == "complete":
            limits = broken(self._file.constraints, line.measurements)
            tags = {"dux.broken_constraints": ", ".join(limits)} if limits else {}
            tags |= {"dux.curve_of": str(line.kind.of)} if isinstance(line.kind, CurvePoint) else {}
            metrics = {**line.measurements, "seconds": line.seconds}
            self._tracker.record(TrialFinished(trial, "FINISHED", step, metrics, tags, files))
        elif line.outcome == "stopped":
            tags = {"dux.stopped_at": str(line.stopped_at)}
            self._tracker.record(TrialFinished(trial, "KILLED", step, {"seconds": line.seconds}, tags, files))
        else:
            self._tracker.record(TrialFinished(trial, "FAILED", step, {}, {"dux.reason": line.reason}, files))

    def catch_up(self, lines: Sequence[Line]) -> None:
        """Complete the runs after an interruption: close those cut short, report what a kill left unreported."""
        history = self._tracker.history
        begun = history.started | self.run_ids().keys()  # a power failure may destroy lines that were sent
        curves: dict[int, list[Line]] = {}
        for line in lines:
            if isinstance(line.kind, CurvePoint):
                curves.setdefault(line.kind.of, []).append(line)
            if line.trial in history.ends:
                continue
            if line.is_point and line.trial not in begun:
                continue  # it has no run unless it is on the front
            if line.ended:
                if line.recipe is not None:
                    self.began(line)
                self._end(line)
            elif line.trial in begun:
                self._tracker.record(TrialFinished(line.trial, "KILLED", self._steps.pop(line.trial, 0)))
        for trial in sorted(curves.keys() - history.curves):
            self._curve(trial, curves[trial])

    def front(self, standing: Standing) -> None:
        """Report the front's students at the end of the session."""
        assert standing.front is not None
        members = [entry.trial for entry in standing.front.non_dominated]
        self._points({*members}, standing)
        self._tracker.record(FrontMembers(sorted(members)))

    def finish(self, front: Front, paths: Sequence[Path], complete: bool) -> None:
        """The session ends; `paths`: the files that show the front."""
        rows = [
            {
                "trial": entry.trial,
                **front.seed_columns(entry),
                **entry.measurements,
                **entry.recipe,
                "mlflow_run_id": entry.run_id or "",
            }
            for entry in front.non_dominated
        ]
        if complete:
            for entry in front.non_dominated:
                if entry.trial in self._tracker.history.ends:  # unless the disk had no room for it
                    at, end = self._tracker.history.ends[entry.trial]
                    self._tracker.record(StudentKept(entry.trial, entry.recipe, entry.measurements, end.step, at))
        artifacts = [path.absolute() for path in paths]
        self._tracker.record(StudyFinished("FINISHED" if complete else "KILLED", artifacts, rows))

    @property
    def sends_the_rest(self) -> str:
        """The way out if MLflow does not have everything, for messages."""
        return f"{self._files.command('resume')} sends the rest"

    def _patience(self) -> float:
        """How many more seconds to wait for MLflow; the time starts with the first call."""
        if self._waits_until is None:
            self._waits_until = time.monotonic() + FLUSH_S
        return max(0.0, self._waits_until - time.monotonic())

    def wait(self, now: Callable[[str], object]) -> int:
        """Wait until MLflow has everything, time is up or Ctrl-C; returns the number of events that it does not have.

        `now` is called with the current phase.
        """
        silent = self._waits_until is None
        try:
            unsent = self._tracker.flush(min(SILENT_S, self._patience()))
            if unsent and self._patience():
                if silent:
                    store = without_secrets(self._files.tracking_uri)
                    self._display.say(
                        f"waiting at most {self._patience():.0f} s for MLflow ({store}), which has not accepted "
                        f"{unsent} events yet; Ctrl-C ends the wait, and {self.sends_the_rest}"
                    )
                now("waiting for MLflow")
                unsent = self._tracker.flush(self._patience())
        except KeyboardInterrupt:
            self.gave_up, self._waits_until = True, 0.0
            unsent = self._tracker.flush(0.0)
        return unsent

    def run_ids(self) -> dict[int, str]:
        """Trial -> run, as far as MLflow has runs and answers in time."""
        with suppress(ConnectionError):
            runs = find_runs(
                self._files.path, self._file.name, self._files.tracking_uri, min(ANSWER_S, self._patience())
            )
            return {} if runs is None else runs.run_ids
        return {}

    def close(self, timeout_s: float = 0.0) -> None:
        """Nothing more will be reported in this session."""
        self._tracker.close(timeout_s)

    @property
    def in_the_way(self) -> str:
        """Why MLflow does not have all events, in brief."""
        return self._tracker.in_the_way
