"""The front as a self-contained page: MLflow shows it in a sandboxed frame, also offline."""

from collections.abc import Mapping
from html import escape
from math import log10, nan
from typing import Any

import plotly.graph_objects as go

from search.fronts.front import INTERVAL, Entry, Front
from search.fronts.pareto import Axis
from search.fronts.picture import (
    FAINT,
    GRID,
    INK,
    Intervals,
    Look,
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
from search.fronts.quantities import show

# Named one by one: plotly's own choice includes a button that sends the chart to its makers' server.
_BUTTONS = [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d", "toImage"]]

_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ margin: 0; background: #fff; color: {INK}; font: 15px/1.45 system-ui, "Segoe UI", Roboto, sans-serif; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 20px 24px 40px; }}
h1 {{ font-size: 22px; margin: 0; }}
p {{ color: {FAINT}; margin: 4px 0 12px; }}
a {{ color: #0072b2; }}
#front {{ height: 540px; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13.5px; margin-top: 16px; }}
th, td {{ text-align: left; padding: 6px 18px 6px 0; border-bottom: 1px solid {GRID}; vertical-align: top; }}
th {{ color: {FAINT}; font-weight: 600; white-space: nowrap; }}
.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
code {{ font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; }}
"""


def front_html(front: Front, study: str, link: str | None, teacher: Mapping[str, float] | None = None) -> str:
    """A self-contained page: every student with its hover text, the front as a step line, its students in a table.

    The page includes plotly.js (4.8 MB); it needs scripts, but no network, storage or cookies.

    Args:
        front: the front to show.
        study: the study's name.
        link: to the study in MLflow.
        teacher: its measurements, for a mark to compare with; no mark if one that the picture needs is missing.
    """
    picture = pictured(front)
    place = teacher_place(picture, teacher)
    ends = frame(picture, place)
    figure = _figure(front, picture, teacher, place)
    if ends:
        figure.update_yaxes(range=[log10(end) if picture.y.scale == "log" else end for end in ends])
    config = {"responsive": True, "displaylogo": False, "modeBarButtons": _BUTTONS}
    drawn = figure.to_html(include_plotlyjs=True, full_html=False, div_id="front", config=config)
    title = escape(f"{study}: the front")
    note = escape(caption(front, picture)) + ("; a double click shows all" if ends else "")
    chosen = f"<br>{escape(line)}" if (line := front.chosen_from()) else ""
    linked = f' · <a href="{escape(link)}" target="_blank" rel="noopener">the study in MLflow</a>' if link else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n<p>{note}{linked}{chosen}</p>\n"
        f'{drawn}\n<div class="wide">{_table(front)}</div>\n</main>\n</body>\n</html>\n'
    )


def _figure(
    front: Front, picture: Picture, teacher: Mapping[str, float] | None, place: tuple[float, float] | None
) -> go.Figure:
    figure = go.Figure()
    if corners := stairs(front, picture):
        xs, ys = coordinates(picture, corners)
        steps = {"color": INK, "width": 1.5, "shape": "hv" if picture.x.direction == "min" else "vh"}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=steps, name="front", hoverinfo="skip")
    if (known := intervals(front, picture)).entries:
        figure.add_scatter(**_bars(picture, known))
    for method, look, on_front, group in groups(front, picture):
        figure.add_scatter(**_marks(front, picture, method, look, on_front, group))
    label, over_x, over_y = spreads(front, picture)
    if label:
        bars = {"type": "data", "thickness": 1, "color": FAINT}
        figure.add_scatter(
            x=[s.mean for s in over_x],
            y=[s.mean for s in over_y],
            error_x=bars | {"array": [s.deviation for s in over_x]},
            error_y=bars | {"array": [s.deviation for s in over_y]},
            mode="markers",
            name=label,
            marker={"color": FAINT, "symbol": "line-ew-open", "size": 8},
            hoverinfo="skip",
        )
    if teacher and place:
        figure.add_scatter(
            x=[place[0]],
            y=[place[1]],
            mode="markers",
            name="teacher",
            marker={"color": INK, "symbol": "star", "size": 16},
            hovertext=["<br>".join(["<b>teacher</b>", *map(escape, _measured(teacher))])],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    return figure.update_layout(
        template="plotly_white",
        font={"family": "system-ui, Segoe UI, Roboto, sans-serif", "size": 13, "color": INK},
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        xaxis=_plotly_axis(picture.x, picture),
        yaxis=_plotly_axis(picture.y, picture),
        legend={"title": {"text": legend_title(front).replace("\n", "<br>"), "font": {"size": 13}}},
        hoverlabel={"align": "left", "bgcolor": "#fff", "bordercolor": FAINT, "font": {"color": INK}},
    )


def _bars(picture: Picture, known: Intervals) -> dict[str, Any]:
    """The trace of the accuracies' intervals."""
    xs, ys = coordinates(picture, known.entries)
    reach = {"type": "data", "symmetric": False, "array": known.above, "arrayminus": known.below}
    return {
        "x": xs,
        "y": ys,
        f"error_{known.axis}": reach | {"thickness": 1, "width": 3, "color": FAINT},
        "mode": "markers",
        "name": INTERVAL,
        "marker": {"color": FAINT, "symbol": "line-ew-open" if known.axis == "x" else "line-ns-open", "size": 8},
        "hoverinfo": "skip",
    }


def _marks(
    front: Front, picture: Picture, method: str, look: Look, on_front: bool, group: list[Entry]
) -> dict[str, Any]:
    """The trace of one method's students, either on the front or off it."""
    group = sorted(group, key=lambda entry: entry.trial in front.doubtful)  # the legend shows the first one's symbol
    symbols = [look.symbol + ("-open" if entry.trial in front.doubtful else "") for entry in group]
    xs, ys = coordinates(picture, group)
    return {
        "x": xs or [nan],  # a trace without any point has no legend
        "y": ys or [nan],
        "mode": "markers",
        "name": escape(method),
        "legendgroup": escape(method),  # a click hides the method's students, on the front and off it
        "showlegend": on_front,
        "marker": {
            "color": look.colour,
            "symbol": symbols or look.symbol,
            "size": 12 if on_front else 8,
            "opacity": 1.0 if on_front else 0.45,
            "line": {"color": INK, "width": 1.2 if on_front else 0},
        },
        "hovertext": [_hover(front, entry, on_front) for entry in group],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _plotly_axis(axis: Axis, picture: Picture) -> dict[str, object]:
    values = [entry.value(axis.name) for entry in picture.entries]
    ticks: dict[str, object] = {"dtick": "D2"} if values and decades(axis, min(values), max(values)) else {}
    title = {"text": escape(axis_label(axis))}
    return {"title": title, "type": axis.scale, "gridcolor": GRID, "exponentformat": "SI"} | ticks


def _hover(front: Front, entry: Entry, on_front: bool) -> str:
    seeds = [f"{name}: {cell}" for name, cell in front.seed_cells(entry).items() if cell] if on_front else []
    recipe = [f"{name} = {value}" for name, value in entry.recipe.items()]
    head = f"<b>{entry.called}</b>" + (", on the front" if on_front else "")
    measured = _measured(entry.measurements)
    if front.interval(entry) is not None:
        accuracy = list(entry.measurements).index("accuracy")
        measured[accuracy] += f" ({INTERVAL} {front.interval_cell(entry)})"
    return "<br>".join([head, *map(escape, [*measured, *seeds]), "", *map(escape, recipe)])


def _measured(measurements: Mapping[str, float]) -> list[str]:
    return [f"{name} {show(value)}" for name, value in measurements.items()]


def _table(front: Front) -> str:
    members = front.non_dominated
    columns = {"student": [str(entry.trial) for entry in members]}
    for name in front.objectives:
        columns[name] = [show(entry.value(name)) for entry in members]
        if name == "accuracy" and any(map(front.interval, members)):
            columns[INTERVAL] = [front.interval_cell(entry) for entry in members]
    seeds = [front.seed_cells(entry) for entry in members]
    columns |= {name: [cells[name] for cells in seeds] for name in (seeds[0] if seeds else ())}
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in columns)
    rows = [
        "".join(f'<td class="number">{cells[place]}</td>' for cells in columns.values())
        + f"<td><code>{escape(front.brief(entry))}</code></td><td><code>{escape(entry.run_id or '–')}</code></td>"
        for place, entry in enumerate(members)
    ]
    return (
        f"<table><thead><tr>{head}<th>recipe</th><th>MLflow run</th></tr></thead>"
        f"<tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"
    )
