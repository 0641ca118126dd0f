"""Constraints: limits that a student must meet to be on the front, however good it is otherwise."""

import math
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BeforeValidator, model_validator

from search.fronts.quantities import parse_quantity
from spaces import BadInput
from spaces.errors import number_hint
from spaces.recipe import Part


def _quantity(raw: object) -> object:
    if not isinstance(raw, str):
        return raw
    try:
        return parse_quantity(raw)
    except BadInput:
        raise ValueError(f"must be a number, such as 0.9, 50k, 1.5M or 2G{number_hint(raw)}") from None


Quantity = Annotated[float | None, BeforeValidator(_quantity)]


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
