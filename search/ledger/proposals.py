"""What an Optuna study proposes next: queued recipes, and recipes drawn by its sampler."""

import json
import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from search.constraints import Limits, violations
from search.ledger.lines import FROM, CurvePoint, Line, Trial, kind_of
from search.ledger.rebuilding import drawn
from search.ledger.samplers import AT_RANDOM, MODELS, at_random, make_sampler
from spaces import Choice, Space


class Proposals:
    """Controls what the study's next `ask` returns.

    Args:
        study: the Optuna study.
        space: what recipes are drawn from.
        objectives: names of measurements.
        constraints: measurement -> its limits.
        sampler: as `search.ledger.samplers.make_sampler` takes it.
        seed: of the sampler.
        curve: as the ledger's.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        objectives: Collection[str],
        constraints: Mapping[str, Limits],
        sampler: str,
        seed: int,
        curve: bool,
    ) -> None:
        self._study, self._space = study, space
        self._objectives, self._constraints = objectives, constraints
        self._sampler: tuple[str, int] | None = (sampler, seed)
        self._at_random: BaseSampler | None = None
        """Asked first, if there is one."""
        self._all_the_way: dict[str, Any] = {}
        rounds = space.parameters.get("pruning.rounds", Choice((1,))).extremes()
        if curve and space.fractions() and 1 not in rounds:
            self._all_the_way["pruning.fraction"] = space.fractions()[-1]
        self._grid: Iterator[int] | None = None

    def make_ready(self) -> None:
        """Call before the study is asked."""
        if self._sampler is not None:  # only now, so that a study can be read even if its sampler cannot be found
            sampler, seed = self._sampler
            # another seed for each session: the same one would propose the first session's random recipes again
            before = len(self._study.get_trials(deepcopy=False))
            self._chosen = make_sampler(sampler, seed + before)
            self._at_random = at_random(seed + before, self._all_the_way) if sampler in MODELS else None
            self._study.sampler = self._at_random or self._chosen
            if sampler == "grid":
                self._grid = iter(random.Random(seed).sample(range(self._space.size), self._space.size))
            self._sampler = None
        if self._grid is not None:
            self._queue_next(self._grid)
        if self._at_random is not None and self._learned() >= AT_RANDOM:
            self._study.sampler, self._at_random = self._chosen, None

    def try_first(self, recipes: Sequence[Mapping[str, Any]]) -> None:
        """Queue recipes, each given by some of its parameters; those queued before are not queued again."""
        there = {trial.user_attrs.get("first") for trial in self._study.get_trials(deepcopy=False)}
        for place, recipe in enumerate(recipes):
            if place not in there:
                self._study.enqueue_trial(self._space.partial(recipe), user_attrs={"first": place})

    def learn_from(self, name: str, lines: Sequence[Line]) -> int:
        """Give the sampler another study's results for recipes in this space; returns how many trials.

        They are not trials of this study: nothing here lists, counts or shows them.
        """
        before = {trial.user_attrs.get(FROM) for trial in self._study.get_trials(deepcopy=False)}
        learned = 0
        for line in lines:
            values = [line.measurements.get(name, math.nan) for name in self._objectives]
            if line.recipe is None or line.outcome != "complete" or not all(map(math.isfinite, values)):
                continue
            if line.repeat is not None or (fixed := drawn(self._space, line.recipe)) is None:
                continue
            learned += 1
            origin = f"{name}/{line.trial}"
            if origin not in before:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        values=values,
                        params=fixed.params,
                        distributions=fixed.distributions,
                        user_attrs={FROM: origin, "measurements": json.dumps(dict(line.measurements))},
                        constraints=violations(self._constraints, line.measurements),
                    )
                )
        return learned

    @property
    def has_learned(self) -> bool:
        """Whether the sampler has another study's trials."""
        return any(FROM in trial.user_attrs for trial in self._study.get_trials(deepcopy=False))

    def _learned(self) -> int:
        """How many trials a sampler learned from, not counting curve points."""
        learned = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = self._study.get_trials(deepcopy=False, states=learned)
        return sum(not isinstance(kind_of(trial.user_attrs), CurvePoint) for trial in trials)

    def _queue_next(self, grid: Iterator[int]) -> None:
        """Queue the next recipe of the grid that no trial had yet, unless something is queued already."""
        trials = self._study.get_trials(deepcopy=False)
        if any(trial.state == TrialState.WAITING for trial in trials):
            return
        own = (trial for trial in trials if FROM not in trial.user_attrs)
        had = [trial.params for trial in own if isinstance(kind_of(trial.user_attrs), Trial)]
        for index in grid:
            recipe = self._space.combination(index)
            if recipe not in had:
                self._study.enqueue_trial(dict(recipe))
                return
