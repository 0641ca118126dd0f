"""The checks of a study file that need no data: each names the rule, the value that breaks it, and the way out."""

import math
from collections.abc import Callable, Mapping
from functools import partial

from search.constraints import Limits
from search.ledger.samplers import MOST_ON_A_GRID
from spaces import BadInput, Float, Scalar, Space, Student
from spaces.errors import known
from spaces.space import MOST_FRACTIONS
from trainers import catalogue
from trainers.depths import check_student
from trainers.metrics import METRICS, Direction

MOST_COMBINATIONS = 10_000
"""Combinations of a method's own parameters: what it needs from the teacher is looked up for each."""


def check_objectives(objectives: Mapping[str, Direction]) -> None:
    """Raise BadInput if an objective is not a measurement, or has the wrong direction."""
    for name, direction in objectives.items():
        if name not in METRICS:
            raise BadInput(f"`objectives.{name}` must be a measurement; {known(METRICS, name)}")
        if METRICS[name].direction not in (None, direction):
            better = METRICS[name].direction
            raise BadInput(
                f"`objectives.{name}` must be {better}, since that is better, but got {direction}; write {better}"
            )


def check_constraints(constraints: Mapping[str, Limits], space: Space) -> None:
    """Raise BadInput if no student of the space can meet a limit."""
    for name, limits in constraints.items():
        if name not in METRICS:
            raise BadInput(f"`constraints.{name}` must be a measurement; {known(METRICS, name)}")
        least, most = METRICS[name].least, METRICS[name].most
        if name == "diversity" and {*space.extremes_of("student.members")} == {1}:
            most = 0.0  # for a single network
        if limits.min is not None and limits.min > most:
            raise BadInput(
                f"`constraints.{name}.min` must be at most {most:g}, since no student of this space has more, but got "
                f"{limits.min:g}; lower it, or leave it out"
            )
        if limits.max is not None and limits.max < least:
            raise BadInput(
                f"`constraints.{name}.max` must be at least {least:g}, since no student has less, but got "
                f"{limits.max:g}; raise it, or leave it out"
            )


def check_space(space: Space) -> None:
    """Raise BadInput if a method does not take an option, or a family has no network of a depth."""
    checks = {method: _check_of_options(method) for method in space.methods}
    for name, domain in space.parameters.items():
        method, _, option = name.rpartition(".")
        if method in checks:
            values = [*domain.extremes()]
            if isinstance(domain, Float):  # also a value inside: an option may take only the ends, such as 1 or 2
                values.append(min(domain.high, domain.low + (domain.step or (domain.high - domain.low) / 2)))
            for value in values:
                checks[method]({option: value})
    families, depths = space.extremes_of("student.family"), space.extremes_of("student.depth")
    for family in families:
        for depth in depths:
            try:
                check_student(Student(family=str(family), depth=int(depth)))
            except BadInput as error:
                raise BadInput(f"`space.student`: {error}") from None


def _check_of_options(method: str) -> Callable[[Mapping[str, Scalar]], object]:
    """A function that raises BadInput if a method does not take options; needs no torch for Dux's own methods."""
    if method in catalogue.described():
        return partial(catalogue.check_options, method)
    try:
        if ":" not in method:
            raise catalogue.unknown_method(method, catalogue.described())
        from trainers.transfer import method_named

        return partial(method_named(method).parse, called=method)
    except BadInput as error:
        raise BadInput(f"space: {error}") from None


def check_sizes(space: Space, *, looks_along_curve: bool, is_grid: bool) -> None:
    """Raise BadInput if enumerating a space would take unreasonably long.

    Args:
        space: the study's.
        looks_along_curve: whether every student is measured at each pruning fraction of the space.
        is_grid: whether every recipe is tried.
    """
    for method in space.methods:
        own = [domain for name, domain in space.parameters.items() if name.rpartition(".")[0] == method]
        combinations = math.prod(len(domain.extremes()) for domain in own)
        if combinations > MOST_COMBINATIONS:
            raise BadInput(
                f"`space`: the choices of `{method}`'s own parameters must have at most {MOST_COMBINATIONS:,} "
                f"combinations, but have {combinations:,}; list fewer, or give {{low, high}} without a step"
            )
    fractions = len(space.fractions())
    if looks_along_curve and fractions > MOST_FRACTIONS:
        raise BadInput(
            f"`space.pruning.fraction` must have at most {MOST_FRACTIONS} values with `search.curve`, since every "
            f"student is measured at each, but has {fractions:,}; give fewer, or set `search.curve: false`"
        )
    if is_grid and space.size > MOST_ON_A_GRID:
        raise BadInput(
            f"a grid must have at most {MOST_ON_A_GRID:,} recipes, but this space has {space.size:,}; "
            "list fewer values, or take another sampler"
        )
