"""What every machine of a joined cluster must have at the same path, since workers open it."""

import importlib.util
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from search.study_file import StudyFile, find_modules_in
from spaces import BadInput
from trainers.teacher_spec import is_exported


def files_of(file: StudyFile) -> list[Path]:
    """The user's own modules, unless they are installed, and files of exported networks."""
    find_modules_in(Path())
    installed = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib")]
    modules = [importlib.util.find_spec(name.partition(":")[0].partition(".")[0]) for name in file.own_code]
    origins = {Path(spec.origin) for spec in modules if spec is not None and spec.origin is not None}
    own = sorted(path for path in origins if not any(path.is_relative_to(folder) for folder in installed))
    networks = [Path(one.network) for one in file.task.teacher.each if one.network and is_exported(one.network)]
    return [*own, *networks]


def check_visible(files: Iterable[Path]) -> None:
    """Raise BadInput, with a line for each, if a machine of the cluster that was joined lacks files."""
    from search.backends.remote import unseen  # Ray takes seconds, which a study on this machine need not wait for

    problems = [
        f"workers must find {path} on every machine of the cluster, but it is not on {machine}; put it there at the "
        "same path, or use a folder that all machines share"
        for machine, path in unseen(list(files))
    ]
    if problems:
        raise BadInput(*problems)
