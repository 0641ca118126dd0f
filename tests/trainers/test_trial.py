"""A trial: the same numbers every time, of the network that ships."""

import dataclasses
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spaces import BadInput, Pruning, Recipe
from trainers import Knowledge, Report, Task, TaskSpec, TrialResult, load_student, run_trial, save_student
from trainers.data.dataset import Dataset, Split
from trainers.families import build
from trainers.files import curve_folder
from trainers.loop import Diverged
from trainers.measure import measure
from trainers.spectral import dependencies, plan, spectralize, trace, units_that_stay
from trainers.spectral.flow import Flow
from trainers.store import weights_bytes
from trainers.transfer import StageFailed

SMALL = {"student.width": 0.25, "training.epochs": 2, "pruning.fine_tune_epochs": 1}
PRUNED_KD = Recipe.from_flat({**SMALL, "transfer": "kd", "pruning.fraction": 0.5, "seed": 3})
PRUNED_MLP = Recipe.from_flat(
    {
        **SMALL,
        "student.family": "mlp",
        "student.depth": 3,
        "transfer": "kd",
        "pruning.fraction": 0.9,
        "pruning.fine_tune_epochs": 0,
    }
)
RECIPES = {
    "labels alone": Recipe.from_flat(SMALL),
    "distilled, pruned, tuned": PRUNED_KD,
    "mlp of a resnet, pruned, not tuned": PRUNED_MLP,
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def outcome(result: TrialResult) -> tuple[Any, ...]:
    """All of a result but the time it took; weights to the bit."""
    return (
        result.measurements,
        result.before_cut,
        result.units,
        result.units_cut,
        weights_bytes(result.network),
    )


@each_recipe
def test_the_same_recipe_gives_the_same_weights_and_numbers_whatever_went_before(recipe: Recipe, task: Task) -> None:
    knowledge = Knowledge(task)
    first = run_trial(recipe, task, knowledge)
    torch.manual_seed(123)
    np.random.seed(5)
    random.seed(6)
    torch.set_num_threads(2)
    try:
        torch.rand(7)
        run_trial(PRUNED_KD, task, knowledge)  # a reused worker has had other trials
        again = run_trial(recipe, task, knowledge)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert outcome(again) == outcome(first)


def test_another_process_gets_the_same_weights_and_numbers(
    two_processes: tuple[TaskSpec, Recipe, list[dict[str, Any]]], task: Task
) -> None:
    specification, recipe, actual = two_processes
    assert specification == task.spec
    here = run_trial(recipe, task, Knowledge(task))
    weights = hashlib.sha256(weights_bytes(here.network)).hexdigest()
    for there in actual:
        assert (there["measurements"], there["weights"]) == (here.measurements, weights)


def test_a_network_is_traced_once_however_many_points_its_curve_has(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[tuple[int, ...]] = []
    flow = dependencies.Flow

    def counted(network: nn.Module, image_shape: tuple[int, ...]) -> Flow:
        followed.append(image_shape)
        return flow(network, image_shape)

    monkeypatch.setattr(dependencies, "Flow", counted)
    recipe = Recipe.from_flat({**SMALL, "pruning.fraction": 0.6, "pruning.rounds": 2, "pruning.fine_tune_epochs": 2})
    run_trial(recipe, task, Knowledge(task), curve=(0.2, 0.4))
    assert len(followed) == recipe.pruning.rounds


def test_another_seed_gives_another_student(task: Task) -> None:
    other = PRUNED_KD.model_copy(update={"seed": 4})
    one, two = (run_trial(recipe, task, Knowledge(task)) for recipe in (PRUNED_KD, other))
    assert one.measurements["nll"] != two.measurements["nll"]


@pytest.mark.parametrize("which", ["task", "plain_task"])
def test_a_worker_that_was_handed_arrays_gets_the_same_weights_and_numbers(
    which: str, request: pytest.FixtureRequest
) -> None:
    task: Task = request.getfixturevalue(which)
    knowledge = Knowledge(task)
    here = run_trial(PRUNED_KD, task, knowledge)
    arrays, learned = task.arrays(), knowledge.arrays()
    for array in (*arrays.values(), *learned.values()):
        array.setflags(write=False)
    there = Task.from_arrays(task.spec, task.teacher_measurements, task.curve, task.key, task.data.class_names, arrays)
    assert outcome(run_trial(PRUNED_KD, there, Knowledge(there, arrays=learned))) == outcome(here)


def test_torch_is_left_as_it_was(task: Task) -> None:
    def stop(report: Report) -> None:
        raise KeyboardInterrupt

    def flushing() -> bool:
        return not bool(torch.tensor(1e-310, dtype=torch.float64) * 1.0)

    for flush in (False, True):
        torch.set_flush_denormal(flush)
        state, threads = torch.random.get_rng_state(), torch.get_num_threads()
        with pytest.raises(KeyboardInterrupt):
            run_trial(PRUNED_MLP, task, Knowledge(task), stop, threads=2)
        run_trial(PRUNED_MLP, task, Knowledge(task))
        try:
            assert flushing() == flush
        finally:
            torch.set_flush_denormal(False)
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.random.get_rng_state(), state)


def without(split: Split) -> Split:
    return Split(split.images[:0], split.labels[:0])


def test_the_test_split_is_not_read(task: Task) -> None:
    d = task.data
    blind = dataclasses.replace(task, data=Dataset(d.name, d.class_names, d.train, d.validation, without(d.test)))
    assert outcome(run_trial(PRUNED_KD, blind, Knowledge(blind))) == outcome(
        run_trial(PRUNED_KD, task, Knowledge(task))
    )


@each_recipe
def test_what_was_measured_is_what_is_saved(recipe: Recipe, task: Task, tmp_path: Path) -> None:
    result = run_trial(recipe, task, Knowledge(task))
    save_student(tmp_path, result.files(task))
    loaded = load_student(tmp_path)
    assert measure(loaded, task.data.validation, ensemble_nlls=task.curve) == result.measurements
    assert weights_bytes(loaded) == weights_bytes(result.network)
    assert (tmp_path / "student.safetensors").stat().st_size == result.measurements["size_bytes"]
    assert Recipe.from_json((tmp_path / "recipe.json").read_text()) == recipe
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["measurements"] == result.measurements
    assert written["before_cut"] == result.before_cut
    assert (written["units"], written["units_cut"]) == (result.units, result.units_cut)
    assert written["task"] == task.key


@each_recipe
def test_the_student_that_is_left_is_an_ordinary_network_in_eval_mode(recipe: Recipe, task: Task) -> None:
    network = run_trial(recipe, task, Knowledge(task)).network
    leaves = {type(module) for module in network.modules() if not list(module.children())}
    assert {kind.__module__.partition(".")[0] for kind in leaves} == {"torch", "trainers"}
    assert {kind.__name__ for kind in leaves if kind.__module__.startswith("trainers")} == {"Normalize"}
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_pruning_makes_the_network_smaller_by_the_units_asked_for(task: Task) -> None:
    result = run_trial(PRUNED_KD, task, Knowledge(task))
    assert (result.units, result.units_cut) == (56, 28)  # 4 + 4 + 8 + 8 + 16 + 16
    for name in ("parameters", "macs", "size_bytes"):
        assert result.measurements[name] < result.before_cut[name]
    # every channel of resnet 8 is that of one batch norm, but those that are added to another's
    added = ("groups.0.0.norm2", "groups.1.0.shortcut.1", "groups.2.0.shortcut.1")
    norms = {name: m.num_features for name, m in result.network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert sum(channels for name, channels in norms.items() if name not in added) == 28


def test_without_pruning_nothing_is_cut_nor_tuned(task: Task) -> None:
    result = run_trial(RECIPES["labels alone"], task, Knowledge(task))
    assert result.units_cut == 0
    assert result.measurements == result.before_cut


def reports(recipe: Recipe, task: Task) -> list[Report]:
    reported: list[Report] = []
    run_trial(recipe, task, Knowledge(task), reported.append)
    return reported


def test_every_epoch_is_reported(task: Task) -> None:
    reported = reports(PRUNED_KD, task)
    assert [(r.step, r.steps, r.phase) for r in reported] == [(1, 3, "train"), (2, 3, "train"), (3, 3, "fine_tune")]
    assert all(set(r.metrics) == {"loss", "accuracy", "balanced_accuracy", "macro_f1", "nll"} for r in reported)
    assert [r.steps for r in reports(RECIPES["labels alone"], task)] == [2, 2]


ROUNDS = PRUNED_KD.model_copy(
    update={"pruning": PRUNED_KD.pruning.model_copy(update={"rounds": 3, "fine_tune_epochs": 4})}
)


def test_cuts_in_rounds_take_the_same_share_each_and_share_the_epochs(task: Task) -> None:
    reported: list[Report] = []
    result = run_trial(ROUNDS, task, Knowledge(task), reported.append)
    assert [(r.step, r.phase) for r in reported] == [
        (1, "train"),
        (2, "train"),
        *((n, "fine_tune") for n in (3, 4, 5, 6)),
    ]
    assert all(r.steps == 6 for r in reported)
    # as many units as in one cut, though not the same ones
    assert (result.units, result.units_cut) == (56, 28)
    once = run_trial(PRUNED_KD, task, Knowledge(task))
    assert (result.units, result.units_cut) == (once.units, once.units_cut)
    again = run_trial(ROUNDS, task, Knowledge(task))
    assert outcome(again) == outcome(result)


@pytest.mark.parametrize("epochs", [0, 2, 3, 4, 7])
def test_the_rounds_until_any_cut_are_the_first_of_the_whole(epochs: int) -> None:
    whole = Pruning(fraction=0.9, rounds=4, fine_tune_epochs=epochs)
    for turn in range(1, 5):
        part = whole.schedule()[turn - 1].so_far
        assert part.rounds == turn
        assert len(part.schedule()) == turn
        for (again, again_epochs), (expected, expected_epochs) in zip(part.schedule(), whole.schedule(), strict=False):
            assert again_epochs == expected_epochs
            assert again.fraction == pytest.approx(expected.fraction)
            assert again.model_copy(update={"fraction": 0.0}) == expected.model_copy(update={"fraction": 0.0})
    assert sum(epochs for _, epochs in whole.schedule()) == epochs
    assert whole.schedule()[-1].so_far.model_copy(update={"fraction": 0.9}) == whole


@pytest.mark.parametrize(("family", "epochs"), [("resnet", 4), ("mlp", 0)])
def test_the_students_between_cuts_are_on_the_curve_and_are_what_their_own_recipes_make(
    family: str, epochs: int, task: Task
) -> None:
    flat: dict[str, float | str] = {"student.family": family, "student.depth": 8 if family == "resnet" else 3}
    flat |= {"transfer": "kd", "pruning.fraction": 0.7, "pruning.rounds": 3, "pruning.fine_tune_epochs": epochs}
    recipe = Recipe.from_flat({**SMALL, **flat})
    result = run_trial(recipe, task, Knowledge(task), curve=(0.2,))
    assert [(p.recipe.pruning.rounds, p.recipe.pruning.fine_tune_epochs) for p in result.curve] == [
        (1, 0),  # at 0.2
        (1, 2 if epochs else 0),
        (2, 3 if epochs else 0),
    ]
    for point in result.curve:
        assert outcome(run_trial(point.recipe, task, Knowledge(task))) == outcome(point)
    assert outcome(run_trial(recipe, task, Knowledge(task))) == outcome(result)  # looking changes nothing
    sizes = [each.measurements["parameters"] for each in (*result.curve[1:], result)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_what_stays_is_rounded_for_hardware(task: Task) -> None:
    recipe = Recipe.from_flat({**SMALL, "pruning.fraction": 0.6, "pruning.round_to": 4, "pruning.rounds": 2})
    network = run_trial(recipe, task, Knowledge(task)).network
    channels = [m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {count % 4 for count in channels} == {0}
    assert min(channels) < max(channels)


def test_the_measured_network_has_the_statistics_of_the_cut_one(plain_task: Task) -> None:
    flat = {"pruning.fraction": 0.5, "pruning.fine_tune_epochs": 0, "training.batch_size": 50}
    network = run_trial(Recipe.from_flat({**SMALL, **flat}), plain_task, Knowledge(plain_task)).network
    images = plain_task.data.train.images / 255  # 200, in four batches of one size
    maps = network.get_submodule("stem.0")(network.normalize(images))
    norm = network.get_submodule("stem.1")
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert norm.num_batches_tracked == 4


def test_the_parts_that_a_recipe_fixes_stay_as_they_began(task: Task) -> None:
    fixed = Recipe.from_flat({**SMALL, "spectral.train_eigenvectors": False, "seed": 5})
    network = run_trial(fixed, task, Knowledge(task)).network
    began = build(fixed.student, (1, 8, 8), 10, generator=torch.Generator().manual_seed(5))
    for name in ("stem.0", "groups.1.0.conv1", "groups.2.0.shortcut.0"):
        weight, first = (n.get_parameter(f"{name}.weight").detach().flatten(1) for n in (network, began))
        # each unit's weights have the direction that they began with, and another length
        cosine = torch.cosine_similarity(weight, first).abs()
        torch.testing.assert_close(cosine, torch.ones_like(cosine))
        assert not torch.allclose(weight, first)


def test_the_last_report_is_of_the_network_that_is_measured(task: Task) -> None:
    reported: list[Report] = []
    result = run_trial(PRUNED_KD, task, Knowledge(task), reported.append)
    assert reported[-1].metrics["accuracy"] == pytest.approx(result.measurements["accuracy"], abs=1 / 360)
    # another memory layout rounds differently
    assert reported[-1].metrics["nll"] == pytest.approx(result.measurements["nll"], rel=1e-5)
    assert reported[1].metrics["nll"] == pytest.approx(result.before_cut["nll"], rel=1e-5)


def test_what_a_student_will_cost_is_known_roughly_from_the_start_and_exactly_once_it_is_cut(task: Task) -> None:
    names = {"parameters", "macs", "size_bytes"}
    reported: list[Report] = []
    result = run_trial(PRUNED_KD, task, Knowledge(task), reported.append)
    exact = {name: result.measurements[name] for name in names}
    first, second, last = (report.cost for report in reported)
    assert first == second
    assert last == exact
    assert set(first) == names
    assert all(0.7 * exact[name] < first[name] < 1.4 * exact[name] for name in names)
    # the uncut student is far outside of that
    assert all(result.before_cut[name] > 1.4 * first[name] for name in names)


def test_what_a_student_that_is_not_cut_will_cost_is_exact_from_the_start(task: Task) -> None:
    reported: list[Report] = []
    result = run_trial(RECIPES["labels alone"], task, Knowledge(task), reported.append)
    for report in reported:
        assert report.cost == {name: result.measurements[name] for name in report.cost}


def test_what_a_report_raises_ends_the_trial(task: Task) -> None:
    seen: list[int] = []

    def stop(report: Report) -> None:
        seen.append(report.step)
        if report.step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_trial(PRUNED_KD, task, Knowledge(task), stop)
    assert seen == [1, 2]


@pytest.mark.parametrize("learning_rate", [1e6, 1e38])
def test_a_learning_rate_that_is_much_too_high_is_divergence_and_never_a_result(
    learning_rate: float, task: Task
) -> None:
    recipe = Recipe.from_flat({**SMALL, "training.learning_rate": learning_rate, "training.batch_size": 200})
    with pytest.raises(Diverged, match=r"must be finite, but .*lower the learning rate"):
        run_trial(recipe, task, Knowledge(task))


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"transfer": "facter"}, "`transfer` must be a known method, but got 'facter'"),
        ({"transfer": "kd", "kd.temprature": 2.0}, r"`kd\.temprature` is not a known key; did you mean `temperature`"),
        ({"student.depth": 9}, r"depth of a resnet must be 6n\+2"),
        ({"student.family": "vggg"}, "family of a network must be a known one"),
    ],
)
def test_a_recipe_that_cannot_be_carried_out_is_refused_before_it_begins(
    flat: dict[str, Any], message: str, task: Task
) -> None:
    seen: list[Report] = []
    with pytest.raises(BadInput, match=message):
        run_trial(Recipe.from_flat(flat), task, Knowledge(task), seen.append)
    assert seen == []


FACTOR = {**SMALL, "transfer": "factor", "factor.rate": 1.0, "pruning.fraction": 0.3, "training.epochs": 1}


def test_factor_transfer_is_carried_out_after_its_stage_and_the_translator_is_thrown_away(plain_task: Task) -> None:
    knowledge = Knowledge(plain_task)
    recipe = Recipe.from_flat({**FACTOR, "factor.paraphraser_steps": 400})
    result = run_trial(recipe, plain_task, knowledge)
    assert not any("translator" in name or "conv0" in name for name in result.network.state_dict())
    assert result.units_cut == 16
    # the stage is there already, so nothing that another trial did or did not do can change the outcome
    run_trial(PRUNED_KD, plain_task, knowledge)
    assert outcome(run_trial(recipe, plain_task, knowledge)) == outcome(result)


def test_a_stage_that_did_not_learn_ends_the_trial(plain_task: Task) -> None:
    recipe = Recipe.from_flat({**FACTOR, "factor.paraphraser_steps": 1})
    with pytest.raises(StageFailed, match="reconstruction L1 must be below half"):
        run_trial(recipe, plain_task, Knowledge(plain_task))


def test_students_learn(task: Task) -> None:
    recipe = Recipe.from_flat({"student.width": 0.5, "training.epochs": 10, "training.batch_size": 16})
    reported = reports(recipe, task)
    assert reported[-1].metrics["accuracy"] > 0.8  # 0.94 when this was written; guessing is 0.1
    assert reported[-1].metrics["loss"] < reported[0].metrics["loss"]


@pytest.mark.parametrize("family", ["resnet", "mlp"])
def test_every_point_of_the_curve_is_the_student_that_its_own_recipe_makes(family: str, task: Task) -> None:
    recipe = Recipe.from_flat(
        {
            **SMALL,
            "student.family": family,
            "student.depth": 8 if family == "resnet" else 3,
            "transfer": "kd",
            "pruning.fraction": 0.4,
            "pruning.fine_tune_epochs": 2,
            "seed": 5,
        }
    )
    result = run_trial(recipe, task, Knowledge(task), curve=(0.0, 0.3, 0.8))
    assert [point.recipe.pruning.fraction for point in result.curve] == [0.0, 0.3, 0.8]
    assert all(point.recipe.pruning.fine_tune_epochs == 0 for point in result.curve)
    for point in result.curve:
        assert outcome(run_trial(point.recipe, task, Knowledge(task))) == outcome(point)
    assert outcome(run_trial(recipe, task, Knowledge(task))) == outcome(result)  # looking changes nothing
    sizes = [point.measurements["parameters"] for point in result.curve]
    assert sizes[0] > sizes[1] > sizes[2]
    assert result.curve[0].measurements == result.before_cut


def test_a_point_that_is_the_trial_itself_is_not_told_twice(task: Task) -> None:
    recipe = Recipe.from_flat({**SMALL, "pruning.fraction": 0.3, "pruning.fine_tune_epochs": 0})
    result = run_trial(recipe, task, Knowledge(task), curve=(0.3, 0.6), timed=True)
    assert all(0 < each.measurements["latency_ms"] < 1000 for each in (result, *result.curve))
    assert [point.recipe.pruning.fraction for point in result.curve] == [0.6]


def test_a_trials_files_hold_its_curve_and_every_student_on_it_is_read_back(task: Task, tmp_path: Path) -> None:
    result = run_trial(PRUNED_KD, task, Knowledge(task), curve=(0.2, 0.7))
    save_student(tmp_path, result.files(task))
    for place, point in enumerate(result.curve):
        folder = tmp_path / curve_folder(place)
        assert Recipe.from_json((folder / "recipe.json").read_text()) == point.recipe
        actual = measure(load_student(folder), task.data.validation, ensemble_nlls=task.curve)
        assert actual == point.measurements == json.loads((folder / "result.json").read_text())["measurements"]


@pytest.mark.parametrize(("floor", "units", "stay"), [(0.07, 100, 7), (0.071, 100, 8), (0.0, 5, 1), (0.29, 100, 29)])
def test_the_floor_is_rounded_by_one_rule(floor: float, units: int, stay: int) -> None:
    """0.07 * 100 is 7.000000000000001 in binary, and still 7."""
    assert units_that_stay(floor, units) == stay
    network = spectralize(nn.Sequential(nn.Linear(4, units), nn.ReLU(), nn.Linear(units, 2)))
    cuts = plan(trace(network, (4,)), 0.999, floor=floor)
    assert [group.units - len(group.removed) for group in cuts.cuts if group.units == units] == [stay]
