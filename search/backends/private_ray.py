"""All private parts of Ray that Dux uses; none of them has a public equivalent.

- `ray._private.worker._global_node`: the processes of the Ray started here and whether they are alive, the address of
  a joined cluster's head, the log folder. Ray does not report its own death: Tune would wait forever.
- `ray._private.node.Node` and its `wait_for_persisted_port`, replaced during start-up, so that the processes are known
  before `ray.init` returns, other threads can run meanwhile, and what a study does not need is not started.
- `ray._private.ray_constants.ENABLE_RAY_CLUSTER`, so that a Ray started here listens only on the loopback interface.
- `ray._private.worker.print_to_stdstream`, so that Ray does not print a line for each worker that dies.

Import this module before Ray, which reads some of the settings below on import.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_prestart_worker_first_driver": "0",  # Tune's trials get workers of their own: these would stay idle
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would build a new environment for its workers
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
)
"""Environment variables that Ray reads; those already set keep their values."""
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)  # before importing Ray, which reads some of them

import ray  # noqa: E402

_ANSWER_S = 2.0
_DYING_S = 2.0

_starting: Any = None
"""The Ray node that is being started here, or was last started."""


class _Node(ray._private.node.Node):  # type: ignore[misc]
    """A node that is known before its constructor returns, which starts processes and waits for them.

    It starts neither an autoscaler nor the dashboard's server, which would only report usage statistics, nor, unless
    Ray's own messages are shown, what passes on the workers' output: it starts in 3 s instead of 6, and needs 210 MB
    instead of 380.
    """

    def __init__(self, ray_params: Any, *arguments: Any, verbose: bool, **named: Any) -> None:
        global _starting
        self.all_processes: dict[str, Any] = {}
        _starting = self
        ray_params.no_monitor, ray_params.include_log_monitor = True, verbose
        super().__init__(ray_params, *arguments, **named)

    def start_api_server(self, **_: Any) -> None:
        self._webui_url = ""


def _awaited_port(*arguments: Any, timeout_ms: int) -> int:
    """Does the same as Ray's own function, which holds Python's lock while it waits, so that no other thread runs."""
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
def known_from_its_start(verbose: bool) -> Iterator[None]:
    """Inside, `ray_is_dead` knows a Ray that is being started from the beginning.

    Args:
        verbose: whether to show Ray's own messages, and what its workers print.
    """
    global _starting
    node = ray._private.node
    with (
        _replaced(node, "Node", partial(_Node, verbose=verbose)),
        _replaced(node, "wait_for_persisted_port", _awaited_port),
    ):
        yield
    _starting = None  # from now on Ray itself knows it


def on_loopback_alone() -> AbstractContextManager[None]:
    """Inside, a Ray that is started listens on 127.0.0.1 only: it runs the code of anyone who has its token.

    This uses a private constant, which has this effect on macOS and Windows. `ray.init(_node_ip_address="127.0.0.1")`
    looks right, but is turned into the machine's own address; and the environment variable behind the constant is read
    when Ray is imported, before it is known whether a cluster will be joined.
    """
    return _replaced(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)


@contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """Inside, a private name of Ray's refers to `value`, since there is no public equivalent."""
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
    """Raise OSError if nothing listens at HOST:PORT: Ray would keep trying for many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "//" not in address:
        with socket.create_connection((host, int(port)), timeout=timeout_s):
            pass


def is_ours() -> bool:
    """Whether the Ray that this process is connected to was started by it."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.all_processes)


def ray_is_dead(*kinds: str) -> bool:
    """Whether Ray has lost something essential: a process of the Ray started here, or the connection to a joined
    cluster's head. Ray does not report this: Tune would wait.

    Args:
        kinds: of processes to check, by Ray's names; all if none is given.
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
    """Whether Ray is dead or about to die: when one of its processes ends, others notice and end, too."""
    deadline = time.monotonic() + _DYING_S
    while not (dead := ray_is_dead()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return dead


def logs_here() -> Path | None:
    """The folder of Ray's logs on this machine."""
    node = ray._private.worker._global_node
    return None if node is None else Path(node.get_logs_dir_path())


def raylet() -> Any:
    """The daemon process of the Ray started on this machine; a `subprocess.Popen`."""
    return ray._private.worker._global_node.all_processes["raylet"][0].process
