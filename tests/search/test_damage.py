"""A study whose files are damaged is one line that names the file, and hides no other study."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Finished, Said

FILES = (
    *("study.json", "task.json", "data.json", "ledger.txt", "ledger.jsonl", "front.json"),
    *("spool.jsonl", "spool.sent", "spool.refused.jsonl", "runs.json"),
)
NOTED = ("study.json", "task.json")
"""Files without which nothing can be said of a study."""


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if path.exists() else b'{"a": ')


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


CONTENTS: dict[str, Callable[[Path], object]] = {
    "truncated": halved,
    "empty": text(""),
    "list": text("[1, 2]\n"),
    "number": text("17\n"),
    "null": text("null\n"),
    "mapping": text('{"event": {}, "trial": [], "store": {}, "run_ids": [], "members": 3, "sha256": 1, "task": 2}\n'),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "deep": text("[" * 100_000),
    "nested": text('{"a":' * 700 + "1" + "}" * 700 + "\n"),
    "nan": text('{"offset": 1e999, "trial": NaN, "store": NaN}\n'),
    "huge": text('{"trial": ' + "9" * 5_000 + "}\n"),
}
KINDS: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path.mkdir(),
    "dangling": lambda path: path.symlink_to("/nowhere/at/all"),
    "loop": lambda path: path.symlink_to(path),
    "pipe": lambda path: os.mkfifo(path),
}


def tried(file: str, how: str) -> bool:
    """Whether it is worth the time: of files that are read alike, one is damaged in every way."""
    return file in (*NOTED, "runs.json") or how in ("folder", "pipe", "binary", "mapping", "deep")


def damaged(home: Path, file: str, how: str) -> str:
    """Adds a study of which one file is damaged; returns its name. Its trials are left out."""
    name = f"{file.replace('.', '-')}-{how}"
    folder = home / "studies" / name
    folder.mkdir()
    for other in (home / "studies" / "tiny").iterdir():
        if other.is_file() and other.name not in ("ledger.jsonl", ".driver.lock"):
            shutil.copy(other, folder)
    record = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**record, "name": name}))
    if how in KINDS:
        (folder / file).unlink(missing_ok=True)
        KINDS[how](folder / file)
    else:
        CONTENTS[how](folder / file)
    return name


@pytest.fixture
def home(finished: Finished, tmp_path: Path) -> Path:
    return shutil.copytree(finished.home, tmp_path / "home")


def assert_one_line(said: Said, name: str) -> str:
    code, _, err = said
    assert code in (0, 1, 2), (name, err)
    assert "Traceback" not in err, name
    if code:
        assert err.startswith("dux: "), name
        assert err.count("\n") == 1, (name, err)
    return err


def test_no_damaged_study_hides_another(home: Path, dux: Callable[..., Said]) -> None:
    before = json.loads(dux("status", "--json", "--home", home)[1])
    studies = {
        (file, how): damaged(home, file, how) for file in FILES for how in (*CONTENTS, *KINDS) if tried(file, how)
    }
    code, out, err = dux("status", "--json", "--home", home)
    rows = {row["study"]: row for row in json.loads(out)}
    assert (code, err, rows.keys()) == (0, "", {"tiny", *studies.values()})
    assert [rows["tiny"]] == before
    code, out, err = dux("status", "--home", home)
    assert (code, err) == (0, "")
    assert next(line.split() for line in out.splitlines() if line.strip().startswith("tiny "))[1:3] == [
        "finished",
        "6/6",
    ]
    for (file, how), name in studies.items():
        said = {rows[name].get("why", ""), assert_one_line(dux("front", name, "--home", home), name)}
        if how in KINDS or file in NOTED:
            assert all(file in line for line in said), (name, said)
            assert f"\n{name}: the files of '{name}' must be as they were written, but in" in out


@pytest.mark.parametrize("how", ["truncated", "binary", "list", *KINDS])
def test_every_damaged_study_can_be_removed(how: str, home: Path, dux: Callable[..., Said]) -> None:
    for file in ("study.json", "task.json", "ledger.txt", "spool.jsonl"):
        name = damaged(home, file, how)
        code, _, err = dux("delete", name, "--home", home, "--yes")
        assert (code, err) == (0, "")
    assert [folder.name for folder in (home / "studies").iterdir()] == ["tiny"]


@pytest.mark.parametrize("how", KINDS)
def test_what_is_no_file_is_refused_before_a_study_goes_on(how: str, home: Path, dux: Callable[..., Said]) -> None:
    for file in FILES:
        name = damaged(home, file, how)
        code, _, err = dux("resume", name, "--home", home)
        assert code == 2
        assert err.startswith(f"dux: the files of '{name}' must be as they were written, but in ")
        assert file in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("change", [{"search": {"seeds": 10**9}}, {"search": {"trials": 10**18}}, {"name": "other"}])
def test_numbers_without_end_in_a_studys_record_are_no_study(
    change: dict[str, object], home: Path, dux: Callable[..., Said]
) -> None:
    record = home / "studies" / "tiny" / "study.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    code, _, err = dux("status", "tiny", "--home", home)
    assert (code, err.count("\n")) == (2, 1)
    assert re.search("study.json (describes the study|does not describe a study)", err)


@pytest.mark.parametrize(
    "name",
    ["..", ".", "../studies/tiny", "tiny/", "./tiny", "/tiny", "a b", "~", "a\\b", "tiny\n", "\x1b[2J", "a" * 64, ""],
)
def test_a_name_that_is_none_is_refused_by_every_command(
    name: str, home: Path, finished: Finished, tmp_path: Path, dux: Callable[..., Said]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(finished.file.read_text().replace("name: tiny", "name: new"))
    for arguments in (
        *(
            ("status", name),
            ("front", name),
            ("resume", name),
            ("export", name),
            ("ui", name),
            ("delete", name, "--yes"),
        ),
        ("search", file, "--from", name),
    ):
        code, out, err = dux(*arguments, "--home", home)
        assert (code, out) == (2, "")
        assert err.startswith("dux: a study's name must be 1 to 63 letters, digits, `.`, `_` or `-`"), err
        assert err.count("\n") == 1
    file.write_text(finished.file.read_text().replace("name: tiny", f"name: {json.dumps(name)}"))
    code, out, err = dux("search", file, "--home", home)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "`name` must be 1 to 63 letters" in err
    assert [folder.name for folder in (home / "studies").iterdir()] == ["tiny"]
