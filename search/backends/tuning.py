"""Trials in worker processes, by Ray Tune: its searcher, scheduler and callback, which pass on its notifications."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from search.backends.private_ray import is_ours, ray_dies, ray_is_dead  # first: Ray reads settings when it is imported

# isort: split
import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.backends.attempts import Attempt, Attempts
from search.backends.backend import BackendDied, Job
from search.backends.cluster import OnDeath, cluster, why_dead
from search.backends.deaths import why_died
from search.backends.messages import EpochDone, from_tune
from search.backends.remote import last_words_of, this_node
from search.backends.trainable import work


class RayBackend:
    """A `search.backends.backend.Backend`.

    Args:
        address: of a running Ray cluster; None starts one on this machine.
        concurrent: trials at a time.
        cpus: of each trial.
        gpus: of each trial.
        scratch: a folder for Tune's own snapshots; we never read it.
        verbose: whether to show Ray's own messages.
        on_death: as in `cluster`.
    """

    def __init__(
        self,
        address: str | None,
        *,
        concurrent: int,
        cpus: int,
        gpus: float,
        scratch: Path,
        verbose: bool,
        on_death: OnDeath,
    ) -> None:
        self._address, self._concurrent, self._cpus, self._gpus = address, concurrent, cpus, gpus
        self._scratch, self._verbose, self._on_death = scratch, verbose, on_death

    def run(self, job: Job, arrays: Mapping[str, np.ndarray], attempts: Attempts) -> None:
        """As in `Backend`. The arrays are put into the object store once."""
        with cluster(
            self._address,
            cpus=self._concurrent * self._cpus,
            gpus=self._concurrent * self._gpus,
            store_bytes=sum(array.nbytes for array in arrays.values()),
            verbose=self._verbose,
            on_death=self._on_death,
        ):
            attempts.watcher.ready()
            trainable = tune.with_parameters(work, job=job, arrays=dict(arrays), driver=this_node())
            try:
                self._tuner(trainable, _Driver(attempts)).fit()
            except _RayIsGone:
                raise BackendDied(why_dead(True)) from None

    def _tuner(self, trainable: Any, driver: "_Driver") -> Any:
        resources = {"cpu": self._cpus, "gpu": self._gpus} if self._gpus else {"cpu": self._cpus}
        return tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=_Searcher(driver),
                scheduler=_Scheduler(driver),
                num_samples=-1,
                max_concurrent_trials=self._concurrent,
                reuse_actors=True,  # 0.02 s between trials instead of 5: a new worker has to import torch
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self._scratch),
                verbose=0,
                callbacks=[_Callback(driver)],
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            ),
        )


class _RayIsGone(BaseException):
    """Ends Tune's loop if Ray is gone. On an Exception Tune would first wait for its workers, which will never end."""


class _Driver:
    """What the parts given to Tune share in this process. Tune pickles them into unused snapshots, without this."""

    def __init__(self, attempts: Attempts) -> None:
        self.attempts = attempts
        self.by_id: dict[str, Attempt] = {}
        """By the id of Tune's trial."""
        self.ray_died = False
        """Noticed when a worker died; its death is then not its trial's outcome."""

    def __reduce__(self) -> tuple[Any, ...]:
        return object, ()


class _Searcher(Searcher):  # type: ignore[misc]
    """Gives Tune trials, and is notified when they end."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__()
        self._driver = driver

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, or the fact that there is none; None as long as a running one may be retried."""
        attempts = self._driver.attempts
        attempt = attempts.next()
        if attempt is None:
            return str(Searcher.FINISHED) if attempts.over else None
        self._driver.by_id[trial_id] = attempt
        return {"trial": attempt.trial, "root": attempt.root, "recipe": attempt.recipe.to_json()}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tune also calls this for trials that were interrupted; those stay open."""
        if not error:  # otherwise the scheduler was notified, and knows why
            self._driver.attempts.ended(self._driver.by_id[trial_id], from_tune(result))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is on disk."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class _Scheduler(FIFOScheduler):  # type: ignore[misc]
    """Runs trials in order; ends those that should not continue."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__()
        self._driver = driver

    def on_trial_result(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """An epoch; or the outcome, which the searcher handles once the worker is finished with the trial."""
        message = from_tune(result)
        should_continue = not isinstance(message, EpochDone) or self._driver.attempts.reported(
            self._driver.by_id[trial.trial_id], message
        )
        return str(TrialScheduler.CONTINUE if should_continue else TrialScheduler.STOP)

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """A worker process is gone."""
        attempt = self._driver.by_id[trial.trial_id]
        if ray_dies():
            self._driver.ray_died = True
            self._driver.attempts.leave(attempt)
            return
        error = ""
        with suppress(OSError, TypeError):  # Tune's own error file, if it has written one
            error = Path(trial.error_file).read_text()
        kernel_killed = attempt.met_oom_kill if is_ours() else None
        self._driver.attempts.died(attempt, why_died(error, last_words_of(error), kernel_killed))


class _Callback(tune.Callback):  # type: ignore[misc]
    """Handles Tune's notifications that neither the searcher nor the scheduler gets."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """A worker has started a trial."""
        self._driver.attempts.started(self._driver.by_id[trial.trial_id])

    def on_step_end(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """End the workers that take too long, whatever they are doing; to Tune they are workers that died."""
        if self._driver.ray_died or (is_ours() and ray_is_dead()):
            raise _RayIsGone
        if overdue := self._driver.attempts.overdue():
            for trial in trials:
                if self._driver.by_id[trial.trial_id] in overdue:
                    ray.kill(trial.temporary_state.ray_actor)
        self._driver.attempts.watcher.tick()
