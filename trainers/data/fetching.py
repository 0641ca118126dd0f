"""Downloads by torchvision, and their failures in one line; what tells two files apart."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from spaces.errors import BadInput


@contextmanager
def fetching(name: str, root: Path) -> Iterator[None]:
    """Around a torchvision download of the data set `name` into `root`: a failure becomes BadInput."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # no network, no place to write; a wrong checksum is a RuntimeError
        raise BadInput(
            f"task.download: true must find the network and write to {root}, but fetching {name} failed: "
            f"{one_line(error)}; try again, or put the files into {root} by other means"
        ) from error


def fingerprint(content: bytes) -> tuple[int, str]:
    """Size in bytes, and the first 16 hex digits of SHA-256."""
    return len(content), hashlib.sha256(content).hexdigest()[:16]


def fingerprints(folder: Path, paths: Iterable[Path]) -> dict[str, tuple[int, str]]:
    """Of files below `folder`, by their paths in it."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            found[path.relative_to(folder).as_posix()] = (file.tell(), sha)
    return found


def one_line(error: Exception) -> str:
    """What another library has to say, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
