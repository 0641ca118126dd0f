"""Standard output that nobody reads, that is full, closed, or of few characters; and disks that are full."""

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest
from processes import environment
from running import TINY, Finished, Said

from search.cli import main
from search.output import plain

COMMANDS = (
    ("--help",),
    ("search", "--help"),
    ("methods",),
    ("methods", "--json"),
    ("init", "study.yaml"),
    ("status",),
    ("status", "tiny"),
    ("status", "--json"),
    ("front", "tiny"),
    ("front", "tiny", "--json"),
    ("front", "tiny", "--html", "front.html"),
)
FULL = "dux: standard output cannot be written (No space left on device)\n"


@pytest.fixture
def into(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """A command whose output goes into a stream: its code, and what it said on standard error."""
    monkeypatch.setenv("DUX_HOME", str(finished.home))
    monkeypatch.chdir(tmp_path)

    def command(stream: TextIO, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dux", *arguments])
        monkeypatch.setattr(sys, "stdout", stream)
        return main(), capsys.readouterr().err

    return command


def _abandon(stream: TextIO) -> None:
    """Close what cannot be written."""
    with suppress(OSError):
        stream.close()


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_an_output_that_nobody_reads_is_no_error(
    arguments: tuple[str, ...], into: Callable[..., tuple[int, str]]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115
    assert into(stream, *arguments) == (0, "")
    _abandon(stream)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_an_output_on_a_full_disk_is_told_in_one_line(
    arguments: tuple[str, ...], into: Callable[..., tuple[int, str]]
) -> None:
    stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    assert into(stream, *arguments) == (1, FULL)
    _abandon(stream)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_an_output_of_few_characters_has_plain_ones(
    arguments: tuple[str, ...], encoding: str, into: Callable[..., tuple[int, str]]
) -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding)
    assert into(stream, *arguments) == (0, "")
    said = content.getvalue().decode(encoding)
    assert said
    assert "?" not in said.replace("?view=", "")
    if "--json" in arguments:
        json.loads(said)


def test_plain_text_is_like_the_text() -> None:
    assert plain("waiting … – 0.5 ± 0.1 × 3") == "waiting ... - 0.5 +- 0.1 x 3"
    assert plain("é ß ● │ 図") == "e ss * | ?"


def test_a_name_that_is_no_text_is_shown_as_it_is(tmp_path: Path) -> None:
    home = os.fsencode(tmp_path) + b"/h\xe9"
    done = subprocess.run(
        [sys.executable, "-m", "dux", "status", "--home", home],
        capture_output=True,
        env=environment(),
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"no study in " + home + b" yet;")


@pytest.mark.parametrize(("closed", "code"), [("<&-", 0), (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0)])
def test_closed_streams_are_no_error(closed: str, code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m dux init {closed}', sys.executable],
        capture_output=True,
        cwd=tmp_path,
        env=environment(),
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (code, b"")
    assert (tmp_path / "digits.yaml").read_bytes() == (Path(__file__).parents[2] / "examples/digits.yaml").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("init",), "digits.yaml cannot be written (File too large); make room, then run the same command again"),
        (
            ("search", "study.yaml"),
            "HOME/studies/tiny/study.json cannot be written (File too large); "
            "make room, then run the same command again",
        ),
    ],
)
def test_a_disk_without_room_is_told_in_one_line_and_nothing_is_left(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(TINY)
    done = subprocess.run(
        [sys.executable, "-m", "dux", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment(), "DUX_HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16)),
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"dux: {message.replace('HOME', str(tmp_path / 'home'))}\n"
    assert not (tmp_path / "digits.yaml").exists()
    assert not list((tmp_path / "home").glob("studies/*"))


@pytest.mark.parametrize(
    "command", [("search", "study.yaml"), ("status",), ("front", "tiny"), ("delete", "tiny", "--yes")]
)
@pytest.mark.parametrize("where", ["u:secret@h:port/db", "u:secret@[::1/db", "u:secret@h:-1/db"])
def test_a_database_at_a_port_that_is_none_is_told_in_one_line(
    command: tuple[str, ...],
    where: str,
    finished: Finished,
    dux: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "study.yaml").write_text(TINY.replace("name: tiny", "name: other"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUX_STORAGE", f"postgresql://{where}")
    code, out, err = dux(*command, "--home", finished.home)
    assert (code, out) == (2, "")
    assert err.startswith("dux: `DUX_STORAGE` must")
    assert err.count("\n") == 1
    assert "secret" not in err
