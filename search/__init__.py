"""Dux, many trials: the command line, the study, the front, export."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.errors import AllFailed, Interrupted
    from search.fronts.front import Entry, Front
    from search.study import Study
    from search.study_file import StudyFile

__all__ = ["AllFailed", "Entry", "Front", "Interrupted", "Study", "StudyFile"]

_MODULES = {
    "AllFailed": "errors",
    "Interrupted": "errors",
    "Entry": "fronts.front",
    "Front": "fronts.front",
    "Study": "study",
    "StudyFile": "study_file",
}


def __getattr__(name: str) -> Any:
    # on demand: they need torch, and `dux --help` and a refused study file should not wait seconds for it
    if name not in __all__:
        raise AttributeError(f"module 'search' has no attribute {name!r}")
    return getattr(import_module(f"search.{_MODULES[name]}"), name)
