"""Which families of networks there are, and in which depths. Without torch, so that a mistake is told at once.

A new family has its networks in `trainers/families/`, and its line here.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from spaces import BadInput, Student
from spaces.errors import known


def _resnet(depth: int) -> None:
    if depth < 8 or (depth - 2) % 6:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise BadInput(f"depth of a resnet must be 6n+2 with n >= 1, but got {depth}; the nearest is {near}")


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
            f"family of a network must be a known one, but got {student.family!r}; {known(DEPTHS, student.family)}"
        )
    DEPTHS[student.family](student.depth)
