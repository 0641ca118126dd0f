"""Downloads by torchvision, and their failures in one line."""

from collections.abc import Iterator
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


def one_line(error: Exception) -> str:
    """What another library has to say, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
