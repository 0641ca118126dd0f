"""The front as a scatter of characters, for the terminal."""

import math

from search.fronts.front import Front
from search.fronts.pareto import Axis
from search.fronts.picture import pictured
from search.fronts.quantities import shortened


def plot(front: Front, width: int = 72, height: int = 18) -> str:
    """`height` lines of at most `width` characters (at least 40 by 8)."""
    x, y, entries, far = pictured(front)
    if not entries:
        return "no student to draw yet"
    near = [entry for entry in entries if entry not in far]
    x_ends, y_ends = ((min(values), max(values)) for values in ([e.value(axis.name) for e in near] for axis in (x, y)))
    y_ticks = [shortened(value) for value in _ticks(y, *y_ends)]
    gutter = max(map(len, y_ticks))
    columns, rows = max(width, 40) - gutter - 2, max(height, 8) - 4
    arrow = "↓" if y.direction == "max" else "↑"
    cells = [[" "] * columns for _ in range(rows)]
    for entry in sorted(front.entries, key=lambda entry: entry in front.non_dominated):  # the front's students on top
        if entry in entries:
            row = rows - 1 - _cell(y, entry.value(y.name), y_ends, rows)
            mark = "●" if entry in front.non_dominated else arrow if entry in far else "·"
            cells[row][_cell(x, entry.value(x.name), x_ends, columns)] = mark
    labels = dict(zip((0, (rows - 1) // 2, rows - 1), reversed(y_ticks), strict=True))
    lines = [f"{labels.get(i, ''):>{gutter}} {'┤' if i in labels else '│'}{''.join(r)}" for i, r in enumerate(cells)]
    left, middle, right = (shortened(value) for value in _ticks(x, *x_ends))
    ticks = left + middle.center(columns - len(left) - len(right)) + right
    margin = " " * (gutter + 2)
    x_name, y_name = (f"{axis.name} (log)" if axis.scale == "log" else axis.name for axis in (x, y))
    title = f"{y_name}   ● front   · dominated" + (f"   {arrow} off the picture" if far else "")
    lines = [title, *lines, margin[1:] + "└" + "─" * columns, margin + ticks, margin + x_name.rjust(columns)]
    return "\n".join(line.rstrip() for line in lines)


def _ticks(axis: Axis, low: float, high: float) -> tuple[float, float, float]:
    """The ends, and the value midway between them on the axis."""
    return low, math.sqrt(low) * math.sqrt(high) if axis.scale == "log" else low / 2 + high / 2, high


def _cell(axis: Axis, value: float, ends: tuple[float, float], count: int) -> int:
    """The value's cell: 0 at the lower end and below, count - 1 at the upper and above; the middle if they coincide."""
    start, end, here = (math.log(v) if axis.scale == "log" else v for v in (*ends, value))
    share = (here - start) / (end - start) if end > start else 0.5
    return round(min(1.0, max(0.0, share)) * (count - 1))
