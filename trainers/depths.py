"""The families of networks, and the depths of each. Without torch, so that mistakes are reported at once.

A new family has its networks in `trainers/families/`, and its line here (docs/architecture.md).
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from spaces import BadInput, Student
from spaces.errors import known, shown
from spaces.own import own_object

_DEEPEST = 302
"""Maximum for residual networks. In the paper (He et al. 2016, section 4.2) a depth of 110 was better than 1202."""
_VGGS = (8, 11, 13, 16, 19)


def _residual(name: str, rest: int, deepest: int) -> Callable[[int], None]:
    """Depths of three groups of n blocks, each of two layers."""

    def check(depth: int) -> None:
        if not 6 + rest <= depth <= deepest or (depth - rest) % 6:
            near = min(max(6 + rest, 6 * round((depth - rest) / 6) + rest), deepest)
            raise BadInput(
                f"depth of a {name} must be 6n+{rest} with n >= 1 and at most {deepest}, but got {depth}; "
                f"the nearest is {near}"
            )

    return check


def _mlp(depth: int) -> None:
    if not 2 <= depth <= 16:
        raise BadInput(
            f"depth of an mlp must be from 2 to 16 layers with weights, but got {depth}; 3 has two hidden layers"
        )


def _vgg(depth: int) -> None:
    if depth not in _VGGS:
        near = min(_VGGS, key=lambda own: abs(own - depth))
        listed = ", ".join(map(str, _VGGS))
        raise BadInput(f"depth of a vgg must be one of {listed}, but got {depth}; the nearest is {near}")


DEPTHS: Mapping[str, Callable[[int], None] | int] = MappingProxyType(
    {
        "resnet": _residual("resnet", 2, _DEEPEST),
        "wrn": _residual("wrn", 4, _DEEPEST + 2),
        "vgg": _vgg,
        "mobilenetv2": 53,
        "shufflenetv2": 51,
        "mlp": _mlp,
    }
)
"""Family -> a function that raises BadInput unless the family has networks of a depth; or its only depth."""


def shape_of(student: Student) -> tuple[str, int]:
    """The actual family and depth of a student's network: layers with weights on the longest path.

    A family's name may include the depth, as in `resnet20`; `student.depth` is then ignored, as it is for families with
    a single depth and for the user's own networks (whose depth is unknown: 0).

    Raises:
        BadInput: the family is unknown or does not have this depth, or the user's own function does not exist.
    """
    name, depth = student.family, student.depth
    if ":" in name:
        own_function(name)
        return name, 0
    split = re.fullmatch(r"([a-z]+)(\d{1,5})", name)
    if name not in DEPTHS and split and callable(DEPTHS.get(split[1])):
        name, depth = split[1], int(split[2])
    if name not in DEPTHS:
        raise BadInput(
            f"family of a network must be a known one, but got {shown(name)}; {known(DEPTHS, name)}; a function of "
            "your own is named `package.module:function`"
        )
    check = DEPTHS[name]
    if isinstance(check, int):
        return name, check
    check(depth)
    return name, depth


def check_student(student: Student) -> None:
    """Raise BadInput unless the family exists and has this depth."""
    shape_of(student)


def titled(student: Student) -> str:
    """The student's family and depth for messages, with an article."""
    if student.start == "teacher":
        return "the teacher to begin with"
    bare = callable(DEPTHS.get(student.family))
    name = f"{student.family} of depth {student.depth}" if bare else student.family
    return f"{'an' if name[0] in 'aeiou' or name.startswith('mlp') else 'a'} {name}"


def own_function(reference: str) -> Callable[..., Any]:
    """The function of the user's that makes networks.

    Raises:
        BadInput: there is none.
    """
    function = own_object(reference, "family")
    if not callable(function):
        raise BadInput(
            f"`family: {reference}` must be a function(width, num_classes, in_channels) that returns a torch.nn.Module,"
            f" but is {shown(function)}"
        )
    return function  # type: ignore[no-any-return]
