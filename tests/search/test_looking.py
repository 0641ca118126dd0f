"""Commands that only look import no code of the user's, named by a study or in the current folder."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import environment
from running import Finished, Said

from search.tracking.mlflow_view import serve

# MLflow maps its tables with an option that SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

SHADOWED = ("json", "secrets", "ipaddress", "typer", "optuna", "numpy", "pandas", "torch", "mlflow", "cupy", "dotenv")
OWN = ("own_space", "own_method", "own_sampler")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder whose modules write a file when they are imported."""
    folder = tmp_path / "place"
    folder.mkdir()
    for module in (*SHADOWED, *OWN):
        program = f"open({str(tmp_path / f'{module}.was_imported')!r}, 'w').close()\nraise ImportError('of the user')\n"
        (folder / f"{module}.py").write_text(program)
    monkeypatch.chdir(folder)
    return folder


def imported(tmp_path: Path) -> list[str]:
    return sorted(file.stem for file in tmp_path.glob("*.was_imported"))


@pytest.fixture
def home(finished: Finished, tmp_path: Path) -> Path:
    """With the tiny study, which names modules of the user's, and one whose space is a function of theirs."""
    home = shutil.copytree(finished.home, tmp_path / "home")
    record = home / "studies" / "tiny" / "study.json"
    study = json.loads(record.read_text())
    study["space"]["transfer"] += ["own_method:Method"]
    study["search"]["sampler"] = "own_sampler:Sampler"
    record.write_text(json.dumps(study))
    (home / "studies" / "old").mkdir()
    (home / "studies" / "old" / "study.json").write_text(json.dumps({"name": "old", "space": "own_space:wide"}))
    return home


LOOKS = (
    *(("status",), ("status", "--json"), ("status", "tiny"), ("front", "tiny"), ("front", "tiny", "--json")),
    *(("status", "old"), ("front", "old"), ("export", "old"), ("ui", "old"), ("resume", "old")),
    *(("export", "tiny", "--out", "out"), ("delete", "old", "--yes"), ("delete", "tiny", "--yes")),
)


def test_looking_imports_nothing_of_the_users(home: Path, place: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "assert sys.path[0] == ''\n"  # Python looks in the current folder first
        "import dux\n"
        "dux.leave_current_folder()\n"
        "from search.cli import main\n"
        f"for arguments in {LOOKS}:\n"
        f"    sys.argv = ['dux', *arguments, '--home', {str(home)!r}]\n"
        "    print('CODE', *arguments[:2], main(), file=sys.stderr, flush=True)\n"
    )
    for arguments in (("-m", "dux", "status", "--home", str(home)), ("-c", program)):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=place,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert imported(tmp_path) == []
    lines = done.stderr.splitlines()
    codes = [int(line.split()[-1]) for line in lines if line.startswith("CODE")]
    assert codes == [2 if "old" in look and "delete" not in look else 0 for look in LOOKS], done.stderr
    told = [line for line in lines if not line.startswith("CODE")]
    assert len(told) == 5
    for line in told:
        assert "study.json does not describe a study: its `space` must be written out, but is 'own_space:wide'" in line
    assert not home.joinpath("studies", "tiny").exists()


def test_the_server_of_mlflows_pages_imports_nothing_of_the_users(
    finished: Finished, place: Path, tmp_path: Path
) -> None:
    server = serve(f"sqlite:///{shutil.copy(finished.home / 'mlflow.db', tmp_path)}")
    server.stop()
    assert imported(tmp_path) == []


def test_what_must_be_imported_is_named_first(
    home: Path, place: Path, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    record = home / "studies" / "tiny" / "study.json"
    record.write_text(record.read_text().replace('"trials": 6', '"trials": 7'))
    before = [*sys.path]
    try:
        code, _, err = dux("resume", "tiny", "--home", home)
    finally:
        sys.path[:] = before
    assert code == 2
    assert imported(tmp_path) == ["own_method"]
    named, _, refused = err.partition("must be something that can be imported, but ImportError: of the user")
    assert refused
    assert f"importing own_method:Method, which the study names, from {place / 'own_method.py'}" in named
    assert f"importing own_sampler:Sampler, which the study names, from {place / 'own_sampler.py'}" in named
