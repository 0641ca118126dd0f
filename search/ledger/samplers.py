"""The samplers that propose recipes: Optuna's, and a user's own."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import optuna
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)

from spaces import BadInput
from spaces.errors import brief, known, shown
from spaces.own import own_object

SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = MappingProxyType(
    {
        "tpe": lambda seed: TPESampler(seed=seed),
        "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=16),
        "gp": lambda seed: GPSampler(seed=seed),
        "random": lambda seed: RandomSampler(seed=seed),
        "grid": lambda seed: RandomSampler(
            seed=seed
        ),  # the ledger queues the grid's recipes; this only completes recipes
    }
)
"""The samplers by their names in study files."""

AT_RANDOM = 10
"""How many trials must end before a sampler that models the space is asked, the same number as in Optuna. Optuna itself
would also count points of pruning curves, of which a trial may have ten: modelled from the second trial on, the digits
study (examples/digits.yaml, seed 0) reached a hypervolume of 0.542 in 12 trials; drawn at random, 0.557."""
MODELS = {"tpe", "gp"}
"""Samplers that model the space."""

MOST_ON_A_GRID = 100_000


def at_random(seed: int, fixed: dict[str, Any]) -> BaseSampler:
    """Draws at random what is not `fixed`."""
    if not fixed:
        return RandomSampler(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PartialFixedSampler(fixed, RandomSampler(seed))


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler of a study file.

    Args:
        name: in SAMPLERS, or `package.module:Class`, which is called with `seed=`, or without it if it takes none.
        seed: for its random draws.

    Raises:
        BadInput: there is no sampler with this name, or it cannot be created.
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
    except (Exception, SystemExit) as error:  # a user's class may raise anything
        raise BadInput(
            f"`search.sampler: {name}` must be a class that can be created, but {brief(error)}; try it in Python"
        ) from None
