"""The ledger on real SQLite: every trial that ends is recorded once, and what a kill cut short is asked again once."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.constraints import Limits
from search.ledger.ledger import Ledger
from search.ledger.lines import CurvePoint, Line, Trial, grouped
from search.ledger.samplers import SAMPLERS
from search.ledger.storage import delete, in_ledger
from spaces import BadInput, Recipe, Space

SAMPLER = """
import optuna

class Backwards(optuna.samplers.RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        return getattr(distribution, "high", None) or distribution.choices[-1]

class Seedless(optuna.samplers.BaseSampler):
    infer_relative_search_space = sample_relative = lambda *_: {}
    def sample_independent(self, study, trial, name, distribution):
        return getattr(distribution, "low", None) or getattr(distribution, "choices", (0.0,))[0]
"""

GRID = Space.from_mapping(
    {"transfer": ["none", "kd"], "student.width": [0.25, 0.5], "kd.temperature": {"low": 2, "high": 8, "step": 3}}
)
SPACE = Space.from_mapping(
    {
        "transfer": ["none", "kd", "factor"],
        "student.width": {"low": 0.125, "high": 1.0},
        "student.depth": {"low": 8, "high": 20, "step": 6},
        "kd.temperature": {"low": 1.0, "high": 8.0},
        "factor.rate": [0.5, 1.0],
        "factor.weight": {"low": 0.03, "high": 1.0, "log": True},
        "pruning.fraction": {"low": 0.0, "high": 0.9},
    }
)
OBJECTIVES = {"accuracy": "max", "parameters": "min"}
MEASURED = {"accuracy": 0.9, "parameters": 1000.0, "nll": 0.3}


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def opened(storage: str) -> Callable[..., Ledger]:
    """Opens the same ledger as another process would: nothing but the file is shared."""

    def ledger(sampler: str = "random", seed: int = 0, objectives: Mapping[str, str] = OBJECTIVES) -> Ledger:
        return Ledger(storage, "study", objectives, sampler, seed, SPACE)

    return ledger


def score(recipe: Recipe) -> dict[str, float]:
    """Something that a sampler can learn from."""
    return {"accuracy": 1 - abs(recipe.student.width - 0.4), "parameters": 1e4 * recipe.student.width}


def outcomes(ledger: Ledger) -> dict[int, str]:
    return {line.trial: line.outcome for line in ledger.lines()}


def asked(ledger: Ledger, count: int) -> list[Recipe]:
    """Recipes one at a time, each finished before the next is asked for."""
    recipes = []
    for _ in range(count):
        trial, recipe = ledger.ask()
        ledger.complete(trial, score(recipe), 1.0)
        recipes.append(recipe)
    return recipes


def test_what_is_told_is_what_another_process_reads(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    first, recipe = ledger.ask()
    assert outcomes(opened()) == {first: "running"}
    ledger.complete(first, MEASURED, 12.5)
    second, _ = ledger.ask()
    ledger.fail(second, "Diverged: the loss is nan")
    third, _ = ledger.ask()
    assert (first, second, third) == (0, 1, 2)
    lines = opened().lines()
    assert [line.trial for line in lines] == [0, 1, 2]
    assert [line.outcome for line in lines] == ["complete", "failed", "running"]
    assert lines[0].recipe == recipe
    assert (dict(lines[0].measurements), lines[0].seconds, lines[0].reason) == (MEASURED, 12.5, "")
    assert (dict(lines[1].measurements), lines[1].reason) == ({}, "Diverged: the loss is nan")
    assert opened().done() == 2


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_points_of_curves_do_not_hurry_a_sampler_that_models_the_space(sampler: str, tmp_path: Path) -> None:
    def first(name: str, points: int) -> list[Recipe]:
        ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", name, OBJECTIVES, sampler, 5, SPACE)
        recipes = []
        for _ in range(11):
            trial, recipe = ledger.ask()
            recipes.append(recipe)
            point = {"recipe": recipe.flat(), "measurements": score(recipe), "seconds": 0.1}
            ledger.complete(trial, score(recipe), 1.0, [point] * points)
        return recipes

    alone, with_points = first("alone", 0), first("with_points", 9)
    assert with_points[:10] == alone[:10] == first("at random", 0)[:10]
    assert with_points[10] != alone[10]  # from then on it learns of them


@pytest.mark.parametrize("accuracy", [math.nan, math.inf, -math.inf, None])
def test_an_objective_that_is_no_finite_number_is_a_failure(
    accuracy: float | None, opened: Callable[..., Ledger]
) -> None:
    ledger = opened()
    trial, _ = ledger.ask()
    measured = {"parameters": 1000.0} if accuracy is None else {"accuracy": accuracy, "parameters": 1000.0}
    ledger.complete(trial, measured, 1.0)
    (line,) = opened().lines()
    assert line.outcome == "failed"
    shown = "nan" if accuracy is None else str(accuracy)
    assert line.reason == f"objectives must be finite, but are accuracy {shown}, parameters 1000.0"
    assert opened().reconcile() == 0


def test_a_measurement_that_is_no_objective_may_be_any_number(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    trial, _ = ledger.ask()
    ledger.complete(trial, {**MEASURED, "nll": math.inf}, 1.0)
    (line,) = opened().lines()
    assert line.outcome == "complete"
    assert line.measurements["nll"] == math.inf


def test_a_stopped_trial_is_pruned_and_done_and_keeps_what_it_had_come_to(
    opened: Callable[..., Ledger], storage: str
) -> None:
    ledger = opened()
    trial, recipe = ledger.ask()
    ledger.rung(trial, 3, {"loss": 2.0, "accuracy": 0.25, "parameters": 1000.0})
    ledger.rung(trial, 9, {"accuracy": math.nan, "loss": 2.0})
    assert opened().lines()[0].outcome == "running"
    ledger.stop(trial, 9, 4.5)
    (line,) = opened().lines()
    assert (line.outcome, line.stopped_at, line.seconds, line.recipe) == ("stopped", 9, 4.5, recipe)
    assert dict(line.measurements) == {}
    assert line.rungs[3] == {"accuracy": 0.25, "parameters": 1000.0}
    assert math.isnan(line.rungs[9]["accuracy"])
    assert math.isnan(line.rungs[9]["parameters"])
    assert opened().done() == 1
    assert opened().reconcile() == 0
    (actual,) = optuna.load_study(study_name="study", storage=storage).trials
    assert (actual.state, actual.values) == (optuna.trial.TrialState.PRUNED, None)


@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if sampler != "grid"])
def test_every_sampler_takes_stopped_and_failed_trials_among_the_others(
    sampler: str, opened: Callable[..., Ledger]
) -> None:
    ledger = opened(sampler)
    for number in range(14):
        trial, recipe = ledger.ask()
        if number % 3 == 0:
            ledger.stop(trial, 3, 1.0)
        elif number % 3 == 1:
            ledger.fail(trial, "why")
        else:
            ledger.complete(trial, score(recipe), 1.0)
    assert Counter(outcomes(ledger).values()) == {"stopped": 5, "failed": 5, "complete": 4}


def test_orphans_are_closed_and_their_recipes_asked_again_exactly_once(opened: Callable[..., Ledger]) -> None:
    killed = opened()
    done, _ = killed.ask()
    killed.complete(done, MEASURED, 1.0)
    orphans = dict(killed.ask() for _ in range(3))
    ledger = opened()
    assert ledger.reconcile() == 3
    assert outcomes(ledger) == {0: "complete", 1: "interrupted", 2: "interrupted", 3: "interrupted"}
    assert ledger.reconcile() == 0
    again = dict(ledger.ask() for _ in range(3))
    assert sorted(recipe.to_json() for recipe in again.values()) == sorted(r.to_json() for r in orphans.values())
    assert set(again) == {4, 5, 6}
    for trial in again:
        ledger.complete(trial, MEASURED, 1.0)
    _, new = ledger.ask()
    assert new not in orphans.values()


def test_a_recipe_cut_short_again_and_again_is_asked_until_it_ends_and_then_no_more(
    opened: Callable[..., Ledger],
) -> None:
    _, recipe = opened().ask()
    for session in range(1, 4):
        ledger = opened()
        assert ledger.reconcile() == 1
        assert ledger.ask() == (session, recipe)
    ledger = opened()
    ledger.reconcile()
    trial, _ = ledger.ask()
    ledger.complete(trial, MEASURED, 1.0)
    assert opened().reconcile() == 0
    assert ledger.ask()[1] != recipe
    recipes = Counter(line.recipe for line in opened().lines() if line.outcome == "complete")
    assert recipes == {recipe: 1}


def test_a_kill_between_queueing_a_recipe_and_closing_its_trial_queues_it_once(
    opened: Callable[..., Ledger], storage: str
) -> None:
    trial, recipe = opened().ask()
    study = optuna.load_study(study_name="study", storage=storage)  # what the killed process had got done
    study.enqueue_trial(study.trials[trial].params, user_attrs={"root": trial})
    ledger = opened()
    assert ledger.reconcile() == 1
    assert ledger.ask() == (1, recipe)
    assert ledger.ask()[1] != recipe


def test_a_kill_between_the_record_and_the_telling_loses_nothing(opened: Callable[..., Ledger], storage: str) -> None:
    killed = opened()
    for _ in range(3):
        killed.ask()
    for trial in optuna.load_study(study_name="study", storage=storage).trials:
        raw = optuna.trial.Trial(optuna.load_study(study_name="study", storage=storage), trial._trial_id)
        raw.set_user_attr(
            *(("measurements", '{"accuracy": 0.75, "parameters": 12.0}'), ("reason", "why"), ("stopped_at", 3))[
                trial.number
            ]
        )
    ledger = opened()
    assert ledger.reconcile() == 0
    assert outcomes(ledger) == {0: "complete", 1: "failed", 2: "stopped"}
    assert ledger.lines()[2].stopped_at == 3
    assert dict(ledger.lines()[0].measurements) == {"accuracy": 0.75, "parameters": 12.0}
    assert ledger.lines()[1].reason == "why"
    assert optuna.load_study(study_name="study", storage=storage).trials[0].values == [0.75, 12.0]


def test_a_trial_whose_files_are_whole_is_not_carried_out_again(opened: Callable[..., Ledger]) -> None:
    killed = opened()
    recipes = dict(killed.ask() for _ in range(3))
    files = {1: {"measurements": MEASURED, "seconds": 3.5, "units": 12, "curve": []}}
    ledger = opened()
    assert ledger.reconcile(files.get) == 2
    assert outcomes(ledger) == {0: "interrupted", 1: "complete", 2: "interrupted"}
    line = ledger.lines()[1]
    assert (line.recipe, dict(line.measurements), line.seconds) == (recipes[1], MEASURED, 3.5)
    assert [ledger.ask()[1] for _ in range(2)] == [recipes[0], recipes[2]]
    assert opened().reconcile({0: files[1]}.get) == 2  # what is closed stays closed


def test_a_kill_before_a_recipe_was_drawn_leaves_a_trial_without_one(
    opened: Callable[..., Ledger], storage: str
) -> None:
    opened()
    optuna.load_study(study_name="study", storage=storage).ask()
    ledger = opened()
    assert ledger.lines()[0].recipe is None
    assert ledger.reconcile() == 1
    assert outcomes(ledger) == {0: "interrupted"}
    _, recipe = ledger.ask()
    assert recipe.student.width > 0


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "gp"])
def test_the_same_seed_asks_for_the_same_recipes(sampler: str, tmp_path: Path) -> None:
    def sequence(name: str, seed: int) -> list[Recipe]:
        ledger = Ledger(f"sqlite:///{tmp_path / name}.db", "study", OBJECTIVES, sampler, seed, SPACE)
        return asked(ledger, 13)

    first = sequence("first", 5)
    assert sequence("second", 5) == first
    assert sequence("third", 6) != first


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_recipes_asked_for_at_the_same_time_do_not_pile_up(sampler: str, opened: Callable[..., Ledger]) -> None:
    ledger = opened(sampler)
    asked(ledger, 20)
    open_now = [ledger.ask()[1] for _ in range(8)]
    assert len(set(open_now)) == 8
    widths = [recipe.student.width for recipe in open_now]
    assert max(widths) - min(widths) > 0.01  # not about one point either


def test_a_resumed_session_does_not_repeat_the_first_sessions_draws(opened: Callable[..., Ledger]) -> None:
    first = asked(opened(), 5)
    assert not set(first) & set(asked(opened(), 5))


@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if sampler != "grid"])
def test_every_sampler_draws_the_parameters_of_the_drawn_method_and_no_others(
    sampler: str, opened: Callable[..., Ledger]
) -> None:
    trials = 14 if sampler == "gp" else 30  # past the first ten or so, which every sampler draws at random
    recipes = asked(opened(sampler), trials)
    assert {recipe.transfer for recipe in recipes} == {"none", "kd", "factor"}
    for recipe in recipes:
        assert recipe == Recipe.from_json(recipe.to_json())
        drawn = {f"{recipe.transfer}.{name}" for name, _ in recipe.options}
        assert drawn == {name for name in SPACE.parameters if name.startswith(f"{recipe.transfer}.")}
        assert recipe.student.depth in (8, 14, 20)
        assert 0.125 <= recipe.student.width <= 1.0
    assert len(set(recipes)) == trials


def test_optuna_knows_by_how_much_a_limit_is_overstepped_and_leaves_the_trial_out_of_its_best(
    storage: str, opened: Callable[..., Ledger]
) -> None:
    constraints = {"parameters": Limits(max=2000.0), "nll": Limits(min=0.1, max=0.5)}

    def constrained() -> Ledger:
        return Ledger(storage, "study", OBJECTIVES, "tpe", 0, SPACE, constraints)

    ledger = constrained()
    for parameters in (1000.0, 3000.0):
        trial, _ = ledger.ask()
        ledger.complete(trial, {"accuracy": parameters / 4000, "parameters": parameters, "nll": 0.3}, 1.0)
    trial, _ = ledger.ask()  # killed between the record and the telling
    optuna.Trial(ledger._study, ledger._trial_id(trial)).set_user_attr(
        "measurements", '{"accuracy": 1.0, "parameters": 10.0, "nll": 5.0}'
    )
    assert constrained().reconcile() == 0
    study = optuna.load_study(study_name="study", storage=storage)
    limits = {"parameters <= 2000", "nll >= 0.1", "nll <= 0.5"}
    assert [{*each.constraints} for each in study.trials] == [limits] * 3
    assert [each.constraints["parameters <= 2000"] for each in study.trials] == [-0.5, 0.5, -0.995]
    assert study.trials[2].constraints["nll <= 0.5"] == 9.0
    assert [each.number for each in study.best_trials] == [0]
    assert [line.outcome for line in opened().lines()] == ["complete"] * 3


def test_the_sampler_learns_from_constraints(storage: str) -> None:
    wide = {"parameters": Limits(max=5000.0)}  # of 1,250 to 10,000: widths up to a half
    ledger = Ledger(storage, "study", OBJECTIVES, "tpe", 0, SPACE, wide)
    late = asked(ledger, 45)[25:]
    alone = asked(Ledger(storage, "other", OBJECTIVES, "random", 0, SPACE), 45)[25:]
    kept, by_chance = (sum(recipe.student.width <= 0.5 for recipe in recipes) for recipes in (late, alone))
    assert kept > by_chance
    assert kept >= 15


def test_what_was_drawn_is_in_the_database_under_its_name(opened: Callable[..., Ledger], storage: str) -> None:
    recipes = asked(opened(), 12)
    for trial, recipe in zip(optuna.load_study(study_name="study", storage=storage).trials, recipes, strict=True):
        flat = recipe.flat()
        assert {name: flat[name] for name in trial.params} == trial.params
        assert {name for name in trial.params if name.startswith(("kd.", "factor."))} == {
            f"{recipe.transfer}.{name}" for name, _ in recipe.options
        }


@pytest.mark.parametrize(
    "objectives", [{"accuracy": "max"}, {"parameters": "min", "accuracy": "max"}, {**OBJECTIVES, "nll": "min"}]
)
def test_a_study_keeps_its_directions(objectives: dict[str, str], opened: Callable[..., Ledger]) -> None:
    opened()
    with pytest.raises(BadInput, match=r"study 'study' must keep its directions, but has .*; use another name"):
        opened(objectives=objectives)
    opened()


def test_a_deleted_study_is_forgotten_and_another_one_stays(opened: Callable[..., Ledger], storage: str) -> None:
    assert not in_ledger(storage, "study")
    asked(opened(), 2)
    asked(Ledger(storage, "other", OBJECTIVES, "random", 0, SPACE), 1)
    assert in_ledger(storage, "study")
    delete(storage, "study")
    delete(storage, "study")
    assert not in_ledger(storage, "study")
    assert opened().lines() == []
    assert len(Ledger(storage, "other", OBJECTIVES, "random", 0, SPACE).lines()) == 1


def test_two_studies_of_one_storage_do_not_see_each_other(storage: str) -> None:
    ledgers = [Ledger(storage, name, OBJECTIVES, "random", 0, SPACE) for name in ("a", "b")]
    trials = [ledger.ask() for ledger in ledgers]
    assert trials[0] == trials[1]  # the same seed, and numbers of their own
    assert [ledger.reconcile() for ledger in ledgers] == [1, 1]


def test_a_grid_asks_for_every_recipe_once_whatever_is_killed_and_tried_again(storage: str) -> None:
    def grid(seed: int = 0) -> Ledger:
        return Ledger(storage, "grid", OBJECTIVES, "grid", seed, GRID)

    ledger = grid()
    ledger.proposals.try_first([{"transfer": "kd", "kd.temperature": 8}])
    finished = []
    for number in range(3):
        trial, recipe = ledger.ask()
        finished.append(recipe)
        ledger.complete(trial, score(recipe), 1.0)
        if number == 0:
            assert (recipe.transfer, dict(recipe.options)) == ("kd", {"temperature": 8})
    trial, retried = ledger.ask()
    ledger.retry(trial, "died")
    ledger.ask()  # the same once more, and killed, and another one with it
    ledger.ask()
    ledger = grid()
    assert ledger.reconcile() == 2
    for _ in range(GRID.size - 3):
        trial, recipe = ledger.ask()
        finished.append(recipe)
        ledger.complete(trial, score(recipe), 1.0)
    assert retried in finished
    expected = {
        Recipe.from_flat({"transfer": "kd", "student.width": width, "kd.temperature": t})
        for width in (0.25, 0.5)
        for t in (2, 5, 8)
    } | {Recipe.from_flat({"student.width": width}) for width in (0.25, 0.5)}
    assert len(finished) == GRID.size == 8
    assert set(finished) == expected


def test_a_grid_comes_in_an_order_of_its_seed(tmp_path: Path) -> None:
    def order(name: str, seed: int) -> list[Recipe]:
        ledger = Ledger(f"sqlite:///{tmp_path / name}.db", "study", OBJECTIVES, "grid", seed, GRID)
        return asked(ledger, GRID.size)

    assert order("a", 1) == order("b", 1) != order("c", 2)


def test_a_sampler_of_the_users_own_is_asked(
    tmp_path: Path, opened: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_samplers.py").write_text(SAMPLER)
    monkeypatch.syspath_prepend(tmp_path)
    ledger = opened("own_samplers:Backwards")
    _, recipe = ledger.ask()
    assert (recipe.transfer, recipe.student.width, recipe.pruning.fraction) == ("factor", 1.0, 0.9)
    _, recipe = opened("own_samplers:Seedless").ask()
    assert (recipe.transfer, recipe.student.width) == ("none", 0.125)
    with pytest.raises(
        BadInput, match=r"`search.sampler: own_samplers:Missing` must be something that can be imported"
    ):
        opened("own_samplers:Missing").ask()
    assert len(opened("own_samplers:Missing").lines()) == 2  # looking needs no sampler


def test_a_trial_tried_again_is_one_recipe_and_one_result(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    first, recipe = ledger.ask()
    assert ledger.tries(first) == 0
    ledger.retry(first, "the worker process died")
    assert outcomes(opened()) == {first: "interrupted"}
    assert opened().lines()[0].reason == "the worker process died"
    assert opened().done() == 0
    second, again = ledger.ask()
    assert (again, ledger.tries(second)) == (recipe, 1)
    ledger = opened()  # the driver was killed, which is nobody's try
    assert ledger.reconcile() == 1
    third, again = ledger.ask()
    assert (again, ledger.tries(third)) == (recipe, 1)
    ledger.retry(third, "took too long")
    fourth, again = ledger.ask()
    assert (again, ledger.tries(fourth)) == (recipe, 2)
    assert ledger.root(fourth) == first
    assert {line.root for line in ledger.lines()} == {first}
    ledger.fail(fourth, "took too long")
    assert opened().done() == 1
    assert ledger.ask()[1] != recipe


def test_a_kill_between_the_reason_and_queueing_again_queues_once(opened: Callable[..., Ledger], storage: str) -> None:
    trial, recipe = opened().ask()
    study = optuna.load_study(study_name="study", storage=storage)
    optuna.Trial(study, study.trials[trial]._trial_id).set_user_attr("again", "died")
    ledger = opened()
    assert ledger.reconcile({trial: {"measurements": MEASURED, "seconds": 1.0, "curve": []}}.get) == 1
    assert opened().reconcile() == 0
    second, again = ledger.ask()
    assert (again, ledger.tries(second)) == (recipe, 1)
    assert ledger.ask()[1] != recipe


def test_a_kill_before_a_queued_recipe_is_drawn_does_not_lose_it(opened: Callable[..., Ledger], storage: str) -> None:
    recipe = opened().ask()[1]
    assert opened().reconcile() == 1
    optuna.load_study(study_name="study", storage=storage).ask()  # no longer queued, and nothing drawn
    ledger = opened()
    assert ledger.reconcile() == 1
    assert ledger.ask()[1] == recipe


def test_recipes_to_try_first_come_first_and_once(opened: Callable[..., Ledger]) -> None:
    first = [{"student.width": 0.5, "transfer": "kd"}, {}, {"pruning.fraction": 0, "student.depth": 14}]
    ledger = opened()
    ledger.proposals.try_first(first)
    opened().proposals.try_first(first)  # another session
    recipes = [ledger.ask()[1] for _ in range(4)]
    assert (recipes[0].student.width, recipes[0].transfer) == (0.5, "kd")
    assert 1.0 <= dict(recipes[0].options)["temperature"] <= 8.0
    assert (recipes[2].pruning.fraction, recipes[2].student.depth) == (0.0, 14)
    assert len(set(recipes)) == 4
    opened().proposals.try_first(first)
    assert ledger.ask()[1].student.width != 0.5


def test_a_study_learns_from_another_whose_trials_are_not_its_own(storage: str, opened: Callable[..., Ledger]) -> None:
    wide = Space.from_mapping({"student.width": {"low": 0.125, "high": 2.0}})
    earlier = Ledger(storage, "earlier", OBJECTIVES, "random", 3, wide)
    asked(earlier, 40)
    trial, _ = earlier.ask()
    earlier.fail(trial, "why")
    trial, _ = earlier.ask()
    earlier.stop(trial, 3, 1.0)
    narrow = Space.from_mapping({"student.width": {"low": 0.125, "high": 1.0}})
    inside = [line for line in earlier.lines() if line.outcome == "complete" and line.recipe.student.width <= 1.0]  # type: ignore[union-attr]
    assert 10 < len(inside) < 40

    def later() -> Ledger:
        return Ledger(storage, "later", OBJECTIVES, "tpe", 0, narrow, {"parameters": Limits(max=5000.0)})

    ledger = later()
    assert not ledger.proposals.has_learned
    assert ledger.proposals.learn_from("earlier", earlier.lines()) == len(inside)
    assert later().proposals.has_learned
    assert later().proposals.learn_from("earlier", earlier.lines()) == len(inside)  # nothing twice
    study = optuna.load_study(study_name="later", storage=storage)
    assert [trial.values for trial in study.trials] == [
        [line.measurements["accuracy"], line.measurements["parameters"]] for line in inside
    ]
    assert all(tuple(trial.constraints) == ("parameters <= 5000",) for trial in study.trials)
    assert (ledger.lines(), ledger.done(), ledger.reconcile()) == ([], 0, 0)
    recipes = asked(ledger, 15)
    assert [line.trial for line in later().lines()] == list(range(len(inside), len(inside) + 15))
    assert later().done() == 15
    # the best accuracy is at 0.4: TPE knows, after as many trials elsewhere as it wants before it begins
    assert sum(abs(recipe.student.width - 0.4) < 0.25 for recipe in recipes) >= 10


def test_a_study_learns_nothing_from_recipes_that_it_could_not_draw(storage: str) -> None:
    earlier = Ledger(storage, "earlier", OBJECTIVES, "random", 0, SPACE)
    asked(earlier, 12)
    for other in (
        Space.from_mapping({"student.width": {"low": 0.125, "high": 1.0}}),  # all else at its default
        Space.from_mapping({**SPACE.to_mapping(), "training.epochs": [5, 6]}),
        Space.from_mapping({**SPACE.to_mapping(), "student.width": {"low": 2.0, "high": 3.0}}),
        Space.from_mapping({"transfer": ["attention", "crd"]}),
    ):
        ledger = Ledger(storage, str(other), OBJECTIVES, "random", 0, other)
        assert ledger.proposals.learn_from("earlier", earlier.lines()) == 0


def test_reasons_that_differ_in_numbers_only_are_one() -> None:
    reasons = ["nan in epoch 3, rate 1e+30", "other", "nan in epoch 12, rate 0.5", "another", "another"]
    lines = [Line(trial, trial, "failed", None, {}, reason, 0.0, None, {}) for trial, reason in enumerate(reasons)]
    assert grouped(lines) == [
        ("nan in epoch 3, rate 1e+30", [0, 2]),
        ("another", [3, 4]),
        ("other", [1]),
    ]
    assert grouped([]) == []


def curve(recipe: Recipe, fractions: Sequence[float]) -> list[dict[str, Any]]:
    """What a trial says of its pruning curve."""
    return [
        {
            "recipe": {**recipe.flat(), "pruning.fraction": fraction, "pruning.fine_tune_epochs": 0},
            "measurements": {"accuracy": 0.9 - fraction / 2, "parameters": 1000 * (1 - fraction), "nll": 0.3},
            "seconds": 0.1,
        }
        for fraction in fractions
    ]


def test_points_of_a_curve_are_lines_that_the_sampler_learns_from_and_that_count_as_no_trials(
    opened: Callable[..., Ledger], storage: str
) -> None:
    ledger = opened()
    trial, recipe = ledger.ask()
    ledger.complete(trial, MEASURED, 1.0, curve(recipe, (0.0, 0.3, 0.6)))
    lines = ledger.lines()
    assert [line.kind for line in lines] == [Trial(), *(CurvePoint(trial, place) for place in range(3))]
    assert [line.counts for line in lines] == [True, False, False, False]
    assert (ledger.done(), {line.outcome for line in lines}) == (1, {"complete"})
    for line, fraction in zip(lines[1:], (0.0, 0.3, 0.6), strict=True):
        assert line.recipe is not None
        assert (line.recipe.pruning.fraction, line.recipe.pruning.fine_tune_epochs) == (fraction, 0)
        assert line.measurements["parameters"] == 1000 * (1 - fraction)
    kept = optuna.load_study(study_name="study", storage=storage).trials
    assert [t.params["pruning.fraction"] for t in kept[1:]] == [0.0, 0.3, 0.6]
    assert all({**t.params, "pruning.fraction": 0} == {**kept[0].params, "pruning.fraction": 0} for t in kept)
    assert [t.values for t in kept] == [[0.9, 1000.0], [0.9, 1000.0], [0.75, 700.0], [pytest.approx(0.6), 400.0]]


def test_a_point_keeps_of_its_trials_parameters_what_the_space_can_draw(storage: str) -> None:
    parameters = {"pruning.fraction": {"low": 0.1, "high": 0.5}, "pruning.fine_tune_epochs": {"low": 2, "high": 5}}
    ledger = Ledger(storage, "study", OBJECTIVES, "random", 0, Space.from_mapping(parameters))
    trial, recipe = ledger.ask()
    ledger.complete(trial, MEASURED, 1.0, curve(recipe, (0.1, 0.3)))
    kept = optuna.load_study(study_name="study", storage=storage).trials
    assert [set(t.params) for t in kept] == [set(parameters), {"pruning.fraction"}, {"pruning.fraction"}]


def test_a_kill_before_the_curve_was_told_loses_nothing_and_doubles_nothing(opened: Callable[..., Ledger]) -> None:
    killed = opened()
    trial, recipe = killed.ask()
    points = curve(recipe, (0.0, 0.3, 0.6))
    add, count = killed._study.add_trial, 0

    def dies(added: optuna.trial.FrozenTrial) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        add(added)

    killed._study.add_trial = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.complete(trial, MEASURED, 1.0, points)
    for _ in range(2):
        again = opened()
        assert again.reconcile() == 0
        assert [line.kind for line in again.lines()] == [Trial(), *(CurvePoint(trial, place) for place in range(3))]


def test_a_trial_that_had_come_to_its_end_when_the_driver_was_killed_has_its_curve(
    opened: Callable[..., Ledger],
) -> None:
    trial, recipe = opened().ask()
    results = {"measurements": MEASURED, "seconds": 2.0, "curve": curve(recipe, (0.2,))}
    again = opened()
    assert again.reconcile(lambda number: results) == 0
    assert [(line.trial, line.kind) for line in again.lines()] == [(trial, Trial()), (trial + 1, CurvePoint(trial, 0))]


def test_points_that_are_no_numbers_are_left_out(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    trial, recipe = ledger.ask()
    points = curve(recipe, (0.2, 0.4))
    points[0]["measurements"]["accuracy"] = math.nan
    ledger.complete(trial, MEASURED, 1.0, points)
    assert [line.kind for line in ledger.lines()] == [Trial(), CurvePoint(trial, 1)]


def test_a_grid_is_gone_through_whatever_the_curves_have_shown(storage: str) -> None:
    space = Space.from_mapping({"pruning.fraction": [0.0, 0.3, 0.6]})
    ledger = Ledger(storage, "study", OBJECTIVES, "grid", 0, space)
    drawn = []
    for _ in range(3):
        trial, recipe = ledger.ask()
        drawn.append(recipe.pruning.fraction)
        ledger.complete(trial, MEASURED, 1.0, curve(recipe, (0.0, 0.3, 0.6)))
    assert sorted(drawn) == [0.0, 0.3, 0.6]


def test_points_are_held_to_the_constraints(storage: str) -> None:
    limits = {"parameters": Limits(max=800)}
    ledger = Ledger(storage, "study", OBJECTIVES, "random", 0, SPACE, limits)
    trial, recipe = ledger.ask()
    ledger.complete(trial, MEASURED, 1.0, curve(recipe, (0.0, 0.5)))
    kept = optuna.load_study(study_name="study", storage=storage).trials
    assert [max(t.constraints.values()) <= 0 for t in kept] == [False, False, True]


@pytest.mark.parametrize(
    ("rounds", "curve", "sampler", "goes_all_the_way"),
    [
        (5, True, "tpe", True),
        ([2, 5], True, "tpe", True),
        (5, False, "tpe", False),
        (1, True, "tpe", False),
        ([1, 5], True, "tpe", False),
        (None, True, "tpe", False),
        (5, True, "random", False),
    ],
)
def test_where_every_size_on_the_way_is_on_the_curve_the_first_trials_go_all_the_way(
    rounds: int | list[int] | None, curve: bool, sampler: str, goes_all_the_way: bool, storage: str
) -> None:
    space = Space(
        {**SPACE.parameters, **({} if rounds is None else Space.from_mapping({"pruning.rounds": rounds}).parameters)}
    )
    ledger = Ledger(storage, "study", OBJECTIVES, sampler, 0, space, curve=curve)
    ledger.proposals.try_first([{"pruning.fraction": 0.25}])
    recipes = asked(ledger, 30)
    fractions = [recipe.pruning.fraction for recipe in recipes]
    assert fractions[0] == 0.25  # asked for, and kept
    assert (set(fractions[1:10]) == {0.9}) is goes_all_the_way
    assert len(set(fractions[10:])) > 10  # the sampler has learned what to propose
    assert len({recipe.student.width for recipe in recipes[:10]}) == 10


def test_a_line_of_the_journal_that_was_changed_is_no_line(tmp_path: Path) -> None:
    def ledger(name: str) -> Ledger:
        storage = f"sqlite:///{tmp_path / name}.db"
        return Ledger(storage, "study", OBJECTIVES, "random", 0, SPACE, journal=tmp_path / "ledger.jsonl")

    first = ledger("first")
    for _ in range(2):
        first.complete(first.ask()[0], MEASURED, 1.0, files={"student.json": "0" * 64})
    journal = tmp_path / "ledger.jsonl"
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([*lines[:-1], lines[-1].replace(b"0.9", b"0.99")]))
    second = ledger("second")
    second.restore(tmp_path / "trials", 0)
    assert [line for line in second.lines() if line.outcome == "complete"] == first.lines()[:1]
