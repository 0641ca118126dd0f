"""The `dux` command: makes sure that the packages it imports are Dux's own, then hands over to `search.cli`.

The packages have common names (`spaces` also belongs to another distribution): a folder on the path or a later
installation may shadow or overwrite them. This is reported in one line here, before any foreign code runs.

Before it imports anything, `main` makes Ctrl-C and SIGTERM end the command with one line; `search.signals` takes over
from there.

The current folder holds user data, and nothing is imported from it except what a study names: Python may have put it
first on the module search path, so that every command would run a `json.py` in it.
"""

import _signal  # not `signal`, whose enumerations take as long to import as everything else here
import os
import sys

_OWN = ("spaces", "trainers", "search")
_MARK = '"""Dux'
_INTERRUPTED = 130


def leave_current_folder() -> None:
    """Import nothing from the current folder, unless Dux or Python itself is in it."""
    here, library = (os.path.dirname(os.path.realpath(file)) for file in (__file__, os.__file__))
    try:
        current = os.path.realpath(os.curdir)
    except OSError:  # it was removed
        return
    if current not in (here, library) and os.path.basename(current) not in ("site-packages", "dist-packages"):
        sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder or os.curdir) != current]


def shadowed() -> str | None:
    """What shadows one of our packages and what to do about it, in one line; None if all three are ours."""
    import importlib.util  # only now that the current folder is off the path
    from pathlib import Path

    here = Path(__file__).resolve().parent
    for name in _OWN:
        ours = here / name / "__init__.py"
        spec = importlib.util.find_spec(name)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if origin != ours:
            where = origin or (list(spec.submodule_search_locations or [])[:1] if spec else None) or "nothing"
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
    for number in (_signal.SIGINT, _signal.SIGTERM):
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _interrupted)
    leave_current_folder()
    problem = shadowed()
    if problem is not None:
        print(problem, file=sys.stderr)
        sys.exit(2)
    from search.signals import end_at_once

    end_at_once()
    from search.output import open_closed_streams

    open_closed_streams()
    from search.cli import main as run

    code = run()
    # Python's own shutdown may wait for threads, and would report an interruption neither in words nor by its exit code
    os._exit(code)


def _interrupted(*_: object) -> None:
    os.write(2, b"dux: interrupted before anything was written; run the same command again\n")
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
