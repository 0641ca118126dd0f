"""The catalogue of networks that teachers and students are built from."""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from spaces import BadInput, Student
from spaces.errors import brief
from trainers.depths import shape_of
from trainers.families.batch_ensemble import batch_ensemble
from trainers.families.deep_ensemble import DeepEnsemble
from trainers.families.family import Family, Features, Network, by_member, capture, combined
from trainers.families.mlp import MLP
from trainers.families.mobilenetv2 import MOBILENETV2
from trainers.families.own import OwnNetwork, own_network
from trainers.families.resnet import RESNET
from trainers.families.shufflenetv2 import SHUFFLENETV2
from trainers.families.taps import find_places, find_taps
from trainers.families.vgg import VGG
from trainers.families.wrn import WRN
from trainers.seeding import seeded

_ALL: tuple[Family, ...] = (RESNET, WRN, VGG, MOBILENETV2, SHUFFLENETV2, MLP)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})
"""Every family by its name in study files; `trainers.depths` has the depths of each."""


def build(student: Student, image_shape: tuple[int, int, int], classes: int, *, generator: torch.Generator) -> Network:
    """A freshly initialised network for images (B, C, H, W) in [0, 1].

    Args:
        student: family, depth, width, and the members of a BatchEnsemble.
        image_shape: (C, H, W).
        classes: number of logits.
        generator: for the initial weights.

    Raises:
        BadInput: an unknown family, or one without this depth, or not for such images.
    """
    family, depth = shape_of(student)
    with seeded(generator):
        if ":" in family:
            return _own(student, image_shape, classes)
        network = FAMILIES[family].build(depth, student.width, image_shape, classes)
        return batch_ensemble(network, student) if student.members > 1 else network


def outline(student: Student, image_shape: tuple[int, int, int], classes: int) -> Network:
    """The network that `build` makes, but only its shapes (torch's `meta` device): instantly, and without memory.

    A user's own network is built for real nevertheless.

    Raises:
        BadInput: an unknown family, or one without this depth, or not for such images.
    """
    if ":" in student.family:
        return build(student, image_shape, classes, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        return build(student, image_shape, classes, generator=torch.Generator("cpu").manual_seed(0))


def _own(student: Student, image_shape: tuple[int, int, int], classes: int) -> Network:
    network = own_network(student.family, student.width, image_shape, classes)
    if student.members == 1:
        return network
    with torch.device("cpu"):
        batch_ensemble(network, student)
        try:
            find_places(network, image_shape)
        except Exception as error:
            reason = brief(error)
            raise BadInput(
                f"`family: {student.family}` must be a network whose layers are called one by one to have "
                f"{student.members} members, but {reason}; leave `student.members` at 1"
            ) from None
    return network


__all__ = [
    "FAMILIES",
    "DeepEnsemble",
    "Family",
    "Features",
    "Network",
    "OwnNetwork",
    "build",
    "by_member",
    "capture",
    "combined",
    "find_taps",
    "outline",
]
