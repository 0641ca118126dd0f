"""The user's own code, named in a study file as `package.module:name`."""

import importlib
import sys
from typing import Any

from spaces.errors import BadInput, brief

_NOT_OWN = {*sys.stdlib_module_names, *sys.builtin_module_names, "dux"}


def own_object(reference: str, where: str) -> Any:
    """The object that `reference` names, after importing its module.

    Python's own modules are refused before they are imported: they hold functions that exit, abort or block
    (`os:abort`).

    Args:
        reference: `package.module:name`.
        where: its key in the study file, for errors, such as "space".

    Raises:
        BadInput: it is not such a name, belongs to one of Python's own modules, or cannot be imported.
    """
    module, _, name = reference.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise BadInput(f"`{where}` must be `package.module:name`, but got {reference[:80]!r}")
    top = module.partition(".")[0]
    if top in _NOT_OWN:
        raise BadInput(
            f"`{where}: {reference}` must be in a module of your own, but `{top}` is "
            f"{'Dux' if top == 'dux' else 'Python'}'s; if yours has that name, rename it"
        )
    try:
        return getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise anything; it may be a script that exits
        reason = brief(error)
        missing = isinstance(error, ModuleNotFoundError)
        way_out = "modules are looked for beside the study file and in PYTHONPATH" if missing else "try it in Python"
        raise BadInput(
            f"`{where}: {reference}` must be something that can be imported, but {reason}; {way_out}"
        ) from None
