"""Constraints: how far a limit is overstepped, by hand-worked numbers."""

import math

import pytest

from search.constraints import Limits, broken, violations

SMALL = Limits.model_validate({"max": "200k"})


@pytest.mark.parametrize(
    ("raw", "value"), [("200k", 2e5), ("1.5M", 1.5e6), (7, 7.0), (0.25, 0.25), ("1e-3", 1e-3), ("2G", 2e9)]
)
def test_a_limit_is_a_number_or_a_quantity(raw: object, value: float) -> None:
    assert Limits.model_validate({"max": raw}).max == value
    assert Limits.model_validate({"min": raw}).min == value


@pytest.mark.parametrize(
    ("limits", "value", "expected"),
    [
        ({"max": 100.0}, 150.0, {"x <= 100": 0.5}),
        ({"max": 100.0}, 100.0, {"x <= 100": 0.0}),
        ({"max": 100.0}, 50.0, {"x <= 100": -0.5}),
        ({"min": 0.8}, 0.6, {"x >= 0.8": 0.25}),
        ({"min": 0.8}, 0.8, {"x >= 0.8": 0.0}),
        ({"min": 2.0, "max": 4.0}, 5.0, {"x >= 2": -1.5, "x <= 4": 0.25}),
        ({"max": 0.0}, 3.0, {"x <= 0": 3.0}),
        ({"min": -2.0}, -3.0, {"x >= -2": 0.5}),
        ({"max": 100.0}, math.nan, {"x <= 100": math.inf}),
        ({"max": 100.0}, math.inf, {"x <= 100": math.inf}),
        ({"min": 100.0}, math.inf, {"x >= 100": -math.inf}),
    ],
)
def test_a_limit_is_overstepped_by_a_share_of_it(
    limits: dict[str, float], value: float, expected: dict[str, float]
) -> None:
    assert violations({"x": Limits(**limits)}, {"x": value}) == pytest.approx(expected)


def test_what_was_not_measured_breaks_its_limits() -> None:
    assert violations({"x": Limits(min=1.0, max=2.0)}, {}) == {"x >= 1": math.inf, "x <= 2": math.inf}


def test_the_broken_limits_are_named() -> None:
    constraints = {"parameters": SMALL, "accuracy": Limits(min=0.9)}
    assert broken(constraints, {"parameters": 2e5, "accuracy": 0.9}) == []
    assert broken(constraints, {"parameters": 200001.0, "accuracy": 0.95}) == ["parameters <= 200000"]
    assert broken(constraints, {"parameters": 3e5, "accuracy": 0.0}) == ["parameters <= 200000", "accuracy >= 0.9"]
    assert broken({}, {"parameters": 3e5}) == []
