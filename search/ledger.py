"""The ledger: the Optuna study that proposes recipes and records what has finished."""

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search.constraints import Limits, violations
from spaces import BadInput, Recipe, Space

SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = MappingProxyType(
    {
        "tpe": lambda seed: TPESampler(seed=seed),
        "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=16),
        "gp": lambda seed: GPSampler(seed=seed),
        "random": lambda seed: RandomSampler(seed=seed),
    }
)
"""Who proposes recipes, by name in study files."""

Outcome = Literal["complete", "failed", "stopped", "interrupted", "running"]

_RUNG = "rung."


@dataclass(frozen=True)
class Line:
    """One trial as the ledger has it."""

    trial: int
    outcome: Outcome
    recipe: Recipe | None
    """None where the process ended before a recipe was drawn."""
    measurements: Mapping[str, float]
    reason: str
    """Why it failed."""
    seconds: float
    stopped_at: int | None
    """Epochs after which it was stopped early."""
    rungs: Mapping[int, Mapping[str, float]]
    """Epochs -> the objectives then, where early stopping compared it with others; NaN where one was no number."""

    @property
    def ended(self) -> bool:
        """Whether it counts among the trials asked for: well or badly, it is done."""
        return self.outcome in ("complete", "failed", "stopped")


class Ledger:
    """One study's trials in an Optuna storage. Only the driver of the study writes.

    Args:
        storage: a database URL; SQLite or PostgreSQL.
        name: the study's name.
        objectives: measurement -> "max" or "min".
        sampler: a name in SAMPLERS.
        seed: of the sampler.
        space: what recipes are drawn from.
        constraints: measurement -> its limits; the sampler learns by how far a trial oversteps them.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        objectives: Mapping[str, str],
        sampler: str,
        seed: int,
        space: Space,
        constraints: Mapping[str, Limits] | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._objectives = dict(objectives)
        self._constraints = dict(constraints or {})
        self._space = space
        directions: list[Literal["minimize", "maximize"]] = [
            "maximize" if direction == "max" else "minimize" for direction in objectives.values()
        ]
        self._storage = _storage(storage)
        self._study = optuna.create_study(
            storage=self._storage, study_name=name, directions=directions, load_if_exists=True
        )
        found = [direction.name.lower() for direction in self._study.directions]
        if found != directions:
            raise BadInput(
                f"study {name!r} must keep its directions, but has {found} and was given {directions}; use another name"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # shown by optuna-dashboard, no more
            self._study.set_metric_names(list(objectives))
        # another seed for each session: the same one would propose the first session's random recipes again
        self._study.sampler = SAMPLERS[sampler](seed + len(self._study.get_trials(deepcopy=False)))
        self._asked: dict[int, optuna.Trial] = {}

    def ask(self) -> tuple[int, Recipe]:
        """The number of a new trial and its recipe: one that was interrupted, or a new one."""
        trial = self._study.ask()
        recipe = self._space.draw(trial)
        trial.set_user_attr("recipe", recipe.to_json())
        self._asked[trial.number] = trial
        return trial.number, recipe

    def complete(self, number: int, measurements: Mapping[str, float], seconds: float) -> None:
        """Record a finished trial; one whose objectives are not all finite is recorded as failed."""
        values = [measurements.get(name, math.nan) for name in self._objectives]
        if not all(math.isfinite(value) for value in values):
            named = ", ".join(f"{name} {value}" for name, value in zip(self._objectives, values, strict=True))
            self.fail(number, f"objectives must be finite, but are {named}")
            return
        self._set(number, measurements=json.dumps(dict(measurements)), seconds=seconds)
        for limit, over in violations(self._constraints, measurements).items():
            self._asked[number].set_constraint(limit, over)
        self._study.tell(self._asked.pop(number), values)

    def fail(self, number: int, reason: str) -> None:
        """Record a trial that ended badly; the sampler learns nothing from it, and it is not tried again."""
        self._set(number, reason=reason)
        self._study.tell(self._asked.pop(number), state=TrialState.FAIL)

    def rung(self, number: int, epoch: int, measured: Mapping[str, float]) -> None:
        """Record what a running trial had come to when early stopping looked at it."""
        values = {name: measured.get(name, math.nan) for name in self._objectives}
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._asked[number].set_user_attr(f"{_RUNG}{epoch}", known)

    def stop(self, number: int, epoch: int, seconds: float) -> None:
        """Record a trial that was stopped early; it has no measurements, and the sampler learns that it was poor."""
        self._set(number, seconds=seconds, stopped_at=epoch)
        self._study.tell(self._asked.pop(number), state=TrialState.PRUNED)

    def reconcile(self, finished: Callable[[int], Mapping[str, Any] | None] = lambda trial: None) -> int:
        """Close trials that no process works on any more and queue their recipes again; returns how many.

        To be called only by the process that holds the study's lock.

        Args:
            finished: `measurements` and `seconds` of a trial that had come to its end when the process was killed, from
                the trial's files; None for others.
        """
        trials = self._study.get_trials(deepcopy=False)
        queued = {
            trial.user_attrs["root"]
            for trial in trials
            if trial.state == TrialState.WAITING and "root" in trial.user_attrs
        }
        again = 0
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            self._asked.pop(trial.number, None)
            attributes = trial.user_attrs  # with an outcome in them the kill came between record and telling
            if not {"reason", "stopped_at", "measurements"} & {*attributes} and (result := finished(trial.number)):
                attributes = {"measurements": json.dumps(result["measurements"]), "seconds": result["seconds"]}
                for key, value in attributes.items():
                    self._storage.set_trial_user_attr(self._id(trial.number), key, value)
            if "measurements" in attributes:
                measurements = json.loads(attributes["measurements"])
                for limit, over in violations(self._constraints, measurements).items():
                    if limit not in trial.constraints:
                        optuna.Trial(self._study, self._id(trial.number)).set_constraint(limit, over)
                self._study.tell(trial.number, [measurements[name] for name in self._objectives])
                continue
            if "stopped_at" in attributes:
                self._study.tell(trial.number, state=TrialState.PRUNED)
                continue
            if "reason" not in attributes:
                root = trial.user_attrs.get("root", trial.number)
                if root not in queued:  # queued first and closed then: a kill between the two queues nothing twice
                    self._study.enqueue_trial(trial.params, user_attrs={"root": root})
                again += 1
            self._study.tell(trial.number, state=TrialState.FAIL)
        return again

    def lines(self) -> list[Line]:
        """Every trial that was ever begun, by number."""
        trials = self._study.get_trials(deepcopy=False)
        return [_line(trial) for trial in trials if trial.state != TrialState.WAITING]

    def done(self) -> int:
        """How many trials have ended, well or badly."""
        return sum(line.ended for line in self.lines())

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _set(self, number: int, **attributes: Any) -> None:
        for key, value in attributes.items():
            self._asked[number].set_user_attr(key, value)


def in_ledger(storage: str, name: str) -> bool:
    """Whether a study of this name is there."""
    return name in optuna.get_all_study_names(storage=_storage(storage))


def delete(storage: str, name: str) -> None:
    """Forget a study, if it is there."""
    if in_ledger(storage, name):
        optuna.delete_study(study_name=name, storage=_storage(storage))


def _storage(url: str) -> optuna.storages.RDBStorage:
    # another study's driver may hold SQLite's lock for a moment
    connect = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=connect)


def _line(trial: FrozenTrial) -> Line:
    attributes = trial.user_attrs
    outcome: Outcome = "running"
    if trial.state == TrialState.COMPLETE:
        outcome = "complete"
    elif trial.state == TrialState.PRUNED:
        outcome = "stopped"
    elif trial.state == TrialState.FAIL:
        outcome = "failed" if "reason" in attributes else "interrupted"
    return Line(
        trial.number,
        outcome,
        Recipe.from_json(attributes["recipe"]) if "recipe" in attributes else None,
        json.loads(attributes.get("measurements", "{}")),
        attributes.get("reason", ""),
        float(attributes.get("seconds", 0.0)),
        attributes.get("stopped_at"),
        {
            int(key.removeprefix(_RUNG)): {name: math.nan if v is None else v for name, v in values.items()}
            for key, values in attributes.items()
            if key.startswith(_RUNG)
        },
    )
