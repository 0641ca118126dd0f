"""Ray: started for one study, or joined as a running cluster; watched while it is needed; left as it was found."""

import logging
import os
import re
import secrets
import select
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from search.backends.private_ray import (  # first: it makes settings that Ray reads on import
    is_ours,
    knock,
    known_from_its_start,
    on_loopback_alone,
    ray_dies,
    ray_is_dead,
    raylet,
    without_lines_of_workers,
)

# isort: split
import numpy as np
import ray

from search.backends.backend import BackendDidNotStart, BackendDied
from search.guard import children_end_with_us
from search.secrets import redacted
from search.signals import handlers_stay, signals_wait
from spaces import BadInput

SILENCE_S = 20.0
"""How long the head of a joined cluster may be silent. After 60 s Ray itself ends any process that had joined it, at
once and without a message from us."""
ORDERLY_S = 10.0
"""How long a study may take to shut down cleanly after the daemon of the Ray started here has died: Tune's loop still
runs. While Ray is starting there is nothing to clean up, and its libraries would end the process sooner."""
HANGING_S = 3.0
"""The same after the death of Ray's server (GCS), when Tune's loop hangs; after 60 s Ray itself ends the process."""
_LOOK_S = 2.0
_LOOK_HERE_S = 0.5
_LOOK_AT_START_S = 0.1
_AGENT = re.compile(rb"DashboardAgent|RuntimeEnvAgent|/dashboard/agent\.py|/runtime_env/agent/main\.py")
"""The names of Ray's processes, before and after they rename themselves."""

OnDeath = Callable[[str], object]


@contextmanager
def cluster(
    address: str | None,
    *,
    cpus: int,
    gpus: float,
    store_bytes: int,
    verbose: bool,
    on_death: OnDeath = lambda why: None,
) -> Iterator[None]:
    """Ray, started here with `cpus` CPUs or joined at `address`; left as it was found.

    Args:
        address: of a running cluster, as `ray.init` takes it; None starts one for this process alone.
        cpus: for a Ray started here.
        gpus: for a Ray started here.
        store_bytes: how much data the trials share in the object store of a Ray started here.
        verbose: whether to show Ray's own messages.
        on_death: called with the reason, in its own thread, when the head of a joined cluster has not answered for
            SILENCE_S, when a Ray dies while being started here, or when the block has not ended within ORDERLY_S of
            the death of a Ray started here.

    Raises:
        BadInput: nothing answers at `address`.
        BackendDidNotStart: no Ray could be started here.
        BackendDied: Ray died, whatever exception this caused inside.
    """
    own = not ray.is_initialized()
    watch = Watch(on_death)
    with _quiet(verbose) as settings, ExitStack() as stack:
        if not own:
            watch.begin(watch.head)
        elif address is None:
            stack.enter_context(children_end_with_us())
            _keep_the_token_private()
            _start(cpus, gpus, store_bytes, settings, watch)
        else:
            _join(address, settings)
            watch.begin(watch.head)
        _set_levels(settings["logging_level"])  # ray.init sets its own
        try:
            yield
        except Exception as error:  # whichever of Ray's calls noticed it
            if (address is None or not own) and ray_dies():
                raise BackendDied(why_dead(is_ours())) from error
            raise
        finally:
            watch.closing.set()
            if address is not None:
                watch.end()
            if own:
                with signals_wait():
                    ray.shutdown()
            watch.end()  # only now if Ray was started here: its shutdown may hang if it dies


@contextmanager
def _quiet(verbose: bool) -> Iterator[dict[str, Any]]:
    """Inside, Ray and its warnings are silent, unless `verbose`; yields the arguments of `ray.init` for that."""
    level = logging.WARNING if verbose else logging.CRITICAL
    _set_levels(level)
    with warnings.catch_warnings(), ExitStack() as stack:
        if not verbose:
            warnings.simplefilter("ignore")
            stack.enter_context(without_lines_of_workers())
        yield {"logging_level": level, "log_to_driver": verbose, "ignore_reinit_error": False}


def _set_levels(level: int) -> None:
    for name in ("ray", "ray.tune", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(level)


def _start(cpus: int, gpus: float, store_bytes: int, settings: Mapping[str, Any], watch: "Watch") -> None:
    watch.begin(watch.processes)
    try:
        # Ray's start-up replaces the handler of SIGTERM, and later crashes on it
        with handlers_stay(), on_loopback_alone(), known_from_its_start(settings["log_to_driver"]):
            ray.init(
                "local",  # whatever RAY_ADDRESS says
                num_cpus=cpus,
                num_gpus=int(np.ceil(gpus)),
                include_dashboard=False,
                object_store_memory=max(200_000_000, 2 * store_bytes),
                **settings,
            )
    except Exception as error:  # Ray raises a bare one if the machine is too busy
        watch.end()
        died = ray_is_dead()
        ray.shutdown()
        if died:
            raise BackendDied(why_dead(True)) from None
        raise BackendDidNotStart(f"Ray did not start ({' '.join(str(error).split())[:150]})") from None
    except BaseException:
        watch.end()
        raise
    watch.started.set()
    watch.begin(watch.agents)


def _join(address: str, settings: Mapping[str, Any]) -> None:
    # the nodes must have Dux's dependencies, and get Dux itself from here
    ours = [str(Path(sys.modules[name].__file__ or "").parent) for name in ("search", "spaces", "trainers")]
    try:
        knock(address)
        with handlers_stay():
            ray.init(address=address, runtime_env={"py_modules": ours}, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"`--address` must be that of a running Ray cluster, but {redacted(address, address)} does not answer "
            f"({redacted(' '.join(str(error).split()), address)[:150]}); start one, or leave --address out"
        ) from None


class Watch:
    """Threads that check whether Ray is alive: its own calls, Tune's included, do not return once it is dead."""

    def __init__(self, on_death: OnDeath) -> None:
        self._on_death, self._lock = on_death, threading.Lock()
        self.started, self.closing, self.over = threading.Event(), threading.Event(), threading.Event()
        """Ray has started; its shutdown begins; no checks are needed any more."""

    def begin(self, look: Callable[[], None]) -> None:
        """Start checking, with one of the methods below."""
        threading.Thread(target=look, name="dux-ray", daemon=True).start()

    def end(self) -> None:
        """No checks are needed any more. Does not return if a death is being reported: it is not reported twice."""
        with self._lock:
            self.over.set()

    def _dead(self, why: str) -> None:
        with self._lock:
            if not self.over.is_set():
                self._on_death(why)

    def head(self) -> None:
        """Check regularly whether the head of the cluster answers."""
        answered = time.monotonic()
        while not self.over.wait(_LOOK_S):
            if not ray_is_dead():
                answered = time.monotonic()
            elif time.monotonic() - answered > SILENCE_S:
                self._dead(why_dead(False))
                return

    def processes(self) -> None:
        """Check regularly whether the Ray started here is alive, and end the study soon if not."""
        while not self.over.wait(_LOOK_HERE_S if self.started.is_set() else _LOOK_AT_START_S):
            if ray_is_dead():
                patience_s = HANGING_S if ray_is_dead("gcs_server") else ORDERLY_S
                if not self.over.wait(patience_s if self.started.is_set() else 0.0) and ray_is_dead():
                    self._dead(why_dead(True))
                    return

    def agents(self) -> None:
        """End the study at once if an agent of the Ray started here dies, on Linux.

        Ray's daemon then shuts down and reports this to Ray's server, whereupon Ray's library ends this process within
        0.2 s, with code 1.
        """
        daemon = raylet()
        try:
            with ExitStack() as stack:
                ends = select.poll()
                for pid in _agents_of(daemon.pid):
                    end = os.pidfd_open(pid)
                    stack.callback(os.close, end)
                    ends.register(end, select.POLLIN)
                while not self.closing.is_set():
                    if ends.poll(1000 * _LOOK_HERE_S):
                        if daemon.poll() is None and not self.closing.is_set():
                            self._dead(why_dead(True))
                        return
        except (AttributeError, OSError):  # not Linux; or it is gone already, which `processes` notices
            return


def _agents_of(daemon: int) -> list[int]:
    """The processes that Ray's daemon started besides its workers."""
    listed = [file.read_text().split() for file in Path(f"/proc/{daemon}/task").glob("*/children")]
    called = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pids in listed for pid in pids}
    return [pid for pid, command in called.items() if _AGENT.search(command)]


def _keep_the_token_private() -> None:
    """Keep the token of Ray's processes readable by this user alone; Ray lets everybody read it.

    If there is none it is created here, since Ray would first create a readable one. Nothing is done if the user sets
    the token, or turns it off, with Ray's own variables.
    """
    if os.environ["RAY_AUTH_MODE"] != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & {*os.environ}:
        return
    file = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # Ray reports what is wrong with the folder
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            with tempfile.NamedTemporaryFile("w", dir=file.parent) as fresh:  # 0600
                fresh.write(secrets.token_hex(32))
                fresh.flush()
                with suppress(FileExistsError):  # another study was first
                    os.link(fresh.name, file)
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)


def why_dead(ours: bool) -> str:
    """Why Ray is dead, for messages; `ours`: whether it was started here."""
    if not ours:
        return "the head of the Ray cluster does not answer any more"
    return "Ray's own processes on this machine died"
