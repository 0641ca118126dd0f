"""The front as pictures: a page that loads nothing (MLflow shows it in a sandboxed frame, offline too), and a PNG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import BytesIO
from math import log10, nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

from search.front import Axis, Entry, Front, Picture, non_dominated, shortened, show
from search.seeds import Spread
from trainers.files import write_whole

_LABELS = {
    "accuracy": "accuracy on validation data (fraction correct)",
    "nll": "nll on validation data (nats per example)",
    "parameters": "parameters (count)",
    "macs": "multiply-accumulates (per example)",
}
_UNITS = {"_bytes": "bytes", "_ms": "ms", "_s": "s"}

_LEGEND = "faint: not on the front"
_INK, _FAINT, _GRID = "#1f2933", "#616e7c", "#e4e7eb"


class _Look(NamedTuple):
    colour: str
    symbol: str  # of plotly
    marker: str  # of matplotlib


# The first six are Okabe and Ito's, told apart by colour-blind readers too; a ninth method looks like the first.
_LOOKS = [
    _Look("#0072b2", "circle", "o"),
    _Look("#d55e00", "square", "s"),
    _Look("#009e73", "diamond", "D"),
    _Look("#cc79a7", "triangle-up", "^"),
    _Look("#e69f00", "triangle-down", "v"),
    _Look("#56b4e9", "pentagon", "p"),
    _Look("#7f6000", "hexagon", "h"),
    _Look("#666666", "cross", "P"),
]

# Named one by one: plotly's own choice includes a button that sends the chart to its makers' server.
_BUTTONS = [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d", "toImage"]]

_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ margin: 0; background: #fff; color: {_INK}; font: 15px/1.45 system-ui, "Segoe UI", Roboto, sans-serif; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 20px 24px 40px; }}
h1 {{ font-size: 22px; margin: 0; }}
p {{ color: {_FAINT}; margin: 4px 0 12px; }}
a {{ color: #0072b2; }}
#front {{ height: 540px; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13.5px; margin-top: 16px; }}
th, td {{ text-align: left; padding: 6px 18px 6px 0; border-bottom: 1px solid {_GRID}; vertical-align: top; }}
th {{ color: {_FAINT}; font-weight: 600; white-space: nowrap; }}
.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
code {{ font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; }}
"""


def front_html(front: Front, study: str, link: str | None, teacher: Mapping[str, float] | None = None) -> str:
    """A page that stands alone: every student to hover over, the front as a step line, its members in a table.

    plotly.js is in the page (4.8 MB); it needs scripts, and no network, storage or cookies.

    Args:
        link: Where the study is in MLflow.
        teacher: Its measurements, for a mark to compare with; no mark where one that the picture needs is missing.
    """
    picture = front.pictured()
    figure = go.Figure()
    if line := _stairs(front, picture):
        xs, ys = _coordinates(picture, line)
        steps = {"color": _INK, "width": 1.5, "shape": "hv" if picture.x.direction == "min" else "vh"}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=steps, name="front", hoverinfo="skip")
    for method, look, on_front, group in _groups(front, picture):
        group.sort(key=lambda entry: entry.trial in front.doubtful)  # the legend has the first one's symbol
        symbols = [look.symbol + ("-open" if entry.trial in front.doubtful else "") for entry in group]
        xs, ys = _coordinates(picture, group)
        figure.add_scatter(
            x=xs or [nan],  # a trace with no point at all has no legend
            y=ys or [nan],
            mode="markers",
            name=escape(method),
            legendgroup=escape(method),  # a click hides the method's members and its others
            showlegend=on_front,
            marker={
                "color": look.colour,
                "symbol": symbols or look.symbol,
                "size": 12 if on_front else 8,
                "opacity": 1.0 if on_front else 0.45,
                "line": {"color": _INK, "width": 1.2 if on_front else 0},
            },
            hovertext=[_hover(front, entry, on_front) for entry in group],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    label, over_x, over_y = _spreads(front, picture)
    if label:
        bars = {"type": "data", "thickness": 1, "color": _FAINT}
        figure.add_scatter(
            x=[s.mean for s in over_x],
            y=[s.mean for s in over_y],
            error_x=bars | {"array": [s.deviation for s in over_x]},
            error_y=bars | {"array": [s.deviation for s in over_y]},
            mode="markers",
            name=label,
            marker={"color": _FAINT, "symbol": "line-ew-open", "size": 8},
            hoverinfo="skip",
        )
    place = _teacher_place(picture, teacher)
    if teacher and place:
        figure.add_scatter(
            x=[place[0]],
            y=[place[1]],
            mode="markers",
            name="teacher",
            marker={"color": _INK, "symbol": "star", "size": 16},
            hovertext=["<br>".join(["<b>teacher</b>", *map(escape, _measured(teacher))])],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    figure.update_layout(
        template="plotly_white",
        font={"family": "system-ui, Segoe UI, Roboto, sans-serif", "size": 13, "color": _INK},
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        xaxis=_plotly_axis(picture.x, picture),
        yaxis=_plotly_axis(picture.y, picture),
        legend={"title": {"text": _legend(front).replace("\n", "<br>"), "font": {"size": 13}}},
        hoverlabel={"align": "left", "bgcolor": "#fff", "bordercolor": _FAINT, "font": {"color": _INK}},
    )
    if frame := _frame(picture, place):
        figure.update_yaxes(range=[log10(end) if picture.y.scale == "log" else end for end in frame])
    config = {"responsive": True, "displaylogo": False, "modeBarButtons": _BUTTONS}
    drawn = figure.to_html(include_plotlyjs=True, full_html=False, div_id="front", config=config)
    title = escape(f"{study}: the front")
    note = escape(_summary(front, picture)) + ("; a double click shows all" if frame else "")
    linked = f' · <a href="{escape(link)}" target="_blank" rel="noopener">the study in MLflow</a>' if link else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n<p>{note}{linked}</p>\n"
        f'{drawn}\n<div class="wide">{_table(front)}</div>\n</main>\n</body>\n</html>\n'
    )


def front_png(front: Front, study: str, path: Path, teacher: Mapping[str, float] | None = None) -> None:
    """Writes the same picture, 1600 by 900 pixels, to `path`."""
    picture = front.pictured()
    figure = Figure(figsize=(10, 5.625), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    legend = []
    if line := _stairs(front, picture):
        steps = "steps-post" if picture.x.direction == "min" else "steps-pre"
        legend += axes.plot(*_coordinates(picture, line), drawstyle=steps, color=_INK, lw=1.4, label="front", zorder=2)
    for method, look, on_front, group in _groups(front, picture):
        for is_open in (False, True):
            axes.scatter(
                *_coordinates(picture, [entry for entry in group if (entry.trial in front.doubtful) == is_open]),
                s=80 if on_front else 36,
                marker=look.marker,
                color="white" if is_open else look.colour,
                alpha=1.0 if on_front else 0.45,
                edgecolors=look.colour if is_open else _INK if on_front else "none",
                zorder=4 if on_front else 3,
            )
        if on_front:
            legend.append(Line2D([], [], ls="", marker=look.marker, color=look.colour, ms=8, label=method))
    label, over_x, over_y = _spreads(front, picture)
    if label:
        axes.errorbar(
            [s.mean for s in over_x],
            [s.mean for s in over_y],
            xerr=[s.deviation for s in over_x],
            yerr=[s.deviation for s in over_y],
            fmt="_",
            color=_FAINT,
            lw=1.2,
            capsize=3,
            zorder=5,
        )
        legend.append(Line2D([], [], ls="-", marker="_", color=_FAINT, ms=8, label=label))
    place = _teacher_place(picture, teacher)
    if place:
        axes.scatter(*place, s=220, marker="*", color=_INK, zorder=5)
        legend.append(Line2D([], [], ls="", marker="*", color=_INK, ms=13, label="teacher"))
    axes.set(xscale=picture.x.scale, yscale=picture.y.scale, ylim=_frame(picture, place))
    for axis, drawn, (low, high) in (
        (picture.x, axes.xaxis, axes.get_xlim()),
        (picture.y, axes.yaxis, axes.get_ylim()),
    ):
        drawn.set_label_text(_label(axis), color=_INK, fontsize=11, parse_math=False)
        drawn.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if _decades(axis, low, high) else AutoLocator())
        drawn.set_minor_formatter(NullFormatter())
        drawn.set_major_formatter(
            ScalarFormatter() if high < 1000 else FuncFormatter(lambda value, _: shortened(value))
        )
    title = f"{study}: {_summary(front, picture)}"
    axes.set_title(title, loc="left", color=_INK, fontsize=13, parse_math=False)
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        corner = (
            "lower right" if picture.y.direction == "max" else "upper right"
        )  # where a large student would be a bad one
        axes.legend(handles=legend, loc=corner, title=_legend(front), edgecolor=_GRID)
    png = BytesIO()
    figure.savefig(png, format="png")
    write_whole(path, png.getvalue())


def _coordinates(picture: Picture, entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    return [entry.value(picture.x.name) for entry in entries], [entry.value(picture.y.name) for entry in entries]


def _groups(front: Front, picture: Picture) -> Iterator[tuple[str, _Look, bool, list[Entry]]]:
    """By transfer method, its dominated students and then its members (False, True): either may be empty."""
    for i, method in enumerate(sorted({_method(entry) for entry in picture.entries})):
        for on_front in (False, True):
            group = [e for e in picture.entries if _method(e) == method and (e in front.members) == on_front]
            yield method, _LOOKS[i % len(_LOOKS)], on_front, group


def _legend(front: Front) -> str:
    return _LEGEND + ("\nhollow: lead within noise over another" if front.doubtful else "")


def _spreads(front: Front, picture: Picture) -> tuple[str, list[Spread], list[Spread]]:
    """A label ("" where no member was repeated), and on x and y the means and deviations of the members that were."""
    repeated = [entry for entry in front.members if entry.repeats and entry in picture.entries]
    counts = sorted({1 + len(entry.repeats) for entry in repeated})
    few_to_many = "–".join(str(count) for count in dict.fromkeys((*counts[:1], *counts[-1:])))
    over_x, over_y = ([entry.spread(axis.name) for entry in repeated] for axis in (picture.x, picture.y))
    return f"mean ± deviation of {few_to_many} seeds" if repeated else "", over_x, over_y


def _method(entry: Entry) -> str:
    return str(entry.recipe.get("transfer", "student"))


def _stairs(front: Front, picture: Picture) -> list[Entry]:
    """The corners of the front of the two objectives that are drawn, by x; none where there is one objective.

    With more than two objectives members lie below it: they are on the front for what is not drawn.
    """
    if len(front.objectives) == 1:
        return []
    points = np.column_stack(_coordinates(picture, picture.entries))
    corners = non_dominated(points, [picture.x.direction, picture.y.direction])
    return sorted((picture.entries[i] for i in corners), key=lambda entry: entry.value(picture.x.name))


def _teacher_place(picture: Picture, teacher: Mapping[str, float] | None) -> tuple[float, float] | None:
    x, y = ((teacher or {}).get(axis.name, nan) for axis in (picture.x, picture.y))
    return (x, y) if picture.x.shows(x) and picture.y.shows(y) else None


def _frame(picture: Picture, teacher: tuple[float, float] | None) -> tuple[float, float] | None:
    """The ends of y where students lie beyond them, else None (the library's choice, which shows all)."""
    if not picture.far:
        return None
    shown = [entry.value(picture.y.name) for entry in picture.entries if entry not in picture.far]
    shown += [teacher[1]] if teacher else []
    low, high = min(shown), max(shown)
    if picture.y.scale == "log":
        return low / (high / low) ** 0.08, high * (high / low) ** 0.08
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def _summary(front: Front, picture: Picture) -> str:
    return front.summary() + (f" ({len(picture.far)} far worse, off the picture)" if picture.far else "")


def _plotly_axis(axis: Axis, picture: Picture) -> dict[str, object]:
    values = [entry.value(axis.name) for entry in picture.entries]
    ticks: dict[str, object] = {"dtick": "D2"} if values and _decades(axis, min(values), max(values)) else {}
    title = {"text": escape(_label(axis))}
    return {"title": title, "type": axis.scale, "gridcolor": _GRID, "exponentformat": "SI"} | ticks


def _decades(axis: Axis, low: float, high: float) -> bool:
    """Whether the axis is logarithmic, and long enough for ticks at 1, 2 and 5 of every decade."""
    return axis.scale == "log" and high > 8 * low


def _label(axis: Axis) -> str:
    label = _LABELS.get(axis.name, axis.name)
    for end, unit in _UNITS.items():
        if label.endswith(end):
            label = f"{label.removesuffix(end)} ({unit})"
    return f"{label}, log scale" if axis.scale == "log" else label


def _hover(front: Front, entry: Entry, on_front: bool) -> str:
    seeds = [f"{name}: {cell}" for name, cell in front.seed_cells(entry).items() if cell] if on_front else []
    recipe = [f"{name} = {value}" for name, value in entry.recipe.items()]
    head = f"<b>{entry.called}</b>" + (", on the front" if on_front else "")
    return "<br>".join([head, *map(escape, [*_measured(entry.measurements), *seeds]), "", *map(escape, recipe)])


def _measured(measurements: Mapping[str, float]) -> list[str]:
    return [f"{name} {show(value)}" for name, value in measurements.items()]


def _table(front: Front) -> str:
    seeds = [front.seed_cells(entry) for entry in front.members]
    names = ("student", *front.objectives, *(seeds[0] if seeds else ()))
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    rows = [
        "".join(
            f'<td class="number">{cell}</td>'
            for cell in (entry.trial, *(show(entry.value(n)) for n in front.objectives), *cells.values())
        )
        + f"<td><code>{escape(front.brief(entry))}</code></td><td><code>{escape(entry.run_id or '–')}</code></td>"
        for entry, cells in zip(front.members, seeds, strict=True)
    ]
    return (
        f"<table><thead><tr>{head}<th>recipe</th><th>MLflow run</th></tr></thead>"
        f"<tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"
    )
