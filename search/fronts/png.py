"""The front as a PNG: the page's picture, without hover texts."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

from search.fronts.front import INTERVAL, Front
from search.fronts.picture import (
    FAINT,
    GRID,
    INK,
    Picture,
    axis_label,
    caption,
    coordinates,
    decades,
    frame,
    groups,
    intervals,
    legend_title,
    pictured,
    spreads,
    stairs,
    teacher_place,
)
from search.fronts.quantities import shortened
from trainers.files import write_whole


def front_png(front: Front, study: str, path: Path, teacher: Mapping[str, float] | None = None) -> None:
    """Write the picture of `front_figure`, 1600 by 900 pixels, to `path`."""
    png = BytesIO()
    front_figure(front, study, teacher).savefig(png, format="png")
    write_whole(path, png.getvalue())


def front_figure(front: Front, study: str, teacher: Mapping[str, float] | None = None) -> Figure:
    """The picture: every student, the front as a step line, intervals of accuracies, means and deviations over seeds.

    Args:
        front: the front to show.
        study: the study's name.
        teacher: its measurements, for a mark to compare with; no mark if one that the picture needs is missing.
    """
    picture = pictured(front)
    figure = Figure(figsize=(10, 5.625), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    legend: list[Artist] = []
    if corners := stairs(front, picture):
        steps = "steps-post" if picture.x.direction == "min" else "steps-pre"
        legend += axes.plot(*coordinates(picture, corners), drawstyle=steps, color=INK, lw=1.4, label="front", zorder=2)
    legend += _draw_intervals(axes, front, picture)
    legend += _draw_students(axes, front, picture)
    legend += _draw_spreads(axes, front, picture)
    place = teacher_place(picture, teacher)
    if place:
        axes.scatter(*place, s=220, marker="*", color=INK, zorder=5)
        legend.append(Line2D([], [], ls="", marker="*", color=INK, ms=13, label="teacher"))
    axes.set(xscale=picture.x.scale, yscale=picture.y.scale, ylim=frame(picture, place))
    _label_axes(axes, picture)
    axes.set_title(f"{study}: {caption(front, picture)}", loc="left", color=INK, fontsize=13, parse_math=False)
    if line := front.chosen_from():
        figure.supxlabel(line, x=0.995, ha="right", color=FAINT, fontsize=9)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        # the corner of students that are bad on both axes
        vertical = "lower" if picture.y.direction == "max" else "upper"
        horizontal = "left" if picture.x.direction == "max" else "right"
        axes.legend(handles=legend, loc=f"{vertical} {horizontal}", title=legend_title(front), edgecolor=GRID)
    return figure


def _draw_intervals(axes: Axes, front: Front, picture: Picture) -> list[Artist]:
    """Returns the legend's entries."""
    known = intervals(front, picture)
    if not known.entries:
        return []
    reach, along_x = [known.below, known.above], known.axis == "x"
    axes.errorbar(
        *coordinates(picture, known.entries),
        xerr=reach if along_x else None,
        yerr=None if along_x else reach,
        fmt="none",
        ecolor=FAINT,
        elinewidth=0.8,
        capsize=2,
        zorder=2,
    )
    marker = "_" if along_x else "|"
    return [Line2D([], [], ls="", marker=marker, color=FAINT, ms=12, mew=0.8, label=INTERVAL)]


def _draw_students(axes: Axes, front: Front, picture: Picture) -> list[Artist]:
    """Returns the legend's entries."""
    legend: list[Artist] = []
    for method, look, on_front, group in groups(front, picture):
        for is_open in (False, True):
            axes.scatter(
                *coordinates(picture, [entry for entry in group if (entry.trial in front.doubtful) == is_open]),
                s=80 if on_front else 36,
                marker=look.marker,
                color="white" if is_open else look.colour,
                alpha=1.0 if on_front else 0.45,
                edgecolors=look.colour if is_open else INK if on_front else "none",
                zorder=4 if on_front else 3,
            )
        if on_front:
            legend.append(Line2D([], [], ls="", marker=look.marker, color=look.colour, ms=8, label=method))
    return legend


def _draw_spreads(axes: Axes, front: Front, picture: Picture) -> list[Artist]:
    """Returns the legend's entries."""
    label, over_x, over_y = spreads(front, picture)
    if not label:
        return []
    axes.errorbar(
        [s.mean for s in over_x],
        [s.mean for s in over_y],
        xerr=[s.deviation for s in over_x],
        yerr=[s.deviation for s in over_y],
        fmt="_",
        color=FAINT,
        lw=1.2,
        capsize=3,
        zorder=5,
    )
    return [Line2D([], [], ls="-", marker="_", color=FAINT, ms=8, label=label)]


def _label_axes(axes: Axes, picture: Picture) -> None:
    for axis, drawn, (low, high) in (
        (picture.x, axes.xaxis, axes.get_xlim()),
        (picture.y, axes.yaxis, axes.get_ylim()),
    ):
        drawn.set_label_text(axis_label(axis), color=INK, fontsize=11, parse_math=False)
        drawn.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if decades(axis, low, high) else AutoLocator())
        drawn.set_minor_formatter(NullFormatter())
        drawn.set_major_formatter(
            ScalarFormatter() if high < 1000 else FuncFormatter(lambda value, _: shortened(value))
        )
