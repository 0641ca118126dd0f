"""The space: what may be drawn, what is asked for, and what is refused."""

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import optuna
import pytest

from spaces import BadInput, Choice, Domain, Float, Int, Recipe, Space

DESIGN = {
    "student.width": {"low": 0.125, "high": 1.0, "step": 0.125},
    "transfer": ["none", "kd", "factor"],
    "kd.temperature": {"low": 1.0, "high": 8.0},
    "factor.rate": [0.25, 0.5, 0.75, 1.0],
    "pruning.fraction": {"low": 0.0, "high": 0.9},
}


class Lowest:
    """Decides on the first choice, or on the choice named, and on the lower end; keeps what it was asked."""

    def __init__(self, **choices: object) -> None:
        self.choices, self.asked = choices, list[str]()

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.asked.append(name)
        return low

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self.asked.append(name)
        return low

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked.append(name)
        return self.choices.get(name, choices[0])


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("none", ["transfer", "student.width", "pruning.fraction"]),
        ("kd", ["transfer", "student.width", "kd.temperature", "pruning.fraction"]),
        ("factor", ["transfer", "student.width", "factor.rate", "pruning.fraction"]),
    ],
)
def test_only_the_drawn_methods_parameters_are_asked_for_the_method_first(method: str, asked: list[str]) -> None:
    suggest = Lowest(transfer=method)
    recipe = Space.from_mapping(DESIGN).draw(suggest)
    assert suggest.asked == asked
    assert recipe.transfer == method
    assert [f"{method}.{name}" for name, _ in recipe.options] == [name for name in asked if name.startswith(method)]


def test_a_methods_parameters_are_drawn_where_the_method_is_the_only_one() -> None:
    recipe = Space.from_mapping({"transfer": "kd", "kd.temperature": {"low": 2.0, "high": 3.0}}).draw(Lowest())
    assert (recipe.transfer, recipe.options) == ("kd", (("temperature", 2.0),))


def test_a_fixed_value_is_taken_and_not_asked_for() -> None:
    suggest = Lowest()
    assert Space.from_mapping({"student.width": 0.5, "seed": [3]}).draw(suggest) == Recipe.from_flat(
        {"student.width": 0.5, "seed": 3}
    )
    assert suggest.asked == []


def test_an_optuna_trial_draws_recipes_within_the_limits_and_by_the_step() -> None:
    space = Space.from_mapping({**DESIGN, "student.depth": {"low": 8, "high": 20, "step": 6}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    drawn = [space.draw(study.ask()) for _ in range(60)]
    assert {recipe.student.depth for recipe in drawn} == {8, 14, 20}
    assert {recipe.student.width for recipe in drawn} <= {i / 8 for i in range(1, 9)}
    assert {recipe.transfer for recipe in drawn} == {"none", "kd", "factor"}
    assert all(0.0 <= recipe.pruning.fraction <= 0.9 for recipe in drawn)
    assert len({recipe.pruning.fraction for recipe in drawn}) == 60
    for recipe in drawn:
        assert {name for name, _ in recipe.options} == {"none": set(), "kd": {"temperature"}, "factor": {"rate"}}[
            recipe.transfer
        ]
        assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("name", "raw", "domain"),
    [
        ("student.width", {"low": 1, "high": 2}, Float(1.0, 2.0)),
        ("student.width", {"low": 1, "high": 3, "step": 1}, Float(1.0, 3.0, 1.0)),
        ("student.depth", {"low": 8, "high": 14}, Int(8, 14)),
        ("student.depth", {"low": 8, "high": 20, "step": 6}, Int(8, 20, 6)),
        ("training.epochs", {"low": 1, "high": 100, "log": True}, Int(1, 100, 1, True)),
        ("seed", {"low": 0, "high": 2**31 - 1}, Int(0, 2**31 - 1)),
        ("kd.temperature", {"low": 1, "high": 8}, Float(1.0, 8.0)),
        ("kd.temperature", {"low": 1, "high": 8, "log": True}, Float(1.0, 8.0, None, True)),
        ("kd.steps", {"low": 100, "high": 500, "step": 100}, Int(100, 500, 100)),
        ("kd.temperature", {"low": 1, "high": 2, "step": 0.5}, Float(1.0, 2.0, 0.5)),
        ("student.family", "mlp", Choice(("mlp",))),
        ("student.depth", [8, 14], Choice((8, 14))),
    ],
)
def test_whole_limits_draw_whole_numbers_only_where_the_value_is_whole(
    name: str, raw: object, domain: Choice | Float | Int
) -> None:
    assert Space.from_mapping({"transfer": "kd", name: raw}).parameters[name] == domain


@pytest.mark.parametrize(
    "raw",
    [
        DESIGN,
        {"pruning.fraction": {"low": 0, "high": 0}, "pruning.fine_tune_epochs": {"low": 0, "high": 3}},
        {"training.epochs": {"low": 1, "high": 100, "log": True}, "seed": 0, "training.momentum": 0.0},
        {"transfer": "kd", "kd.temperature": {"low": 0.5, "high": 8, "log": True}, "kd.deep": [False, True]},
        {"transfer": "kd", "kd.steps": {"low": 0, "high": 8, "step": 1}},
        {},
    ],
)
def test_a_space_equals_itself_after_json(raw: dict[str, object]) -> None:
    space = Space.from_mapping(raw)
    assert Space.from_mapping(json.loads(json.dumps(space.to_mapping()))) == space


def test_extremes_combine_the_named_parameters_values_and_leave_the_rest_at_its_default() -> None:
    space = Space.from_mapping({**DESIGN, "student.depth": {"low": 8, "high": 20, "step": 6}})
    results = list(space.extremes("student.depth", "student.width", "student.family"))
    assert [(recipe.student.depth, recipe.student.width) for recipe in results] == [
        (depth, width) for depth in (8, 14, 20) for width in (0.125, 1.0)
    ]
    assert {recipe.pruning.fraction for recipe in results} == {0.0}


def test_a_seed_from_all_there_are_is_checked_at_once() -> None:
    assert Space.from_mapping({"seed": {"low": 0, "high": 2**31 - 1}}).parameters["seed"].extremes() == (0, 2**31 - 1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({5: 1}, "names in `space` must be strings, but got 5"),
        ({"student.widht": 1.0}, "`space.student.widht` is not a parameter.*did you mean `student.width`"),
        ({"kd.temperature": [1.0]}, r"`space.kd.temperature` is not a parameter.*methods drawn: none"),
        ({"transfer": ["kd", "none"], "factor.rate": [1.0]}, r"`space.factor.rate`.*methods drawn: kd, none"),
        ({"pruning.fraction": {"low": 0.0, "high": 1.0}}, "`pruning.fraction` should be less than 1, but got 1.0"),
        ({"pruning.fraction": [0.5, -0.1]}, "`pruning.fraction` should be greater than or equal to 0, but got -0.1"),
        ({"student.depth": {"low": 8.0, "high": 14.0}}, "`student.depth` should be a valid integer.*whole `step`"),
        (
            {"spectral.train_outputs": [True, False], "spectral.train_eigenvectors": [True, False]},
            "`spectral` must train one of inputs, outputs and eigenvectors, but got .*; fix one of them to true",
        ),
        ({"student.width": []}, r"`space.student.width` must have at least one choice"),
        ({"student.width": None}, "choices of `space.student.width` must be finite numbers.*but got None"),
        ({"student.width": [math.nan]}, "choices of `space.student.width` must be finite.*but got nan"),
        ({"student.width": [0.5, 0.5]}, "choices of `space.student.width` must differ"),
        ({"student.width": {"low": 0.5}}, "`space.student.width` must have both low and high.*add high"),
        ({"student.width": {"low": 0.5, "hihg": 1.0}}, "`space.student.width.hihg` is not a known key; .*`high`"),
        ({"student.width": {"low": 1.0, "high": 0.5}}, "must have low <= high, but got low 1.0, high 0.5"),
        ({"student.width": {"low": 0.5, "high": math.inf}}, "`space.student.width.high` must be a finite number"),
        ({"student.width": {"low": "1e-3", "high": 1.0}}, "`space.student.width.low` must be a finite number"),
        ({"student.width": {"low": 0.0, "high": 1.0, "log": True}}, "must have low > 0 with log: true"),
        ({"student.width": {"low": 0.5, "high": 1.0, "log": 1}}, "`space.student.width.log` must be true or false"),
        ({"student.width": {"low": 0.1, "high": 1.0, "step": 0.1, "log": True}}, "takes log or step, not both"),
        ({"student.width": {"low": 0.1, "high": 1.0, "step": 0}}, "`space.student.width.step` must be above 0"),
        ({"student.width": {"low": 0.1, "high": 1.0, "step": 0.4}}, "the last step ends at 0.9"),
    ],
)
def test_a_wrong_space_is_refused_in_one_line(raw: dict[Any, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        Space.from_mapping(raw)
    assert "\n" not in str(caught.value)


def test_a_step_that_floats_cannot_say_exactly_reaches_the_upper_end() -> None:
    # 0.1 to 0.7 by 0.1 is 5.999999999999999 steps to a computer
    assert (0.7 - 0.1) / 0.1 < 6
    space = Space.from_mapping({"student.width": {"low": 0.1, "high": 0.7, "step": 0.1}})
    assert space.parameters == {"student.width": Float(0.1, 0.7, 0.1)}


def test_a_message_names_the_parameter_as_the_study_file_writes_it() -> None:
    with pytest.raises(BadInput, match=re.escape("`space.student.width`")):
        Space.from_mapping({"student.width": {}})


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (
            {"low": 0.0, "high": 0.9375},
            (0.0, 0.292893219, 0.5, 0.646446609, 0.75, 0.82322330, 0.875, 0.91161165, 0.9375),
        ),
        ({"low": 0.1, "high": 0.9, "step": 0.4}, (0.1, 0.5, 0.9)),
        ([0.5, 0.0, 0.25], (0.0, 0.25, 0.5)),
        (0.5, ()),
        ({"low": 0.5, "high": 0.5}, ()),
    ],
)
def test_the_curve_is_looked_at_where_the_space_may_draw(domain: Any, expected: tuple[float, ...]) -> None:
    actual = Space.from_mapping({"pruning.fraction": domain}).fractions()
    assert actual == pytest.approx(expected)
    for fraction in actual:  # and nowhere else
        Recipe.from_flat({"pruning.fraction": fraction})


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.9), (0.3, 0.95), (0.1, 0.999999)])
def test_students_along_the_curve_are_evenly_spaced_on_a_logarithmic_axis(low: float, high: float) -> None:
    kept = [1 - f for f in Space.from_mapping({"pruning.fraction": {"low": low, "high": high}}).fractions()]
    assert (kept[0], kept[-1]) == (1 - low, 1 - high)
    assert [b / a for a, b in pairwise(kept)] == pytest.approx([(kept[-1] / kept[0]) ** (1 / 8)] * 8, rel=1e-2)


def test_a_space_without_pruning_has_no_curve() -> None:
    assert Space({}).fractions() == ()


GRID = Space.from_mapping(
    {
        "transfer": ["none", "kd", "factor"],
        "student.width": {"low": 0.25, "high": 1.0, "step": 0.25},
        "student.depth": {"low": 8, "high": 20, "step": 6},
        "kd.temperature": [2.0, 4.0],
        "factor.rate": [0.5, 1.0],
        "factor.p": 1,
        "training.epochs": 3,
    }
)


def test_a_grid_has_every_recipe_once_and_no_parameter_of_another_method() -> None:
    actual = [GRID.combination(index) for index in range(GRID.size)]
    assert GRID.size == 12 * (1 + 2 + 2)
    assert len({tuple(sorted(recipe.items())) for recipe in actual}) == GRID.size
    expected = {
        (method, width, depth, *own)
        for method, owns in (("none", [()]), ("kd", [(2.0,), (4.0,)]), ("factor", [(0.5,), (1.0,)]))
        for width in (0.25, 0.5, 0.75, 1.0)
        for depth in (8, 14, 20)
        for own in owns
    }
    named = ("transfer", "student.width", "student.depth", "kd.temperature", "factor.rate")
    assert {tuple(recipe[name] for name in named if name in recipe) for recipe in actual} == expected
    for recipe in actual:
        assert not {"training.epochs", "factor.p"} & {*recipe}  # never asked for: they have one value
        assert GRID.partial(recipe) == recipe
    with pytest.raises(IndexError):
        GRID.combination(GRID.size)


def test_a_space_of_single_values_is_a_grid_of_one() -> None:
    ends = {"pruning.fraction": {"low": 0.3, "high": 0.3}, "student.depth": {"low": 8, "high": 8}}
    space = Space.from_mapping({"student.width": 0.5, **ends})
    assert space.size == 1
    asked = optuna.trial.FixedTrial(space.combination(0))
    space.draw(asked)
    assert space.combination(0) == asked.params == {"pruning.fraction": 0.3, "student.depth": 8}
    assert Space({}).size == 1


def test_an_interval_without_a_step_has_no_grid() -> None:
    space = Space.from_mapping({"pruning.fraction": {"low": 0.0, "high": 0.5}})
    with pytest.raises(BadInput, match=r"`space\.pruning\.fraction` must be a list or have a step"):
        print(space.size)


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Choice(("none", 1, True)), ["none", 1, True], ["kd", 1.0, False, None, ["none"]]),
        (Float(0.5, 1.0), [0.5, 1, 0.7], [0.4, 1.1, "0.7", True, None, float("nan")]),
        (Float(0.1, 1.0, step=0.1), [0.1, 0.1 + 0.2, 0.7, 1], [0.15, 0.0]),
        (Int(8, 20, step=6), [8, 14, 20], [9, 26, 2, 14.0, True, "8"]),
    ],
)
def test_a_domain_holds_what_it_may_draw(domain: Domain, inside: list[object], outside: list[object]) -> None:
    assert [value for value in inside if not domain.holds(value)] == []
    assert [value for value in outside if domain.holds(value)] == []


def test_a_recipe_to_try_first_is_what_is_asked_for() -> None:
    assert GRID.partial({"transfer": "kd", "kd.temperature": 2.0, "training.epochs": 3}) == {
        "transfer": "kd",
        "kd.temperature": 2.0,
    }
    whole = GRID.partial({"student.width": 1})
    assert whole == {"student.width": 1.0}
    assert isinstance(whole["student.width"], float)
    only = Space.from_mapping({"transfer": "kd", "kd.temperature": {"low": 1.0, "high": 8.0}})
    assert only.partial({"kd.temperature": 2}) == {"kd.temperature": 2.0}
    with pytest.raises(BadInput, match=r"`training.epochs` must be in the space, but got 4; it has"):
        GRID.partial({"training.epochs": 4})
    with pytest.raises(BadInput, match=r"`factor.rate` must appear with `transfer: factor`, but appears with kd"):
        GRID.partial({"transfer": "kd", "factor.rate": 0.5})


@pytest.mark.parametrize("name", ["\n", "a\rb", "\x1b[31mred", "\x00", "\u2028"])
def test_a_message_is_one_line_that_does_nothing_to_a_terminal_whatever_names_hold(name: str) -> None:
    with pytest.raises(BadInput) as refused:
        Space({"transfer": Choice(("none", name)), "factor.rate": Choice((0.5, 1.0))})
    assert str(refused.value).isprintable()
    assert name.encode("unicode_escape").decode() in str(refused.value)


def test_of_a_student_that_starts_as_the_teacher_no_family_is_drawn() -> None:
    space = Space.from_mapping(
        {
            "student": {"start": ["scratch", "teacher"], "family": ["resnet", "wrn"], "depth": [10, 16]},
            "student.width": [0.25, 0.5],
        }
    )
    assert space.size == 2 * 2 * 2 + 2
    recipes = {Recipe.from_flat(space.combination(index)) for index in range(space.size)}
    assert len(recipes) == space.size
    from_teacher = {recipe.student.width for recipe in recipes if recipe.student.start == "teacher"}
    assert from_teacher == {0.25, 0.5}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):
        trial = study.ask()
        recipe = space.draw(trial)
        asked = {"student.start", "student.width"}
        of_a_family = {"student.family", "student.depth"} if recipe.student.start == "scratch" else set()
        assert trial.params.keys() == asked | of_a_family


def test_a_space_whose_widest_student_is_wider_than_the_teacher_it_starts_as_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^space: .*width of at most 1 with `start: teacher`, but got .* lower it, or"):
        Space.from_mapping({"student.start": ["scratch", "teacher"], "student.width": {"low": 0.5, "high": 2.0}})
