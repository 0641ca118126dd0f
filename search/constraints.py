"""Constraints: what a student must keep to be on the front, whatever it reaches elsewhere."""

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
        raise ValueError(f"must be a number, as 0.9, 50k, 1.5M or 2G{number_hint(raw)}") from None


Quantity = Annotated[float | None, BeforeValidator(_quantity)]


class Limits(Part):
    """The least and the greatest value of one measurement, both allowed; at least one of them is given."""

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
    """How far each limit is overstepped, as a share of it; 0 and below: it is kept. Infinite without a measurement.

    The keys read "parameters <= 200000". As a share, so that the sampler can add up parameters and accuracies.
    """
    found: dict[str, float] = {}
    for name, limits in constraints.items():
        value = measurements.get(name, math.nan)
        for sign, symbol, limit in ((-1, ">=", limits.min), (1, "<=", limits.max)):
            if limit is not None:
                over = sign * (value - limit) / (abs(limit) or 1.0)
                found[f"{name} {symbol} {limit:.12g}"] = math.inf if math.isnan(over) else over
    return found


def broken(constraints: Mapping[str, Limits], measurements: Mapping[str, float]) -> list[str]:
    """The limits that are overstepped."""
    return [limit for limit, over in violations(constraints, measurements).items() if over > 0]
