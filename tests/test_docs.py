"""The documentation has a row for everything that a study file or a command can name."""

import re
from pathlib import Path

import pytest

from search.formats import DEFAULT, FORMATS
from spaces.recipe import RECIPE_NAMES
from trainers.data import DATASETS
from trainers.depths import DEPTHS
from trainers.metrics import METRICS

DOCS = Path(__file__).parents[1] / "docs"


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a page."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("|")]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("name", FORMATS)
def test_every_export_format_has_its_row(name: str) -> None:
    row = FORMATS[name]
    (cells,) = [cells for cells in rows("commands.md") if names(cells[0]) == [name]]
    assert cells[1:] == [row.title, row.runtime, row.metadata]
    assert ("(default)" in cells[0]) == (row is DEFAULT)


@pytest.mark.parametrize("name", METRICS)
def test_every_measurement_has_its_row(name: str) -> None:
    assert [cells for cells in rows("study-files.md") if len(cells) == 2 and name in names(cells[0])]


@pytest.mark.parametrize(
    ("key", "name"),
    [*(("student.family", name) for name in DEPTHS), *(("task.dataset", name) for name in DATASETS)],
)
def test_every_family_and_data_set_is_named(key: str, name: str) -> None:
    cells = next(cells for cells in rows("study-files.md") if names(cells[0]) == [key])
    assert name in names(cells[1])


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_choice_of_a_recipe_has_its_row(name: str) -> None:
    written = [names(cells[0]) for cells in rows("study-files.md") if len(cells) == 3]
    whole = [f"{row[0].rpartition('.')[0]}{each}" if each.startswith(".") else each for row in written for each in row]
    assert whole.count(name) == 1
