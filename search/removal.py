"""Removing a study: its ledger, its files, what no other study needs, and its place in MLflow.

The study may be damaged or half removed already, so nothing about it is trusted: each step removes what is left.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from search.home import check_writable, ledger_url, shown_database
from search.ledger.storage import delete as forget
from search.ledger.storage import in_ledger
from search.secrets import sqlite_url, without_secrets
from search.study_file import check_name
from search.tracking.mlflow_runs import take_out
from spaces.errors import BadInput, known, shown
from trainers.files import read_whole


def check_removable(name: str, home: Path) -> str:
    """What exists of a study, in words.

    Raises:
        BadInput: nothing does, its ledger is in another database, or the database does not answer.
    """
    check_name(name)
    folder, storage = home / "studies" / name, ledger_url(home)
    parts = []
    if folder.is_dir():
        note, here = folder / "ledger.txt", shown_database()
        there = here
        with suppress(FileNotFoundError, ValueError, ArgumentError):  # a damaged note names no database
            if (noted := read_whole(note).decode().strip()) in ("", here) or make_url(noted):
                there = noted
        if there != here:
            noted = shown(there, 300).strip("'") or "not set"
            raise BadInput(
                f"`DUX_STORAGE` must name the database that {name!r} was started with, but is {here or 'not set'} "
                f"instead of {noted}; set it so or, if the database is gone, delete {note}"
            )
        trials = sum(1 for _ in folder.glob("trials/*"))
        parts.append(f"the files of {trials} trials in {folder}")
    if in_ledger(storage, name):
        parts.append(f"its trials in the ledger {without_secrets(storage)}")
    if not parts:
        names = [path.name for path in (home / "studies").glob("*") if path.is_dir()]
        way_out = known(names, name) if names else f"there is none in {home}"
        raise BadInput(f"a study must exist to be deleted, but {name!r} does not; {way_out}")
    return " and ".join(parts)


def remove(name: str, home: Path, *, with_runs: bool = False) -> list[str]:
    """Remove a study; returns what was removed, a line each.

    Its experiment in MLflow is renamed, so that a new study of the same name does not continue in it, or deleted.

    Args:
        name: the study's name.
        home: the home folder.
        with_runs: whether to delete its runs in MLflow, too.

    Raises:
        BadInput: as `check_removable`, or a process is running the study.
    """
    check_removable(name, home)
    check_writable(home, home / "studies", home / "studies" / name)
    folder, done = home / "studies" / name, []
    with ExitStack() as stack:
        if folder.is_dir():
            try:
                stack.enter_context(FileLock(folder / ".driver.lock").acquire(timeout=0.5))
            except Timeout:
                raise BadInput(
                    f"a study must not be running when it is deleted, but a process is running {name!r}; stop it first"
                ) from None
        uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(home / "mlflow.db")
        try:
            done += take_out(name, uri, delete=with_runs)
        except ConnectionError as error:
            if with_runs:
                raise
            done.append(f"its experiment in MLflow keeps its name; a new {name!r} would continue in it: {error}")
        for unused in (*_unused(home, name), *_unused_images(home, name)):
            shutil.rmtree(unused, ignore_errors=True)
            unused.with_name(f".{unused.name}.lock").unlink(missing_ok=True)
            done.append(f"removed {unused}, which no other study uses")
        for unused in _unused_networks(home, name):
            unused.unlink(missing_ok=True)
            done.append(f"removed {unused}, which no other study uses")
        if in_ledger(ledger_url(home), name):
            forget(ledger_url(home), name)
            done.append(f"removed its trials from the ledger {without_secrets(ledger_url(home))}")
        if folder.is_dir():
            shutil.rmtree(folder)
            done.append(f"removed {folder}")
    return done


def _unused(home: Path, name: str) -> Iterator[Path]:
    """The folders of the study's teacher and knowledge, if no other study uses or may come to use them."""
    own = home / "studies" / name
    key = _content(own / "task.json").get("key")
    if not isinstance(key, str) or not re.fullmatch(r"[0-9a-f]+", key):
        return
    task = _content(own / "study.json").get("task")
    for other in (home / "studies").glob("*"):
        if other == own or not other.is_dir():
            continue
        its = _content(other / "task.json").get("key")
        its_task = _content(other / "study.json").get("task")
        if its == key or (its is None and its_task in (None, task)):
            return
    yield from (folder for kind in ("teachers", "knowledge") if (folder := home / kind / key).is_dir())


def _unused_images(home: Path, name: str) -> Iterator[Path]:
    """The folders of images that the study mapped into memory, if no other study uses or may come to use them."""
    own = home / "studies" / name
    others = [other for other in (home / "studies").glob("*") if other != own and other.is_dir()]
    task = _content(own / "study.json").get("task")
    if any(
        not (other / "task.json").exists() and _content(other / "study.json").get("task") in (None, task)
        for other in others
    ):
        return
    used = {key for other in others for key in _images(other)}
    yield from (folder for key in _images(own) if key not in used and (folder := home / "images" / key).is_dir())


def _unused_networks(home: Path, name: str) -> list[Path]:
    """The files that were fetched from MLflow for the study, if no other study names them."""
    studies = {path.parent.name: path for path in (home / "studies").glob("*/study.json")}
    texts = {study: json.dumps(_content(path)) for study, path in studies.items()}
    if "{}" in texts.values():  # what a damaged study needs is not known
        return []
    own, others = texts.pop(name, ""), "".join(texts.values())
    return sorted(p for p in (home / "networks").glob("*") if p.name in own and p.name not in others)


def _images(study: Path) -> list[str]:
    keys = _content(study / "task.json").get("image_files")
    return [key for key in keys if re.fullmatch(r"[0-9a-f]+", str(key))] if isinstance(keys, list) else []


def _content(file: Path) -> dict[str, object]:
    try:
        content = json.loads(read_whole(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
