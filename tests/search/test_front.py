"""Against brute force, closed forms and Monte Carlo; nothing here is sorted unless a test says so."""

import io
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from rich.console import Console

from search.fronts.front import Entry, Front
from search.fronts.pareto import Axis, hypervolume, non_dominated
from search.fronts.picture import pictured
from search.fronts.plot import plot
from search.fronts.quantities import shortened, show
from search.fronts.selection import NoStudent, parse_bound, select
from search.fronts.tables import front_table
from spaces.errors import BadInput
from spaces.quantities import parse_quantity
from trainers.metrics import Direction

ACCURACY = Axis("accuracy", "max", "linear", worst=0.0, best=1.0)
PARAMETERS = Axis("parameters", "min", "log", worst=10_000.0, best=1.0)
OBJECTIVES: dict[str, Direction] = {"accuracy": "max", "parameters": "min"}


def entry(trial: int, accuracy: float, parameters: float, **others: float) -> Entry:
    recipe = {"student.width": trial / 8, "transfer": "kd", "kd.temperature": 4.0}
    return Entry(trial, recipe, {"accuracy": accuracy, "parameters": parameters, **others}, run_id=f"run{trial}")


def front(*entries: Entry) -> Front:
    return Front.of(entries, OBJECTIVES, [ACCURACY, PARAMETERS])


SMALL, MIDDLE, LARGE = entry(3, 0.80, 100), entry(1, 0.90, 1000), entry(2, 0.95, 5000)
DOMINATED, DIVERGED = entry(0, 0.85, 2000), entry(4, math.nan, 10)
FIVE = front(LARGE, DIVERGED, DOMINATED, SMALL, MIDDLE)


# non_dominated


def brute_force(values: NDArray[np.float64], directions: list[Direction]) -> list[int]:
    costs = values * [1 if direction == "min" else -1 for direction in directions]
    front = []
    for i, point in enumerate(costs):
        beaten = not np.isfinite(point).all()
        for j, other in enumerate(costs):
            if np.isfinite(other).all() and (other <= point).all():
                beaten |= bool((other < point).any()) or j < i
        if not beaten:
            front.append(i)
    return front


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("spoilt", [False, True])
def test_the_front_is_the_brute_force_one_on_ties_duplicates_nan_and_inf(m: int, spoilt: bool) -> None:
    rng = np.random.default_rng(m)
    for _ in range(150):
        n = int(rng.integers(1, 40))
        values = rng.integers(0, 5, size=(n, m)).astype(float)  # a coarse grid: ties and duplicates abound
        if spoilt:
            values[rng.random((n, m)) < 0.1] = rng.choice([math.nan, math.inf, -math.inf])
        directions: list[Direction] = ["max" if up else "min" for up in rng.random(m) < 0.5]
        assert non_dominated(values, directions) == brute_force(values, directions)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_front_of_many_points_is_the_brute_force_one(m: int) -> None:
    values = np.random.default_rng(m).normal(size=(300, m))
    assert non_dominated(values, ["min"] * m) == brute_force(values, ["min"] * m)


def test_the_order_of_the_points_does_not_change_the_front() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 2))
    expected = {tuple(values[i]) for i in non_dominated(values, ["min", "max"])}
    for _ in range(10):
        shuffled = rng.permutation(values)
        assert {tuple(shuffled[i]) for i in non_dominated(shuffled, ["min", "max"])} == expected


def test_of_duplicates_the_first_stays() -> None:
    assert non_dominated([[2, 2], [1, 3], [1, 3], [2, 2], [3, 1]], ["min", "min"]) == [0, 1, 4]


def test_nothing_has_no_front_and_a_single_point_is_one() -> None:
    assert non_dominated([], ["min", "max"]) == []
    assert non_dominated(np.empty((0, 3)), ["min"] * 3) == []
    assert non_dominated([[math.nan, 1]], ["min", "max"]) == []
    assert non_dominated([[5]], ["max"]) == [0]


def test_a_table_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values must be \(n, 2\).* but are \(2, 3\)"):
        non_dominated(np.ones((2, 3)), ["min", "min"])


# Axis, hypervolume


def test_an_axis_is_0_at_the_worst_and_1_at_the_best_and_clipped_beyond() -> None:
    np.testing.assert_allclose(ACCURACY.normalise([-1, 0, 0.25, 1, 2]), [0, 0, 0.25, 1, 1])
    np.testing.assert_allclose(PARAMETERS.normalise([1e6, 10_000, 100, 1, 0]), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(PARAMETERS.position([1e6, 10_000, 100]), [-0.5, 0, 0.5])


def test_an_axis_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(
        BadInput, match="`worst` must be below `best` on a max axis, but accuracy got worst 1 and best 0"
    ):
        Axis("accuracy", "max", "linear", worst=1, best=0)
    with pytest.raises(BadInput, match="`worst` must be above `best` on a min axis, but nll got worst 1 and best 1"):
        Axis("nll", "min", "linear", worst=1, best=1)
    with pytest.raises(BadInput, match="must be positive, but macs got worst 9 and best 0"):
        Axis("macs", "min", "log", worst=9, best=0)


def test_one_point_dominates_its_rectangle() -> None:
    assert hypervolume([[0.8, 100]], [ACCURACY, PARAMETERS]) == pytest.approx(0.8 * 0.5)


def test_two_points_dominate_the_union_of_their_rectangles() -> None:
    expected = 0.8 * 0.5 + 0.9 * 0.25 - 0.8 * 0.25
    assert hypervolume([[0.9, 1000], [0.8, 100]], [ACCURACY, PARAMETERS]) == pytest.approx(expected)


def test_one_objective_has_the_best_point_as_its_hypervolume() -> None:
    assert hypervolume([[0.3], [0.7], [math.nan], [0.5]], [ACCURACY]) == pytest.approx(0.7)


def test_the_ideal_point_dominates_everything_and_the_worst_nothing() -> None:
    assert hypervolume([[1.0, 1.0], [0.5, 20.0]], [ACCURACY, PARAMETERS]) == 1.0
    assert hypervolume([[0.9, 20_000.0], [0.0, 1.0]], [ACCURACY, PARAMETERS]) == 0.0


def test_no_point_and_spoilt_points_dominate_nothing() -> None:
    assert hypervolume([], [ACCURACY, PARAMETERS]) == 0.0
    assert hypervolume([[math.nan, 1], [math.inf, 1], [1, -math.inf]], [ACCURACY, PARAMETERS]) == 0.0


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_hypervolume_is_inclusion_exclusion(m: int) -> None:
    rng = np.random.default_rng(m)
    axes = [Axis(f"o{j}", "max", "linear", 0, 1) if j % 2 else Axis(f"o{j}", "min", "linear", 1, 0) for j in range(m)]
    points = rng.random((8, m))
    corners = np.column_stack([axis.normalise(points[:, j]) for j, axis in enumerate(axes)])
    union = sum(
        (-1) ** (size + 1) * np.prod(np.min(corners[list(some)], axis=0))
        for size in range(1, 9)
        for some in itertools.combinations(range(8), size)
    )
    assert hypervolume(points, axes) == pytest.approx(union)


def test_hypervolume_is_the_share_of_random_points_that_are_dominated() -> None:
    rng = np.random.default_rng(1)
    points = np.column_stack([rng.random(12), 10 ** rng.uniform(0, 4, size=12)])
    darts = rng.random((50_000, 2))
    corners = np.column_stack([ACCURACY.normalise(points[:, 0]), PARAMETERS.normalise(points[:, 1])])
    share = np.mean([(dart <= corners).all(axis=1).any() for dart in darts])
    # The share's standard deviation is at most 0.5 / sqrt(50,000) = 0.0022; this is 4 of them.
    assert hypervolume(points, [ACCURACY, PARAMETERS]) == pytest.approx(share, abs=0.009)


# Front


def test_members_are_by_size_whatever_order_the_students_come_in() -> None:
    for some in itertools.permutations([SMALL, MIDDLE, LARGE, DOMINATED, DIVERGED]):
        again = front(*some)
        assert again == FIVE
        assert again.non_dominated == (SMALL, MIDDLE, LARGE)
        assert [e.trial for e in again.entries] == [0, 1, 2, 3, 4]


def test_adding_a_dominated_point_leaves_front_and_hypervolume_unchanged() -> None:
    more = front(*FIVE.entries, entry(9, 0.79, 100), entry(8, 0.90, 1000))
    assert more.non_dominated == FIVE.non_dominated
    assert more.hypervolume == FIVE.hypervolume


def test_adding_a_better_point_replaces_what_it_dominates() -> None:
    best = entry(9, 0.96, 900)
    more = front(*FIVE.entries, best)
    assert more.non_dominated == (SMALL, best)
    assert more.hypervolume > FIVE.hypervolume


def test_of_equal_students_the_earlier_trial_is_the_member() -> None:
    assert [e.trial for e in front(entry(7, 0.9, 10), entry(5, 0.9, 10), entry(6, 0.9, 10)).non_dominated] == [5]


def test_a_student_without_a_measurement_of_an_objective_is_no_member() -> None:
    assert front(Entry(0, {}, {"accuracy": 1.0}), SMALL).non_dominated == (SMALL,)


def test_a_front_of_nothing_is_empty() -> None:
    nothing = front()
    assert (nothing.entries, nothing.non_dominated, nothing.hypervolume) == ((), (), 0.0)
    assert plot(nothing) == "no student to draw yet"
    assert front_table(nothing).row_count == 0


@pytest.mark.parametrize(
    ("objectives", "axes"),
    [
        (OBJECTIVES, [ACCURACY]),
        (OBJECTIVES, [PARAMETERS, ACCURACY]),
        ({"accuracy": "min"}, [ACCURACY]),
        ({"accuracy": "max"}, [ACCURACY, ACCURACY]),
        ({}, []),
    ],
)
def test_axes_that_are_not_the_objectives_are_refused(objectives: dict[str, Direction], axes: list[Axis]) -> None:
    with pytest.raises(BadInput, match="objectives and axes must agree"):
        Front.of([SMALL], objectives, axes)


def test_json_says_everything_about_the_members_and_is_json() -> None:
    said = front(entry(3, 0.8, 100, nll=math.inf, macs=7.0), DOMINATED).to_json("digits")
    assert json.loads(json.dumps(said, allow_nan=False)) == {
        "study": "digits",
        "objectives": {"accuracy": "max", "parameters": "min"},
        "hypervolume": pytest.approx(0.8 * 0.5 + 0.05 * PARAMETERS.normalise(2000)),
        "trials": 2,
        "broke_constraints": 0,
        "validation_images": None,
        "members": [
            {
                "trial": 3,
                "recipe": {"student.width": 0.375, "transfer": "kd", "kd.temperature": 4.0},
                "objectives": {"accuracy": 0.8, "parameters": 100.0},
                "measurements": {"nll": None, "macs": 7.0},
                "accuracy_interval": None,
                "mlflow_run_id": "run3",
                "curve_of": None,
            },
            {
                "trial": 0,
                "recipe": {"student.width": 0.0, "transfer": "kd", "kd.temperature": 4.0},
                "objectives": {"accuracy": 0.85, "parameters": 2000.0},
                "measurements": {},
                "accuracy_interval": None,
                "mlflow_run_id": "run0",
                "curve_of": None,
            },
        ],
    }


def test_counts_are_whole_numbers_in_json_and_shares_are_not() -> None:
    said = front(entry(0, 1.0, 100, nll=2.0, macs=7e12), entry(1, 0.5, 50, nll=0.25, macs=math.inf)).to_json("digits")
    text = json.dumps(said)
    assert '"accuracy": 1.0, "parameters": 100}' in text
    assert '"nll": 2.0, "macs": 7000000000000}' in text
    assert '"nll": 0.25, "macs": null}' in text
    assert '"accuracy": 1.0,' in json.dumps(front(entry(0, 1.0, 100)).to_json("digits"))


def test_brief_keeps_what_varies_and_the_namespace_where_the_end_is_not_enough() -> None:
    plain = Entry(0, {"student.width": 0.5, "transfer": "none", "train.epochs": 9}, {})
    warm = Entry(1, {"student.width": 0.25, "transfer": "kd", "kd.width": 3, "kd.heat": 1 / 3, "train.epochs": 9}, {})
    both = front(plain, warm)
    assert both.brief(plain) == "width=0.5 transfer=none"
    assert both.brief(warm) == "student.width=0.25 transfer=kd kd.width=3 heat=0.333"
    assert front(plain).brief(plain) == "width=0.5 transfer=none epochs=9"


def test_the_table_has_a_row_a_member_and_takes_no_value_for_markup() -> None:
    marked = Entry(9, {"transfer": "[red]kd[/red]"}, {"accuracy": 1.0, "parameters": 12_345.0, "size_bytes": 52_000.0})
    printed = io.StringIO()
    console = Console(width=100, file=printed)
    console.print(front_table(front(marked, SMALL, DOMINATED)))
    lines = [" ".join(line.split()) for line in printed.getvalue().splitlines()]
    assert lines[0].startswith("3 of 3 students on the front, hypervolume 0.")
    assert lines[2:4] == ["size", "student accuracy parameters bytes recipe"]
    assert "9 1.0000 12,345 52k transfer=[red]kd[/red]" in lines
    assert "3 0.8000 100 – width=0.375 transfer=kd temperature=4" in lines


def test_accuracies_on_a_known_number_of_images_have_intervals() -> None:
    """Wilson's, as SciPy computes it: 80 and 95 of 100 images."""
    made = Front.of([SMALL, LARGE, DIVERGED], OBJECTIVES, [ACCURACY, PARAMETERS], validation_images=100)
    ends = {}
    for student in (SMALL, LARGE):
        right = round(100 * student.value("accuracy"))
        expected = scipy.stats.binomtest(right, 100).proportion_ci(method="wilson")
        ends[student.trial] = (pytest.approx(expected.low), pytest.approx(expected.high))
        assert made.interval(student) == ends[student.trial]
    assert made.interval(DIVERGED) is None
    said: Any = json.loads(json.dumps(made.to_json("digits"), allow_nan=False))
    assert said["validation_images"] == 100
    assert {member["trial"]: tuple(member["accuracy_interval"]) for member in said["members"]} == ends
    assert made.chosen_from().startswith("chosen from 3 students on 100 validation images, ")
    printed = io.StringIO()
    Console(width=100, file=printed).print(front_table(made))
    lines = [" ".join(line.split()) for line in printed.getvalue().splitlines()]
    assert "student accuracy interval parameters recipe" in lines
    assert "3 0.8000 0.711–0.867 100 width=0.375" in lines
    assert FIVE.chosen_from() == ""


def test_an_interval_is_left_out_where_the_recipe_needs_its_space() -> None:
    names = [f"{'x' * 20}{number}" for number in range(2)]
    objectives: dict[str, Direction] = {**OBJECTIVES, **dict.fromkeys(names, "max")}
    axes = [ACCURACY, PARAMETERS, *(Axis(name, "max", "linear", 0.0, 1.0) for name in names)]
    student = entry(1, 0.9, 1000, **dict.fromkeys(names, 0.5))
    table = front_table(Front.of([student], objectives, axes, validation_images=100))
    assert [column.header for column in table.columns] == ["student", *objectives, "recipe"]


def test_a_student_of_a_curve_is_said_to_be_one() -> None:
    recipe = {"student.width": 0.5, "pruning.rounds": 3, "pruning.fine_tune_epochs": 1}
    own = Entry(29, recipe, {"accuracy": 0.9, "parameters": 100.0})
    point = Entry(60, recipe, {"accuracy": 0.8, "parameters": 50.0}, curve_of=29)
    raw = Entry(61, {**recipe, "pruning.fine_tune_epochs": 0}, {"accuracy": 0.7, "parameters": 25.0}, curve_of=29)
    actual = front(own, point, raw)
    assert [each.called for each in (own, point)] == ["trial 29", "student 60 (from the curve of trial 29)"]
    assert "(" not in actual.brief(own)
    assert actual.brief(point).endswith(" (from the curve of trial 29, after cut 3)")
    assert actual.brief(raw).endswith(" (from the curve of trial 29, cut, not fine-tuned)")
    with pytest.raises(NoStudent, match=r"the nearest is student 60 \(from the curve of trial 29\) with"):
        select(front(point), {"accuracy": ("min", 0.99)})


@pytest.mark.parametrize("names", [(), ("calibrated_nll", "macs", "latency_ms"), (*"abcde",)])
def test_a_table_takes_a_hundred_columns_and_leaves_nothing_out(names: tuple[str, ...]) -> None:
    others = {"nll": 0.1234, "macs": 123_456_789.0, "size_bytes": 12_345_678.0, **dict.fromkeys(names, 1234567.0)}
    recipe: dict[str, object] = {
        "transfer": "own_methods.attention_of_all_layers:Attention",
        f"long.{'name' * 30}": 0.123,
    }
    recipe |= {"pruning.rounds": 3, "pruning.fine_tune_epochs": 1}
    one = Entry(1234, recipe, {"accuracy": 0.9, "parameters": 123_456_789.0, **others}, curve_of=1000)
    two = Entry(1235, {**recipe, "transfer": "none"}, {"accuracy": 0.8, "parameters": 23_456_789.0, **others})
    objectives: dict[str, Direction] = {**OBJECTIVES, **dict.fromkeys(names, "min")}
    axes = [ACCURACY, *(Axis(name, "min", "log", worst=1e9, best=1.0) for name in ("parameters", *names))]
    printed = io.StringIO()
    Console(width=100, file=printed, soft_wrap=True).print(front_table(Front.of([one, two], objectives, axes)))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in printed.getvalue()
    first = next(line for line in lines if "1234" in line)
    assert "0.9000" in first
    assert "123,456,789" in first


# select


def test_the_student_selected_is_the_best_within_the_bounds() -> None:
    assert select(FIVE, {}) == LARGE
    assert select(FIVE, {"parameters": ("max", 4999)}) == MIDDLE
    assert select(FIVE, {"parameters": ("max", 1000), "accuracy": ("min", 0.9)}) == MIDDLE  # ends included
    assert select(FIVE, {"parameters": ("max", 999)}) == SMALL


def test_equally_accurate_students_are_told_apart_by_the_other_objectives_then_the_trial() -> None:
    assert select(front(entry(0, 0.9, 50), entry(2, 0.9, 40), entry(1, 0.9, 40)), {}).trial == 1


def test_a_bound_on_what_is_no_objective_can_select_a_dominated_student() -> None:
    slow, quick = entry(0, 0.9, 100, latency_ms=9.0), entry(1, 0.8, 200, latency_ms=1.0)
    assert select(front(slow, quick), {"latency_ms": ("max", 2.0)}) == quick


def test_the_selected_student_is_the_brute_force_one() -> None:
    rng = np.random.default_rng(5)
    students = [entry(t, float(rng.integers(1, 9)) / 10, float(rng.integers(1, 9)) * 100) for t in range(40)]
    for _ in range(50):
        least, most = float(rng.integers(1, 10)) / 10, float(rng.integers(0, 9)) * 100
        inside = [e for e in students if e.value("accuracy") >= least and e.value("parameters") <= most]
        bounds: dict[str, tuple[Direction, float]] = {"accuracy": ("min", least), "parameters": ("max", most)}
        if not inside:
            with pytest.raises(NoStudent):
                select(front(*students), bounds)
            continue
        actual = select(front(*students), bounds)
        assert actual in front(*students).non_dominated
        assert actual.value("accuracy") == max(e.value("accuracy") for e in inside)


def test_no_student_within_the_bounds_names_the_nearest_in_one_line() -> None:
    with pytest.raises(NoStudent) as caught:
        select(FIVE, {"accuracy": ("min", 0.94), "parameters": ("max", 900)})
    # Normalised violations: trial 3 misses 0.14, trial 1 0.04 + 0.011, trial 2 0.19.
    assert str(caught.value) == (
        "no student satisfies accuracy >= 0.94 and parameters <= 900; "
        "the nearest is trial 1 with accuracy 0.9 and parameters 1,000"
    )


def test_the_nearest_is_never_a_student_that_lacks_the_measurement_where_another_has_it() -> None:
    with pytest.raises(
        NoStudent, match=r"latency_ms <= 1; the nearest is trial 2 with latency_ms 50 and accuracy 0\.1"
    ):
        select(front(entry(1, 0.9, 10), entry(2, 0.1, 9000, latency_ms=50.0)), {"latency_ms": ("max", 1)})


def test_a_diverged_student_is_never_selected() -> None:
    with pytest.raises(NoStudent, match="the nearest is trial 3"):
        select(FIVE, {"parameters": ("max", 50)})


def test_without_a_measured_student_none_is_selected() -> None:
    for nothing in (front(), front(DIVERGED)):
        with pytest.raises(NoStudent, match="none was measured yet"):
            select(nothing, {"accuracy": ("min", 0.5)})


def test_a_bound_on_an_unknown_measurement_lists_the_known() -> None:
    with pytest.raises(BadInput, match="must name a measurement, but got 'weight'; known are accuracy, parameters"):
        select(FIVE, {"weight": ("max", 1)})


# plot


def test_the_plot_marks_members_and_others_and_keeps_its_size() -> None:
    lines = plot(FIVE, 60, 12).splitlines()
    assert len(lines) == 12
    assert max(map(len, lines)) <= 60
    assert lines[0] == "accuracy   ● front   · dominated"
    body = "".join(lines[1:])
    assert (body.count("●"), body.count("·")) == (3, 1)  # the diverged one has no place
    assert lines[1].startswith(" 0.95 ┤")
    assert lines[1].endswith("●")  # the most accurate is the largest, hence top right
    assert lines[-2].split() == ["100", "707", "5k"]  # midway by logarithm
    assert lines[-1].strip() == "parameters (log)"


def test_the_plot_does_not_let_one_failure_squash_the_rest() -> None:
    students = [entry(t, 0.9 + t / 1000, 100 + t) for t in range(20)]
    lines = plot(front(*students, entry(20, 0.1, 150)), 60, 12).splitlines()
    assert lines[0] == "accuracy   ● front   · dominated   ↓ off the picture"
    assert "↓" in lines[-4]
    assert lines[-4].startswith("  0.9 ┤")


def test_a_member_is_never_off_the_picture() -> None:
    students = [entry(t, 0.9 + t / 1000, 100 + t) for t in range(20)]
    assert pictured(front(*students, entry(20, 0.1, 50))).far == []


@pytest.mark.parametrize("entries", [[SMALL], [SMALL, entry(9, 0.8, 100)], [entry(0, 0.0, 0.0), SMALL]])
def test_points_that_are_one_or_have_no_logarithm_can_be_plotted(entries: list[Entry]) -> None:
    assert plot(front(*entries), 40, 8).count("●") == 2  # the legend's and the student's


def test_one_objective_is_drawn_over_parameters_or_else_over_trials() -> None:
    alone = Front.of([SMALL, LARGE, MIDDLE], {"accuracy": "max"}, [ACCURACY])
    assert alone.non_dominated == (LARGE,)
    assert pictured(alone).x.name == "parameters"
    assert pictured(alone).x.scale == "log"
    assert pictured(Front.of(FIVE.entries, {"parameters": "min"}, [PARAMETERS])).x.name == "trial"
    assert plot(alone).splitlines()[-1].strip() == "parameters (log)"


def test_three_objectives_make_a_front_of_all_three() -> None:
    macs = Axis("macs", "min", "log", worst=1000, best=1)
    low, high = entry(0, 0.9, 100, macs=900.0), entry(1, 0.8, 200, macs=10.0)
    three = Front.of([low, high], {**OBJECTIVES, "macs": "min"}, [ACCURACY, PARAMETERS, macs])
    assert three.non_dominated == (high, low)  # by the last objective


# quantities


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("50k", 50_000.0),
        ("1.5M", 1_500_000.0),
        ("2G", 2e9),
        ("0.9", 0.9),
        ("0", 0.0),
        ("-3", -3.0),
        ("1e3", 1000.0),
        ("1_000", 1000.0),
        (".5k", 500.0),
    ],
)
def test_a_quantity_is_read(text: str, value: float) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text", ["", "k", "50 kB", "50m", "1.5.2", "fifty", "nan", "inf", "-inf", "infk", "1e999", "50kk"]
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"a quantity must be a finite number, such as 0\.9, 50k, 1\.5M or 2G, but got"):
        parse_quantity(text)


def test_a_bound_is_a_name_and_a_quantity() -> None:
    assert parse_bound("parameters=50k") == ("parameters", 50_000.0)
    assert parse_bound(" accuracy = 0.9 ") == ("accuracy", 0.9)


@pytest.mark.parametrize("text", ["parameters", "=5", "", "  =5"])
def test_what_is_no_bound_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="a bound must read NAME=VALUE, but got"):
        parse_bound(text)


@pytest.mark.parametrize(
    ("value", "shown", "short"),
    [
        (0.0, "0.0000", "0"),
        (1.0, "1.0000", "1"),
        (0.98333, "0.9833", "0.983"),
        (0.0000123, "1.23e-05", "1.23e-05"),
        (661.0, "661", "661"),
        (999_900.0, "999,900", "1M"),
        (2_114_974.4, "2,114,974", "2.11M"),
        (math.nan, "–", "–"),
        (math.inf, "–", "–"),
    ],
)
def test_numbers_are_shown_short(value: float, shown: str, short: str) -> None:
    assert show(value) == shown
    assert shortened(value) == short
