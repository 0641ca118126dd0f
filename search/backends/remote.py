"""Other machines of a Ray cluster: a worker's access to the driver's disk, the driver's access to a worker's log."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from search.backends.private_ray import (  # first: it makes settings that Ray reads on import
    is_ours,
    logs_here,
)

# isort: split
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.backends.deaths import last_words
from search.backends.worker import Disk, OwnDisk, content_of
from spaces import BadInput
from trainers import save_student
from trainers.files import write_whole

_ANSWER_S = 10.0
_START_S = 120.0
"""How long a machine may take to start a worker, with Dux's code in it, and to answer."""


def this_node() -> str:
    """Ray's id of the machine that this process is on."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def disk_of(node: str) -> Disk:
    """The disk of a machine of the cluster."""
    return OwnDisk() if node == this_node() else _DistantDisk(node)


class _DistantDisk:
    """The disk of another machine. Checkpoints are written without waiting, and skipped while one is on its way."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._on_its_way: list[Any] = []

    def load(self, file: Path) -> bytes | None:
        """As in `Disk`."""
        content: bytes | None = ray.get(_there(self._node, content_of, file))
        return content

    def save(self, file: Path, content: bytes) -> None:
        """As in `Disk`."""
        if not self._on_its_way or ray.wait(self._on_its_way, timeout=0)[0]:
            self._on_its_way = [_there(self._node, write_whole, file, content)]

    def settle(self) -> None:
        """As in `Disk`."""
        if self._on_its_way:
            ray.wait(self._on_its_way)

    def write(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """As in `Disk`."""
        ray.get(_there(self._node, save_student, folder, dict(files)))


def last_words_of(error: str) -> str:
    """The last output of the worker process that Ray reports dead, from whichever machine it was on.

    Args:
        error: Ray's message, which contains the process's id and its machine's address.
    """
    pid, address = (re.search(rf"^\s*{name}: (\S+)$", error, re.MULTILINE) for name in ("pid", "ip"))
    if pid is None or address is None:
        return ""
    if is_ours():
        return _logged(int(pid[1]))
    words = ""
    with suppress(ray.exceptions.RayError, StopIteration):  # that machine may also be gone
        node = next(
            node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == address[1]
        )
        words = ray.get(_there(node, _logged, int(pid[1])), timeout=_ANSWER_S)
    return words


def unseen(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Which paths do not exist on which machines of the cluster, by the machines' addresses.

    Raises:
        BadInput: a machine does not answer.
    """
    if not paths:
        return []
    asked = [
        (str(node["NodeManagerAddress"]), _there(node["NodeID"], _missing, list(paths)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    missing = []
    for address, answer in asked:
        try:
            missing += [(address, path) for path in ray.get(answer, timeout=_START_S)]
        except ray.exceptions.RayError as error:  # too slow, gone, or without Dux's dependencies
            reason = " ".join(str(error).split())[:150] or type(error).__name__
            raise BadInput(
                f"every machine of the cluster must start a worker within {_START_S:.0f} s, but {address} does not "
                f"({reason}); repair it, or take it out of the cluster"
            ) from None
    return missing


def _missing(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if not path.exists()]


def _logged(pid: int) -> str:
    """The last output of a worker process on this machine."""
    folder = logs_here()
    return "" if folder is None else last_words(folder, pid)


def _there(node: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on another machine of the cluster; returns Ray's reference to the result."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0)(function).options(scheduling_strategy=there).remote(*arguments)
