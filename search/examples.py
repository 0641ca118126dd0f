"""The example study files: in a checkout's `examples` folder, and in an installed wheel beside this file."""

from pathlib import Path

from spaces.errors import BadInput, known

_HERE = Path(__file__).parent


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
