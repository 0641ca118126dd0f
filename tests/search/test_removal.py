"""`dux delete`: nothing of the study is left, and nothing of another is touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from running import Finished, Said

from search.ledger.storage import in_ledger
from search.study import Study

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture
def home(finished: Finished, tmp_path: Path) -> Path:
    return shutil.copytree(finished.home, tmp_path / "home")


def left(home: Path) -> set[str]:
    """What is there of studies, teachers and knowledge."""
    return {
        str(path.relative_to(home)) for kind in ("studies", "teachers", "knowledge") for path in home.glob(f"{kind}/*")
    }


def test_a_deleted_study_is_gone_with_its_teacher_and_its_name_is_free(home: Path, dux: Callable[..., Said]) -> None:
    storage, uri = Study.open("tiny", home).files.storage, Study.open("tiny", home).files.tracking_uri
    code, _, err = dux("delete", "tiny", "--home", home)
    assert (code, err.count("\n")) == (2, 1)
    assert "nobody can be asked here; add --yes to delete the files of 6 trials in" in err
    with FileLock(home / "studies" / "tiny" / ".driver.lock"):
        code, _, err = dux("delete", "tiny", "--home", home, "--yes")
    assert code == 2
    assert "a process is running 'tiny'" in err
    assert in_ledger(storage, "tiny")
    code, out, err = dux("delete", "tiny", "--home", home, "--yes")
    assert (code, err) == (0, "")
    assert f"removed {home / 'studies' / 'tiny'}" in out
    assert left(home) == set()
    assert not in_ledger(storage, "tiny")
    client = MlflowClient(tracking_uri=uri)
    assert client.get_experiment_by_name("dux-tiny") is None  # a new study of the name begins in one of its own
    (kept,) = [each for each in client.search_experiments() if each.name.startswith("dux-tiny-removed-")]
    assert client.search_runs([kept.experiment_id])
    code, _, err = dux("delete", "tiny", "--home", home, "--yes")
    assert code == 2
    assert err.startswith("dux: a study must exist to be deleted, but 'tiny' does not")


def test_what_another_study_uses_stays_and_runs_are_deleted_when_asked(home: Path, dux: Callable[..., Said]) -> None:
    shutil.copytree(home / "studies" / "tiny", home / "studies" / "other")
    uri = Study.open("tiny", home).files.tracking_uri
    before = left(home)
    code, _, err = dux("delete", "tiny", "--home", home, "--yes", "--mlflow")
    assert (code, err) == (0, "")
    assert left(home) == before - {"studies/tiny"}
    assert not [e for e in MlflowClient(tracking_uri=uri).search_experiments() if e.name.startswith("dux-tiny")]
    assert not (home / "mlflow-artifacts" / "dux-tiny").exists()


@pytest.mark.parametrize("state", ["folder gone", "ledger gone", "study.json damaged", "half removed"])
def test_what_is_left_of_a_study_is_deleted_whatever_that_is(
    state: str, home: Path, tmp_path: Path, dux: Callable[..., Said], finished: Finished
) -> None:
    study = Study.open("tiny", home)
    if state == "folder gone":
        shutil.rmtree(study.folder)
        code, _, err = dux("search", finished.file, "--home", home)
        assert code == 2
        assert "whose folder is gone; `dux delete tiny --home" in err
        assert not study.folder.exists()  # what is refused leaves nothing behind
    elif state == "ledger gone":
        (home / "ledger.db").unlink()
    elif state == "study.json damaged":
        (study.folder / "study.json").write_text("{")
        (study.folder / "task.json").write_text("[]")
    else:
        (study.folder / "study.json").unlink()
        (study.folder / "ledger.txt").unlink()
    code, _, err = dux("delete", "tiny", "--home", home, "--yes")
    assert (code, err) == (0, "")
    assert not study.folder.exists()
    assert not in_ledger(study.files.storage, "tiny")


@pytest.mark.parametrize("name", ["..", "../studies/tiny", "tiny/", ".", "a b"])
def test_a_name_that_is_a_path_deletes_nothing(name: str, home: Path, dux: Callable[..., Said]) -> None:
    before = left(home)
    code, _, err = dux("delete", name, "--home", home, "--yes")
    assert (code, err.count("\n")) == (2, 1)
    assert left(home) == before


def test_examples_are_written_once_and_are_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dux: Callable[..., Said]
) -> None:
    from search.study_file import StudyFile

    monkeypatch.chdir(tmp_path)
    for example in ("digits", "ensembles", "methods"):
        assert dux("init", "--example", example)[0] == 0
        assert StudyFile.read(tmp_path / f"{example}.yaml").name
    code, _, err = dux("init")
    assert (code, err) == (2, "dux: a file that exists is not overwritten, but digits.yaml does; name another\n")
    code, _, err = dux("init", "--example", "digit")
    assert code == 2
    assert "did you mean `digits`?" in err


def test_a_finished_study_is_carried_on_no_further_than_it_is(home: Path, dux: Callable[..., Said]) -> None:
    code, _, err = dux("resume", "tiny", "--home", home, "--trials", "3")
    assert (code, err) == (2, "dux: `--trials` must be at least the 6 trials already done, but got 3; leave it out\n")
    assert json.loads((home / "studies" / "tiny" / "study.json").read_text())["search"]["trials"] == 6


def test_a_study_that_is_refused_when_it_is_carried_on_is_as_it_was(home: Path, dux: Callable[..., Said]) -> None:
    folder = home / "studies" / "tiny"
    before = (folder / "study.json").read_bytes()
    with (folder / "spool.jsonl").open("a") as spool:
        spool.write(json.dumps({"event": "front_members", "version": 2, "time": 1, "trials": []}) + "\n")
    code, _, err = dux("resume", "tiny", "--home", home, "--trials", "9")
    assert (code, err.count("\n")) == (2, 1)
    assert "has some of a later one" in err
    assert (folder / "study.json").read_bytes() == before
