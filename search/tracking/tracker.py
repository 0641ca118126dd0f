"""Mirrors a study to MLflow without ever making the study wait.

Every event is first written to a spool on disk; a separate thread sends the lines to MLflow in order and notes how far
it has come. MLflow may be slow or down: the study continues, and what was missed is sent later, if need be by the next
process. Sending a line twice changes nothing, so after a crash the thread may start before the first unsent one:

- runs are looked up by their tags before they are created;
- a point carries the time of its event, and MLflow keeps one of two points equal in key, step, time and value;
- parameters, tags, states, inputs and files are set, not added;
- logged models are looked up by their tags before they are created, and are an output of a run only once.

There is one experiment per study (`dux-NAME`), one parent run (`NAME`) and one nested run per trial (`NAME/12`), whose
table `curve.json` has the points of its pruning curve; points that are or were on the front also have their own runs.
All runs have the data set's splits and the teacher as inputs. The teacher and, at the end, the students on the front
are logged models (`NAME-teacher`, `NAME-12`), which MLflow shows under Models: the recipe as parameters, measurements
linked to the run and the validation data. They are what MLflow calls external models: the files belong to the run (tag
`dux.files`) and are not copied. A server older than MLflow 3 has no logged models: it refuses these events, and gets
all the others.
"""

import threading
import time
from pathlib import Path

from search.secrets import redacted, without_secrets
from search.tracking.events import Event, Record, Unsendable, name_of
from search.tracking.mirror import Mirror
from search.tracking.mlflow_answers import is_final
from search.tracking.mlflow_runs import connect
from search.tracking.mlflow_view import artifacts_of, database, quiet_mlflow
from search.tracking.spool import Spool, history_of, in_short

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0  # between attempts while MLflow does not answer


class Tracker:
    """Reports a study to MLflow. `record` neither raises nor waits for MLflow; it takes about 0.1 ms.

    An exception here would end Ray's whole `fit()`, hence the guarantee; the last problem is in `last_error`. Only one
    process at a time may have a Tracker on a folder. A Tracker on a folder with a spool continues it.

    Args:
        folder: the study's; `spool.jsonl`, `spool.sent`, `spool.refused.jsonl` and `runs.json` are written there.
        study: the study's name.
        tracking_uri: `sqlite:////absolute/path.db` (artifacts go to `mlflow-artifacts` beside the file) or an MLflow
            server's `http(s)://` address.

    Raises:
        BadInput: a tracking URI of any other kind, or a spool of a later version.
    """

    def __init__(self, folder: Path, study: str, tracking_uri: str) -> None:
        database(tracking_uri)  # raises BadInput here rather than in the thread
        self.last_error: str | None = None
        self._folder, self._study, self._uri = folder, study, tracking_uri
        self._store = without_secrets(tracking_uri)
        self.history = history_of(folder)
        """What was recorded, including earlier sessions."""
        self._spool = Spool(folder)
        self._sent = self._spool.load_sent(self._store)
        if self._sent == 0:
            self._spool.forget_refused()
        self._doubted = -1
        """Offset of the event that was refused once."""
        self._last_time = 0
        self._changed = threading.Condition()
        self._hurry = self._closing = False
        self._thread = threading.Thread(target=self._send_all, name="dux-mlflow", daemon=True)
        self._thread.start()

    def record(self, event: Event) -> None:
        """Adds an event; returns at once."""
        try:
            with self._changed:
                self._last_time = max(self._last_time + 1, time.time_ns() // 1_000_000)
                record = Record(self._last_time, event)
                self._spool.append(record)
                self.history.take(record)
                self._changed.notify_all()
        except Exception as error:  # see the class: nothing may be raised here
            self.last_error = f"{name_of(type(event))} of study {self._study} is lost: {error}"

    def flush(self, timeout_s: float) -> int:
        """Waits until MLflow has every event, at most `timeout_s`; returns how many it does not have."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closing or self._sent >= self._spool.end, timeout_s)
            self._hurry = False
            return self._spool.count(self._sent)

    @property
    def in_the_way(self) -> str:
        """Why MLflow does not have all events, in brief."""
        why = (self.last_error or "it does not answer").removeprefix("MLflow does not accept events: ")
        return why if len(why) <= 160 else f"{why[:159]}…"

    def close(self, timeout_s: float) -> int:
        """Flushes and stops the thread; returns how many events are left to the next Tracker on this folder."""
        unsent = self.flush(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # a call that hangs longer ends with the process; its event is still in the spool
        self._thread.join(0.5 if unsent else 2.0)
        self._spool.close()
        return unsent

    def _send_all(self) -> None:
        mirror: Mirror | None = None
        wait_s = _FIRST_WAIT_S
        while self._await_event():
            try:
                with quiet_mlflow():
                    mirror = mirror or self._open_mirror()
                    self._send_next(mirror)
                wait_s = _FIRST_WAIT_S
            except Exception as error:  # an outage of any kind: the event stays and is sent again
                mirror = None
                self.last_error = in_short(redacted(f"MLflow does not accept events: {error}", self._uri))
                wait_s = self._pause(wait_s)

    def _pause(self, wait_s: float) -> float:
        """Waits before an event is sent again, briefly while `flush` waits; returns how long to wait the next time."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or (self._hurry and wait_s > _FIRST_WAIT_S), wait_s)
            return _FIRST_WAIT_S if self._hurry else min(2 * wait_s, _LONGEST_WAIT_S)

    def _await_event(self) -> bool:
        """Waits for an unsent event; False once the tracker closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._sent < self._spool.end)
            return not self._closing

    def _open_mirror(self) -> Mirror:
        client = connect(self._uri)
        name = f"dux-{self._study}"
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            self._note_sent(
                0
            )  # a store without the experiment has lost, or never had, what was sent beforeself._spool.forget_refused()
            file = database(self._uri)
            # without one, MLflow would put the artifacts of a database into the current folder
            location = None if file is None else (artifacts_of(file) / name).as_uri()
            experiment_id = client.create_experiment(name, location)
        elif experiment.name != name:
            raise ConnectionError(f"asked for the experiment {name}, got {experiment.name!r}")
        else:
            experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment_id)
        return Mirror(client, experiment_id, self._study, self._folder / "runs.json", self._uri)

    def _send_next(self, mirror: Mirror) -> None:
        line = self._spool.read(self._sent)
        try:
            mirror.send(line)
        except Exception as error:
            if not is_final(error):
                raise
            if self._doubted != self._sent and not isinstance(error, Unsendable):
                # sent once more, by a new mirror: this one may assume a run that has been deleted since, and the answer
                # may have come from another server that was there for a moment
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
