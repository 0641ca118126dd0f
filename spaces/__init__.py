"""Dux, what a trial is: the recipe, and the space that recipes are drawn from."""

from spaces.errors import BadInput
from spaces.recipe import Pruning, Recipe, Scalar, Spectral, Student, Training
from spaces.space import Choice, Domain, Float, Int, Space, Suggest

__all__ = [
    "BadInput",
    "Choice",
    "Domain",
    "Float",
    "Int",
    "Pruning",
    "Recipe",
    "Scalar",
    "Space",
    "Spectral",
    "Student",
    "Suggest",
    "Training",
]
