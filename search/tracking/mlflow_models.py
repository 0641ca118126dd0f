"""Networks that MLflow stores, fetched into files before anything reads them."""

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, NoReturn

from search.home import make_writable
from search.secrets import redacted
from search.tracking.mlflow_answers import hear_only_mlflow
from search.tracking.mlflow_view import database, quiet_mlflow
from search.tracking.spool import in_short
from spaces.errors import BadInput, shown
from trainers.files import removed_at_last, scratch_folder
from trainers.task_spec import TaskSpec
from trainers.teacher_spec import EXPORTED

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
_LOGGED = "MLmodel"
"""The file that describes a model of MLflow's."""


def fetched(task: TaskSpec, folder: Path, tracking_uri: str) -> TaskSpec:
    """The task with the files of what its teacher names by `models:/...` or `runs:/...`, which are put into `folder`.

    A file is named by its content, so that the same one is there once, and an alias that moves changes nothing.

    Args:
        task: as its study file writes it.
        folder: is created where something is fetched.
        tracking_uri: MLflow's; MLFLOW_REGISTRY_URI names another store for models.

    Raises:
        BadInput: MLflow does not answer or has no such model, or reading the model would run code.
    """
    if not task.teacher.registered:
        return task
    return task.model_copy(
        update={"teacher": task.teacher.fetched(lambda key, uri: str(_fetched(key, uri, folder, tracking_uri)))}
    )


def _fetched(key: str, uri: str, folder: Path, tracking_uri: str) -> Path:
    """The file of a network, or of weights.

    Args:
        key: "network" or "weights".
        uri: of MLflow's.
        folder: where to.
        tracking_uri: of MLflow.
    """
    called = f"`task.teacher.{key}: {uri}`"
    with scratch_folder() as scratch:
        _download(called, uri, scratch, tracking_uri)
        file = _network(called, scratch) if key == "network" else _weights(called, scratch)
        with file.open("rb") as content:
            name = hashlib.file_digest(content, "sha256").hexdigest() + file.suffix
        kept = folder / name
        if not kept.exists():
            make_writable(folder, folder.parent)
            part = folder / f".{name}.{uuid.uuid4().hex}"
            with removed_at_last(part):
                shutil.copyfile(file, part)
                part.replace(kept)
    return kept


def _download(called: str, uri: str, folder: Path, tracking_uri: str) -> None:
    registry_uri = os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri
    store = database(tracking_uri)
    if store is not None and not store.exists():
        raise BadInput(
            f"{called} must be in MLflow, but there is no store of MLflow's in {store}; set MLFLOW_TRACKING_URI to the "
            "one that has it"
        )
    with quiet_mlflow():
        import mlflow

        if store is None:
            hear_only_mlflow()
        try:
            client = mlflow.MlflowClient(tracking_uri, registry_uri)
            mlflow.artifacts.download_artifacts(
                _stored(client, uri), dst_path=str(folder), tracking_uri=tracking_uri, registry_uri=registry_uri
            )
        except Exception as error:  # of MLflow's, of the network's, of whatever store has the files
            raise BadInput(
                f"{called} must be in MLflow at {redacted(tracking_uri)}, but "
                f"{in_short(redacted(str(error), tracking_uri))}; MLFLOW_TRACKING_URI names another"
            ) from None


def _stored(client: Any, uri: str) -> str:
    """Where the files of a model are; MLflow itself would ask its global registry, whatever a caller says.

    Args:
        client: of MLflow's.
        uri: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `models:/m-ID`, each perhaps with a path behind it; or
            `runs:/ID/PATH`.
    """
    if uri.startswith("runs:/"):
        run_id, _, path = uri.removeprefix("runs:/").partition("/")
        run = client.get_run(run_id)
        for output in run.outputs.model_outputs if run.outputs is not None else ():
            model = client.get_logged_model(output.model_id)
            if f"{path}/".startswith(f"{model.name}/"):
                return _stored(client, model.artifact_location.rstrip("/") + path.removeprefix(model.name))
        return f"{run.info.artifact_uri.rstrip('/')}/{path}"
    if not uri.startswith("models:/"):
        return uri
    name, *rest = uri.removeprefix("models:/").split("/")
    if name.startswith("m-") and "@" not in name and not (rest and rest[0].isdecimal()):
        source = client.get_logged_model(name).artifact_location
    else:
        name, _, alias = name.partition("@")
        if not alias and not (rest and rest[0].isdecimal()):
            raise ValueError("it is not models:/NAME/VERSION or models:/NAME@ALIAS")
        version = client.get_model_version_by_alias(name, alias).version if alias else rest.pop(0)
        source = client.get_model_version_download_uri(name, version)
    return _stored(client, "/".join([source.rstrip("/"), *rest]))


def _network(called: str, folder: Path) -> Path:
    """The one exported network in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    exported = [path for path in files if path.suffix == EXPORTED]
    if len(exported) == 1:
        return exported[0]
    if not exported and any(path.name == _LOGGED for path in files):
        raise BadInput(
            f"{called} must be stored without pickle, but reading it would run code, which Dux does not do; log it by "
            'mlflow.pytorch.log_model(..., serialization_format="pt2") with an `input_example` of 2 images or more, '
            "or name its class in `network` and a file with its state_dict in `weights`"
        )
    _refuse(called, f"one {EXPORTED} file", files, folder)


def _weights(called: str, folder: Path) -> Path:
    """The one file of weights in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weights = files if len(files) == 1 else [path for path in files if path.suffix in _WEIGHTS]
    if len(weights) == 1:
        return weights[0]
    _refuse(called, "one file of weights", files, folder)


def _refuse(called: str, rule: str, files: list[Path], folder: Path) -> NoReturn:
    names = [str(path.relative_to(folder)) for path in files]
    raise BadInput(f"{called} must have {rule}, but has {shown(names, 200)}; add the file's path to it")
