"""The examples of study files: in a checkout's folder, and in an installed wheel beside this file."""

from pathlib import Path

from spaces.errors import BadInput, known

_HERE = Path(__file__).parent


def content_of(name: str) -> str:
    """An example's text.

    Raises:
        BadInput: there is none of that name.
    """
    folder = next(place for place in (_HERE / "study_files", _HERE.parent / "examples") if place.is_dir())
    files = {file.stem: file for file in folder.glob("*.yaml")}
    if name not in files:
        raise BadInput(f"`--example` must be one that there is, but got {name!r}; {known(files, name)}")
    return files[name].read_text(encoding="utf-8")
