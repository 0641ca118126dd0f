"""The catalogue of transfer methods. A new one adds its file, its line here, and its test."""

from collections.abc import Mapping
from types import MappingProxyType

from spaces import BadInput, Recipe
from spaces.errors import known
from trainers.transfer.factor import Factor
from trainers.transfer.kd import KD
from trainers.transfer.method import Method, Needs, Options, Paper, Shapes, Stage, StageFailed, Taps, TeacherSignals
from trainers.transfer.none import NoTransfer

METHODS: Mapping[str, type[Method]] = MappingProxyType({method.name: method for method in (NoTransfer, KD, Factor)})
"""Every method by its name in study files."""


def method_of(recipe: Recipe) -> tuple[type[Method], Options]:
    """The recipe's method and its parameters.

    Raises:
        BadInput: no such method, or a parameter that it does not take.
    """
    if recipe.transfer not in METHODS:
        raise BadInput(
            f"`transfer` must be a known method, but got {recipe.transfer!r}; {known(METHODS, recipe.transfer)}"
        )
    method = METHODS[recipe.transfer]
    return method, method.parse(dict(recipe.options))


__all__ = [
    "METHODS",
    "Method",
    "Needs",
    "Options",
    "Paper",
    "Shapes",
    "Stage",
    "StageFailed",
    "Taps",
    "TeacherSignals",
    "method_of",
]
