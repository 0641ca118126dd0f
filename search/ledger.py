"""The ledger: the Optuna study that proposes recipes and records what has finished."""

import hashlib
import inspect
import json
import math
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from search.constraints import Limits, violations
from search.journal import Journal
from search.locks import TRY_S, PatientConnection
from search.secrets import redacted, without_secrets
from spaces import BadInput, Choice, Recipe, Space
from spaces.errors import known, shown
from spaces.own import own_object
from trainers.files import Damaged, read_whole, unsealed

SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = MappingProxyType(
    {
        "tpe": lambda seed: TPESampler(seed=seed),
        "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=16),
        "gp": lambda seed: GPSampler(seed=seed),
        "random": lambda seed: RandomSampler(seed=seed),
        "grid": lambda seed: RandomSampler(seed=seed),  # the ledger asks for what is left; this completes recipes
    }
)
"""Who proposes recipes, by name in study files."""

AT_RANDOM = 10
"""Trials that come to their end before a sampler which models the space is asked, as in Optuna's own. That counts
the points of pruning curves, too, of which a trial may have ten: modelled from the second trial on, the digits study
(examples/digits.yaml, seed 0) came to a hypervolume of 0.542 in 12 trials; drawn at random, to 0.557."""
_MODELS = {"tpe", "gp"}

MOST_ON_A_GRID = 100_000

Outcome = Literal["complete", "failed", "stopped", "interrupted", "running"]

_RUNG = "rung."
_LOST = "lost"
"""Of a trial that only takes a number, in a ledger that was rebuilt: nobody knows what it was."""
_MOST_REPEATS = 64
_MOST_LOST = 10_000
"""Numbers of trials of which nothing is known, in a ledger that is rebuilt; more are a mistake."""
_ENDED = ("complete", "failed", "stopped")


@dataclass(frozen=True)
class Line:
    """One trial as the ledger has it."""

    trial: int
    root: int
    """The first trial that had its recipe, where that was interrupted and tried again; else the trial itself."""
    outcome: Outcome
    recipe: Recipe | None
    """None where the process ended before a recipe was drawn."""
    measurements: Mapping[str, float]
    reason: str
    """Why it failed; of an interrupted trial, why it is tried again."""
    seconds: float
    stopped_at: int | None
    """Epochs after which it was stopped early."""
    rungs: Mapping[int, Mapping[str, float]]
    """Epochs -> the objectives then, where early stopping compared it with others; NaN where one was no number."""
    point: tuple[int, int] | None
    """Of a student on a trial's pruning curve: the trial, and the place on its curve."""
    repeat: tuple[int, int] | None = None
    """Of a trial that repeats another with a new seed, and of its points: that other trial, and which repeat it is."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of the files of its student, as they were written."""

    @property
    def ended(self) -> bool:
        """Whether it is done, well or badly."""
        return self.outcome in _ENDED

    @property
    def counts(self) -> bool:
        """Whether it is one of the trials asked for, and done."""
        return self.ended and self.point is None and self.repeat is None


LOST = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
"""What a database that went away raises through Optuna."""


class NoAnswer(BadInput):
    """A ledger's database does not answer; the message says which, why, and the way out."""


class Ledger:
    """One study's trials in an Optuna storage. Only the driver of the study writes.

    Args:
        storage: a database URL; SQLite or PostgreSQL.
        name: the study's name.
        objectives: measurement -> "max" or "min".
        sampler: a name in SAMPLERS, or `package.module:Class` of an Optuna sampler.
        seed: of the sampler.
        space: what recipes are drawn from.
        constraints: measurement -> its limits; the sampler learns by how far a trial oversteps them.
        curve: whether trials come with their pruning curve. Where the space cuts in several rounds, too, a trial that
            goes all the way has a fine-tuned student of every size on it; so those drawn at random, before the sampler
            models the space, are cut by the largest fraction there is.
        journal: a file in which every trial is written down, for `restore`; None for a ledger that only looks.
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
        curve: bool = False,
        journal: Path | None = None,
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
        self._seed = seed
        self._sampler: tuple[str, int] | None = (sampler, seed)
        self._at_random: BaseSampler | None = None
        """Asked first, where there is one."""
        self._all_the_way: dict[str, Any] = {}
        rounds = space.parameters.get("pruning.rounds", Choice((1,))).extremes()
        if curve and space.fractions() and 1 not in rounds:
            self._all_the_way["pruning.fraction"] = space.fractions()[-1]
        self._grid: Iterator[int] | None = None
        self._asked: dict[int, optuna.Trial] = {}
        self._lines: dict[int, Line] = {}
        self._journal = None if journal is None else Journal(journal)

    def ask(self) -> tuple[int, Recipe]:
        """The number of a new trial and its recipe: one that was interrupted, one to try first, or a new one."""
        if self._sampler is not None:  # only now, so that a study can be looked at where its sampler cannot be found
            sampler, seed = self._sampler
            # another seed for each session: the same one would propose the first session's random recipes again
            before = len(self._study.get_trials(deepcopy=False))
            self._chosen = make_sampler(sampler, seed + before)
            self._at_random = _at_random(seed + before, self._all_the_way) if sampler in _MODELS else None
            self._study.sampler = self._at_random or self._chosen
            if sampler == "grid":
                self._grid = iter(random.Random(seed).sample(range(self._space.size), self._space.size))
            self._sampler = None
        if self._grid is not None:
            self._queue_next(self._grid)
        if self._at_random is not None and self._learned() >= AT_RANDOM:
            self._study.sampler, self._at_random = self._chosen, None
        trial = self._study.ask()
        recipe = self._space.draw(trial)
        trial.set_user_attr("recipe", recipe.to_json())
        self._asked[trial.number] = trial
        self._write_down()
        return trial.number, recipe

    def ask_again(self, trial: int, repeat: int) -> tuple[int, Recipe]:
        """The number of a new trial that repeats a finished one, and its recipe: the same but for the seed.

        The seed follows from the study's, the trial and the number of the repeat. Nobody draws the new trial's
        parameters, and so it has none in Optuna: samplers have nothing to learn from it. It is begun and known for what
        it is in one step, so that a kill leaves no trial of another kind.
        """
        first = next(line.recipe for line in self.lines() if line.trial == trial)
        assert first is not None
        recipe = first.model_copy(update={"seed": _other_seed(self._seed, trial, repeat)})
        begun = optuna.trial.create_trial(
            state=TrialState.RUNNING, user_attrs={"repeat": [trial, repeat], "recipe": recipe.to_json()}
        )
        study = self._storage.get_study_id_from_name(self._study.study_name)
        asked = optuna.Trial(self._study, self._storage.create_new_trial(study, begun))
        self._asked[asked.number] = asked
        self._write_down()
        return asked.number, recipe

    def complete(
        self,
        number: int,
        measurements: Mapping[str, float],
        seconds: float,
        curve: Sequence[Mapping[str, Any]] = (),
        files: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Record a finished trial; one whose objectives are not all finite is recorded as failed: False.

        Args:
            number: of the trial.
            measurements: of its student.
            seconds: that it took.
            curve: as in the trial's `result.json`; each point becomes a line of its own, and the sampler learns of it.
            files: name -> SHA-256 of its student's files.
        """
        values = [measurements.get(name, math.nan) for name in self._objectives]
        if not all(math.isfinite(value) for value in values):
            named = ", ".join(f"{name} {value}" for name, value in zip(self._objectives, values, strict=True))
            self.fail(number, f"objectives must be finite, but are {named}")
            return False
        self._set(number, curve=json.dumps(list(curve)), files=dict(files))
        self._set(number, measurements=json.dumps(dict(measurements)), seconds=seconds)  # last: then the rest is there
        for limit, over in violations(self._constraints, measurements).items():
            self._asked[number].set_constraint(limit, over)
        self._study.tell(self._asked.pop(number), values)
        self._add_curves()
        self._write_down()
        return True

    def _add_curves(self) -> None:
        """Add the points of finished trials' curves that are not there yet; a kill may have come before."""
        trials = self._study.get_trials(deepcopy=False)
        there = {tuple(trial.user_attrs["point"]) for trial in trials if "point" in trial.user_attrs}
        for trial in trials:
            if trial.state != TrialState.COMPLETE:
                continue
            for place, point in enumerate(json.loads(trial.user_attrs.get("curve", "[]"))):
                values = [point["measurements"].get(name, math.nan) for name in self._objectives]
                if (trial.number, place) in there or not all(map(math.isfinite, values)):
                    continue
                # what of the trial's parameters the point has otherwise, as far as the space knows the value
                params = {
                    name: value if point["recipe"].get(name, value) == value else point["recipe"][name]
                    for name, value in trial.params.items()
                    if self._space.parameters[name].holds(point["recipe"].get(name, value))
                }
                self._study.add_trial(
                    optuna.trial.create_trial(
                        values=values,
                        params=params,
                        distributions={name: trial.distributions[name] for name in params},
                        user_attrs={
                            **{key: value for key, value in trial.user_attrs.items() if key == "repeat"},
                            "point": [trial.number, place],
                            "recipe": json.dumps(point["recipe"], sort_keys=True),
                            "measurements": json.dumps(point["measurements"]),
                            "seconds": point["seconds"],
                            "files": point.get("files", {}),
                        },
                        constraints=violations(self._constraints, point["measurements"]),
                    )
                )

    def note_runs(self, run_ids: Mapping[int, str]) -> None:
        """Record which MLflow run is which trial's, in the Optuna study's attribute `mlflow_runs`.

        Not in the trials' own: MLflow may learn of a trial when it is long over, and Optuna then takes no more.
        """
        self._study.set_user_attr("mlflow_runs", {str(trial): run for trial, run in sorted(run_ids.items())})

    def fail(self, number: int, reason: str) -> None:
        """Record a trial that ended badly; the sampler learns nothing from it, and it is not tried again."""
        self._set(number, reason=reason)
        self._study.tell(self._asked.pop(number), state=TrialState.FAIL)
        self._write_down()

    def tries(self, number: int) -> int:
        """How often the recipe of a running trial was tried before, by trials that ended in `retry`."""
        attributes = self._asked[number].user_attrs
        if "repeat" in attributes:
            others = (trial.user_attrs for trial in self._study.get_trials(deepcopy=False))
            return sum(other.get("repeat") == attributes["repeat"] and "again" in other for other in others)
        return int(attributes.get("tries", 0))

    def root(self, number: int) -> int:
        """The first trial that had the recipe of a running trial, itself where it is no second try."""
        return int(self._asked[number].user_attrs.get("root", number))

    def retry(self, number: int, reason: str) -> None:
        """Record a trial that ended badly, not by its recipe's fault, and queue the recipe again.

        That of a repeat is not queued: it stays due, and `ask_again` is for whoever sees to that.
        """
        self._set(number, again=reason)  # first: what a kill leaves undone after this, `reconcile` does
        trial = self._asked.pop(number)
        self._queue_again(number, trial.params, trial.user_attrs)
        self._study.tell(trial, state=TrialState.FAIL)
        self._write_down()

    def try_first(self, recipes: Sequence[Mapping[str, Any]]) -> None:
        """Queue recipes, each by some of its parameters; those that were queued before are not queued again."""
        there = {trial.user_attrs.get("first") for trial in self._study.get_trials(deepcopy=False)}
        for place, recipe in enumerate(recipes):
            if place not in there:
                self._study.enqueue_trial(self._space.partial(recipe), user_attrs={"first": place})

    def learn_from(self, name: str, lines: Sequence[Line]) -> int:
        """Let the sampler know what another study found, where this space has the recipe; returns how many trials.

        They are no trials of this study: nothing here lists, counts or shows them.
        """
        before = {trial.user_attrs.get("from") for trial in self._study.get_trials(deepcopy=False)}
        learned = 0
        for line in lines:
            values = [line.measurements.get(name, math.nan) for name in self._objectives]
            if line.recipe is None or line.outcome != "complete" or not all(map(math.isfinite, values)):
                continue
            if line.repeat is not None:
                continue
            if (told := self._drawn(line.recipe)) is None:
                continue
            learned += 1
            origin = f"{name}/{line.trial}"
            if origin not in before:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        values=values,
                        params=told.params,
                        distributions=told.distributions,
                        user_attrs={"from": origin, "measurements": json.dumps(dict(line.measurements))},
                        constraints=violations(self._constraints, line.measurements),
                    )
                )
        return learned

    @property
    def has_learned(self) -> bool:
        """Whether the sampler knows of another study's trials."""
        return any("from" in trial.user_attrs for trial in self._study.get_trials(deepcopy=False))

    def rung(self, number: int, epoch: int, measured: Mapping[str, float]) -> None:
        """Record what a running trial had come to when early stopping looked at it."""
        values = {name: measured.get(name, math.nan) for name in self._objectives}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._asked[number].set_user_attr(f"{_RUNG}{epoch}", finite)

    def stop(self, number: int, epoch: int, seconds: float) -> None:
        """Record a trial that was stopped early; it has no measurements, and the sampler learns that it was poor."""
        self._set(number, seconds=seconds, stopped_at=epoch)
        self._study.tell(self._asked.pop(number), state=TrialState.PRUNED)
        self._write_down()

    def reconcile(self, finished: Callable[[int], Mapping[str, Any] | None] = lambda trial: None) -> int:
        """Close trials that no process works on any more and queue their recipes again; returns how many.

        Repeats are closed and not queued, as in `retry`.

        To be called only by the process that holds the study's lock.

        Args:
            finished: `measurements`, `seconds`, `curve` and `files` of a trial that had come to its end when the
                process was killed, from the trial's files; None for others.
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
            told = {"reason", "again", "stopped_at", "measurements"} & {*attributes}
            if not told and (result := finished(trial.number)):
                attributes = _of_result(result)
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
            if "reason" not in attributes and "repeat" not in attributes:
                # queued first and closed then: a kill between the two queues nothing twice
                if attributes.get("root", trial.number) not in queued:
                    # one that was queued may not yet have drawn what it was queued with
                    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                    self._queue_again(trial.number, params, attributes)
                again += 1
            self._study.tell(trial.number, state=TrialState.FAIL)
        self._add_curves()
        self._write_down()
        return again

    def restore(self, trials_folder: Path, numbers_given: int) -> int:
        """Have every trial again that a ledger which is gone had, under its own number; returns how many it lacked.

        From the journal, and from the trials' files what the journal does not know. To be called only by the process
        that holds the study's lock, before `reconcile`. A kill in the midst of it leaves the rest to the next call.

        Args:
            trials_folder: where the trials' files are, each in a folder of its number.
            numbers_given: how many numbers were given to trials, as far as others know: no new trial gets any of them.
        """
        there = len(self._study.get_trials(deepcopy=False))
        known = {} if self._journal is None else self._journal.read()
        folders = {int(folder.name): folder for folder in trials_folder.glob("*") if folder.name.isdecimal()}
        if max((*known, *folders), default=-1) < there:
            return 0
        unknown = {number: folder for number, folder in folders.items() if number not in known}
        seeds = {_other_seed(self._seed, n, k): [n, k] for n in folders for k in range(1, _MOST_REPEATS) if unknown}
        known |= {number: self._of_files(folder, seeds) for number, folder in unknown.items()}
        study = self._storage.get_study_id_from_name(self._study.study_name)
        lost = optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={_LOST: True})
        numbers = range(there, max(max(known) + 1, numbers_given))
        if len(numbers) - len(known) > _MOST_LOST:
            raise BadInput(
                f"the files of {self._study.study_name!r} must be of its trials, but {trials_folder} and what MLflow "
                f"was told name a trial {numbers[-1]} among {len(known)}; take out what is not of this study"
            )
        for number in numbers:
            self._storage.create_new_trial(study, known.get(number, lost))
        self._write_down()
        return sum(number in known for number in numbers)

    def _of_files(self, folder: Path, seeds: Mapping[int, list[int]]) -> FrozenTrial:
        """A trial by its files alone; `seeds`: those of repeats -> the trial, and which repeat of it."""
        try:
            text = read_whole(folder / "recipe.json").decode()
            attributes = {"recipe": text, **_of_result(unsealed(folder / "result.json"))}
            recipe, measurements = Recipe.from_json(text), json.loads(attributes["measurements"])
            values = [float(measurements[name]) for name in self._objectives]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            said = []
            with suppress(OSError, Damaged):
                said = read_whole(folder / "error.txt").decode(errors="replace").split("\n")
            reason = next((line for line in reversed(said) if line.strip()), "its files are not whole")
            return optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"reason": reason.strip()})
        if recipe.seed in seeds:
            attributes["repeat"] = seeds[recipe.seed]
        drawn = None if "repeat" in attributes else self._drawn(recipe)
        return optuna.trial.create_trial(
            values=values,
            params={} if drawn is None else drawn.params,
            distributions={} if drawn is None else drawn.distributions,
            user_attrs=attributes,
            constraints=violations(self._constraints, measurements),
        )

    def _drawn(self, recipe: Recipe) -> optuna.trial.FixedTrial | None:
        """The recipe as this space draws it; None where it cannot."""
        told = optuna.trial.FixedTrial(dict(recipe.flat()))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # what Optuna says of a value out of range
                return told if self._space.draw(told) == recipe else None
        except (ValueError, UserWarning):
            return None

    def _write_down(self) -> None:
        if self._journal is not None:
            self._journal.write(self._study.get_trials(deepcopy=False))

    def lines(self) -> list[Line]:
        """Every trial that was ever begun, by number."""
        trials = self._study.get_trials(deepcopy=False)
        return [self._read(trial) for trial in trials if _is_own(trial)]

    def done(self) -> int:
        """How many of the trials asked for have ended, well or badly."""
        return sum(line.counts for line in self.lines())

    def _read(self, trial: FrozenTrial) -> Line:
        """A trial's line; those that ended do not change any more, and are read once."""
        if not trial.state.is_finished():
            return _line(trial)
        if trial.number not in self._lines:
            self._lines[trial.number] = _line(trial)
        return self._lines[trial.number]

    def _learned(self) -> int:
        """Trials that a sampler learned from, points of curves not counted."""
        learned = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = self._study.get_trials(deepcopy=False, states=learned)
        return sum("point" not in trial.user_attrs for trial in trials)

    def _queue_again(self, number: int, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        if "repeat" in attributes:
            return
        tries = attributes.get("tries", 0) + ("again" in attributes)
        root = attributes.get("root", number)
        self._study.enqueue_trial(dict(params), user_attrs={"root": root, "tries": tries})

    def _queue_next(self, grid: Iterator[int]) -> None:
        """Queue the next recipe of the grid that no trial had, unless something is queued already."""
        trials = self._study.get_trials(deepcopy=False)
        if any(trial.state == TrialState.WAITING for trial in trials):
            return
        had = [trial.params for trial in trials if not {"from", "point", "repeat"} & {*trial.user_attrs}]
        for index in grid:
            recipe = self._space.combination(index)
            if recipe not in had:
                self._study.enqueue_trial(dict(recipe))
                return

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _set(self, number: int, **attributes: Any) -> None:
        for key, value in attributes.items():
            self._asked[number].set_user_attr(key, value)


def _at_random(seed: int, fixed: dict[str, Any]) -> BaseSampler:
    """Draws by chance what is not `fixed`."""
    if not fixed:
        return RandomSampler(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PartialFixedSampler(fixed, RandomSampler(seed))


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler of a study file.

    Args:
        name: in SAMPLERS, or `package.module:Class`, which is made with `seed=`, or with nothing if it takes none.
        seed: of its random draws.

    Raises:
        BadInput: there is none of that name, or none can be made.
    """
    if name in SAMPLERS:
        return SAMPLERS[name](seed)
    if ":" not in name:
        way_out = f"{known(SAMPLERS, name)}, or `package.module:Class` of your own"
        raise BadInput(f"`search.sampler` must be a known sampler, but got {shown(name)}; {way_out}")
    own = own_object(name, "search.sampler")
    if not (isinstance(own, type) and issubclass(own, BaseSampler)):
        raise BadInput(f"`search.sampler: {name}` must be a class of optuna.samplers.BaseSampler, but is {shown(own)}")
    try:
        made: Any = own  # whose arguments are its own
        sampler: BaseSampler = made(seed=seed) if "seed" in inspect.signature(own).parameters else made()
        return sampler
    except (Exception, SystemExit) as error:  # it is not ours
        raise BadInput(
            f"`search.sampler: {name}` must be a class that can be made, but "
            f"{' '.join(f'{type(error).__name__}: {error}'.split())[:200]}; try it in Python"
        ) from None


def grouped(lines: Sequence[Line]) -> list[tuple[str, list[int]]]:
    """Why trials ended as they did, the most frequent reason first, and which did.

    Reasons that differ in nothing but numbers are one, told in the words of the first.
    """
    found: dict[str, tuple[str, list[int]]] = {}
    for line in lines:
        kind = re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", line.reason)
        found.setdefault(kind, (line.reason, []))[1].append(line.trial)
    return sorted(found.values(), key=lambda reason: -len(reason[1]))


def read_lines(storage: str, name: str) -> list[Line] | None:
    """A study's lines by a look that neither makes nor writes anything; None where it is not in the storage."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = _look(storage)
    if found is None or name not in optuna.get_all_study_names(storage=found):
        return None
    trials = optuna.load_study(study_name=name, storage=found).get_trials(deepcopy=False)
    return [_line(trial) for trial in trials if _is_own(trial)]


def in_ledger(storage: str, name: str) -> bool:
    """Whether a study of this name is there."""
    found = _look(storage)
    return found is not None and name in optuna.get_all_study_names(storage=found)


def delete(storage: str, name: str) -> None:
    """Forget a study, if it is there."""
    if in_ledger(storage, name):
        optuna.delete_study(study_name=name, storage=_storage(storage))


def _look(url: str) -> optuna.storages.RDBStorage | None:
    """A storage to be read; None where there is none yet."""
    with _told_as_bad_input(url):
        parsed = sqlalchemy.make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database and "uri" not in parsed.query:
            file = Path(parsed.database)
            if not file.exists():
                return None
            # of somebody else's home nothing may be written; else it may, since a kill may have left a hot journal
            may_write = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
            way = {"mode": "rw" if may_write else "ro", "uri": "true"}
            parsed = parsed.set(database=f"file:{quote(str(file.absolute()))}").update_query_dict(way)
        url = parsed.render_as_string(hide_password=False)
        engine = sqlalchemy.create_engine(url, **_patience(url))
        try:
            if not sqlalchemy.inspect(engine).has_table("studies"):
                return None
        finally:
            engine.dispose()
    return _storage(url)


@contextmanager
def _told_as_bad_input(url: str) -> Iterator[None]:
    try:
        yield
    except (*LOST, ImportError, ValueError) as error:
        why = redacted(str(getattr(error, "orig", error)).splitlines()[0], url)
        if isinstance(error, ImportError):
            way_out = "install its driver (for PostgreSQL `psycopg[binary]`)"
        elif url.startswith("sqlite"):
            way_out = "move the file away, and `dux resume NAME` rebuilds a study's ledger from its other files"
        else:
            way_out = "start it, or correct the URL"
        if os.environ.get("DUX_STORAGE"):
            way_out += ", or leave DUX_STORAGE out for a file in the home folder"
        raise NoAnswer(
            f"`DUX_STORAGE` must name a database that answers, but {without_secrets(url)} does not ({why}); {way_out}"
        ) from None


def _storage(url: str) -> optuna.storages.RDBStorage:
    with _told_as_bad_input(url):
        parsed = sqlalchemy.make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database and "uri" not in parsed.query:
            with suppress(OSError):  # SQLite says what is wrong
                os.close(os.open(parsed.database, os.O_RDONLY | os.O_CREAT, 0o600))
        return optuna.storages.RDBStorage(url, engine_kwargs=_patience(url))


def _patience(url: str) -> dict[str, Any]:
    """How SQLAlchemy connects, so that a lock that another process holds on a SQLite file is waited for."""
    connect = {"timeout": TRY_S, "factory": PatientConnection}
    return {"connect_args": connect} if url.startswith("sqlite") else {}


def lost_database(error: BaseException | None) -> BaseException | None:
    """What a database that went away raised, where an error comes from that: Tune wraps what the ledger raises."""
    while error is not None and not isinstance(error, LOST):
        error = error.__cause__ or error.__context__
    return error


def why_lost(error: BaseException) -> str:
    """What the database, or the way to it, said in the first place, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _other_seed(*values: int) -> int:
    """A recipe's seed that follows from the values."""
    return int(hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8], 16) % 2**31


def _is_own(trial: FrozenTrial) -> bool:
    """Whether it is a trial of this study that was begun, and none that it learned from or that stands for one lost."""
    return trial.state != TrialState.WAITING and not {"from", _LOST} & {*trial.user_attrs}


def _of_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a trial that ended well, by its file `result.json`."""
    return {
        "curve": json.dumps(result["curve"]),
        "files": result.get("files", {}),
        "measurements": json.dumps(result["measurements"]),
        "seconds": result["seconds"],
    }


def _outcome(trial: FrozenTrial) -> Outcome:
    if trial.state == TrialState.COMPLETE:
        return "complete"
    if trial.state == TrialState.PRUNED:
        return "stopped"
    if trial.state == TrialState.FAIL:
        return "failed" if "reason" in trial.user_attrs else "interrupted"
    return "running"


def _line(trial: FrozenTrial) -> Line:
    """Raises BadInput where the trial is none that a ledger wrote."""
    try:
        return _as_line(trial)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise BadInput(
            f"the ledger must be as it was written, but its trial {trial.number} is not ({shown(str(error))}); "
            "move the ledger away, and `dux resume NAME` rebuilds a study's from its other files"
        ) from None


def _as_line(trial: FrozenTrial) -> Line:
    attributes = trial.user_attrs
    return Line(
        trial.number,
        attributes.get("root", trial.number),
        _outcome(trial),
        Recipe.from_json(attributes["recipe"]) if "recipe" in attributes else None,
        json.loads(attributes.get("measurements", "{}")),
        attributes.get("reason", attributes.get("again", "")),
        float(attributes.get("seconds", 0.0)),
        attributes.get("stopped_at"),
        {
            int(key.removeprefix(_RUNG)): {name: math.nan if v is None else v for name, v in values.items()}
            for key, values in attributes.items()
            if key.startswith(_RUNG)
        },
        (attributes["point"][0], attributes["point"][1]) if "point" in attributes else None,
        (attributes["repeat"][0], attributes["repeat"][1]) if "repeat" in attributes else None,
        attributes.get("files", {}),
    )
