"""A study in MLflow: what each event does to its runs, models and tags. Sending an event twice has the same effect."""

import json
import math
import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial, singledispatchmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from search.secrets import redacted
from search.tracking.events import (
    CurveMeasured,
    DataDescribed,
    Event,
    FrontChanged,
    FrontMembers,
    StudentKept,
    StudyFinished,
    StudyStarted,
    TeacherMeasured,
    TrialFinished,
    TrialReported,
    TrialStarted,
    Unsendable,
    decode,
)
from search.tracking.mlflow_answers import is_final
from search.tracking.mlflow_runs import MODEL_TAG, Runs, models_of, runs_of
from search.tracking.mlflow_view import PARETO_TAG, VIEW_TAG, log10_name, view_state
from search.tracking.spool import replace_json
from trainers.files import json_text

_LONGEST_TAG = 5000  # characters, in older versions of MLflow; newer ones accept 8,000


class Mirror:
    """A study's experiment and its runs as they are in the store, with one handler per event.

    Recreated after every failure, so that it never assumes a run that the store does not have, or misses one that it
    has.
    """

    def __init__(self, client: Any, experiment_id: str, study: str, runs_path: Path, uri: str) -> None:
        self._client, self._study, self._runs_path, self._uri = client, study, runs_path, uri
        self._runs = runs_of(client, experiment_id)
        self._on_front: dict[int, str] = {}
        self._inputs: Any = None
        """Id of the parent run."""
        self._models: dict[str, str] | None = None
        """Value of `MODEL_TAG` -> logged model, as far as they were looked up."""
        self._save_runs()

    def send(self, line: bytes) -> None:
        """Sends a line of the spool.

        Raises:
            Unsendable: it is not an event, or what it refers to is gone.
        """
        time, event = decode(line)
        self._carry_out(event, time)

    @singledispatchmethod
    def _carry_out(self, event: Event, time: int) -> None:
        raise NotImplementedError(type(event).__name__)

    @_carry_out.register
    def _(self, event: StudyStarted, time: int) -> None:
        run_id = self._parent(time)
        self._client.update_run(run_id, status="RUNNING")
        objectives = {key(name): direction for name, direction in event.objectives.items()}
        view = view_state(objectives, [key(name) for name in event.drawn])
        self._client.set_experiment_tag(self._runs.experiment_id, VIEW_TAG, view)
        self._log(run_id, time, tags=event.tags)
        self._log(run_id, time, parameters=event.parameters)

    @_carry_out.register
    def _(self, event: DataDescribed, time: int) -> None:
        run_id = self._parent(time)
        names = json_text(event.class_names)
        described = {"class_names": [*event.class_names], "images": dict(event.images)}
        parts: list[Callable[[], None]] = [
            lambda: self._client.log_inputs(run_id, datasets=[_dataset_input(**split) for split in event.data])
        ]
        if event.class_names:
            parts.append(lambda: self._log_json(run_id, described, "", "classes.json"))
            if len(names) <= _LONGEST_TAG:
                parts.append(lambda: self._log(run_id, time, tags={"dux.class_names": names}))
        _each(*parts)
        self._inputs = None

    @_carry_out.register
    def _(self, event: TeacherMeasured, time: int) -> None:
        from mlflow.entities import LoggedModelInput

        run_id = self._parent(time)
        self._log(run_id, time, 0, event.metrics)
        model_id = self._model("teacher", run_id, event.parameters, {})
        self._link(model_id, run_id, time, 0, event.metrics)
        self._client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        self._inputs = None

    @_carry_out.register
    def _(self, event: TrialStarted, time: int) -> None:
        run_id = self._trial(event.trial, time)

        def give_inputs() -> None:
            inputs = self._study_inputs(time)
            self._client.log_inputs(run_id, datasets=inputs.dataset_inputs, models=inputs.model_inputs)

        _each(
            give_inputs,
            lambda: self._log(run_id, time, tags=event.tags),
            lambda: self._log(run_id, time, parameters=event.parameters),
        )

    @_carry_out.register
    def _(self, event: StudentKept, time: int) -> None:
        from mlflow.entities import LoggedModelOutput

        run_id = self._trial(event.trial, time)
        outputs = self._client.get_run(run_id).outputs
        model_id = self._model(str(event.trial), run_id, event.parameters, {"dux.files": f"runs:/{run_id}/student"})
        # MLflow would turn a model's NaN into 0
        finite = {name: value for name, value in event.metrics.items() if math.isfinite(value)}
        self._link(model_id, run_id, event.at, event.step, finite)
        if model_id not in [model.model_id for model in outputs.model_outputs]:  # MLflow accepts it only once
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, event.step)])

    @_carry_out.register
    def _(self, event: TrialReported, time: int) -> None:
        self._log(self._trial(event.trial, time), time, event.step, event.metrics)

    @_carry_out.register
    def _(self, event: TrialFinished, time: int) -> None:
        run_id, files = self._trial(event.trial, time), event.files
        logarithms = {
            name: math.log10(value)
            for measurement, value in event.metrics.items()
            if (name := log10_name(measurement)) is not None and 0 < value < math.inf
        }

        def log_files() -> None:
            if files is not None:  # without the students of its pruning curve, which have their own events
                there = Path(_existing(str(files))).iterdir()
                self._log_files(run_id, sorted(file for file in there if file.is_file()), "student")

        _each(
            lambda: self._log(run_id, time, event.step, {**event.metrics, **logarithms}, tags=event.tags),
            lambda: self._client.set_terminated(run_id, event.status, end_time=time),
            log_files,
        )

    @_carry_out.register
    def _(self, event: CurveMeasured, time: int) -> None:
        self._log_table(self._trial(event.trial, time), event.points, "", "curve.json")

    @_carry_out.register
    def _(self, event: FrontChanged, time: int) -> None:
        course = {"hypervolume": event.hypervolume, "front_size": event.size}
        self._log(self._parent(time), time, event.trials_finished, course)

    @_carry_out.register
    def _(self, event: FrontMembers, time: int) -> None:
        for trial, run_id in self._runs.run_ids.items():
            value = "true" if trial in event.trials else "false"
            if self._on_front.get(trial) != value:
                self._client.set_tag(run_id, PARETO_TAG, value)
                self._on_front[trial] = value

    @_carry_out.register
    def _(self, event: StudyFinished, time: int) -> None:
        run_id, front = self._parent(time), event.front
        _each(
            lambda: self._client.set_terminated(run_id, event.status, end_time=time),
            *([partial(self._log_table, run_id, front, "front", "table.json")] if front else []),
            *(partial(self._log_files, run_id, [Path(path)], "front") for path in event.artifacts),
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
        """The logged model, created if there is none. A call that every server answers must have succeeded before.

        Raises:
            Unsendable: the server has no logged models.
        """
        if self._models is None:
            self._models = models_of(self._client, self._runs.experiment_id, self._uri)
        if whose not in self._models:
            model = self._client.create_logged_model(
                self._runs.experiment_id,
                name=re.sub(r"[/:.%\"']", "-", f"{self._study}-{whose}"),
                source_run_id=run_id,
                tags={"dux.study": self._study, MODEL_TAG: whose, "mlflow.model.isExternal": "true", **tags},
                params={key(name): str(value) for name, value in parameters.items()},
                model_type="teacher" if whose == "teacher" else "student",
            )
            self._models[whose] = model.model_id
        return self._models[whose]

    def _link(self, model_id: str, run_id: str, time: int, step: int, metrics: Mapping[str, float]) -> None:
        """Links points of a run to a model and to the validation data, and marks the model as ready."""
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
            raise ConnectionError("the answer does not name a run")
        return run_id

    def _log_files(self, run_id: str, files: Sequence[Path], folder: str) -> None:
        from mlflow.artifacts import list_artifacts

        for file in files:
            self._client.log_artifact(run_id, _existing(str(file)), folder or None)
        # MLflow's answer to an upload is empty, as another server's may be
        where = f"{self._client.get_run(run_id).info.artifact_uri}/{folder}".rstrip("/")
        listed = list_artifacts(artifact_uri=where, tracking_uri=self._uri)
        there = {posixpath.basename(each.path): each.file_size for each in listed}
        for file in files:
            if there.get(file.name) != file.stat().st_size:
                raise ConnectionError(f"{file.name} was sent, but is not there")

    def _log_json(self, run_id: str, content: Mapping[str, object], folder: str, name: str) -> None:
        with TemporaryDirectory(prefix="dux-") as beside:
            file = Path(beside) / name
            file.write_text(json.dumps(content), encoding="utf-8")
            self._log_files(run_id, [file], folder)

    def _log_table(self, run_id: str, rows: Sequence[Mapping[str, object]], folder: str, name: str) -> None:
        """Like MLflow's `log_table`, which however appends to an existing table, and would duplicate the rows."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
        self._log_json(run_id, table, folder, name)
        logged = [{"path": posixpath.join(folder, name), "type": "table"}]
        self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(logged))

    def _save_runs(self) -> None:
        replace_json(self._runs_path, {"store": redacted(self._uri), **asdict(self._runs)})

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
        for start in range(100, max(len(params), len(run_tags)), 100):  # MLflow accepts 100 at a time
            self._client.log_batch(
                run_id, (), params[start : start + 100], run_tags[start : start + 100], synchronous=True
            )


def key(name: str) -> str:
    """`name` with characters that MLflow does not allow in keys replaced by `_`."""
    clean = re.sub(r"[^/\w.\- :]", "_", name)[:250]
    if posixpath.normpath(clean) != clean or clean == "." or clean.startswith(("..", "/")):
        clean = re.sub(r"[/.]", "_", clean) or "_"  # MLflow does not allow keys that, as paths, point elsewhere
    return clean


def _each(*parts: Callable[[], None]) -> None:
    """Does every part of an event even if MLflow refuses others; raises the first refusal, but an outage at once."""
    refusals = []
    for part in parts:
        try:
            part()
        except Exception as error:
            if not is_final(error):
                raise
            refusals.append(error)
    if refusals:
        raise refusals[0]


def _dataset_input(
    name: str, digest: str, context: str, source: str, image_shape: Sequence[int], profile: Mapping[str, object]
) -> Any:
    """A split in the form of MLflow's own NumPy data sets, whose schema and profile its UI can show."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    images = [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *image_shape]}}]
    labels = [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]
    schema = {"mlflow_tensorspec": {"features": json.dumps(images), "targets": json.dumps(labels)}}
    dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), json.dumps(schema), json.dumps(dict(profile)))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _existing(path: str) -> str:
    if not Path(path).exists():
        raise Unsendable(f"{path} no longer exists")
    if not os.access(path, os.R_OK):
        raise Unsendable(f"{path} is not readable")
    return path
