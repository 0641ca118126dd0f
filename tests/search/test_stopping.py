"""Early stopping against brute force, on sequences in no order: ties, copies, NaN, and those made to mislead it."""

import math
import random
from collections.abc import Callable, Sequence

import pytest

from search.fronts.pareto import Axis
from search.stopping import Halving, should_continue

ACCURACY = Axis("accuracy", "max", "linear", 0.0, 1.0)
PARAMETERS = Axis("parameters", "min", "log", 1e5, 1.0)
NLL = Axis("nll", "min", "linear", 3.0, 0.0)
AXES = {1: (ACCURACY,), 2: (ACCURACY, PARAMETERS), 3: (ACCURACY, PARAMETERS, NLL)}

Row = tuple[float, ...]


def beats(a: Row, b: Row, axes: Sequence[Axis]) -> bool:
    """Whether a is at least as good as b on every objective and better on one, by the definition."""
    if not all(map(math.isfinite, b)):
        return all(map(math.isfinite, a))
    if not all(map(math.isfinite, a)):
        return False
    signed = [(x, y) if axis.direction == "max" else (-x, -y) for x, y, axis in zip(a, b, axes, strict=True)]
    return all(x >= y for x, y in signed) and any(x > y for x, y in signed)


def ranks(rows: list[Row], axes: Sequence[Axis]) -> list[int]:
    """Peeled off front by front."""
    left, actual, rank = set(range(len(rows))), [0] * len(rows), 0
    while left:
        front = {i for i in left if not any(beats(rows[j], rows[i], axes) for j in left)}
        for i in front:
            actual[i] = rank
        left -= front
        rank += 1
    return actual


def volume(rows: list[Row], axes: Sequence[Axis]) -> float:
    """Hypervolume by counting the cells of the grid that the points span."""
    points = [[float(axis.normalise(value)) for value, axis in zip(row, axes, strict=True)] for row in rows]
    edges = [sorted({0.0, *column}) for column in zip(*points, strict=True)]

    def cells(corner: tuple[float, ...]) -> float:
        depth = len(corner)
        if depth == len(axes):
            inside = any(all(p >= c for p, c in zip(point, corner, strict=True)) for point in points)
            return math.prod(c - e[e.index(c) - 1] for c, e in zip(corner, edges, strict=True)) if inside else 0.0
        return sum(cells((*corner, edge)) for edge in edges[depth][1:])

    return cells(())


def brute_force(rows: list[Row], axes: Sequence[Axis], reduction: int) -> bool | None:
    """What the docstring of the module says, word for word; None where rounding alone decides."""
    last = rows[-1]
    if not any(beats(row, last, axes) for row in rows):
        return True
    rows = [row for row in rows if all(map(math.isfinite, row))]
    if last not in rows:
        return False
    rank = ranks(rows, axes)
    mates = [row for row, r in zip(rows, rank, strict=True) if r == rank[-1]]
    ahead = sum(r < rank[-1] for r in rank)
    if len(axes) == 1:
        ahead += len(mates) - 1
        return ahead < math.ceil(len(rows) / reduction)
    whole = volume(mates, axes)
    added = [whole - volume(mates[:i] + mates[i + 1 :], axes) if len(mates) > 1 else whole for i in range(len(mates))]
    places = math.ceil(len(rows) / reduction)
    low = ahead + sum(value > added[-1] + 1e-9 for value in added[:-1])
    high = ahead + sum(value >= added[-1] - 1e-9 for value in added[:-1])
    if low < places <= high and any(0 < abs(value - added[-1]) <= 1e-9 for value in added[:-1]):
        return None
    return high < places


def draw(generator: random.Random, m: int, n: int, kind: str) -> list[Row]:
    """n rows of m objectives in no order."""

    def one() -> Row:
        accuracy, parameters, nll = generator.random(), 10 ** generator.uniform(0, 6), generator.uniform(0, 4)
        if kind == "coarse":  # many equal values, and many equal rows
            accuracy, parameters, nll = round(accuracy * 3) / 3, 10.0 ** round(math.log10(parameters)), round(nll)
        if kind == "front":  # nobody beats anybody
            parameters = 10 ** (1 + 4 * accuracy)
        if kind == "line":  # one beats the next
            parameters, nll = 10 ** (5 - 4 * accuracy), 3 - 3 * accuracy
        row = [accuracy, parameters, nll][:m]
        if kind == "nan" and generator.random() < 0.4:
            row[generator.randrange(m)] = generator.choice([math.nan, math.inf, -math.inf])
        return tuple(row)

    rows = [one() for _ in range(n)]
    if kind == "copies":
        rows = [generator.choice(rows[: max(1, n // 3)]) for _ in range(n)]
    generator.shuffle(rows)
    return rows


KINDS = ("any", "coarse", "front", "line", "nan", "copies")


@pytest.mark.parametrize("reduction", [2, 3, 4])
@pytest.mark.parametrize("m", AXES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_decision_is_that_of_brute_force(kind: str, m: int, reduction: int) -> None:
    generator = random.Random(f"{kind} {m} {reduction}")
    decided = {True: 0, False: 0}
    for _ in range(40):
        rows = draw(generator, m, generator.randrange(1, 13), kind)
        for n in range(1, len(rows) + 1):  # a rung as it fills
            expected = brute_force(rows[:n], AXES[m], reduction)
            if expected is not None:
                assert should_continue(rows[:n], AXES[m], reduction) is expected, rows[:n]
                decided[expected] += 1
    if kind != "front" or m == 1:
        assert min(decided.values()) > 20
    else:
        assert decided[False] == 0


@pytest.mark.parametrize("m", AXES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_that_no_other_beats_goes_on(kind: str, m: int) -> None:
    generator = random.Random(f"{kind} {m}")
    for _ in range(200):
        rows = draw(generator, m, generator.randrange(2, 40), kind)
        if not any(beats(row, rows[-1], AXES[m]) for row in rows):
            assert should_continue(rows, AXES[m], 4)


@pytest.mark.parametrize("m", AXES)
def test_a_trial_that_beats_all_before_it_goes_on_and_one_that_all_beat_stops(m: int) -> None:
    generator = random.Random(m)
    best, worst = (1.0, 1.0, 0.0)[:m], (0.0, 1e6, 4.0)[:m]
    for kind in KINDS:
        for _ in range(50):
            rows = draw(generator, m, generator.randrange(3, 30), kind)
            rows = [row for row in rows if row not in (best, worst)]
            assert should_continue([*rows, best], AXES[m], 4)
            if len([row for row in rows if all(map(math.isfinite, row))]) > 1:
                assert not should_continue([*rows, worst], AXES[m], 4)


def test_each_better_than_all_before_is_never_stopped_and_each_worse_always() -> None:
    better = [(i / 20, 1e5 / (i + 1)) for i in range(20)]
    assert all(should_continue(better[: n + 1], AXES[2], 3) for n in range(20))
    worse = better[::-1]
    # the k-th is beaten by all k - 1 before it: only the first has nobody ahead, and ceil(k / 3) places never reach it
    assert [should_continue(worse[: n + 1], AXES[2], 3) for n in range(20)] == [True] + [False] * 19


@pytest.mark.parametrize("m", AXES)
def test_rows_with_nan_change_nothing_for_others_and_go_on_only_among_themselves(m: int) -> None:
    generator = random.Random(m)
    for _ in range(200):
        rows = draw(generator, m, generator.randrange(1, 15), "any")
        broken = [row[:m] for row in [(math.nan, 1.0, 0.0), (math.inf, 1.0, math.nan), (-math.inf, -math.inf, 0.0)]]
        mixed = rows[:-1] + broken
        generator.shuffle(mixed)
        assert should_continue([*mixed, rows[-1]], AXES[m], 3) is should_continue(rows, AXES[m], 3)
        assert not should_continue([*rows, broken[0]], AXES[m], 3)
        assert should_continue([*broken, broken[0]], AXES[m], 3)


@pytest.mark.parametrize("m", [2, 3])
def test_the_order_of_those_before_does_not_matter(m: int) -> None:
    generator = random.Random(m)
    for kind in KINDS:
        for _ in range(50):
            *rows, last = draw(generator, m, 12, kind)
            expected = should_continue([*rows, last], AXES[m], 3)
            generator.shuffle(rows)
            assert should_continue([*rows, last], AXES[m], 3) is expected


def test_a_copy_of_one_on_the_front_goes_on_and_a_copy_of_one_behind_adds_nothing() -> None:
    front = [(0.9, 1000.0), (0.5, 10.0)]
    assert should_continue([*front, (0.9, 1000.0)], AXES[2], 2)
    # four rows, two places: both are taken by the front
    assert not should_continue([*front, (0.4, 2000.0), (0.4, 2000.0)], AXES[2], 2)


def test_within_a_rank_the_one_that_adds_more_goes_on() -> None:
    front = [(0.9, 10.0)]
    behind = [(0.80, 100.0), (0.82, 120.0)]
    # four rows, reduction 2: two places, one of them the front's
    # far from the other two: a wide strip of its own
    assert should_continue([*front, *behind, (0.4, 20.0)], AXES[2], 2)
    assert not should_continue([*front, *behind, (0.81, 110.0)], AXES[2], 2)  # squeezed in between


@pytest.mark.parametrize(
    ("min_epochs", "reduction", "rungs"), [(1, 2, [1, 2, 4, 8, 16]), (3, 3, [3, 9]), (4, 3, [4, 12]), (30, 2, [])]
)
def test_rungs_are_the_powers(min_epochs: int, reduction: int, rungs: list[int]) -> None:
    halving = Halving(AXES[2], min_epochs, reduction)
    assert [epoch for epoch in range(1, 20) if halving.is_rung(epoch)] == rungs


@pytest.fixture
def halving() -> Callable[[], Halving]:
    return lambda: Halving(AXES[2], 1, 2)


def test_rungs_know_nothing_of_each_other(halving: Callable[[], Halving]) -> None:
    stopping = halving()
    for trial in range(5):
        stopping.add(trial, 1, {"accuracy": 0.9, "parameters": 10.0})
    stopping.add(9, 2, {"accuracy": 0.1, "parameters": 1000.0})
    assert stopping.should_continue(9, 2)
    stopping.add(9, 1, {"accuracy": 0.1, "parameters": 1000.0})
    assert not stopping.should_continue(9, 1)


def test_what_is_forgotten_or_added_again_counts_once(halving: Callable[[], Halving]) -> None:
    stopping = halving()
    stopping.add(0, 1, {"accuracy": 0.9, "parameters": 10.0})
    stopping.add(1, 1, {"accuracy": 0.1, "parameters": 1000.0})
    assert not stopping.should_continue(1, 1)
    stopping.forget(0)
    assert stopping.should_continue(1, 1)
    stopping.add(1, 1, {"accuracy": 0.1, "parameters": 1000.0})  # a trial that was cut short is carried out again
    stopping.add(2, 1, {"accuracy": 0.1, "parameters": 2000.0})
    assert not stopping.should_continue(2, 1)
    stopping.forget(7)


def test_an_objective_that_is_not_reported_stops_nobody(halving: Callable[[], Halving]) -> None:
    stopping = halving()
    for trial, accuracy in enumerate([0.9, 0.5, 0.1]):
        stopping.add(trial, 1, {"accuracy": accuracy})
        assert stopping.should_continue(trial, 1)
    stopping.add(3, 1, {"accuracy": 0.2, "parameters": 10.0})
    stopping.add(4, 1, {"accuracy": 0.99})
    assert stopping.should_continue(3, 1)
    assert not stopping.should_continue(4, 1)


def test_a_rung_rebuilt_in_another_order_decides_alike(halving: Callable[[], Halving]) -> None:
    generator = random.Random(0)
    for _ in range(100):
        rows = draw(generator, 2, 10, "coarse")
        named = [dict(zip(("accuracy", "parameters"), row, strict=True)) for row in rows]
        first, again = halving(), halving()
        for trial in range(10):
            first.add(trial, 1, named[trial])
        for trial in generator.sample(range(10), 10):
            again.add(trial, 1, named[trial])
        assert first.should_continue(9, 1) is again.should_continue(9, 1)
