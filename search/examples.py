"""Study files to begin with: the examples (in a checkout in `examples`, in an installed wheel beside this file), and
one for a network of one's own.
"""

import json
import os
import re
from pathlib import Path

import yaml

from spaces.errors import BadInput, known

_HERE = Path(__file__).parent
_DOWNLOADED, _EXPORTED, _REGISTERED = "DEFAULT", ".pt2", ("models:/", "runs:/")
"""As `trainers.teacher_spec` has them, which imports numpy."""


def content_of(name: str) -> str:
    """The text of an example.

    Raises:
        BadInput: there is no example with this name.
    """
    folder = next(place for place in (_HERE / "study_files", _HERE.parent / "examples") if place.is_dir())
    files = {file.stem: file for file in folder.glob("*.yaml")}
    if name not in files:
        raise BadInput(f"`--example` must be a known example, but got {name!r}; {known(files, name)}")
    return files[name].read_text(encoding="utf-8")


_OWN = """# A search for small students of a trained network; docs/your-own-network.md explains every key.
# `dux check {file}` tries it, `dux search {file}` runs it.
name: {name}
task:
  dataset: imagefolder
  root: {data}                          # train/CLASS/IMAGE, and perhaps val/ and test/
{size}  augment: none                         # or [resized_crop, flip, color]: the teacher then runs on every batch
  teacher:
    network: {network}
{weights}    # input: {{mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}  # its images', if others
    # taps: [layer2, layer3, layer4]    # features for transfer methods; left out, they are found
  # classes: classes.txt                # if its classes come in another order than the folders' names
space:
  student.start: teacher                # the student is the network with its weights, cut to a share of its units
  student.width: {{low: 0.25, high: 1.0}}
  transfer: [none, kd]                  # `dux methods` lists all
  pruning.fraction: {{low: 0.0, high: 0.75}}
objectives: {{accuracy: max, parameters: min}}
search: {{trials: 16}}
"""


def study_of(file: Path, network: str, weights: str | None, data: str, image_size: int | None) -> str:
    """The text of a study file for a network of the user's.

    Args:
        file: where it is to be written; the study is named after it.
        network, weights: as `task.teacher` names them.
        data: a folder of images.
        image_size: to which they are scaled; None leaves them as they are.
    """
    return _OWN.format(
        file=file,
        name=_scalar(re.sub(r"[^A-Za-z0-9._-]", "-", file.stem)),
        data=_scalar(_from(file.parent, data)),
        size="" if image_size is None else f"  image_size: {image_size}\n",
        network=_scalar(_from(file.parent, network) if network.endswith(_EXPORTED) else network),
        weights=""
        if weights is None
        else f"    weights: {_scalar(weights if weights == _DOWNLOADED else _from(file.parent, weights))}\n",
    )


def _from(folder: Path, path: str) -> str:
    """A path of the current folder's, as a study file in `folder` names it; what MLflow stores has the same name."""
    named = Path(path).expanduser()
    if path.startswith(_REGISTERED):
        return path
    return path if named.is_absolute() or folder == Path() else os.path.relpath(named, folder)


def _scalar(text: str) -> str:
    """A text as YAML reads it back: in quotes, unless it is plainly a path or a name."""
    plain = re.fullmatch(r"[A-Za-z/.][\w/.:-]*", text, re.ASCII) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
