"""Finds a study in MLflow: its experiment, its runs, its logged models."""

import json
import queue
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.secrets import redacted
from search.tracking.events import Unsendable
from search.tracking.mlflow_answers import hear_only_mlflow, is_before_3
from search.tracking.mlflow_view import artifacts_of, database, make_store, quiet_mlflow, remove_stray_folder
from search.tracking.spool import UNREADABLE, in_short
from trainers.files import read_whole

ANSWER_S = 15.0
"""How long a command that only shows something waits for MLflow."""
MODEL_TAG = "dux.model"
"""Tag of a logged model: "teacher", or the number of the student's trial."""


@dataclass(frozen=True)
class Runs:
    """A study's experiment and runs in MLflow."""

    experiment_id: str
    parent_run_id: str | None
    run_ids: dict[int, str]
    """Trial -> run."""


def find_runs(folder: Path, study: str, tracking_uri: str, timeout_s: float = ANSWER_S) -> Runs | None:
    """A study's experiment and runs, read from `folder/runs.json` or else from the store; None if it is not there.

    Raises:
        BadInput: a tracking URI that a Tracker does not accept.
        ConnectionError: the store does not answer within `timeout_s`; the message contains no password.
    """
    file = database(tracking_uri)
    try:
        note = json.loads(read_whole(folder / "runs.json"))
        if note["store"] == redacted(tracking_uri):
            run_ids = {int(trial): str(run) for trial, run in note["run_ids"].items()}
            parent = note["parent_run_id"]
            return Runs(str(note["experiment_id"]), None if parent is None else str(parent), run_ids)
    except UNREADABLE:
        pass  # missing, damaged, or by another version: ask MLflow
    if file is not None and not file.exists():
        return None
    import mlflow  # noqa: F401, takes seconds, which do not count towards the timeout

    def ask() -> None:
        try:
            with quiet_mlflow():
                client = connect(tracking_uri)
                experiment = client.get_experiment_by_name(f"dux-{study}")
                answer.put(None if experiment is None else runs_of(client, experiment.experiment_id))
        except Exception as error:
            answer.put(error)

    answer: queue.SimpleQueue[Runs | Exception | None] = queue.SimpleQueue()
    # in a thread that is left behind: a server that sends a byte now and then outlasts any request's timeout
    threading.Thread(target=ask, name="dux-runs", daemon=True).start()
    try:
        result = answer.get(timeout=timeout_s)
    except queue.Empty:
        where = redacted(tracking_uri)
        raise ConnectionError(f"MLflow does not answer: nothing came from {where} in {timeout_s:g} s") from None
    if isinstance(result, Exception):
        raise ConnectionError(in_short(redacted(f"MLflow does not answer: {result}", tracking_uri))) from None
    return result


def take_out(study: str, tracking_uri: str, *, delete: bool) -> list[str]:
    """Free a study's name in MLflow by renaming its experiment, and delete it if asked; returns what was done.

    Raises:
        BadInput: a tracking URI that a Tracker does not accept.
        ConnectionError: the store does not answer.
    """
    file, name, done = database(tracking_uri), f"dux-{study}", []
    if file is not None and not file.exists():
        return []
    try:
        with quiet_mlflow():
            client = connect(tracking_uri)
            experiment = client.get_experiment_by_name(name)
            if experiment is not None:
                number = experiment.experiment_id
                if experiment.lifecycle_stage == "deleted":  # a deleted experiment cannot be renamed
                    client.restore_experiment(number)
                client.rename_experiment(number, f"{name}-removed-{number}")
                if delete or experiment.lifecycle_stage == "deleted":
                    client.delete_experiment(number)
                    done.append(f"deleted its experiment in MLflow (`mlflow gc` frees the space of number {number})")
                else:
                    done.append(f"renamed its experiment in MLflow to {name}-removed-{number}")
    except Exception as error:
        raise ConnectionError(redacted(f"MLflow does not answer: {error}", tracking_uri)) from None
    artifacts = None if file is None or not delete else artifacts_of(file) / name
    if artifacts is not None and artifacts.is_dir():
        shutil.rmtree(artifacts)
        done.append(f"removed {artifacts}")
    return done


def connect(tracking_uri: str) -> Any:
    """MLflow's client for a store; a missing database file is created."""
    from mlflow import MlflowClient

    file = database(tracking_uri)
    if file is not None:
        make_store(file)
    else:
        hear_only_mlflow()
    client = MlflowClient(tracking_uri=tracking_uri)
    if file is not None:
        remove_stray_folder(tracking_uri)
    return client


def runs_of(client: Any, experiment_id: str) -> Runs:
    """The runs of an experiment by their tags; if two belong to one trial, the older."""
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


def models_of(client: Any, experiment_id: str, tracking_uri: str) -> dict[str, str]:
    """The logged models of an experiment by `MODEL_TAG`; of duplicates, the older.

    Raises:
        Unsendable: the server has no logged models.
    """
    from mlflow.exceptions import MlflowException

    models: dict[str, str] = {}
    token = None
    while True:
        try:
            page = client.search_logged_models(
                [experiment_id], order_by=[{"field_name": "creation_time", "ascending": True}], page_token=token
            )
        except MlflowException:
            if tracking_uri.startswith("http") and is_before_3(tracking_uri):
                raise Unsendable("it is older than MLflow 3, and has no logged models") from None
            raise
        for model in page:
            if MODEL_TAG in model.tags:
                models.setdefault(model.tags[MODEL_TAG], model.model_id)
        token = page.token
        if not token:
            return models
