"""Numbers as people read and write them: with thousands separators, or shortened with k, M and G."""

import math

from spaces.quantities import SUFFIXES


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
    for suffix, factor in reversed(SUFFIXES.items()):
        if abs(rounded) >= factor:
            return f"{rounded / factor:g}{suffix}"
    return f"{rounded:g}"


def in_full(value: float) -> str:
    """For a sentence: an integer with all its digits, any other number with six."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"
