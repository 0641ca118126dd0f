"""Where a study's numbers come from, for MLflow: versions, the study file, the data."""

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from search.study_file import StudyFile
from trainers.files import digest

if TYPE_CHECKING:  # torch takes seconds
    from trainers.task import Task


def data_of(task: "Task") -> list[dict[str, object]]:
    """The training and validation splits, as `DataDescribed` takes them."""
    data, spec = task.data, task.spec
    return [
        {
            "name": spec.dataset,
            "digest": digest(split.content()),
            "context": context,
            "source": spec.root or spec.dataset,
            "image_shape": list(data.image_shape),
            "profile": {"num_rows": len(split), "classes": data.classes, "augmentation": augmentation},
        }
        for context, split, augmentation in (
            ("training", data.train, spec.policy),
            ("validation", data.validation, "none"),
        )
    ]


def flattened(file: StudyFile) -> dict[str, str]:
    """The study file as parameters of a run: dotted names, values as text."""
    flat: dict[str, str] = {}

    def visit(prefix: str, value: object) -> None:
        if isinstance(value, Mapping) and prefix.count(".") < 1 + (prefix == "task.teacher"):
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = json.dumps(value) if isinstance(value, Mapping | list) else str(value)

    visit("", json.loads(file.to_json()))
    return flat


def versions() -> dict[str, str]:
    """The software used, as tags: versions and, if Dux runs from a checkout, its commit ("-dirty" if changed)."""
    tags = {"dux.version": version("dux-search"), "dux.version.python": platform.python_version()}
    tags |= {f"dux.version.{name}": version(name) for name in ("torch", "ray", "optuna", "mlflow")}
    here = Path(__file__).resolve()
    # a checkout of Dux, not a repository in which Dux happens to be installed
    is_tracked = ["git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name]
    commit = ["git", "-C", str(here.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(is_tracked, capture_output=True, check=True, timeout=10.0)
        said = subprocess.run(commit, capture_output=True, check=True, timeout=10.0, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return tags
    return {**tags, "mlflow.source.git.commit": said}
