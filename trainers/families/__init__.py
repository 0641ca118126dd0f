"""The catalogue of networks that teachers and students are built from."""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from spaces import Student
from trainers.depths import check_student
from trainers.families.batch_ensemble import batch_ensemble
from trainers.families.deep_ensemble import DeepEnsemble
from trainers.families.family import Family, Features, Network, by_member, capture, combined
from trainers.families.mlp import MLP
from trainers.families.resnet import RESNET
from trainers.seeding import seeded

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (RESNET, MLP)})
"""Every family by its name in study files; `trainers.depths` says which depths it has."""


def build(student: Student, image_shape: tuple[int, int, int], classes: int, *, generator: torch.Generator) -> Network:
    """A freshly initialised network for images (B, C, H, W) in [0, 1].

    Args:
        student: family, depth, width, and the members of a BatchEnsemble.
        image_shape: (C, H, W).
        classes: number of logits.
        generator: where the initial weights come from.

    Raises:
        BadInput: no such family, or not of this depth.
    """
    check_student(student)
    with seeded(generator):
        network = FAMILIES[student.family].build(student.depth, student.width, image_shape, classes)
        return batch_ensemble(network, student) if student.members > 1 else network


def outline(student: Student, image_shape: tuple[int, int, int], classes: int) -> Network:
    """The network that `build` makes, but of shapes alone (torch's `meta` device): at once, and in no memory.

    Raises:
        BadInput: no such family, or not of this depth.
    """
    check_student(student)
    with torch.device("meta"):
        network = FAMILIES[student.family].build(student.depth, student.width, image_shape, classes)
        return batch_ensemble(network, student) if student.members > 1 else network


__all__ = [
    "FAMILIES",
    "DeepEnsemble",
    "Family",
    "Features",
    "Network",
    "build",
    "by_member",
    "capture",
    "combined",
    "outline",
]
