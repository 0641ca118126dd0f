"""Rebuilds the trials of a lost ledger from the study's other files: its journal, and its trials' files."""

import json
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from search.constraints import Limits, violations
from search.ledger.lines import LOST, Repeat, attributes_of, result_attributes
from search.seeds import repeat_seed
from spaces import BadInput, Recipe, Space
from trainers.files import Damaged, read_whole, unsealed

_MOST_REPEATS = 64
_MOST_LOST = 10_000
"""How many trial numbers may be unaccounted for; more are a mistake."""


def missing_trials(
    study: str,
    journal: Mapping[int, FrozenTrial],
    trials_folder: Path,
    numbers: range,
    seed: int,
    space: Space,
    objectives: Collection[str],
    constraints: Mapping[str, Limits],
) -> list[FrozenTrial]:
    """The trials that a ledger once had and has lost, in the order of their numbers; empty if it has lost none.

    Args:
        study: its name.
        journal: number -> trial, as far as the journal has them.
        trials_folder: the trials' files, each in a folder named by its number; used for trials not in the journal.
        numbers: from the first that the ledger does not have, up to those known elsewhere to be taken.
        seed: the study's, by which repeats are recognised.
        space: what recipes are drawn from.
        objectives: names of measurements.
        constraints: measurement -> its limits.

    Raises:
        BadInput: far more numbers than trials.
    """
    folders = {int(folder.name): folder for folder in trials_folder.glob("*") if folder.name.isdecimal()}
    last = max((*journal, *folders), default=-1)
    if last < numbers.start:
        return []
    unknown = {number: folder for number, folder in folders.items() if number not in journal}
    repeats = {
        repeat_seed(seed, of, nth): Repeat(of, nth) for of in folders for nth in range(1, _MOST_REPEATS) if unknown
    }
    known = dict(journal)
    for number, folder in unknown.items():
        known[number] = _of_files(folder, repeats, space, objectives, constraints)
    numbers = range(numbers.start, max(last + 1, numbers.stop))
    if len(numbers) - len(known) > _MOST_LOST:
        raise BadInput(
            f"the files of {study!r} must belong to its trials, but {trials_folder} and MLflow's events name a trial "
            f"{numbers[-1]} among {len(known)}; remove what does not belong to this study"
        )
    lost = optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={LOST: True})
    return [known.get(number, lost) for number in numbers]


def _of_files(
    folder: Path,
    repeats: Mapping[int, Repeat],
    space: Space,
    objectives: Collection[str],
    constraints: Mapping[str, Limits],
) -> FrozenTrial:
    """A trial from its files alone; `repeats`: by their recipes' seeds."""
    try:
        text = read_whole(folder / "recipe.json").decode()
        attributes = {"recipe": text, **result_attributes(unsealed(folder / "result.json"))}
        recipe, measurements = Recipe.from_json(text), json.loads(attributes["measurements"])
        values = [float(measurements[name]) for name in objectives]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        said = []
        with suppress(OSError, Damaged):
            said = read_whole(folder / "error.txt").decode(errors="replace").split("\n")
        reason = next((line for line in reversed(said) if line.strip()), "its files are incomplete")
        return optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"reason": reason.strip()})
    repeat = repeats.get(recipe.seed)
    fixed = drawn(space, recipe) if repeat is None else None
    return optuna.trial.create_trial(
        values=values,
        params={} if fixed is None else fixed.params,
        distributions={} if fixed is None else fixed.distributions,
        user_attrs=attributes if repeat is None else attributes | attributes_of(repeat),
        constraints=violations(constraints, measurements),
    )


def drawn(space: Space, recipe: Recipe) -> FixedTrial | None:
    """The recipe as drawn from the space; None if it is not in the space."""
    fixed = FixedTrial(dict(recipe.flat()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna's warning about a value out of range
            return fixed if space.draw(fixed) == recipe else None
    except (ValueError, UserWarning):
        return None
