"""Constraints: limits that a student must meet to be on the front, however good it is otherwise."""

import math
from collections.abc import Mapping
from typing import Self

from pydantic import model_validator

from spaces.quantities import Quantity
from spaces.recipe import Part


class Limits(Part):
    """The minimum and maximum of one measurement, both inclusive; at least one of them is given."""

    min: Quantity = None
    max: Quantity = None

    @model_validator(mode="after")
    def _can_be_kept(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("must have a min or a max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("must have min <= max")
        return self


def violations(constraints: Mapping[str, Limits], measurements: Mapping[str, float]) -> dict[str, float]:
    """By how much each limit is exceeded, as a fraction of it; 0 and below: it is met. Infinite without a measurement.

    The keys read "parameters <= 200000". Fractions, so that the sampler can add up parameters and accuracies.
    """
    excess: dict[str, float] = {}
    for name, limits in constraints.items():
        value = measurements.get(name, math.nan)
        for sign, symbol, limit in ((-1, ">=", limits.min), (1, "<=", limits.max)):
            if limit is not None:
                over = sign * (value - limit) / (abs(limit) or 1.0)
                excess[f"{name} {symbol} {limit:.12g}"] = math.inf if math.isnan(over) else over
    return excess


def broken(constraints: Mapping[str, Limits], measurements: Mapping[str, float]) -> list[str]:
    """The limits that are exceeded."""
    return [limit for limit, over in violations(constraints, measurements).items() if over > 0]
