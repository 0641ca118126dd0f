"""The catalogue of transfer methods. A new one adds its file, its line here, and its test.

`python -m trainers.transfer` then updates `catalogue.json`.
"""

from collections.abc import Mapping
from inspect import isabstract
from types import MappingProxyType

from spaces import BadInput, Recipe
from spaces.errors import shown
from spaces.own import own_object
from trainers.catalogue import unknown_method
from trainers.transfer.ab import AB
from trainers.transfer.attention import Attention
from trainers.transfer.correlation import Correlation
from trainers.transfer.crd import CRD
from trainers.transfer.dist import DIST
from trainers.transfer.dkd import DKD
from trainers.transfer.ensemble import Ensemble
from trainers.transfer.factor import Factor
from trainers.transfer.fitnet import FitNet
from trainers.transfer.fsp import FSP
from trainers.transfer.kd import KD
from trainers.transfer.kdsvd import KDSVD
from trainers.transfer.method import Method, Options, Paper, Shapes
from trainers.transfer.none import NoTransfer
from trainers.transfer.nst import NST
from trainers.transfer.ofd import OFD
from trainers.transfer.pkt import PKT
from trainers.transfer.review import Review
from trainers.transfer.rkd import RKD
from trainers.transfer.signals import Needs, Stage, StageFailed, Taps, TeacherSignals
from trainers.transfer.similarity import Similarity
from trainers.transfer.vid import VID

_ALL: tuple[type[Method], ...] = (
    NoTransfer,
    KD,
    FitNet,
    Attention,
    Similarity,
    Correlation,
    VID,
    RKD,
    PKT,
    AB,
    Factor,
    FSP,
    NST,
    KDSVD,
    CRD,
    DKD,
    DIST,
    Review,
    OFD,
    Ensemble,
)

METHODS: Mapping[str, type[Method]] = MappingProxyType({method.name: method for method in _ALL})
"""Every method by its name in study files."""


def method_named(name: str) -> type[Method]:
    """The method with this name: one of METHODS, or the class that `package.module:Class` names.

    Raises:
        BadInput: there is none, or it is not a method.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise unknown_method(name, METHODS)
    method = own_object(name, "transfer")
    if not (isinstance(method, type) and issubclass(method, Method)) or isabstract(method):
        raise BadInput(
            f"`transfer: {name}` must be a trainers.transfer.Method with `needs`, `__init__` and `forward`, but is "
            f"{shown(method)}; see trainers/transfer/kd.py"
        )
    return method


def method_of(recipe: Recipe) -> tuple[type[Method], Options]:
    """The recipe's method and its parameters.

    Raises:
        BadInput: an unknown method, or a parameter that it does not take.
    """
    method = method_named(recipe.transfer)
    return method, method.parse(dict(recipe.options), called=recipe.transfer)


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
    "method_named",
    "method_of",
]
