"""The `dux` command: makes sure that the packages it imports are Dux's own, then hands over to `search.cli`.

The packages have common names (`spaces` is another distribution's, too): a folder on the path or a later installation
may shadow or overwrite them. That is told in one line here, before anything foreign is run.
"""

import importlib.util
import os
import sys
from pathlib import Path

_OWN = ("spaces", "trainers", "search")
_MARK = '"""Dux'
_INTERRUPTED = 130


def shadowed() -> str | None:
    """What shadows one of our packages and what to do, in one line; None where all three are ours."""
    here = Path(__file__).resolve().parent
    for name in _OWN:
        ours = here / name / "__init__.py"
        spec = importlib.util.find_spec(name)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if found != ours:
            where = found or (list(spec.submodule_search_locations or [])[:1] if spec else None) or "nothing"
            return (
                f"dux: package `{name}` must be Dux's own, but {where} shadows {ours.parent}; "
                "leave that folder, take it off PYTHONPATH, or install Dux into an environment of its own"
            )
        if not ours.read_text(encoding="utf-8").startswith(_MARK):
            return (
                f"dux: package `{name}` must be Dux's own, but another distribution has overwritten {ours.parent}; "
                "install dux-search into an environment of its own"
            )
    return None


def main() -> None:
    """The console command."""
    problem = shadowed()
    if problem is not None:
        sys.exit(_complain(problem))
    from search.cli import main as run

    try:
        run()
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)  # Python may make another code of an interruption, and its end may wait for threads
        raise


def _complain(line: str) -> int:
    print(line, file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
