"""Networks in MLflow, a real server with real models: fetched once, as files; what cannot be is told in a line."""

import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from running import Said, Stand
from torch import nn

from search.check import check
from search.study import Study
from search.study_file import StudyFile
from search.tracking.mlflow_models import fetched
from spaces import BadInput
from trainers import TaskSpec, TeacherSpec
from trainers.files import sha256

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy", "ignore::DeprecationWarning", "ignore::UserWarning"
)


NOBODY = "http://127.0.0.1:9"
"""A server's address where none answers."""


def network() -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()


@pytest.fixture(scope="module")
def run_id(stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a run with a network as `.pt2`, the same pickled, and its weights; both networks are registered."""
    images = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", stand.url)
        mlflow.set_tracking_uri(stand.url)
        run = log(images)
        # what is fetched is not from what MLflow takes to be its store
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path_factory.mktemp('other') / 'mlflow.db'}")
    MlflowClient(tracking_uri=stand.url).set_registered_model_alias("net", "best", "1")
    return run


def log(images: np.ndarray) -> str:
    with mlflow.start_run() as run:
        for name, kind in (("net", "pt2"), ("pickled", "pickle")):
            mlflow.pytorch.log_model(
                network(),
                name=name,
                input_example=images if kind == "pt2" else None,
                pip_requirements=[],
                registered_model_name=name,
                serialization_format=kind,
            )
        mlflow.pytorch.log_state_dict(network().state_dict(), "weights")
    return str(run.info.run_id)


def task(**teacher: object) -> TaskSpec:
    spec = {"input": {"mean": [0.0], "std": [1.0]}, **teacher}
    return TaskSpec(teacher=TeacherSpec.model_validate(spec), train_limit=100, augment="none")


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, stand: Stand) -> str:
    return stand.store if request.param == "sqlite" else stand.url


def test_a_network_is_fetched_by_each_of_its_names_into_one_file(run_id: str, uri: str, tmp_path: Path) -> None:
    files = set()
    for name in ("models:/net/1", "models:/net@best", f"runs:/{run_id}/net"):
        spec = fetched(task(network=name), tmp_path / "networks", uri)
        files.add(str(spec.teacher.network))
    (file,) = files
    assert list((tmp_path / "networks").iterdir()) == [Path(file)]
    assert Path(file).name == f"{sha256(Path(file).read_bytes())}.pt2"
    from trainers.exported import read_exported

    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(read_exported(Path(file))(images), network()(images))


def test_a_name_that_begins_as_ids_of_models_do_is_a_name(run_id: str, stand: Stand, tmp_path: Path) -> None:
    client = MlflowClient(stand.url, stand.url)
    client.create_registered_model("m-net")
    client.create_model_version("m-net", f"{client.get_run(run_id).info.artifact_uri}/weights", run_id)
    file = fetched(task(network="x:y", weights="models:/m-net/1"), tmp_path, stand.url).teacher.weights
    assert file is not None
    assert Path(file).is_file()


def test_weights_of_a_members_are_fetched(run_id: str, stand: Stand, tmp_path: Path) -> None:
    members = [{"network": "a.b:C", "weights": f"runs:/{run_id}/weights"}, {"network": "torchvision:resnet18"}]
    spec = fetched(task(input={}, members=members), tmp_path, stand.url)
    state = torch.load(str(spec.teacher.each[0].weights), weights_only=True)
    assert state.keys() == network().state_dict().keys()
    assert spec.teacher.each[1] == TeacherSpec(network="torchvision:resnet18")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/pickled/1", r"must be stored without pickle, but .* would run code, .*serialization_format=\"pt2\""),
        ("models:/nobody/1", r"must be in MLflow at http.*, but .*nobody.*; MLFLOW_TRACKING_URI names another"),
        ("models:/net/7", r"must be in MLflow at http.*, but .*; MLFLOW_TRACKING_URI names another"),
        ("models:/net@worst", r"must be in MLflow at http.*, but .*worst.*; MLFLOW_TRACKING_URI names another"),
        ("models:/net", r"must be in MLflow at http.*, but .*; MLFLOW_TRACKING_URI names another"),
        ("runs:/RUN/weights", r"must have one .pt2 file, but has \['weights/state_dict.pth'\]; add the file's path"),
        ("runs:/0123/net", r"must be in MLflow at http.*, but .*0123.*; MLFLOW_TRACKING_URI names another"),
    ],
)
def test_what_is_not_there_or_would_run_code_is_one_line(
    name: str, message: str, run_id: str, stand: Stand, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        fetched(task(network=name.replace("RUN", run_id)), tmp_path / "networks", stand.url)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_no_store_and_no_answer_are_one_line_with_exit_code_2(
    tmp_path: Path, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = {"name": "mine", "task": {"teacher": {"network": "models:/net/1"}}, "space": {"transfer": ["kd"]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    for command in ("check", "search"):
        code, _, err = dux(command, tmp_path / "mine.yaml", "--home", tmp_path / "home")
        assert (code, err.count("\n")) == (2, 1)
        assert "must be in MLflow, but there is no store of MLflow's in" in err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    code, _, err = dux("check", tmp_path / "mine.yaml", "--home", tmp_path / "home")
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(r"must be in MLflow at http://127.0.0.1:9, but API request to", err)
    assert not (tmp_path / "home").exists()


def test_machines_of_a_cluster_are_asked_for_the_network_where_the_study_will_have_it(
    run_id: str, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stand.url)
    spec = task(network="models:/net/1").model_dump(exclude_defaults=True, mode="json")
    file = StudyFile.from_mapping({"name": "mine", "task": spec, "space": {"transfer": "kd"}})
    (problem,) = check(file, home=tmp_path, address=NOBODY.removeprefix("http://")).problems
    assert problem.startswith("`--address` must be that of a running Ray cluster")
    (there,) = (tmp_path / "networks").iterdir()
    assert there == Path(str(fetched(file.task, tmp_path / "networks", stand.url).teacher.network))


def test_a_study_goes_on_with_the_network_that_it_began_with(
    run_id: str,
    stand: Stand,
    tmp_path: Path,
    home: Path,
    dux_here: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = {
        "name": "mine",
        "task": task(network="models:/net@best").model_dump(exclude_defaults=True, mode="json"),
        "space": {"student.start": "teacher", "training.epochs": 1, "transfer": "none", "student.width": 0.5},
        "search": {"trials": 1},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stand.url)
    code, _, err = dux_here("search", tmp_path / "mine.yaml", "--home", home)
    assert code == 0, err
    (file,) = (home / "networks").iterdir()
    begun = Study.open("mine", home).file.task
    assert begun.teacher.network == str(file)
    assert fetched(begun, tmp_path, NOBODY) is begun
    assert dux_here("delete", "mine", "--home", home, "--yes")[0] == 0
    assert not file.exists()
