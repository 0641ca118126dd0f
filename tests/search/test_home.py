"""Homes: of any name, for their owner alone, looked at by those who may not write, and told where they cannot be."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import environment
from running import Finished, Said

from search.home import check_ray_folders, make_writable
from search.secrets import sqlite_url
from search.study import Study
from spaces import BadInput


def test_all_of_a_study_is_in_its_home_whatever_that_is_called(finished: Finished) -> None:
    there = {path.name for path in finished.home.iterdir() if not path.name.startswith(".")}
    assert there == {"ledger.db", "mlflow.db", "mlflow-artifacts", "studies", "teachers", "knowledge"}
    files = {path.name for path in finished.home.glob("mlflow-artifacts/dux-tiny/*/artifacts/student/*")}
    assert files >= {"student.json", "student.safetensors", "recipe.json", "result.json"}


def test_a_new_home_and_its_databases_are_their_owners_alone(finished: Finished, tmp_path: Path) -> None:
    assert stat.S_IMODE(finished.home.stat().st_mode) == 0o700
    for name in ("ledger.db", "mlflow.db"):
        assert stat.S_IMODE((finished.home / name).stat().st_mode) == 0o600
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o750)
    make_writable(shared / "studies" / "one", shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o750  # as its owner made it


@pytest.fixture(scope="module")
def of_others(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the home that belongs to another user, who lets all read it."""
    home = tmp_path_factory.mktemp("others") / "home"
    shutil.copytree(finished.home, home)
    note = home / "studies" / "tiny" / "runs.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"store": sqlite_url(home / "mlflow.db")}))
    for path in (home, *home.rglob("*")):
        os.chown(path, 65534, 65534)
        path.chmod(0o755 if path.is_dir() else 0o644)
    return home


def as_somebody(*arguments: str | Path, **settings: str) -> tuple[int, str, str]:
    """A `dux` command by somebody who may write only what is theirs, as root may not without these capabilities."""
    capabilities = "-dac_override,-dac_read_search,-fowner,-chown"
    ended = subprocess.run(
        ["setpriv", "--bounding-set", capabilities, sys.executable, "-m", "dux", *map(str, arguments)],
        env=environment() | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_the_home_of_somebody_else_can_be_looked_at(of_others: Path, tmp_path: Path) -> None:
    before = sorted(of_others.rglob("*"))
    code, out, err = as_somebody("status", "tiny", "--home", of_others)
    assert (code, "finished" in out, err) == (0, True, "")
    code, out, err = as_somebody("front", "tiny", "--home", of_others)
    assert (code, "on the front" in out, err) == (0, True, "")
    code, out, err = as_somebody("export", "tiny", "--home", of_others, "--format", "pt2", "--out", tmp_path / "out")
    assert (code, "wrote" in out, err) == (0, True, "")
    assert sorted(of_others.rglob("*")) == before


@pytest.mark.parametrize(
    "command", [["resume", "tiny", "--trials", "9"], ["delete", "tiny", "--yes"], ["ui", "tiny"]], ids=lambda c: c[0]
)
def test_the_home_of_somebody_else_is_not_changed(of_others: Path, command: list[str]) -> None:
    assert as_somebody(*command, "--home", of_others) == (
        2,
        "",
        f"dux: `--home` must be a folder that can be written, but {of_others} is not ({of_others} belongs to another "
        "user, or its disk is read-only); name another by --home or DUX_HOME\n",
    )
    assert Study.open("tiny", of_others).status().state == "finished"


def test_a_home_that_cannot_be_made_is_one_line(
    finished: Finished, tmp_path: Path, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(finished.file))
    code, out, err = dux("search", finished.file)
    assert (code, out) == (2, "")
    assert err.startswith("dux: `HOME` must be a folder that can be written, since Ray keeps its token there, but ")
    code, out, err = dux("search", finished.file, "--home", finished.file / "home")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_ray_must_have_room_for_its_sockets_and_a_place_for_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "new"))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for length in (20, 107):
        folder = "/tmp/".ljust(length, "x")
        monkeypatch.setenv("TMPDIR", folder)
        longest = f"{folder}/ray/session_2026-11-26_02-12-25_123456_{os.getpid()}/sockets/plasma_store.1"
        with socket.socket(socket.AF_UNIX) as unix:
            try:
                unix.bind(longest)
            except FileNotFoundError:
                check_ray_folders()
            except OSError:
                with pytest.raises(BadInput, match=r"`TMPDIR` must be short enough .* to a shorter one, such as /tmp"):
                    check_ray_folders()
    monkeypatch.setenv("TMPDIR", __file__)
    with pytest.raises(BadInput, match=r"must be a folder that can be written|must be short enough"):
        check_ray_folders()
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setenv("HOME", __file__)
    with pytest.raises(BadInput, match="`HOME` must be a folder that can be written"):
        check_ray_folders()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 32)
    check_ray_folders()
