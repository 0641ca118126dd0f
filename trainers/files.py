"""Persistent files: written completely or not at all, identified and verified by their content. Without torch."""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_passing: set[Path] = set()
"""Files and folders to remove at the end."""


class Damaged(ValueError):
    """A file is not, or cannot be, what was once written; the message begins with its name."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="dux-", ignore_cleanup_errors=True) as folder, removed_at_last(folder):
        yield Path(folder)


@contextmanager
def removed_at_last(path: Path | str) -> Iterator[None]:
    """Inside, `remove_scratch` removes `path`."""
    _passing.add(Path(path))
    try:
        yield
    finally:
        _passing.discard(Path(path))


def remove_scratch() -> None:
    """Remove half-written and temporary files, if the process ends without running its `finally` blocks."""
    for path in list(_passing):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a kill at any moment, finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with removed_at_last(part):
        try:
            with _named(path), part.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def json_text(content: object, indent: int | None = None) -> str:
    """JSON with all characters as they are, except invalid ones, which file names may contain."""
    return json.dumps(content, indent=indent, ensure_ascii=False).encode(errors="backslashreplace").decode()


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into one folder: all of them, or none, leaving previous contents unchanged.

    Args:
        folder: is created, and removed again if the files cannot be written.
        files: contents by name; the last one is put in place last.

    Raises:
        OSError: something is in the way, or the disk is full; names the file that could not be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _named(folder):
            beside = tempfile.TemporaryDirectory(prefix=".", dir=folder, ignore_cleanup_errors=True)
        with beside:
            new, old = Path(beside.name) / "new", Path(beside.name) / "old"
            with _named(folder):
                new.mkdir()
                old.mkdir()
            for name, content in files.items():
                with _named(folder / name), (new / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            _exchange(folder, new, old, files)
    except BaseException:  # Ctrl-C, too
        for path in made:
            with suppress(OSError):  # not empty: another process came
                path.rmdir()
        raise
    with suppress(OSError):  # not every file system syncs a folder
        entries = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entries)
        finally:
            os.close(entries)


def _exchange(folder: Path, new: Path, old: Path, names: Iterable[str]) -> None:
    """Move files from `folder` into `old`, and those of `new` into their places; all of them or none."""
    moved: list[str] = []
    try:
        for name in names:
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
            with suppress(FileNotFoundError):
                (folder / name).rename(old / name)
            moved.append(name)
            (new / name).rename(folder / name)
    except BaseException:
        for name in moved:
            (folder / name).unlink(missing_ok=True)
        for path in old.iterdir():
            path.rename(folder / path.name)
        raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let errors name `path`: that of a full disk names no file, others name a temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def check_kind(path: Path, *, folder: bool = False) -> None:
    """Raise Damaged if something other than a file, or than a folder if `folder`, is at `path`."""
    with suppress(FileNotFoundError):
        path.lstat()
        try:
            kind = path.stat().st_mode
        except FileNotFoundError:
            raise Damaged(f"{path.name} is a broken link") from None
        except OSError as error:
            raise Damaged(f"{path.name} cannot be read ({error.strerror})") from None
        if not (stat.S_ISDIR(kind) if folder else stat.S_ISREG(kind)):
            raise Damaged(f"{path.name} is not a {'folder' if folder else 'file'}")


def read_whole(path: Path) -> bytes:
    """The content of a file; a pipe or device in its place, which might never end, is not read.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is not a file, or cannot be read.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Damaged(f"{path.name} is not a file")
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({error.strerror})") from None


def sha256(content: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def write_hashed(path: Path, content: bytes | str) -> None:
    """`write_whole`, with the file's hash in another file beside it, `NAME.sha256`.

    The hash is written first, so that a file never lacks it; a kill in between leaves a file that is refused, or none.
    `sha256sum --check` in the parent folder can read it.
    """
    content = content.encode() if isinstance(content, str) else content
    write_whole(_beside(path), _hash_line(path, content))
    write_whole(path, content)


def read_hashed(path: Path) -> bytes:
    """What `write_hashed` wrote at this path.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it was changed or comes from another path, or its hash is missing.
    """
    content = read_whole(path)
    try:
        noted = read_whole(_beside(path))
    except FileNotFoundError:
        raise Damaged(f"{path.name} has no hash beside it") from None
    if noted.decode(errors="replace") != _hash_line(path, content):
        raise Damaged(f"{path.name} was changed: it does not have the hash in {_beside(path).name}")
    return content


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _hash_line(path: Path, content: bytes) -> str:
    """Includes the folder, so that a file and its hash cannot be mistaken for those of another folder."""
    return f"{sha256(content)}  {path.parent.name}/{path.name}\n"


def sealed(record: Mapping[str, Any]) -> bytes:
    """`record` as JSON, including its own hash as `sha256`."""
    return json.dumps({**record, "sha256": sha256(json.dumps(record, indent=1).encode())}, indent=1).encode()


def unsealed(path: Path) -> dict[str, Any]:
    """The record in a file that `sealed` made.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it was changed.
    """
    try:
        record = json.loads(read_whole(path))
        noted = record.pop("sha256")
        found_hash = sha256(json.dumps(record, indent=1).encode())
    except Damaged:
        raise
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise Damaged(f"{path.name} is not a record with a hash") from None
    if found_hash != noted:
        raise Damaged(f"{path.name} was changed: it does not match its own hash")
    content: dict[str, Any] = record
    return content


def check_hashes(folder: Path, files: Mapping[str, str]) -> None:
    """Check that the files in `folder` have the hashes `files`, by name.

    Raises:
        FileNotFoundError: one of them is missing.
        Damaged: one was changed.
    """
    for name, noted in files.items():
        if sha256(read_whole(folder / name)) != noted:
            raise Damaged(f"{name} was changed")


def listing(root: Path) -> dict[str, str]:
    """Path from `root` -> hash of each file of an image folder, ROOT/SPLIT/CLASS/..., without hidden ones."""
    listed = {}
    for path in sorted(root.glob("*/*/**/*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not f"/{name}".count("/."):
            with suppress(Damaged, FileNotFoundError):
                listed[name] = sha256(read_whole(path))
    return listed


def hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    """The hash of each file, by name."""
    return {name: sha256(content) for name, content in files.items()}


def digest(*values: object) -> str:
    """A short name for values: 16 hex digits of SHA-256 over their JSON, or over their bytes as they are.

    An iterator gives bytes part by part, and is what they are together.
    """
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, Iterator):
            for part in value:
                sha.update(part)
        else:
            sha.update(value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode())
    return sha.hexdigest()[:16]


def curve_folder(place: int) -> str:
    """The folder of a pruning curve point's files, relative to its trial's folder."""
    return f"curve/{place}"
