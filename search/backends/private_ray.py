"""What Ray keeps private: all of it that Dux uses is here, each thing for want of a public way.

- `ray._private.worker._global_node`: the processes of the Ray started here and whether they live, the address of the
  head of one that was joined, the folder of logs. Ray tells nobody when it dies: Tune would wait for ever.
- `ray._private.node.Node` and its `wait_for_persisted_port`, replaced during a start: so that the processes are known
  before `ray.init` has ended, and that it lets other threads run meanwhile.
- `ray._private.ray_constants.ENABLE_RAY_CLUSTER`: that a Ray started here listens on the loopback interface alone.
- `ray._private.worker.print_to_stdstream`: that Ray does not print a line for each worker that dies.

Whoever imports Ray imports this first: Ray reads some of the settings below when it is imported.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would build an environment anew for its workers
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
)
"""Environment variables that Ray reads; one that is set already keeps its value."""
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)  # before Ray is imported: it reads some of them then

import ray  # noqa: E402

_ANSWER_S = 2.0
_DYING_S = 2.0

_starting: Any = None
"""The node of Ray that is being started here, or was last."""


class _Node(ray._private.node.Node):  # type: ignore[misc]
    """Known before its constructor has ended, which starts processes and waits for them."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        global _starting
        self.all_processes: dict[str, Any] = {}
        _starting = self
        super().__init__(*arguments, **named)


def _awaited_port(*arguments: Any, timeout_ms: int) -> int:
    """What Ray's own function returns, which waits with Python's lock held: no other thread runs meanwhile."""
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        try:
            port: int = ray._raylet.wait_for_persisted_port(*arguments, timeout_ms=min(timeout_ms, 20))
            return port
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


@contextmanager
def known_from_its_start() -> Iterator[None]:
    """Inside, a Ray that is started is known to `ray_is_dead` from the beginning."""
    global _starting
    node = ray._private.node
    with _replaced(node, "Node", _Node), _replaced(node, "wait_for_persisted_port", _awaited_port):
        yield
    _starting = None  # from here on Ray itself knows it


def on_loopback_alone() -> AbstractContextManager[None]:
    """Inside, a Ray that is started listens on 127.0.0.1 and nowhere else: it runs the code of whoever has its token.

    By a private constant, which does so on macOS and Windows. `ray.init(_node_ip_address="127.0.0.1")`, which looks
    like the way, is turned into the machine's address among others; and the environment variable behind the constant
    is read when Ray is imported, when nobody knows yet whether a cluster will be joined.
    """
    return _replaced(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)


@contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """Inside, what Ray finds under a private name is `value`: there is no public way to what it is for."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def without_lines_of_workers() -> AbstractContextManager[None]:
    """Inside, no line is printed for each worker that dies; Ray prints one whatever `log_to_driver` says."""
    return _replaced(ray._private.worker, "print_to_stdstream", lambda *_, **__: None)


def knock(address: str, timeout_s: float = 10.0) -> None:
    """Raise OSError if nothing listens at HOST:PORT: Ray would try for many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "//" not in address:
        with socket.create_connection((host, int(port)), timeout=timeout_s):
            pass


def is_ours() -> bool:
    """Whether the Ray that this process is connected to was started by it."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.all_processes)


def ray_is_dead(*kinds: str) -> bool:
    """Whether something that Ray cannot do without is gone: a process of the Ray started here, or the answer of a
    joined cluster's head. Ray does not tell: Tune would wait.

    Args:
        kinds: of processes to look at, by Ray's names; all, if none is given.
    """
    node = ray._private.worker._global_node or _starting
    if node is None:
        return False
    if node.all_processes:
        needed = [node.all_processes.get(kind, []) for kind in kinds or ("raylet", "gcs_server")]
        return any(one.process.poll() is not None for each in needed for one in each)
    if node is _starting:
        return False
    try:
        knock(node.gcs_address, _ANSWER_S)
    except OSError:
        return True
    return False


def ray_dies() -> bool:
    """Whether Ray is dead, or is so in a moment: some of its processes end when another has, and others hear of it."""
    deadline = time.monotonic() + _DYING_S
    while not (dead := ray_is_dead()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return dead


def logs_here() -> Path | None:
    """The folder of Ray's logs on this machine."""
    node = ray._private.worker._global_node
    return None if node is None else Path(node.get_logs_dir_path())


def raylet() -> Any:
    """The process of Ray's daemon on this machine, of a Ray started here; a `subprocess.Popen`."""
    return ray._private.worker._global_node.all_processes["raylet"][0].process
