"""What a study does, mirrored to MLflow without ever making the study wait.

Every event is first a line of a spool on disk; a thread of its own sends the lines to MLflow in order and notes how far
it came. MLflow may be slow, down or gone: the study goes on, and what was missed follows later, in the next process if
need be. Sending a line twice changes nothing, so after a crash the thread may start before the first unsent one:

- runs are found by their tags before they are made;
- a point carries the time of its event, and MLflow keeps one of two points equal in key, step, time and value;
- parameters, tags, states, inputs and files are set, not added;
- logged models are found by their tags before they are made, and are a run's output once.

One experiment a study (`dux-NAME`), one parent run (`NAME`), one nested run a trial (`NAME/12`), whose table
`curve.json` has the points of its pruning curve; those that are or were on the front have runs of their own, too. All
of them have the data set's splits and the teacher as inputs. The teacher and, at the end, the students on the front are
logged models (`NAME-teacher`, `NAME-12`), which MLflow shows under Models: recipe as parameters, measurements linked to
the run and the validation data. They are external ones in MLflow's words: the files are the run's (tag `dux.files`),
not copied. A server before MLflow 3 has no logged models: it refuses these events, and has all the others.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import posixpath
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from search.mlflow_view import (
    PARETO_TAG,
    VIEW_TAG,
    artifacts_of,
    database,
    log10_name,
    make_store,
    quiet_mlflow,
    remove_stray_folder,
    view_state,
)
from search.secrets import redacted, without_secrets
from spaces import Domain, Space
from trainers.files import Damaged, json_text, read_whole

Status = Literal["FINISHED", "FAILED", "KILLED"]

ANSWER_S = 15.0
"""How long somebody who only wants to know is made to wait for MLflow."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0  # between tries while MLflow does not answer

_FINAL_CODES = {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"}
"""Of MLflow's own errors, in its words: that the request is at fault. `only_mlflow_answers` lets no other errors by."""
_LONGEST_TAG = 5000  # characters, of an older MLflow; a newer one takes 8,000
_NONE: Mapping[str, str] = MappingProxyType({})
_MODEL_TAG = "dux.model"
"""Of a logged model: "teacher", or the number of the trial whose student it is."""


_UNREADABLE = (AttributeError, FileNotFoundError, KeyError, RecursionError, TypeError, ValueError)
"""What a file of JSON raises that is not there or not as it was written; `Damaged` is a ValueError."""


class Spool:
    """The events of one study, one JSON object a line, and how many bytes of them have been sent.

    `spool.jsonl` only grows. A last line without its end was torn by a kill in the middle of a write: it is dropped.
    `spool.sent` names the store beside the count, so that another store gets everything from the start.
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

    def append(self, event: Mapping[str, object]) -> None:
        """Adds a line; raises OSError, and adds nothing, where the disk has no room for it."""
        line = json.dumps(event, default=_plain).encode() + b"\n"
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
        """How many bytes `store` has; 0 where that is not known, since sending again does no harm."""
        try:
            note = json.loads(read_whole(self._sent_path))
            offset = int(note["offset"]) if note["store"] == store else 0
        except (*_UNREADABLE, OverflowError):
            return 0
        if 0 <= offset <= self.end:
            return offset
        self.save_sent(store, 0)  # a power cut took lines that were sent; as the spool grows, the count would seem true
        return 0

    def save_sent(self, store: str, offset: int) -> None:
        """Notes that `store` has the first `offset` bytes."""
        _replace(self._sent_path, {"store": store, "offset": offset})

    def refuse(self, line: bytes, why: str) -> None:
        """Sets a line aside that the store will never take."""
        with self._refused_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"why": why, "line": line.decode(errors="replace").rstrip("\n")}) + "\n")

    def forget_refused(self) -> None:
        """What was refused is sent again, with all else: to be called where a store gets everything from the start."""
        self._refused_path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Refused:
    """The events of a study that MLflow will never take; `str` tells of them in a line."""

    count: int
    first: str
    """Which event it was, and why."""
    path: Path
    """Where all of them are."""

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """What is set aside in a study's folder; None where nothing is."""
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
        with suppress(*_UNREADABLE):
            note = json.loads(lines[0])
            first = in_short(str(note["why"]))
            event = json.loads(note["line"])
            of_trial = f" of trial {event['trial']}" if "trial" in event else ""
            first = f"{event['event']}{of_trial}: {first}"
        return cls(len(lines), first, path)

    def __str__(self) -> str:
        which = "1 event for good" if self.count == 1 else f"{self.count} events for good, the first"
        return f"MLflow refused {which}: {self.first}; see {self.path}"


@dataclass(frozen=True)
class Runs:
    """Where a study is in MLflow."""

    experiment_id: str
    parent_run_id: str | None
    run_ids: dict[int, str]
    """Trial -> run."""


def find_runs(folder: Path, study: str, tracking_uri: str, timeout_s: float = ANSWER_S) -> Runs | None:
    """Where a study is in MLflow, read from `folder/runs.json` or else asked of the store; None where it is not there.

    Raises:
        BadInput: a tracking URI of another kind than a Tracker takes.
        ConnectionError: the store does not answer, or not in `timeout_s`; no password is in the message.
    """
    file = database(tracking_uri)
    try:
        note = json.loads(read_whole(folder / "runs.json"))
        if note["store"] == redacted(tracking_uri):
            run_ids = {int(trial): str(run) for trial, run in note["run_ids"].items()}
            parent = note["parent_run_id"]
            return Runs(str(note["experiment_id"]), None if parent is None else str(parent), run_ids)
    except _UNREADABLE:
        pass  # not there, damaged, or another version's: MLflow is asked
    if file is not None and not file.exists():
        return None
    import mlflow  # noqa: F401, seconds, in which nobody waits for an answer

    def ask() -> None:
        try:
            with quiet_mlflow():
                client = _connect(tracking_uri)
                experiment = client.get_experiment_by_name(f"dux-{study}")
                answer.put(None if experiment is None else _runs_of(client, experiment.experiment_id))
        except Exception as error:
            answer.put(error)

    answer: queue.SimpleQueue[Runs | Exception | None] = queue.SimpleQueue()
    # in a thread that is left behind: one that sends a byte now and then outlasts any timeout of a request
    threading.Thread(target=ask, name="dux-runs", daemon=True).start()
    try:
        found = answer.get(timeout=timeout_s)
    except queue.Empty:
        where = redacted(tracking_uri)
        raise ConnectionError(f"MLflow does not answer: nothing came from {where} in {timeout_s:g} s") from None
    if isinstance(found, Exception):
        raise ConnectionError(in_short(redacted(f"MLflow does not answer: {found}", tracking_uri))) from None
    return found


def take_out(study: str, tracking_uri: str, *, delete: bool) -> list[str]:
    """Free a study's name in MLflow: its experiment is renamed, and deleted where asked; returns what was done.

    Raises:
        BadInput: a tracking URI of another kind than a Tracker takes.
        ConnectionError: the store does not answer.
    """
    file, name, done = database(tracking_uri), f"dux-{study}", []
    if file is not None and not file.exists():
        return []
    try:
        with quiet_mlflow():
            client = _connect(tracking_uri)
            experiment = client.get_experiment_by_name(name)
            if experiment is not None:
                number = experiment.experiment_id
                if experiment.lifecycle_stage == "deleted":  # such a one cannot be renamed
                    client.restore_experiment(number)
                client.rename_experiment(number, f"{name}-removed-{number}")
                if delete or experiment.lifecycle_stage == "deleted":
                    client.delete_experiment(number)
                    done.append(f"deleted its experiment in MLflow (`mlflow gc` frees the room of number {number})")
                else:
                    done.append(f"renamed its experiment in MLflow to {name}-removed-{number}")
    except Exception as error:
        raise ConnectionError(redacted(f"MLflow does not answer: {error}", tracking_uri)) from None
    artifacts = None if file is None or not delete else artifacts_of(file) / name
    if artifacts is not None and artifacts.is_dir():
        shutil.rmtree(artifacts)
        done.append(f"removed {artifacts}")
    return done


class Tracker:
    """Tells MLflow about a study. No event method raises or waits for MLflow; each costs some 0.1 ms.

    An exception here would end Ray's whole `fit()`, hence the promise; what went wrong last is in `last_error`. One
    process at a time has a Tracker on a folder, and it calls `study_started` first: the space given there says what the
    trials' runs are filled up with. A Tracker on a folder with a spool goes on with it.

    Args:
        folder: the study's; `spool.jsonl`, `spool.sent`, `spool.refused.jsonl` and `runs.json` are written there.
        study: the study's name.
        tracking_uri: `sqlite:////absolute/path.db` (artifacts go to `mlflow-artifacts` beside the file) or an MLflow
            server's `http(s)://` address.

    Raises:
        BadInput: a tracking URI of any other kind.
    """

    def __init__(self, folder: Path, study: str, tracking_uri: str) -> None:
        database(tracking_uri)  # raises BadInput here rather than in the thread
        self.last_error: str | None = None
        self._folder, self._study, self._uri = folder, study, tracking_uri
        self._store = without_secrets(tracking_uri)
        self._spool = Spool(folder)
        self._sent = self._spool.load_sent(self._store)
        if self._sent == 0:
            self._spool.forget_refused()
        self._doubted = -1
        """Where the event starts that was refused once."""
        self._last_time = 0
        self._last_step: dict[int, int] = {}
        self._fillers: dict[str, str] = {}
        self._changed = threading.Condition()
        self._hurry = self._closing = False
        self._thread = threading.Thread(target=self._send_all, name="dux-mlflow", daemon=True)
        self._thread.start()

    def study_started(
        self, parameters: Mapping[str, str], tags: Mapping[str, str], objectives: Mapping[str, str], space: Space
    ) -> None:
        """Opens the parent run, anew where a resumed study has one, and sets the view of the front.

        Args:
            parameters: what the study's file says, for the parent run; MLflow refuses to change them later.
            tags: more tags of the parent run.
            objectives: measurement -> "max" or "min", the most important first.
            space: what recipes are drawn from.
        """
        self._fillers = {name: filler(domain) for name, domain in space.parameters.items()}
        drawn = [name for name, domain in space.parameters.items() if len(domain.extremes()) > 1]
        self._append("study_started", parameters=parameters, tags=tags, objectives=objectives, drawn=drawn)

    def data_described(
        self, data: Sequence[Mapping[str, object]], class_names: Sequence[str] = (), images: Mapping[str, str] = _NONE
    ) -> None:
        """What is trained on and validated with: inputs of the parent run and of all trials' runs that follow.

        Class names are the artifact `classes.json` of the parent run, and its tag `dux.class_names` where they are not
        too long for one.

        Args:
            data: of each split `name`, `digest` (36 characters at most; no two splits may share name and digest),
                `context` ("training", "validation"), `source` (where it comes from), `image_shape` and `profile`
                (what else is to be shown of it).
            class_names: of labels 0, 1, ...
            images: what they are and how they were prepared.
        """
        self._append(
            "data_described", data=[dict(split) for split in data], class_names=[*class_names], images={**images}
        )

    def teacher_measured(self, measurements: Mapping[str, float], parameters: Mapping[str, object]) -> None:
        """What students are compared with: metrics of the parent run (`teacher.accuracy`, ...), and a logged model.

        Args:
            measurements: on validation data.
            parameters: of the model: what network it is, and how it was trained.
        """
        metrics = {f"teacher.{name}": value for name, value in measurements.items()}
        self._append("teacher_measured", metrics=metrics, parameters=dict(parameters))

    def trial_started(self, trial: int, recipe: Mapping[str, object], repeat_of: int | None = None) -> None:
        """Opens a trial's run; `recipe` in its flat form.

        A repeat of another trial has the tags `dux.role` "repeat", so that the view of the front leaves it out, and
        `dux.repeat_of`.
        """
        tags = {} if repeat_of is None else {"dux.role": "repeat", "dux.repeat_of": str(repeat_of)}
        self._append("trial_started", trial=trial, parameters=self._fillers | dict(recipe), tags=tags)

    def trial_reported(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to each of a trial's metrics."""
        self._last_step[trial] = step
        self._append("trial_reported", trial=trial, step=step, metrics=metrics)

    def trial_finished(
        self, trial: int, status: Status, metrics: Mapping[str, float], tags: Mapping[str, str], files: Path | None
    ) -> None:
        """Closes a trial's run: its final metrics (at the last reported step), tags and the files of its folder."""
        step = self._last_step.pop(trial, 0)
        where = None if files is None else files.absolute()
        self._append("trial_finished", trial=trial, status=status, step=step, metrics=metrics, tags=tags, files=where)

    def curve_measured(self, trial: int, points: Sequence[Mapping[str, object]]) -> None:
        """Adds the table `curve.json` to a trial's run, with a row for each point of its pruning curve."""
        self._append("curve_measured", trial=trial, points=[dict(point) for point in points])

    def front_changed(self, trials_finished: int, hypervolume: float, size: int) -> None:
        """Adds a point to the front's course, on the parent run; the step is the number of finished trials."""
        self._append("front_changed", trials_finished=trials_finished, hypervolume=hypervolume, size=size)

    def front_members(self, trials: Iterable[int]) -> None:
        """Says which trials are on the front now: `dux.pareto` is "true" on their runs and "false" on all others."""
        self._append("front_members", trials=sorted(trials))

    def student_kept(
        self, trial: int, recipe: Mapping[str, object], measurements: Mapping[str, float], step: int, at: int
    ) -> None:
        """Makes a trial's student a logged model.

        Args:
            trial: whose student it is.
            recipe: in its flat form.
            measurements: that are linked to the model, run and model having the same points.
            step: of those points, as `trial_finished` had it.
            at: their time, as the event of `trial_finished` had it.
        """
        # a model's NaN would be 0 in MLflow
        finite = {name: value for name, value in measurements.items() if math.isfinite(value)}
        self._append("student_kept", trial=trial, parameters=dict(recipe), metrics=finite, step=step, at=at)

    def study_finished(
        self, status: Status, artifacts: Sequence[Path], front: Sequence[Mapping[str, object]] = ()
    ) -> None:
        """Closes the parent run; `artifacts` (files) and a table with the rows of `front` become its artifacts."""
        where = [path.absolute() for path in artifacts]
        self._append("study_finished", status=status, artifacts=where, front=[dict(row) for row in front])

    def flush(self, timeout_s: float) -> int:
        """Waits until MLflow has every event, at most `timeout_s`; returns how many it has not."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closing or self._sent >= self._spool.end, timeout_s)
            self._hurry = False
            return self._spool.count(self._sent)

    @property
    def in_the_way(self) -> str:
        """Why MLflow has not what it has not, in brief."""
        why = (self.last_error or "it does not answer").removeprefix("MLflow does not take events: ")
        return why if len(why) <= 160 else f"{why[:159]}…"

    def close(self, timeout_s: float) -> int:
        """Flushes and stops the thread; returns how many events are left to the next Tracker on this folder."""
        unsent = self.flush(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # a call that hangs longer dies with the process; its event is still in the spool
        self._thread.join(0.5 if unsent else 2.0)
        self._spool.close()
        return unsent

    def _append(self, name: str, **arguments: object) -> None:
        try:
            with self._changed:
                self._last_time = max(self._last_time + 1, time.time_ns() // 1_000_000)
                self._spool.append({"event": name, "time": self._last_time, **arguments})
                self._changed.notify_all()
        except Exception as error:  # see the class: nothing may leave here
            self.last_error = f"{name} of study {self._study} is lost: {error}"

    def _send_all(self) -> None:
        mirror: _Mirror | None = None
        wait_s = _FIRST_WAIT_S
        while self._await_event():
            try:
                with quiet_mlflow():
                    mirror = mirror or self._open_mirror()
                    self._send_next(mirror)
                wait_s = _FIRST_WAIT_S
            except Exception as error:  # an outage of whatever kind: the event stays and is tried again
                mirror = None
                self.last_error = in_short(redacted(f"MLflow does not take events: {error}", self._uri))
                wait_s = self._pause(wait_s)

    def _pause(self, wait_s: float) -> float:
        """Waits before an event is tried again, briefly while `flush` waits; returns how long to wait the next time."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or (self._hurry and wait_s > _FIRST_WAIT_S), wait_s)
            return _FIRST_WAIT_S if self._hurry else min(2 * wait_s, _LONGEST_WAIT_S)

    def _await_event(self) -> bool:
        """Waits for an unsent event; False once the tracker closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._sent < self._spool.end)
            return not self._closing

    def _open_mirror(self) -> _Mirror:
        client = _connect(self._uri)
        name = f"dux-{self._study}"
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            self._note_sent(0)  # a store without the experiment has lost, or never had, what was sent before
            self._spool.forget_refused()
            file = database(self._uri)
            # without one, MLflow would put the artifacts of a database into the current folder
            location = None if file is None else (artifacts_of(file) / name).as_uri()
            experiment_id = client.create_experiment(name, location)
        elif experiment.name != name:
            raise ConnectionError(f"asked for the experiment {name}, the answer was of {experiment.name!r}")
        else:
            experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment_id)
        return _Mirror(client, experiment_id, self._study, self._folder / "runs.json", self._uri)

    def _send_next(self, mirror: _Mirror) -> None:
        line = self._spool.read(self._sent)
        try:
            mirror.tell(line)
        except Exception as error:
            if not _is_final(error):
                raise
            if self._doubted != self._sent and not isinstance(error, Unsendable):
                # asked once more, by a mirror made anew: this one may believe in a run that was deleted since, and
                # whoever answered for a moment may have been another server
                self._doubted = self._sent
                raise
            self.last_error = in_short(redacted(f"MLflow refuses an event: {error}", self._uri))
            self._spool.refuse(line, self.last_error)
        self._note_sent(self._sent + len(line))

    def _note_sent(self, offset: int) -> None:
        self._spool.save_sent(self._store, offset)
        with self._changed:
            self._sent = offset
            self._changed.notify_all()


class _Mirror:
    """A study's experiment and its runs as the store has them, with one method an event.

    Made anew after every failure, so that it never believes in a run the store did not get, nor overlooks one it did.
    """

    def __init__(self, client: Any, experiment_id: str, study: str, runs_path: Path, uri: str) -> None:
        self._client, self._study, self._runs_path, self._uri = client, study, runs_path, uri
        self._runs = _runs_of(client, experiment_id)
        self._on_front: dict[int, str] = {}
        self._inputs: Any = None
        """Of the parent run."""
        self._models: dict[str, str] | None = None
        """What is in `_MODEL_TAG` -> logged model, as far as it was asked for."""
        self._save_runs()

    def tell(self, line: bytes) -> None:
        """Sends a line of the spool.

        Raises:
            Unsendable: it is no event, or what it tells of is gone.
        """
        try:
            event = json.loads(line)
            name = str(event.pop("event"))
            carry_out = getattr(self, name) if name in _EVENTS else None
            if carry_out is None:
                raise Unsendable(f"there is no event {name!r} in this version")
            inspect.signature(carry_out).bind(**event)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise Unsendable(f"the line is damaged, or of another version ({error})") from None
        carry_out(**event)

    def study_started(
        self,
        time: int,
        parameters: Mapping[str, object],
        tags: Mapping[str, str],
        objectives: Mapping[str, str],
        drawn: Sequence[str],
    ) -> None:
        run_id = self._parent(time)
        self._client.update_run(run_id, status="RUNNING")
        objectives = {key(name): direction for name, direction in objectives.items()}
        view = view_state(objectives, [key(name) for name in drawn])
        self._client.set_experiment_tag(self._runs.experiment_id, VIEW_TAG, view)
        self._log(run_id, time, tags=tags)
        self._log(run_id, time, parameters=parameters)

    def data_described(
        self,
        time: int,
        data: Sequence[Mapping[str, Any]],
        class_names: Sequence[str] = (),
        images: Mapping[str, str] = _NONE,
    ) -> None:
        run_id = self._parent(time)
        names = json_text(class_names)
        described = {"class_names": [*class_names], "images": dict(images)}
        parts: list[Callable[[], None]] = [
            lambda: self._client.log_inputs(run_id, datasets=[_dataset_input(**split) for split in data])
        ]
        if class_names:  # of a spool before they were told there are none
            parts.append(lambda: self._log_json(run_id, described, "", "classes.json"))
            if len(names) <= _LONGEST_TAG:
                parts.append(lambda: self._log(run_id, time, tags={"dux.class_names": names}))
        _each(*parts)
        self._inputs = None

    def teacher_measured(self, time: int, metrics: Mapping[str, float], parameters: Mapping[str, object]) -> None:
        from mlflow.entities import LoggedModelInput

        run_id = self._parent(time)
        self._log(run_id, time, 0, metrics)
        model_id = self._model("teacher", run_id, parameters, {})
        self._link(model_id, run_id, time, 0, metrics)
        self._client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        self._inputs = None

    def trial_started(
        self, time: int, trial: int, parameters: Mapping[str, object], tags: Mapping[str, str] | None = None
    ) -> None:
        run_id = self._trial(trial, time)

        def give_inputs() -> None:
            inputs = self._study_inputs(time)
            self._client.log_inputs(run_id, datasets=inputs.dataset_inputs, models=inputs.model_inputs)

        _each(
            give_inputs,
            lambda: self._log(run_id, time, tags=tags),
            lambda: self._log(run_id, time, parameters=parameters),
        )

    def student_kept(
        self,
        time: int,
        trial: int,
        parameters: Mapping[str, object],
        metrics: Mapping[str, float],
        step: int,
        at: int,
    ) -> None:
        from mlflow.entities import LoggedModelOutput

        run_id = self._trial(trial, time)
        outputs = self._client.get_run(run_id).outputs
        model_id = self._model(str(trial), run_id, parameters, {"dux.files": f"runs:/{run_id}/student"})
        self._link(model_id, run_id, at, step, metrics)
        if model_id not in [model.model_id for model in outputs.model_outputs]:  # MLflow takes it once
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])

    def trial_reported(self, time: int, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        self._log(self._trial(trial, time), time, step, metrics)

    def trial_finished(
        self,
        time: int,
        trial: int,
        status: str,
        step: int,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        files: str | None,
    ) -> None:
        run_id = self._trial(trial, time)
        logarithms = {
            name: math.log10(value)
            for measurement, value in metrics.items()
            if (name := log10_name(measurement)) is not None and 0 < value < math.inf
        }

        def log_files() -> None:
            if files is not None:  # without the students of a pruning curve, which are told of by themselves
                self._log_files(run_id, sorted(f for f in Path(_existing(files)).iterdir() if f.is_file()), "student")

        _each(
            lambda: self._log(run_id, time, step, {**metrics, **logarithms}, tags=tags),
            lambda: self._client.set_terminated(run_id, status, end_time=time),
            log_files,
        )

    def curve_measured(self, time: int, trial: int, points: Sequence[Mapping[str, object]]) -> None:
        self._log_table(self._trial(trial, time), points, "", "curve.json")

    def front_changed(self, time: int, trials_finished: int, hypervolume: float, size: int) -> None:
        course = {"hypervolume": hypervolume, "front_size": size}
        self._log(self._parent(time), time, trials_finished, course)

    def front_members(self, time: int, trials: Sequence[int]) -> None:
        for trial, run_id in self._runs.run_ids.items():
            value = "true" if trial in trials else "false"
            if self._on_front.get(trial) != value:
                self._client.set_tag(run_id, PARETO_TAG, value)
                self._on_front[trial] = value

    def study_finished(
        self, time: int, status: str, artifacts: Sequence[str], front: Sequence[Mapping[str, object]]
    ) -> None:
        run_id = self._parent(time)

        _each(
            lambda: self._client.set_terminated(run_id, status, end_time=time),
            *([partial(self._log_table, run_id, front, "front", "table.json")] if front else []),
            *(partial(self._log_files, run_id, [Path(path)], "front") for path in artifacts),
        )

    def _parent(self, time: int) -> str:
        if self._runs.parent_run_id is None:
            run_id = self._create_run(time, self._study, {"dux.role": "study"})
            self._runs = Runs(self._runs.experiment_id, run_id, self._runs.run_ids)
            self._save_runs()
            return run_id
        return self._runs.parent_run_id

    def _trial(self, trial: int, time: int) -> str:
        if trial not in self._runs.run_ids:
            tags = {
                "dux.role": "trial",
                "dux.trial": str(trial),
                PARETO_TAG: "false",
                "mlflow.parentRunId": self._parent(time),
            }
            self._runs.run_ids[trial] = self._create_run(time, f"{self._study}/{trial}", tags)
            self._on_front[trial] = "false"
            self._save_runs()
        return self._runs.run_ids[trial]

    def _study_inputs(self, time: int) -> Any:
        if self._inputs is None:
            self._inputs = self._client.get_run(self._parent(time)).inputs
        return self._inputs

    def _model(self, whose: str, run_id: str, parameters: Mapping[str, object], tags: Mapping[str, str]) -> str:
        """The logged model, made where there is none. A call that other servers answer must have gone before.

        Raises:
            Unsendable: the server has none at all.
        """
        if self._models is None:
            self._models = _models_of(self._client, self._runs.experiment_id, self._uri)
        if whose not in self._models:
            model = self._client.create_logged_model(
                self._runs.experiment_id,
                name=re.sub(r"[/:.%\"']", "-", f"{self._study}-{whose}"),
                source_run_id=run_id,
                tags={"dux.study": self._study, _MODEL_TAG: whose, "mlflow.model.isExternal": "true", **tags},
                params={key(name): str(value) for name, value in parameters.items()},
                model_type="teacher" if whose == "teacher" else "student",
            )
            self._models[whose] = model.model_id
        return self._models[whose]

    def _link(self, model_id: str, run_id: str, time: int, step: int, metrics: Mapping[str, float]) -> None:
        """Links points of a run to a model and to the validation data, and calls the model ready."""
        from mlflow.entities import Metric

        of_data: dict[str, str] = {}
        for given in self._study_inputs(time).dataset_inputs:
            if any(tag.value == "validation" for tag in given.tags):
                of_data = {"dataset_name": given.dataset.name, "dataset_digest": given.dataset.digest}
        points = [
            Metric(key(name), float(value), time, step, model_id=model_id, **of_data) for name, value in metrics.items()
        ]
        self._client.log_batch(run_id, points, synchronous=True)
        self._client.finalize_logged_model(model_id, "READY")

    def _create_run(self, time: int, name: str, tags: Mapping[str, str]) -> str:
        tags = {"dux.study": self._study, **tags}
        run = self._client.create_run(self._runs.experiment_id, start_time=time, tags=tags, run_name=name)
        run_id: str = run.info.run_id
        if not run_id:
            raise ConnectionError("the answer names no run")
        return run_id

    def _log_files(self, run_id: str, files: Sequence[Path], folder: str) -> None:
        from mlflow.artifacts import list_artifacts

        for file in files:
            self._client.log_artifact(run_id, _existing(str(file)), folder or None)
        # MLflow's answer to a file is empty, as another server's may be
        where = f"{self._client.get_run(run_id).info.artifact_uri}/{folder}".rstrip("/")
        listed = list_artifacts(artifact_uri=where, tracking_uri=self._uri)
        there = {posixpath.basename(found.path): found.file_size for found in listed}
        for file in files:
            if there.get(file.name) != file.stat().st_size:
                raise ConnectionError(f"{file.name} was sent, but is not there")

    def _log_json(self, run_id: str, content: Mapping[str, object], folder: str, name: str) -> None:
        with TemporaryDirectory(prefix="dux-") as beside:
            file = Path(beside) / name
            file.write_text(json.dumps(content), encoding="utf-8")
            self._log_files(run_id, [file], folder)

    def _log_table(self, run_id: str, rows: Sequence[Mapping[str, object]], folder: str, name: str) -> None:
        """As MLflow's `log_table` writes it; that one appends to a table already there, and would double the rows."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
        self._log_json(run_id, table, folder, name)
        logged = [{"path": posixpath.join(folder, name), "type": "table"}]
        self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(logged))

    def _save_runs(self) -> None:
        _replace(self._runs_path, {"store": redacted(self._uri), **asdict(self._runs)})

    def _log(
        self,
        run_id: str,
        time: int,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        parameters: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        points = [Metric(key(name), float(value), time, step) for name, value in (metrics or {}).items()]
        params = [Param(key(name), str(value)) for name, value in (parameters or {}).items()]
        run_tags = [RunTag(key(name), str(value)) for name, value in (tags or {}).items()]
        self._client.log_batch(run_id, points, params[:100], run_tags[:100], synchronous=True)
        for start in range(100, max(len(params), len(run_tags)), 100):  # MLflow takes 100 at a time
            self._client.log_batch(
                run_id, (), params[start : start + 100], run_tags[start : start + 100], synchronous=True
            )


def filler(domain: Domain) -> str:
    """What a run logs for a parameter that its recipe did not draw, so that parallel coordinates shows the run.

    MLflow leaves a run out that lacks a parameter, and also one whose value is a text where most are numbers or a
    number where most are texts: "n/a" among temperatures would hide all runs with one or all without. Nothing ("")
    passes for a number (it is drawn at 0), "n/a" for a text.
    """
    values = domain.extremes()
    return "" if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) else "n/a"


def key(name: str) -> str:
    """`name` with what MLflow takes in no key replaced by `_`."""
    clean = re.sub(r"[^/\w.\- :]", "_", name)[:250]
    if posixpath.normpath(clean) != clean or clean == "." or clean.startswith(("..", "/")):
        clean = re.sub(r"[/.]", "_", clean) or "_"  # MLflow takes no key that, as a path, points elsewhere
    return clean


_EVENTS = frozenset(name for name in vars(_Mirror) if not name.startswith("_") and name != "tell")


def event_of(line: bytes) -> dict[str, Any] | None:
    """The event that a line of the spool is; None for one that is damaged, or of another version."""
    try:
        event: dict[str, Any] = json.loads(line)
        given = {key: value for key, value in event.items() if key != "event"}
        inspect.signature(getattr(_Mirror, event["event"])).bind(None, **given)
        numbers = [event.get("time"), event.get("trial", 0), *(point["trial"] for point in event.get("points", ()))]
        whole = event["event"] in _EVENTS and all(isinstance(number, int) for number in numbers)
        return event if whole and isinstance(event.get("parameters", {}), dict) else None
    except _UNREADABLE:
        return None


def _each(*parts: Callable[[], None]) -> None:
    """Does each part of an event, whichever others MLflow refuses; raises the first refusal, and an outage at once."""
    refusals = []
    for part in parts:
        try:
            part()
        except Exception as error:
            if not _is_final(error):
                raise
            refusals.append(error)
    if refusals:
        raise refusals[0]


def _is_final(error: Exception) -> bool:
    """Whether sending the same event again cannot help: MLflow, or the event itself, says so. Else it is an outage."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _FINAL_CODES
    response = getattr(error, "response", None)
    if response is not None:  # of an artifact upload
        return _error_code(response) in _FINAL_CODES
    if isinstance(error, OSError):
        return False
    # what is in the event is of no kind that we send; not ValueError alone, which a strange answer could raise
    return isinstance(error, Unsendable | AttributeError | KeyError | TypeError | ValueError)


def _connect(tracking_uri: str) -> Any:
    from mlflow import MlflowClient

    file = database(tracking_uri)
    if file is not None:
        make_store(file)
    else:
        _hear_only_mlflow()
    client = MlflowClient(tracking_uri=tracking_uri)
    if file is not None:
        remove_stray_folder(tracking_uri)
    return client


_ANSWERS = {
    r"experiments/get-by-name": {"experiment"},
    r"experiments/create": {"experiment_id"},
    r"experiments/(restore|set-experiment-tag)": set[str](),
    r"runs/create": {"run"},
    r"runs/update": {"run_info"},
    r"runs/(log-batch|set-tag|log-inputs|outputs)": set[str](),
    r"logged-models(/m-\w+)?": {"model"},
}
"""What the answer to a request of ours holds, by the end of its path."""


def only_mlflow_answers(response: Any, *_: object, **__: object) -> None:
    """A hook of `requests` that lets by what MLflow said itself, its errors included.

    The MLflow client takes much else for its server's word: 400 with HTML is "BAD_REQUEST", a login page that a PUT was
    redirected to has taken the file, an empty answer is one without fields.

    Raises:
        ConnectionError: somebody else said it; MLflow's client makes an MlflowException of that, an INTERNAL_ERROR.
    """
    where = urlsplit(response.request.url).path
    api = re.search(r"/api/[23]\.0/(mlflow|mlflow-artifacts)/(.+)", where)
    asked = response.request.method
    if api is None or (api[1] == "mlflow-artifacts" and asked == "GET"):
        return
    if response.is_redirect:
        if api[0] in response.headers["Location"]:  # to https, or to another name of the server
            return
    elif response.status_code == 200:
        try:
            said = response.json()
        except ValueError:
            said = None
        if api[1] == "mlflow-artifacts" and asked == "PUT":
            is_right = not response.content or said == {}  # either, by version; `_log_files` looks whether it is there
        else:
            fields = next((names for path, names in _ANSWERS.items() if re.fullmatch(path, api[2])), None)
            is_right = isinstance(said, dict) and (fields is None or set(said) == fields)
        if is_right:
            return
    elif _error_code(response):
        return
    raise ConnectionError(
        f"{asked} {where} was answered with status {response.status_code} by something that is not MLflow: "
        f"{in_short(response.text) or 'nothing'}"
    )


def _error_code(response: Any) -> str:
    """MLflow's name of an error; empty where the answer is none of MLflow's errors."""
    from mlflow.protos.databricks_pb2 import ErrorCode

    try:
        said = response.json()
    except ValueError:
        return ""
    if not isinstance(said, dict) or not isinstance(said.get("message"), str):
        return ""
    code = str(said.get("error_code"))
    return code if code in ErrorCode.keys() else ""  # noqa: SIM118


def _hear_only_mlflow() -> None:
    """Sets the hook in the session that MLflow's client makes its requests in, for which it has no public way."""
    from mlflow import environment_variables as settings
    from mlflow.utils import request_utils

    session = request_utils._get_request_session(
        settings.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(),
        settings.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get(),
        settings.MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.get(),
        request_utils._TRANSIENT_FAILURE_RESPONSE_CODES,
        True,
        settings.MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER.get(),
    )
    if only_mlflow_answers not in session.hooks["response"]:
        session.hooks["response"].append(only_mlflow_answers)


def _is_before_3(tracking_uri: str) -> bool:
    """Whether a server says that its version is 1 or 2."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(tracking_uri), "/version", "GET")
    return answer.status_code == 200 and re.fullmatch(r"[12]\.[\w.]{1,30}", answer.text.strip()) is not None


def _runs_of(client: Any, experiment_id: str) -> Runs:
    """The runs of an experiment by their tags; of two for one trial, the older."""
    parent_run_id: str | None = None
    run_ids: dict[int, str] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
        )
        for run in page:
            role = run.data.tags.get("dux.role")
            if role == "study":
                parent_run_id = parent_run_id or run.info.run_id
            elif role in ("trial", "repeat"):
                run_ids.setdefault(int(run.data.tags["dux.trial"]), run.info.run_id)
        token = page.token
        if not token:
            return Runs(experiment_id, parent_run_id, run_ids)


class Unsendable(Exception):
    """No store will ever take the event."""


def _models_of(client: Any, experiment_id: str, tracking_uri: str) -> dict[str, str]:
    """The logged models of an experiment by `_MODEL_TAG`; of two for one, the older.

    Raises:
        Unsendable: the server does not know what that is.
    """
    from mlflow.exceptions import MlflowException

    found: dict[str, str] = {}
    token = None
    while True:
        try:
            page = client.search_logged_models(
                [experiment_id], order_by=[{"field_name": "creation_time", "ascending": True}], page_token=token
            )
        except MlflowException:
            if tracking_uri.startswith("http") and _is_before_3(tracking_uri):
                raise Unsendable("it is older than MLflow 3, and has no logged models") from None
            raise
        for model in page:
            if _MODEL_TAG in model.tags:
                found.setdefault(model.tags[_MODEL_TAG], model.model_id)
        token = page.token
        if not token:
            return found


def _dataset_input(
    name: str, digest: str, context: str, source: str, image_shape: Sequence[int], profile: Mapping[str, object]
) -> Any:
    """A split as MLflow's own NumPy data sets are, whose schema and profile its UI knows how to show."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    images = [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *image_shape]}}]
    labels = [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]
    schema = {"mlflow_tensorspec": {"features": json.dumps(images), "targets": json.dumps(labels)}}
    dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), json.dumps(schema), json.dumps(dict(profile)))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _existing(path: str) -> str:
    if not Path(path).exists():
        raise Unsendable(f"{path} is no longer there to be logged")
    if not os.access(path, os.R_OK):
        raise Unsendable(f"{path} may not be read")
    return path


def in_short(text: str) -> str:
    """The text in one line of 300 characters at most."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"


def _plain(value: Any) -> Any:
    """JSON for what has none: NumPy's scalars as numbers, all else (paths) as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _replace(path: Path, content: Mapping[str, object]) -> None:
    """Writes JSON so that a reader, or a kill, meets the old file or the new one."""
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.write_text(json.dumps(content), encoding="utf-8")
    fresh.replace(path)
