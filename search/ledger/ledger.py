"""The ledger: the Optuna study that proposes recipes and records what has finished."""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.constraints import Limits, violations
from search.ledger.journal import Journal
from search.ledger.lines import (
    LOST,
    RUNG,
    CurvePoint,
    Line,
    Repeat,
    attributes_of,
    is_own,
    kind_of,
    line_of,
    result_attributes,
    trial_of_point,
)
from search.ledger.proposals import Proposals
from search.ledger.rebuilding import missing_trials
from search.ledger.storage import open_storage
from search.seeds import repeat_seed
from spaces import BadInput, Recipe, Space


class Ledger:
    """One study's trials in an Optuna storage. Only the study's driver writes it.

    Args:
        storage: a database URL; SQLite or PostgreSQL.
        name: the study's name.
        objectives: measurement -> "max" or "min".
        sampler: a name in SAMPLERS, or `package.module:Class` of an Optuna sampler.
        seed: of the sampler.
        space: what recipes are drawn from.
        constraints: measurement -> its limits; the sampler learns by how much a trial exceeds them.
        curve: whether trials have pruning curves. If the space also cuts in several rounds, a trial with the largest
            fraction has a fine-tuned student of every size on its curve; trials drawn at random, before the sampler
            models the space, are therefore cut by the largest fraction.
        journal: a file to which every trial is written, for `restore`; None for a ledger that is only read.
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
        self._storage = open_storage(storage)
        self._study = optuna.create_study(
            storage=self._storage, study_name=name, directions=directions, load_if_exists=True
        )
        existing = [direction.name.lower() for direction in self._study.directions]
        if existing != directions:
            raise BadInput(
                f"study {name!r} must keep its directions, but has {existing} and was given {directions}; "
                "use another name"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # shown by optuna-dashboard, no more
            self._study.set_metric_names(list(objectives))
        self._seed = seed
        self.proposals = Proposals(self._study, space, self._objectives, self._constraints, sampler, seed, curve)
        self._asked: dict[int, optuna.Trial] = {}
        self._lines: dict[int, Line] = {}
        self._journal = None if journal is None else Journal(journal)

    def ask(self) -> tuple[int, Recipe]:
        """The number of a new trial and its recipe: an interrupted one, one to try first, or a new one."""
        self.proposals.make_ready()
        trial = self._study.ask()
        recipe = self._space.draw(trial)
        trial.set_user_attr("recipe", recipe.to_json())
        self._asked[trial.number] = trial
        self._write_down()
        return trial.number, recipe

    def ask_again(self, repeat: Repeat) -> tuple[int, Recipe]:
        """The number of a new trial that repeats a finished one, and its recipe: the same except for the seed.

        The seed is derived from the study's, the trial and the number of the repeat. The new trial's parameters are not
        drawn, so it has none in Optuna, and samplers learn nothing from it. It is created and marked as a repeat in one
        step, so that a kill cannot leave it unmarked.
        """
        first = self.line(repeat.of).recipe
        assert first is not None
        recipe = first.model_copy(update={"seed": repeat_seed(self._seed, repeat.of, repeat.nth)})
        begun = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            user_attrs={**attributes_of(repeat), "recipe": recipe.to_json()},
        )
        asked = optuna.Trial(self._study, self._storage.create_new_trial(self._id, begun))
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
        """Record a finished trial; returns False if its objectives are not all finite, which is recorded as a failure.

        Args:
            number: of the trial.
            measurements: of its student.
            seconds: that it took.
            curve: as in the trial's `result.json`; each point becomes its own line, and the sampler learns from it.
            files: name -> SHA-256 of its student's files.
        """
        values = [measurements.get(name, math.nan) for name in self._objectives]
        if not all(math.isfinite(value) for value in values):
            named = ", ".join(f"{name} {value}" for name, value in zip(self._objectives, values, strict=True))
            self.fail(number, f"objectives must be finite, but are {named}")
            return False
        self._set(number, curve=json.dumps(list(curve)), files=dict(files))
        self._set(
            number, measurements=json.dumps(dict(measurements)), seconds=seconds
        )  # last: everything else is there by then
        for limit, over in violations(self._constraints, measurements).items():
            self._asked[number].set_constraint(limit, over)
        self._study.tell(self._asked.pop(number), values)
        self._add_points(self._storage.get_trial(self._trial_id(number)))
        self._write_down()
        return True

    def _add_points(self, trial: FrozenTrial, there: Set[int] = frozenset()) -> None:
        """Add the points of a finished trial's curve, except those at the places in `there`."""
        for place, point in enumerate(json.loads(trial.user_attrs.get("curve", "[]"))):
            values = [point["measurements"].get(name, math.nan) for name in self._objectives]
            if place not in there and all(map(math.isfinite, values)):
                limits = violations(self._constraints, point["measurements"])
                self._study.add_trial(trial_of_point(trial, place, point, values, limits, self._space))

    def _add_missing_points(self) -> None:
        """Add the points that are missing because of a kill after their trial's end."""
        trials = self._study.get_trials(deepcopy=False)
        kinds = [kind for trial in trials if isinstance(kind := kind_of(trial.user_attrs), CurvePoint)]
        for trial in trials:
            if trial.state == TrialState.COMPLETE:
                self._add_points(trial, {kind.place for kind in kinds if kind.of == trial.number})

    def note_runs(self, run_ids: Mapping[int, str]) -> None:
        """Record each trial's MLflow run, in the Optuna study's attribute `mlflow_runs`.

        Not in the trials' own attributes: MLflow may receive a trial long after its end, when Optuna no longer accepts
        changes to it.
        """
        self._study.set_user_attr("mlflow_runs", {str(trial): run for trial, run in sorted(run_ids.items())})

    def fail(self, number: int, reason: str) -> None:
        """Record a failed trial; the sampler learns nothing from it, and it is not retried."""
        self._set(number, reason=reason)
        self._study.tell(self._asked.pop(number), state=TrialState.FAIL)
        self._write_down()

    def tries(self, number: int) -> int:
        """How many earlier trials with a running trial's recipe ended in `retry`."""
        attributes = self._asked[number].user_attrs
        if isinstance(kind := kind_of(attributes), Repeat):
            others = (trial.user_attrs for trial in self._study.get_trials(deepcopy=False))
            return sum("again" in other and kind_of(other) == kind for other in others)
        return int(attributes.get("tries", 0))

    def root(self, number: int) -> int:
        """The first trial with a running trial's recipe; the trial itself unless it is a retry."""
        return int(self._asked[number].user_attrs.get("root", number))

    def retry(self, number: int, reason: str) -> None:
        """Record a trial that failed through no fault of its recipe, and queue the recipe again.

        A repeat is not queued: it remains due, and `ask_again` creates it again.
        """
        self._set(number, again=reason)  # first: if a kill follows, `reconcile` does the rest
        trial = self._asked.pop(number)
        self._queue_again(number, trial.params, trial.user_attrs)
        self._study.tell(trial, state=TrialState.FAIL)
        self._write_down()

    def rung(self, number: int, epoch: int, measured: Mapping[str, float]) -> None:
        """Record a running trial's measurements at a rung of early stopping."""
        values = {name: measured.get(name, math.nan) for name in self._objectives}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._asked[number].set_user_attr(f"{RUNG}{epoch}", finite)

    def stop(self, number: int, epoch: int, seconds: float) -> None:
        """Record a trial that was stopped early; it has no measurements, and the sampler learns that it was bad."""
        self._set(number, seconds=seconds, stopped_at=epoch)
        self._study.tell(self._asked.pop(number), state=TrialState.PRUNED)
        self._write_down()

    def reconcile(self, finished: Callable[[int], Mapping[str, Any] | None] = lambda trial: None) -> int:
        """Close trials that no process is running any more and queue their recipes again; returns how many.

        Repeats are closed but not queued, as in `retry`.

        Only the process that holds the study's lock may call this.

        Args:
            finished: `measurements`, `seconds`, `curve` and `files` of a trial that had ended when the process was
                killed, from the trial's files; None for others.
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
            attributes = trial.user_attrs  # an outcome among them: the kill came before Optuna was told
            outcome = {"reason", "again", "stopped_at", "measurements"} & {*attributes}
            if not outcome and (result := finished(trial.number)):
                attributes = result_attributes(result)
                for key, value in attributes.items():
                    self._storage.set_trial_user_attr(self._trial_id(trial.number), key, value)
            if "measurements" in attributes:
                measurements = json.loads(attributes["measurements"])
                for limit, over in violations(self._constraints, measurements).items():
                    if limit not in trial.constraints:
                        optuna.Trial(self._study, self._trial_id(trial.number)).set_constraint(limit, over)
                self._study.tell(trial.number, [measurements[name] for name in self._objectives])
                continue
            if "stopped_at" in attributes:
                self._study.tell(trial.number, state=TrialState.PRUNED)
                continue
            if "reason" not in attributes and not isinstance(kind_of(attributes), Repeat):
                # queued first, then closed: a kill between the two queues nothing twice
                if attributes.get("root", trial.number) not in queued:
                    # one that came from the queue may not yet have drawn all the parameters queued with it
                    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                    self._queue_again(trial.number, params, attributes)
                again += 1
            self._study.tell(trial.number, state=TrialState.FAIL)
        self._add_missing_points()
        self._write_down()
        return again

    def restore(self, trials_folder: Path, numbers_given: int) -> int:
        """Restore all trials of a lost ledger, each under its own number; returns how many were missing.

        They come from the journal, and from the trials' files if the journal does not have them. Only the process that
        holds the study's lock may call this, before `reconcile`. After a kill, the next call completes it.

        Args:
            trials_folder: the folder with the trials' files, each in a folder named by its number.
            numbers_given: how many trial numbers are known elsewhere to be taken: no new trial gets any of them.
        """
        missing = missing_trials(
            self._study.study_name,
            {} if self._journal is None else self._journal.read(),
            trials_folder,
            range(len(self._study.get_trials(deepcopy=False)), numbers_given),
            self._seed,
            self._space,
            self._objectives,
            self._constraints,
        )
        for trial in missing:
            self._storage.create_new_trial(self._id, trial)
        if missing:
            self._write_down()
        return sum(LOST not in trial.user_attrs for trial in missing)

    def _write_down(self) -> None:
        if self._journal is not None:
            self._journal.write(self._study.get_trials(deepcopy=False))

    def lines(self) -> list[Line]:
        """Every trial ever started, by number."""
        trials = self._study.get_trials(deepcopy=False)
        return [self._read(trial) for trial in trials if is_own(trial)]

    def line(self, number: int) -> Line:
        """The line of a trial."""
        return self._read(self._study.get_trials(deepcopy=False)[number])

    def ended(self, number: int) -> list[Line]:
        """The line of a trial that has ended, followed by those of its curve's points."""
        trials = self._study.get_trials(deepcopy=False)
        later = (trial for trial in trials[number + 1 :] if is_own(trial))
        points = [
            line for line in map(self._read, later) if isinstance(line.kind, CurvePoint) and line.kind.of == number
        ]
        return [self._read(trials[number]), *points]

    def done(self) -> int:
        """How many of the trials asked for have ended, including failed ones."""
        return sum(line.counts for line in self.lines())

    def _read(self, trial: FrozenTrial) -> Line:
        """A trial's line; finished ones never change, and are read only once."""
        if not trial.state.is_finished():
            return line_of(trial)
        if trial.number not in self._lines:
            self._lines[trial.number] = line_of(trial)
        return self._lines[trial.number]

    def _queue_again(self, number: int, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        if isinstance(kind_of(attributes), Repeat):
            return
        tries = attributes.get("tries", 0) + ("again" in attributes)
        root = attributes.get("root", number)
        self._study.enqueue_trial(dict(params), user_attrs={"root": root, "tries": tries})

    @property
    def _id(self) -> int:
        return self._storage.get_study_id_from_name(self._study.study_name)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _set(self, number: int, **attributes: Any) -> None:
        for key, value in attributes.items():
            self._asked[number].set_user_attr(key, value)
