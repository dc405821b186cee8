"""Plots of a page: SVG by matplotlib in the page's own colours."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING

from spheregen.drawing import COLOURS, INK, RULE, SOFT, look, new_figure, plain_ticks
from spheregen.evaluation.report.parts import Plot, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAGE_COLOURS = {INK: "currentColor", SOFT: "var(--soft)", RULE: "var(--rule)", COLOURS[0]: "var(--blue)"}
_FEW = 20  # points of a line that are marked, one by one


def draw(plot: Plot, name: str) -> str:
    """Return a plot as an SVG element. The same plot and name give the same text.

    Points that are not finite are left out. An axis that asks for logarithms stays linear if nothing on it is positive.

    Args:
        name: makes the ids in the drawing its own; another one for each plot of a page.
    """
    log_x = plot.log_x and any(x > 0 for series in plot.series for x in series.x)
    names = [_short(series.name, 40) for series in plot.series]
    columns = 1 if max(map(len, names), default=0) > 26 else 2
    rows = -(-len(names) // columns) if len(names) > 1 else 0
    file = io.StringIO()
    with new_figure(5.2, 3.1 + 0.2 * rows, extra="report", font_size=10, svg_hashsalt=name) as figure:
        axes = figure.subplots()
        plain_ticks(axes, log_x=log_x)
        for place, series in enumerate(plot.series):
            _draw_series(axes, series, place, names[place])
        values = sorted({x for series in plot.series for x in series.x})
        if not log_x and len(values) < 10 and all(float(x).is_integer() for x in values):
            axes.set_xticks(values)  # such as 1, 2, 4 steps
        axes.set_xlabel(_short(plot.x_label, 60))
        axes.set_ylabel(_short(plot.y_label, 42))
        axes.grid(True)
        if rows:
            figure.legend(loc="outside lower center", ncols=columns, fontsize=9)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    svg, title = file.getvalue(), re.sub(r"[^\w ,.()-]", " ", plot.title)
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    svg = re.sub(r' id="[A-Za-z]+[\w.]*_\d+"', "", svg)  # which nothing refers to, and every plot has
    svg = re.sub(r"<style.*?</style>| xmlns(:\w+)?=\"[^\"]*\"", "", svg, flags=re.DOTALL).replace("xlink:href", "href")
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _PAGE_COLOURS.get(found[0], found[0]), svg)


def _draw_series(axes: Axes, series: Series, place: int, name: str) -> None:
    keep = [i for i, point in enumerate(zip(series.x, series.y, strict=True)) if all(map(math.isfinite, point))]
    x, y = [series.x[i] for i in keep], [series.y[i] for i in keep]
    style = look(place) | {"label": name}
    if series.kind == "points":
        style |= {"linestyle": "none", "marker": "o", "markersize": 5}
    elif series.kind == "step":
        style["drawstyle"] = "steps-mid"
    elif len(x) <= _FEW:
        style |= {"marker": "o", "markersize": 5}
    axes.plot(x, y, **style)
    if series.error is not None:
        errors = [max(0.0, each) if math.isfinite(each := series.error[i]) else 0.0 for i in keep]
        axes.errorbar(x, y, errors, fmt="none", ecolor=style["color"], elinewidth=1.2, capsize=2.5)
    for i in keep if series.labels is not None else ():
        label, point = _short(series.labels[i], 20), (series.x[i], series.y[i])  # type: ignore[index]
        axes.annotate(label, point, (5, 4), textcoords="offset points", fontsize=8.5).set_in_layout(False)


def _short(text: str, most: int) -> str:
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
    line = line if len(line) <= most else line[: most - 1] + "…"
    return f" {line}" if line.startswith("_") else line  # matplotlib hides names that begin so
