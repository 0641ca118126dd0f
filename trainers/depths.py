"""Which families of networks there are, and in which depths. Without torch, so that a mistake is told at once.

A new family has its networks in `trainers/families/`, and its line here.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from spaces import BadInput, Student
from spaces.errors import known, shown

_DEEPEST_RESNET = 302
"""In its paper (He et al. 2016, section 4.2) a depth of 110 was better than one of 1202."""


def _resnet(depth: int) -> None:
    if not 8 <= depth <= _DEEPEST_RESNET or (depth - 2) % 6:
        near = min(max(8, 6 * round((depth - 2) / 6) + 2), _DEEPEST_RESNET)
        raise BadInput(
            f"depth of a resnet must be 6n+2 with n >= 1 and at most {_DEEPEST_RESNET}, but got {depth}; "
            f"the nearest is {near}"
        )


def _mlp(depth: int) -> None:
    if not 2 <= depth <= 16:
        raise BadInput(
            f"depth of an mlp must be from 2 to 16 layers with weights, but got {depth}; 3 has two hidden layers"
        )


DEPTHS: Mapping[str, Callable[[int], None]] = MappingProxyType({"resnet": _resnet, "mlp": _mlp})
"""Family -> what raises BadInput unless it has networks of a depth."""


def check_student(student: Student) -> None:
    """Raise BadInput unless the family exists and has this depth."""
    if student.family not in DEPTHS:
        raise BadInput(
            f"family of a network must be a known one, but got {shown(student.family)}; {known(DEPTHS, student.family)}"
        )
    DEPTHS[student.family](student.depth)
