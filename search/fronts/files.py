"""The front as files: for programs, for a browser, for a page."""

import json
from collections.abc import Mapping
from pathlib import Path

from search.fronts.front import Front
from search.fronts.page import front_html
from search.fronts.png import front_png
from trainers.files import write_whole


def write_front(front: Front, study: str, folder: Path, teacher: Mapping[str, float]) -> list[Path]:
    """Write front.json, front.html and front.png into `folder`; returns their paths."""
    paths = [folder / f"front.{kind}" for kind in ("json", "html", "png")]
    write_whole(paths[0], json.dumps(front.to_json(study), indent=1))
    write_whole(paths[1], front_html(front, study, None, teacher))
    front_png(front, study, paths[2], teacher)
    return paths
