"""Selects a student within bounds: the best, or an error that names the nearest."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from search.fronts.front import Entry, Front
from search.fronts.quantities import in_full, shortened
from spaces.errors import BadInput
from spaces.quantities import parse_quantity
from trainers.metrics import Direction

Bounds: TypeAlias = Mapping[str, tuple[Direction, float]]
"""A measurement's name to ("min", lowest value) or ("max", highest value), inclusive."""


class NoStudent(LookupError):
    """No student satisfies the bounds; the message names the nearest one, in one line."""


def parse_bounds(minimum: Sequence[str], maximum: Sequence[str]) -> Bounds:
    """The bounds in strings such as "parameters=50k".

    Raises:
        BadInput: one is not NAME=QUANTITY, or a measurement has two.
    """
    bounds: dict[str, tuple[Direction, float]] = {}
    sides: tuple[tuple[Direction, Sequence[str]], ...] = (("min", minimum), ("max", maximum))
    for side, texts in sides:
        for text in texts:
            name, value = parse_bound(text)
            if name in bounds:
                raise BadInput(
                    f"a measurement may have one bound, but {name} has two; "
                    f"drop one of {shortened(bounds[name][1])} and {shortened(value)}"
                )
            bounds[name] = (side, value)
    return bounds


def parse_bound(text: str) -> tuple[str, float]:
    """ "parameters=50k" is ("parameters", 50000.0).

    Raises:
        BadInput: it is not NAME=QUANTITY.
    """
    name, equals, quantity = text.partition("=")
    if not (name.strip() and equals):
        raise BadInput(f"a bound must read NAME=VALUE, but got {text!r}; write for example parameters=50k")
    return name.strip(), parse_quantity(quantity.strip())


def select(front: Front, bounds: Bounds) -> Entry:
    """The student within all bounds that is best on the first objective, then on the next ones, then the earliest.

    All students are considered, not only those on the front, since a bound on a measurement that is not an objective
    may exclude all of those.

    Raises:
        BadInput: a bound names a measurement that no student of the study has.
        NoStudent: none is within the bounds; names the nearest, by the sum of violations on normalised axes.
    """
    candidates = [e for e in front.entries if all(math.isfinite(e.value(name)) for name in front.objectives)]
    if not candidates:
        why = f"all {front.broken} break a constraint of the study" if front.broken else "none was measured yet"
        raise NoStudent(f"no student satisfies the bounds: {why}")
    known = front.known()
    for name in bounds:
        if name not in known:
            raise BadInput(f"a bound must name a measurement, but got {name!r}; known are {', '.join(known)}")

    def rank(entry: Entry) -> tuple[float, ...]:
        return *(entry.value(n) if d == "min" else -entry.value(n) for n, d in front.objectives.items()), entry.trial

    if within := [e for e in candidates if all(_holds(e.value(name), *bound) for name, bound in bounds.items())]:
        return min(within, key=rank)
    nearest = min(candidates, key=lambda entry: (_violation(front, bounds, entry), *rank(entry)))
    wanted = " and ".join(f"{n} {'>=' if side == 'min' else '<='} {in_full(b)}" for n, (side, b) in bounds.items())
    got = " and ".join(f"{n} {in_full(nearest.value(n))}" for n in dict.fromkeys([*bounds, *front.objectives]))
    raise NoStudent(f"no student satisfies {wanted}; the nearest is {nearest.called} with {got}")


def _violation(front: Front, bounds: Bounds, entry: Entry) -> float:
    """The sum of the fractions of their axes by which bounds are missed; infinite without a measurement."""
    missed = [(name, bound) for name, (side, bound) in bounds.items() if not _holds(entry.value(name), side, bound)]
    positions = [front.axis(name).position([entry.value(name), bound]) for name, bound in missed]
    total = sum(abs(float(value - bound)) for value, bound in positions)
    return math.inf if math.isnan(total) else total


def _holds(value: float, side: Direction, bound: float) -> bool:
    return value >= bound if side == "min" else value <= bound
