"""The front as a table for the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from search.fronts.front import INTERVAL, Front
from search.fronts.quantities import shortened, show
from search.output import WIDTH

_WITH_THE_OBJECTIVES = ("accuracy", "nll", "parameters", "macs", "size_bytes")
"""Measurements that the terminal has room for besides the objectives."""


def front_table(front: Front) -> Table:
    """The front for the terminal: student, objectives, results of repeats or else a few more numbers, the recipe.

    The recipe gets at least a third of WIDTH: numbers other than objectives are left out if they would take its space.
    If repeats take too much space, the objectives that they concern are shown only as means over the seeds. Next to an
    accuracy is its 95 % interval, if there is space.
    """
    students = front.non_dominated
    cells = [front.seed_cells(entry) for entry in students]
    columns = {"student": [str(entry.trial) for entry in students]}
    columns |= {name: [show(entry.value(name)) for entry in students] for name in front.objectives}
    columns |= {name: [each[name] for each in cells] for name in (cells[0] if cells else ())}
    if sum(map(_width, columns.items())) > 3 * WIDTH // 4:
        columns = {name: each for name, each in columns.items() if f"{name} over seeds" not in columns}
    columns = _with_interval(front, columns, 3 * WIDTH // 4)
    for name in () if front.is_repeated else _WITH_THE_OBJECTIVES:
        if name in front.known() and name not in front.objectives:
            more = columns | {name: [shortened(entry.value(name)) for entry in students]}
            more = _with_interval(front, more, 2 * WIDTH // 3)
            if sum(map(_width, more.items())) <= 2 * WIDTH // 3:
                columns = more
    table = Table(title=front.summary(), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        width = _width((name, columns[name])) - 2
        table.add_column(name.replace("_", " "), justify="right", overflow="fold", width=width)
    table.add_column("recipe", overflow="fold")
    for place, entry in enumerate(students):
        table.add_row(*(Text(rows[place]) for rows in columns.values()), Text(front.brief(entry)))
    return table


def _with_interval(front: Front, columns: dict[str, list[str]], most: int) -> dict[str, list[str]]:
    """The columns with the accuracy's interval next to it, if known and at most `most` characters are then taken."""
    if INTERVAL in columns or "accuracy" not in columns or not any(map(front.interval, front.non_dominated)):
        return columns
    cells = [front.interval_cell(entry) for entry in front.non_dominated]
    more: dict[str, list[str]] = {}
    for name, each in columns.items():
        more |= {name: each, INTERVAL: cells} if name == "accuracy" else {name: each}
    return more if sum(map(_width, more.items())) <= most else columns


def _width(column: tuple[str, Sequence[str]]) -> int:
    """How many characters wide a table's column is, including its margin."""
    name, cells = column
    return 2 + max(map(len, (*name.replace("_", " ").split(), *cells)))
