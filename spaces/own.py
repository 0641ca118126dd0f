"""Code of the user's own, named in a study file as `package.module:name`."""

import importlib
import sys
from typing import Any

from spaces.errors import BadInput

_NOT_OWN = {*sys.stdlib_module_names, *sys.builtin_module_names, "dux"}


def own_object(reference: str, where: str) -> Any:
    """What `reference` names, its module imported.

    Python's own modules are refused before they are imported: they hold what ends, stops or waits (`os:abort`).

    Args:
        reference: `package.module:name`.
        where: what of the study file it is, for errors, as "space".

    Raises:
        BadInput: it is no such name, or of Python's own modules, or cannot be imported.
    """
    module, _, name = reference.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise BadInput(f"`{where}` must be `package.module:name`, but got {reference[:80]!r}")
    top = module.partition(".")[0]
    if top in _NOT_OWN:
        raise BadInput(
            f"`{where}: {reference}` must be of a module of your own, but `{top}` is "
            f"{'Dux' if top == 'dux' else 'Python'}'s; if yours has that name, give it another"
        )
    try:
        return getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a module of somebody's may raise; it may be a script that exits
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        missing = isinstance(error, ModuleNotFoundError)
        way_out = "modules are looked for beside the study file and in PYTHONPATH" if missing else "try it in Python"
        raise BadInput(
            f"`{where}: {reference}` must be something that can be imported, but {reason}; {way_out}"
        ) from None
