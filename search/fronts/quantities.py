"""Numbers as people read and write them: with thousands separators, or shortened with k, M and G, and parsed."""

import math

from spaces.errors import BadInput

_SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9}


def show(value: float) -> str:
    """A measurement in a table: an integer with thousands separators, else four decimals; "–" if not finite."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000 or (float(value).is_integer() and abs(value) > 1):
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2e}"


def shortened(value: float) -> str:
    """Three digits and the suffix that `parse_quantity` reads: 50000.0 is "50k"; "–" if not finite."""
    if not math.isfinite(value):
        return "–"
    rounded = float(f"{value:.3g}")
    for suffix, factor in reversed(_SUFFIXES.items()):
        if abs(rounded) >= factor:
            return f"{rounded / factor:g}{suffix}"
    return f"{rounded:g}"


def in_full(value: float) -> str:
    """For a sentence: an integer with all its digits, any other number with six."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"


def parse_quantity(text: str) -> float:
    """A number with an optional k, M or G: "50k" is 50000.0.

    Raises:
        BadInput: it is not a number, or not finite.
    """
    factor = _SUFFIXES.get(text[-1:], 1.0)
    try:
        value = factor * float(text if factor == 1 else text[:-1])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"a quantity must be a finite number, such as 0.9, 50k, 1.5M or 2G, but got {text!r}")
    return value
