"""The recipe: checked when made, equal to itself after JSON, and wrong ones refused in one line."""

import json
import math
import random

import pytest

from spaces import BadInput, Pruning, Recipe, Scalar, Spectral, Student, Training
from spaces.recipe import RECIPE_NAMES

ODD = Recipe(
    student=Student(
        start="teacher", family="mlp", depth=5, width=1 / 3, members=3, fast_weights="signs", fast_weight_spread=0.1
    ),
    transfer="kd",
    options=(("temperature", 0.1 + 0.2), ("steps", 7), ("deep", True), ("norm", "ℓ2 “quoted”\n"), ("whole", 4.0)),
    training=Training(
        epochs=3,
        batch_size=17,
        learning_rate=1e-7,
        momentum=0.0,
        weight_decay=1e300,
        max_gradient_norm=2.5,
        fast_learning_rate=0.25,
        fast_weight_decay=1e-3,
    ),
    spectral=Spectral(
        train_inputs=True, train_outputs=False, train_eigenvectors=False, eigenvector_l2=5e-324, eigenvalue_l2=0.0
    ),
    pruning=Pruning(
        fraction=0.99,
        scope="layer",
        floor=1.0,
        round_to=8,
        rounds=3,
        reconstruct=False,
        fine_tune_epochs=0,
        fine_tune_learning_rate=0.1,
    ),
    seed=2**31 - 1,
)
"""Differs from the default in every field; has options of every type, and numbers that print badly."""


def test_the_odd_recipe_differs_from_the_default_in_every_field() -> None:
    default, odd = Recipe().flat(), ODD.flat()
    assert [name for name in RECIPE_NAMES if default[name] == odd[name]] == []


@pytest.mark.parametrize("recipe", [Recipe(), ODD])
def test_a_recipe_equals_itself_after_json(recipe: Recipe) -> None:
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again.to_json() == recipe.to_json()
    assert [type(value) for value in again.flat().values()] == [type(value) for value in recipe.flat().values()]


def test_random_recipes_equal_themselves_after_json() -> None:
    draw = random.Random(0)
    for _ in range(200):
        values: list[Scalar] = [draw.uniform(-1e9, 1e-9), draw.randint(-(10**20), 10**20), "x", False, ""]
        recipe = Recipe(
            student=Student(depth=draw.randint(2, 99), width=draw.uniform(1e-9, 64.0)),
            transfer=draw.choice(["none", "kd"]),
            options=tuple((f"o{i}", draw.choice(values)) for i in range(draw.randrange(4))),
            training=Training(learning_rate=10.0 ** draw.randint(-300, 300)),
            pruning=Pruning(fraction=draw.random()),
            seed=draw.randrange(2**31),
        )
        assert Recipe.from_json(recipe.to_json()) == recipe


def test_the_order_in_which_options_are_given_does_not_matter() -> None:
    one = Recipe(transfer="kd", options=(("weight", 0.5), ("temperature", 2.0)))
    other = Recipe(transfer="kd", options=(("temperature", 2.0), ("weight", 0.5)))
    assert one == other
    assert one.to_json() == other.to_json()
    assert Recipe.from_flat({"kd.weight": 0.5, "transfer": "kd", "kd.temperature": 2.0}) == one


def test_the_flat_form_is_flat_json_of_scalars_under_every_name() -> None:
    flat = json.loads(ODD.to_json())
    assert set(flat) == {*RECIPE_NAMES, *(f"kd.{name}" for name, _ in ODD.options)}
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())


def test_what_a_flat_recipe_leaves_out_takes_its_default() -> None:
    assert Recipe.from_flat({}) == Recipe()
    assert Recipe.from_flat({"student.width": 0.25}) == Recipe(student=Student(width=0.25))


def test_a_whole_number_is_taken_where_a_fraction_may_stand() -> None:
    recipe = Recipe.from_flat({"student.width": 1, "training.learning_rate": 1})
    assert recipe == Recipe.from_flat({"student.width": 1.0, "training.learning_rate": 1.0})
    assert recipe.to_json() == Recipe.from_flat({"student.width": 1.0, "training.learning_rate": 1.0}).to_json()


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"pruning.fraction": 1.0}, r"`pruning\.fraction` should be less than 1, but got 1\.0; leave it out for 0\.0"),
        ({"pruning.fraction": math.nan}, r"`pruning\.fraction` should be a finite number, but got nan"),
        ({"training.learning_rate": math.inf}, r"`training\.learning_rate` should be a finite number, but got inf"),
        (
            {"student.width": "wide"},
            r"`student\.width` should be a valid number, but got 'wide'; leave it out for 1\.0",
        ),
        ({"student.width": True}, r"`student\.width` should be a valid number, but got True"),
        ({"student.depth": 8.0}, r"`student\.depth` should be a valid integer, but got 8\.0.*has a whole `step`"),
        ({"seed": -1}, r"`seed` should be greater than or equal to 0, but got -1; leave it out for 0"),
        ({"seed": 2**31}, r"`seed` should be less than 2147483648"),
        ({"transfer": 5}, r"`transfer` should be a valid string, but got 5; leave it out for 'none'"),
        ({"student.widht": 0.5}, r"`student\.widht` is not a choice of a recipe.*did you mean `student\.width`\?"),
        ({"kd.temperature": 2.0}, r"`kd\.temperature` is not a choice of a recipe with transfer `none`"),
        ({"transfer": "kd", "factor.rate": 0.5}, r"`factor\.rate` is not a choice of a recipe with transfer `kd`"),
        ({"transfer": "kd", "kd.": 0.5}, r"`kd\.` is not a choice"),
        ({"transfer": "kd", "kd.a b": 0.5}, r"`options` must have names of letters, digits and `_`"),
        ({"transfer": "kd", "kd.weight": math.nan}, r"`kd\.weight` must be a finite number.*but got nan"),
        ({"transfer": "kd", "kd.weight": None}, r"`kd\.weight` must be a finite number.*but got None"),
        ({"transfer": "kd", "kd.weight": [0.5]}, r"`kd\.weight` must be a finite number.*but got \[0\.5\]"),
        (
            {"pruning.round_to": 0},
            r"`pruning\.round_to` should be greater than or equal to 1, but got 0; leave it out for 1",
        ),
        (
            {"pruning.rounds": 0},
            r"`pruning\.rounds` should be greater than or equal to 1, but got 0; leave it out for 1",
        ),
        ({"spectral.train_outputs": 1}, r"`spectral\.train_outputs` should be a valid boolean, but got 1"),
        (
            {"spectral.train_outputs": False, "spectral.train_eigenvectors": False},
            r"`spectral` must train one of inputs, outputs and eigenvectors, but got \{'train_outputs': False.*; leave",
        ),
        ({"student.depth": 1, "seed": -1}, r"\(and 1 more\)$"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(flat: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        Recipe.from_flat(flat)
    assert "\n" not in str(caught.value)


def test_an_option_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="each once"):
        Recipe(transfer="kd", options=(("weight", 0.5), ("weight", 0.6)))


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 1  # type: ignore[misc]


def test_a_student_that_starts_as_the_teacher_is_trained_shorter_and_gentler_by_default() -> None:
    recipe = Recipe.from_flat({"student.start": "teacher", "student.width": 0.5})
    assert (recipe.training.epochs, recipe.training.learning_rate) == (10, 0.02)
    assert recipe.training.max_gradient_norm == 3.0
    asked = Recipe.from_flat({"student.start": "teacher", "training.epochs": 30, "training.learning_rate": 0.1})
    assert (asked.training.epochs, asked.training.learning_rate) == (30, 0.1)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_json(asked.to_json()) == asked


def test_a_student_that_starts_as_the_teacher_is_at_most_as_wide() -> None:
    with pytest.raises(BadInput, match=r"`student` must have a width of at most 1 with `start: teacher`, but got"):
        Recipe.from_flat({"student.start": "teacher", "student.width": 1.5})
