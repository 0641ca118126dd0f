"""Trials on Ray Tune: the one place where Ray is started, and where Ray and the ledger meet."""

import json
import logging
import math
import os
import re
import secrets
import select
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

_SETTINGS = {
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
"""Environment variables that Ray reads; one that is set already keeps its value."""
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)  # before Ray is imported: it reads some of them then

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.schedulers import FIFOScheduler, TrialScheduler  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from search.deaths import last_words, why_died  # noqa: E402
from search.guard import children_end_with_us  # noqa: E402
from search.ledger import Ledger  # noqa: E402
from search.lines import Repeat  # noqa: E402
from search.machine import oom_kills  # noqa: E402
from search.secrets import redacted  # noqa: E402
from search.signals import handlers_stay, signals_wait  # noqa: E402
from search.stopping import Halving  # noqa: E402
from spaces import BadInput, Recipe  # noqa: E402
from trainers import Checkpoint, Knowledge, Report, Task, TaskSpec, run_trial, save_student  # noqa: E402
from trainers.files import Damaged, read_whole, write_whole  # noqa: E402

SILENCE_S = 20.0
"""For how long the head of a joined cluster may not answer. After 60 s Ray itself ends any process that had joined it,
at once and without a word of ours."""
ORDERLY_S = 10.0
"""How long a study may take to end tidily when the daemon on this machine of the Ray started here has died: Tune's loop
goes on. While Ray starts there is nothing to be tidied up, and its libraries would end the process sooner."""
HANGING_S = 3.0
"""The same without Ray's server (GCS), where Tune's loop hangs; after 60 s Ray itself ends the process."""
_LOOK_S = 2.0
_LOOK_HERE_S = 0.5
_LOOK_AT_START_S = 0.1
_DYING_S = 2.0
_AGENT = re.compile(rb"DashboardAgent|RuntimeEnvAgent|/dashboard/agent\.py|/runtime_env/agent/main\.py")
"""By the names that they give themselves, and before that."""


class Watcher(Protocol):
    """Who is told what happens to trials, in the driver's main thread; expected neither to raise nor to wait."""

    def trial_started(self, trial: int, recipe: Recipe) -> None:
        """A worker has the trial."""

    def trial_reported(self, trial: int, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """An epoch is over."""

    def trial_ended(self, trial: int) -> None:
        """The ledger has the trial's outcome."""

    def repeats(self) -> list[Repeat]:
        """What is to be carried out once the trials asked for have ended: which trial is to be repeated, and which
        repeat of it that is. Neither those that ended nor those under way; asked anew after every end."""

    def tick(self) -> None:
        """Tune's loop has turned."""


@dataclass(frozen=True)
class Job:
    """What every worker needs: the task as numbers, and where results go."""

    task: TaskSpec
    task_key: str
    class_names: tuple[str, ...]
    teacher_measurements: Mapping[str, float]
    teacher_curve: tuple[float, ...]
    trials_folder: str
    checkpoints_folder: str
    checkpoint_seconds: float
    knowledge_folder: str
    driver_node: str
    threads: int
    device: str
    curve: tuple[float, ...]
    """Fractions at which every trained student is looked at."""
    timed: bool
    """Whether the study asks for students' latency."""
    import_folders: tuple[str, ...]
    """Where the driver finds modules, such as a user's own transfer method."""


@contextmanager
def cluster(
    address: str | None,
    *,
    cpus: int,
    gpus: float,
    store_bytes: int,
    verbose: bool,
    on_death: Callable[[str], object] = lambda why: None,
) -> Iterator[None]:
    """Ray, started here with `cpus` CPUs or joined at `address`; left as it was found.

    Args:
        address: of a running cluster, as `ray.init` takes it; None starts one for this process alone.
        cpus: of a Ray started here.
        gpus: of a Ray started here.
        store_bytes: how much the trials share in the object store of a Ray started here.
        verbose: whether Ray's own messages are shown.
        on_death: called with the reason, in a thread of its own, when the head of a joined cluster has not answered for
            SILENCE_S, a Ray has died that was being started here, or what is inside has not ended within ORDERLY_S of
            the death of one that was started.

    Raises:
        BadInput: nothing answers at `address`.
        RayDidNotStart: no Ray could be started here.
        RayDied: it did, whatever the exception was that followed inside.
    """
    level = logging.WARNING if verbose else logging.CRITICAL
    quiet: dict[str, Any] = {"logging_level": level, "log_to_driver": verbose, "ignore_reinit_error": False}
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.data", "ray.train")]
    for logger in loggers:
        logger.setLevel(level)
    with warnings.catch_warnings(), ExitStack() as stack:
        if not verbose:
            warnings.simplefilter("ignore")
            # of each worker that dies, on standard output, whatever `log_to_driver` says
            stack.enter_context(_replaced(ray._private.worker, "print_to_stdstream", lambda *_, **__: None))
        own = not ray.is_initialized()
        over, closing, started = threading.Event(), threading.Event(), threading.Event()
        if own and address is None:
            stack.enter_context(children_end_with_us())
            _keep_the_token_private()
            threading.Thread(target=_look, args=(over, started, on_death), name="dux-ray", daemon=True).start()
            try:
                # Ray's start takes SIGTERM for itself, and crashes on it later
                with handlers_stay(), _on_loopback_alone(), _known_from_its_start():
                    ray.init(
                        "local",  # whatever RAY_ADDRESS says
                        num_cpus=cpus,
                        num_gpus=int(np.ceil(gpus)),
                        include_dashboard=False,
                        object_store_memory=max(200_000_000, 2 * store_bytes),
                        **quiet,
                    )
            except Exception as error:  # a bare one is what Ray raises where the machine is too busy
                over.set()
                died = _ray_is_dead()
                ray.shutdown()
                if died:
                    raise RayDied(_why_dead(True)) from None
                raise RayDidNotStart(f"Ray did not start ({' '.join(str(error).split())[:150]})") from None
            except BaseException:
                over.set()
                raise
            started.set()
            threading.Thread(target=_watch_agents, args=(closing, on_death), name="dux-ray", daemon=True).start()
        elif own and address is not None:
            # the nodes need Dux's dependencies, and get Dux itself from here
            ours = [str(Path(sys.modules[name].__file__ or "").parent) for name in ("search", "spaces", "trainers")]
            try:
                _knock(address)
                with handlers_stay():
                    ray.init(address=address, runtime_env={"py_modules": ours}, **quiet)
            except (OSError, ValueError, RuntimeError) as error:
                raise BadInput(
                    f"`--address` must be of a running Ray cluster, but {redacted(address, address)} does not answer "
                    f"({redacted(' '.join(str(error).split()), address)[:150]}); start one, or leave --address out"
                ) from None
        for logger in loggers:
            logger.setLevel(level)  # ray.init sets its own
            threading.Thread(target=_listen, args=(over, on_death), name="dux-ray", daemon=True).start()
        try:
            yield
        except Exception as error:  # by whichever of Ray's calls it was noticed
            if (address is None or not own) and _ray_dies():
                raise RayDied(_why_dead(_is_ours())) from error
            raise
        finally:
            closing.set()
            if address is not None:
                over.set()
            if own:
                with signals_wait():
                    ray.shutdown()
            over.set()  # only now where Ray was started here: its shutdown may hang if it dies


def _listen(over: threading.Event, on_death: Callable[[str], object]) -> None:
    """Look now and then whether the head of the cluster answers.

    In a thread: Ray's calls, Tune's own among them, do not return while it does not.
    """
    answered = time.monotonic()
    while not over.wait(_LOOK_S):
        if not _ray_is_dead():
            answered = time.monotonic()
        elif time.monotonic() - answered > SILENCE_S:
            on_death(_why_dead(False))
            return


def _look(over: threading.Event, started: threading.Event, on_death: Callable[[str], object]) -> None:
    """Look now and then whether the Ray started here lives, and see that the study ends soon if it does not."""
    while not over.wait(_LOOK_HERE_S if started.is_set() else _LOOK_AT_START_S):
        if _ray_is_dead():
            patience_s = HANGING_S if _ray_is_dead("gcs_server") else ORDERLY_S
            if not over.wait(patience_s if started.is_set() else 0.0) and _ray_is_dead():
                on_death(_why_dead(True))
                return


def _watch_agents(closing: threading.Event, on_death: Callable[[str], object]) -> None:
    """See that the study ends at once if an agent of the Ray started here dies, on Linux.

    Ray's daemon ends with it, tidily, and says so to Ray's server; on whose word Ray's library ends this process within
    0.2 s, with code 1.
    """
    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process
    try:
        with ExitStack() as stack:
            ends = select.poll()
            for pid in _agents_of(raylet.pid):
                end = os.pidfd_open(pid)
                stack.callback(os.close, end)
                ends.register(end, select.POLLIN)
            while not closing.is_set():
                if ends.poll(1000 * _LOOK_HERE_S):
                    if raylet.poll() is None and not closing.is_set():
                        on_death(_why_dead(True))
                    return
    except (AttributeError, OSError):  # no Linux; or it is gone already, which `_look` sees
        return


def _agents_of(raylet: int) -> list[int]:
    """The processes that Ray's daemon started beside its workers."""
    listed = [file.read_text().split() for file in Path(f"/proc/{raylet}/task").glob("*/children")]
    called = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pids in listed for pid in pids}
    return [pid for pid, command in called.items() if _AGENT.search(command)]


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
            found: int = ray._raylet.wait_for_persisted_port(*arguments, timeout_ms=min(timeout_ms, 20))
            return found
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


@contextmanager
def _known_from_its_start() -> Iterator[None]:
    """Inside, a Ray that is started is known to `_ray_is_dead` from the beginning."""
    global _starting
    node = ray._private.node
    with _replaced(node, "Node", _Node), _replaced(node, "wait_for_persisted_port", _awaited_port):
        yield
    _starting = None  # from here on Ray itself knows it


def _on_loopback_alone() -> AbstractContextManager[None]:
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


def _keep_the_token_private() -> None:
    """The token that Ray's processes know each other by is for this user alone; Ray lets everybody read it.

    Made here where there is none, since Ray would make it readable first. Not where the user says by Ray's own
    variables what the token is, or that there is none.
    """
    if os.environ["RAY_AUTH_MODE"] != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & {*os.environ}:
        return
    file = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # Ray says what is wrong with the folder
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            with tempfile.NamedTemporaryFile("w", dir=file.parent) as fresh:  # 0600
                fresh.write(secrets.token_hex(32))
                fresh.flush()
                with suppress(FileExistsError):  # another study was first
                    os.link(fresh.name, file)
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _knock(address: str, timeout_s: float = 10.0) -> None:
    """Raise OSError if nothing listens at HOST:PORT: Ray would try for many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "//" not in address:
        with socket.create_connection((host, int(port)), timeout=timeout_s):
            pass


def run(
    job: Job,
    arrays: Mapping[str, np.ndarray],
    ledger: Ledger,
    watcher: Watcher,
    halving: Halving | None,
    *,
    trials: int,
    concurrent: int,
    cpus: int,
    gpus: float,
    retries: int,
    trial_timeout: float | None,
    scratch: Path,
) -> None:
    """Carry out trials until the ledger has `trials` that ended, then their repeats; to be called inside `cluster`.

    Returns early, with trials left open in the ledger, when the process is interrupted (SIGINT).

    Raises:
        RayDied: so did Ray itself; trials are left open.

    Args:
        job: the task and the folders.
        arrays: the task's and the knowledge's numbers; put into the object store once.
        ledger: where recipes come from and outcomes go.
        watcher: told of what happens.
        halving: stops trials early; knows those that went before. None lets every trial come to its end.
        trials: in all, those the ledger has already included.
        concurrent: at a time.
        cpus: of each trial.
        gpus: of each trial.
        retries: how often a recipe is tried again whose worker process died or took too long, or for want of memory.
        trial_timeout: seconds after which a trial's worker process is ended.
        scratch: a folder for Tune's own snapshots; nothing of ours is read from it.
    """
    searcher = _Searcher(ledger, trials, watcher, halving, retries)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_carry_out, job=job, arrays=dict(arrays)),
            {"cpu": cpus, "gpu": gpus} if gpus else {"cpu": cpus},
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(searcher) if halving is None else _Stopping(searcher, ledger, halving),
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # 0.02 s between trials instead of 5: a fresh worker imports torch anew
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[_Callback(searcher, watcher, trial_timeout)],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        tuner.fit()
    except _RayIsGone:
        raise RayDied(_why_dead(True)) from None


class RayDied(RuntimeError):
    """Ray is gone, and no trial would ever run again."""


class _RayIsGone(BaseException):
    """What ends Tune's loop then. At an Exception it would first wait for the workers, which nobody ends any more."""


class RayDidNotStart(RuntimeError):
    """And nobody ended it: it would not start the next time, either, as things are."""


def _is_ours() -> bool:
    """Whether the Ray that this process is connected to was started by it."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.all_processes)


def _ray_is_dead(*kinds: str) -> bool:
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
        _knock(node.gcs_address, _LOOK_S)
    except OSError:
        return True
    return False


def _ray_dies() -> bool:
    """Whether Ray is dead, or is so in a moment: some of its processes end when another has, and others hear of it."""
    deadline = time.monotonic() + _DYING_S
    while not (dead := _ray_is_dead()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return dead


def _why_dead(ours: bool) -> str:
    """What is told of a Ray that is dead, which was started here or not."""
    if not ours:
        return "the head of the Ray cluster does not answer any more"
    return "Ray's own processes on this machine died"


def this_node() -> str:
    """Ray's id of the machine this process is on; inside `cluster`."""
    found: str = ray.get_runtime_context().get_node_id()
    return found


class _Searcher(Searcher):  # type: ignore[misc]
    """Asks the ledger when Tune wants a trial, and tells it when Tune has finished one."""

    def __init__(self, ledger: Ledger, trials: int, watcher: Watcher, halving: Halving | None, retries: int) -> None:
        super().__init__()
        self._ledger: Ledger | None = ledger
        self._watcher: Watcher | None = watcher
        self._halving = halving
        self._retries, self._trials = retries, trials
        self._left = trials - ledger.done()
        self._repeats = watcher.repeats() if self._left <= 0 else []
        self.repeating: set[int] = set()
        self._open: set[str] = set()
        self.numbers: dict[str, int] = {}
        self.stopped_at: dict[str, int] = {}
        self.killed: dict[str, str] = {}
        """Why the driver ended a trial's worker process."""
        self.errors: dict[str, str] = {}
        """What Ray says of a trial's worker process that died."""
        self._oom_kills: dict[str, int | None] = {}
        """Those of the kernel when a trial began."""
        self.ray_died = False
        """Seen when a worker died, which is then not its trial's outcome."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles the searcher into snapshots that nobody reads
        return {**self.__dict__, "_ledger": None, "_watcher": None, "_halving": None}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's number and recipe, or that there is none; None for now, as long as one may be retried."""
        assert self._ledger is not None
        if self._repeats:
            number, recipe = self._ledger.ask_again(self._repeats.pop(0))
            self.repeating.add(number)
        elif self._left <= 0 and not self._open:
            return str(Searcher.FINISHED)
        elif len(self._open) >= self._left:
            return None
        else:
            number, recipe = self._ledger.ask()
        self.numbers[trial_id] = number
        self._oom_kills[trial_id] = oom_kills()
        self._open.add(trial_id)
        return {"trial": number, "root": self._ledger.root(number), "recipe": recipe.to_json()}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Record the outcome. Tune also calls this for trials that an interruption cut short; those stay open."""
        assert self._ledger is not None
        assert self._watcher is not None
        result = result or {}
        number = self.numbers[trial_id]
        if "measurements" in result:
            measurements, curve, files = (json.loads(result[key]) for key in ("measurements", "curve", "files"))
            if not self._ledger.complete(number, measurements, result["seconds"], curve, files):
                self._forget(number)
        elif trial_id in self.stopped_at:
            self._ledger.stop(number, self.stopped_at[trial_id], result["time_total_s"])
        elif "reason" in result:
            self._fail(number, result["reason"], result["again"])
        elif error and not (dead := _ray_dies()):
            self._fail(number, self.killed.get(trial_id) or self._why_died(trial_id), True)
        else:
            self.ray_died = error and dead
            return
        self._open.discard(trial_id)
        self._watcher.trial_ended(number)
        self._left = self._trials - self._ledger.done()
        self._repeats = self._watcher.repeats() if self._left <= 0 else []

    def _why_died(self, trial_id: str) -> str:
        error, before, now = self.errors.get(trial_id, ""), self._oom_kills.get(trial_id), oom_kills()
        known = _is_ours() and before is not None and now is not None
        return why_died(error, _last_words(error), now != before if known else None)

    def _fail(self, number: int, reason: str, again: bool) -> None:
        assert self._ledger is not None
        if again and self._ledger.tries(number) < self._retries:
            self._ledger.retry(number, reason)
        else:
            self._ledger.fail(number, reason)
        self._forget(number)

    def _forget(self, number: int) -> None:
        if self._halving is not None:
            self._halving.forget(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is on disk."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


def _last_words(error: str) -> str:
    """The last words of the worker process that Ray says has died, from whichever machine it was on."""
    pid, address = (re.search(rf"^\s*{name}: (\S+)$", error, re.MULTILINE) for name in ("pid", "ip"))
    if pid is None or address is None:
        return ""
    if _is_ours():
        return _logged(int(pid[1]))
    found = ""
    with suppress(ray.exceptions.RayError, StopIteration):  # that machine may be gone, too
        node = next(
            node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == address[1]
        )
        found = ray.get(_there(node, _logged, int(pid[1])), timeout=ORDERLY_S)
    return found


def _logged(pid: int) -> str:
    """The last words of a worker process of this machine."""
    node = ray._private.worker._global_node
    return "" if node is None else last_words(Path(node.get_logs_dir_path()), pid)


class _Scheduler(FIFOScheduler):  # type: ignore[misc]
    """One trial after the other; tells the searcher, who must explain it, why a worker died."""

    def __init__(self, searcher: _Searcher) -> None:
        super().__init__()
        self._searcher: _Searcher | None = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_searcher": None}

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """Tune calls this before the searcher hears of the end."""
        assert self._searcher is not None
        with suppress(OSError, TypeError):  # Tune's own file of what went wrong; none if it has not written one
            self._searcher.errors[trial.trial_id] = Path(trial.error_file).read_text()


class _Stopping(_Scheduler):
    """Compares trials at rungs, records it in the ledger, and stops those that do not go on."""

    def __init__(self, searcher: _Searcher, ledger: Ledger, halving: Halving) -> None:
        super().__init__(searcher)
        self._ledger: Ledger | None = ledger
        self._halving: Halving | None = halving

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_ledger": None, "_halving": None}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """There is no single metric."""
        return True

    def on_trial_result(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """`result`: flattened, `metrics/accuracy`. A trial at its last epoch is compared with, but not stopped."""
        assert self._searcher is not None
        assert self._ledger is not None
        assert self._halving is not None
        epoch = result.get("step", 0)
        number = self._searcher.numbers[trial.trial_id]
        if not self._halving.is_rung(epoch) or number in self._searcher.repeating:
            return str(TrialScheduler.CONTINUE)
        measured = {
            name: value
            for key, value in result.items()
            for kind, _, name in [key.partition("/")]
            if kind in ("metrics", "cost")
        }
        self._ledger.rung(number, epoch, measured)
        self._halving.add(number, epoch, measured)
        if epoch == result["steps"] or self._halving.should_continue(number, epoch):
            return str(TrialScheduler.CONTINUE)
        self._searcher.stopped_at[trial.trial_id] = epoch
        return str(TrialScheduler.STOP)


class _Callback(tune.Callback):  # type: ignore[misc]
    """Passes Tune's events on."""

    def __init__(self, searcher: _Searcher, watcher: Watcher, trial_timeout: float | None) -> None:
        self._searcher: _Searcher | None = searcher
        self._watcher: Watcher | None = watcher
        self._timeout = math.inf if trial_timeout is None else trial_timeout
        self._began: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_searcher": None, "_watcher": None}

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Tell the watcher."""
        assert self._watcher is not None
        self._began[trial.trial_id] = time.monotonic()
        self._watcher.trial_started(trial.config["trial"], Recipe.from_json(trial.config["recipe"]))

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Tell the watcher."""
        assert self._watcher is not None
        if "step" in result:
            self._watcher.trial_reported(trial.config["trial"], result["step"], result["steps"], result["metrics"])

    def on_step_end(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """End the workers that take too long, whatever they are at, and tell the watcher."""
        assert self._searcher is not None
        assert self._watcher is not None
        if self._searcher.ray_died or (_is_ours() and _ray_is_dead()):
            raise _RayIsGone
        late = time.monotonic() - self._timeout
        for trial in trials if self._timeout < math.inf else ():
            began = self._began.get(trial.trial_id, math.inf)
            if trial.status == "RUNNING" and began < late and trial.trial_id not in self._searcher.killed:
                self._searcher.killed[trial.trial_id] = (
                    f"took longer than search.trial_timeout, {self._timeout:g} s; raise it, or narrow the space"
                )
                ray.kill(trial.temporary_state.ray_actor)  # Tune hears of it as of any worker that died
        self._watcher.tick()


_loaded: tuple[str, Task, Knowledge] | None = None
"""The task of this worker process: workers are reused, and all trials of a study share one task."""


def _carry_out(config: Mapping[str, Any], job: Job, arrays: Mapping[str, np.ndarray]) -> None:
    """One trial in a worker process. Whatever goes wrong in it is the trial's outcome, not the study's."""
    global _loaded
    try:
        sys.path += [folder for folder in job.import_folders if folder not in sys.path]
        if _loaded is None or _loaded[0] != job.task_key:
            task = Task.from_arrays(
                job.task, job.teacher_measurements, job.teacher_curve, job.task_key, job.class_names, arrays
            )
            cached = {
                name.removeprefix("knowledge/"): array
                for name, array in arrays.items()
                if name.startswith("knowledge/")
            }
            _loaded = (job.task_key, task, Knowledge(task, Path(job.knowledge_folder), cached))
        _, task, knowledge = _loaded

        def report(report: Report) -> None:
            tune.report(vars(report))

        recipe = Recipe.from_json(config["recipe"])
        file = Path(job.checkpoints_folder) / f"{config['root']}.safetensors"
        checkpoints = _Checkpoints(file, job.driver_node)
        # the first trial of a recipe has none, and need not ask another machine
        load = checkpoints.load if config["root"] != config["trial"] else lambda: None
        result = run_trial(
            recipe,
            task,
            knowledge,
            report,
            curve=job.curve,
            checkpoint=Checkpoint(load, checkpoints.save, job.checkpoint_seconds),
            threads=job.threads,
            device=job.device,
            timed=job.timed,
        )
        checkpoints.settle()
        files = result.files(task)
        _save(Path(job.trials_folder) / str(config["trial"]), files, job.driver_node)
        told = json.loads(files["result.json"])
        # as text: Tune flattens nested results for its searchers
        nested = {key: json.dumps(told[key]) for key in ("measurements", "curve", "files")}
        tune.report({**nested, "seconds": told["seconds"]})
    except Exception as error:
        _save(
            Path(job.trials_folder) / str(config["trial"]),
            {"error.txt": traceback.format_exc().encode()},
            job.driver_node,
        )
        # what another try may not meet; all else, by the same recipe and seed, it would meet again
        again = isinstance(error, MemoryError | torch.OutOfMemoryError | OSError | ray.exceptions.RayError)
        tune.report({"reason": f"{type(error).__name__}: {error}", "again": again})


class _Checkpoints:
    """A trial's checkpoint in a file on the driver's machine, from whichever machine this is.

    None is worth a trial: where the disk is full or the driver's machine is slow, training goes on without.
    """

    def __init__(self, file: Path, driver_node: str) -> None:
        self._file, self._driver_node = file, driver_node
        self._on_its_way: list[Any] = []

    def load(self) -> bytes | None:
        """What was saved last."""
        if _is_here(self._driver_node):
            return _content(self._file)
        found: bytes | None = ray.get(_there(self._driver_node, _content, self._file))
        return found

    def save(self, content: bytes) -> None:
        """Write it; on another machine without waiting for it, and not while the one before is on its way."""
        if _is_here(self._driver_node):
            with suppress(OSError):
                write_whole(self._file, content)
        elif not self._on_its_way or ray.wait(self._on_its_way, timeout=0)[0]:
            self._on_its_way = [_there(self._driver_node, write_whole, self._file, content)]

    def settle(self) -> None:
        """Wait for what is on its way: none is to arrive after the trial's end, when its checkpoint is deleted."""
        if self._on_its_way:
            ray.wait(self._on_its_way)


def _content(file: Path) -> bytes | None:
    with suppress(OSError, Damaged):
        return read_whole(file)
    return None


def _save(folder: Path, files: Mapping[str, bytes], driver_node: str) -> None:
    """Write a trial's files on the driver's machine, from whichever machine this is."""
    if _is_here(driver_node):
        save_student(folder, files)
    else:
        ray.get(_there(driver_node, save_student, folder, dict(files)))


def _is_here(node: str) -> bool:
    here: str = ray.get_runtime_context().get_node_id()
    return here == node


def _there(node: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What another machine of the cluster computes, as Ray's reference to it."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0)(function).options(scheduling_strategy=there).remote(*arguments)
