"""Numbers as people write them: shortened with k, M and G."""

import math
from typing import Annotated

from pydantic import BeforeValidator

from spaces.errors import BadInput, number_hint

SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9}


def parse_quantity(text: str) -> float:
    """A number with an optional k, M or G: "50k" is 50000.0.

    Raises:
        BadInput: it is not a number, or not finite.
    """
    factor = SUFFIXES.get(text[-1:], 1.0)
    try:
        value = factor * float(text if factor == 1 else text[:-1])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"a quantity must be a finite number, such as 0.9, 50k, 1.5M or 2G, but got {text!r}")
    return value


def as_quantity(raw: object) -> object:
    """For pydantic: a text as the number that it stands for; anything else as it is."""
    if not isinstance(raw, str):
        return raw
    try:
        return parse_quantity(raw)
    except BadInput:
        raise ValueError(f"must be a number, such as 0.9, 50k, 1.5M or 2G{number_hint(raw)}") from None


Quantity = Annotated[float | None, BeforeValidator(as_quantity)]
"""A field of a `Part` that takes such a number."""
