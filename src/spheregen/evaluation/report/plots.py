"""Plots of a page: SVG by matplotlib in the page's own colours."""

from __future__ import annotations

import io
import itertools
import math
import re
from typing import TYPE_CHECKING

from spheregen.drawing import COLOURS, INK, RULE, SOFT, look, new_figure, plain_ticks
from spheregen.evaluation.report.parts import Plot, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAGE_COLOURS = {INK: "currentColor", SOFT: "var(--soft)", RULE: "var(--rule)", COLOURS[0]: "var(--blue)"}
_MANY_POINTS = 2000  # more become pixels: the page would be megabytes
_FEW_TICKS = 9


def draw(plot: Plot, name: str) -> str:
    """Return a plot as an SVG element. The same plot and name give the same text.

    Points that are not finite are left out. An axis that asks for logarithms stays linear if nothing on it is positive.

    Args:
        name: makes the ids in the drawing its own; another one for each plot of a page.

    Raises:
        SphereGenError: matplotlib is missing.
    """
    log_x = plot.log_x and any(x > 0 for series in plot.series for x in series.x)
    log_y = plot.log_y and any(y > 0 for series in plot.series for y in series.y)
    names = [_short(series.name, 40) for series in plot.series]
    longest = max(map(len, names), default=0)
    columns = 1 if longest > 26 else 2 if longest > 14 else 4
    rows = -(-len(names) // columns) if len(names) > 1 else 0
    file = io.StringIO()
    with new_figure(5.2, 3.1 + 0.2 * rows, extra="report", font_size=10, svg_hashsalt=name) as figure:
        axes = figure.subplots()
        plain_ticks(axes, log_x=log_x, log_y=log_y)
        bars = [series for series in plot.series if series.kind == "bars"]
        for place, series in enumerate(plot.series):
            if series.kind == "bars":
                _draw_bars(axes, series, place, bars, names[place])
            else:
                _draw_series(axes, series, place, names[place])
        values = sorted({x for series in plot.series for x in series.x})
        if not bars and not log_x and len(values) <= _FEW_TICKS and all(float(x).is_integer() for x in values):
            axes.set_xticks(values)  # such as 1, 2, 4 steps
        axes.set_xlabel(_short(plot.x_label, 60))
        axes.set_ylabel(_short(plot.y_label, 42))
        axes.grid(True, axis="y" if bars else "both")
        if rows:
            figure.legend(loc="outside lower center", ncols=columns, fontsize=9)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", dpi=150, transparent=True, metadata=metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{_letters(plot.title)}"', 1)
    svg = re.sub(r' id="[A-Za-z]+[\w.]*_\d+"', "", svg)  # which nothing refers to, and every plot has
    svg = re.sub(r"<style.*?</style>| xmlns(:\w+)?=\"[^\"]*\"", "", svg, flags=re.DOTALL).replace("xlink:href", "href")
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _PAGE_COLOURS.get(found[0], found[0]), svg)


def _draw_series(axes: Axes, series: Series, place: int, name: str) -> None:
    keep = [i for i, point in enumerate(zip(series.x, series.y, strict=True)) if all(map(math.isfinite, point))]
    x, y = [series.x[i] for i in keep], [series.y[i] for i in keep]
    style = look(place) | {"label": name, "rasterized": len(x) > _MANY_POINTS}
    if series.kind == "points":
        many = len(x) >= 200
        marker = "os^D"[place // len(COLOURS) % 4]
        style |= {"linestyle": "none", "marker": marker, "markeredgewidth": 0}
        style |= {"markersize": 3 if many else 5, "alpha": 0.5 if many else 1}
    elif series.kind == "step":
        style["drawstyle"] = "steps-mid"
    elif len(x) <= 20 and (len(x) != 2 or series.labels is not None):  # two points are a mere rule
        style |= {"marker": "o", "markersize": 5}
    axes.plot(x, y, **style)
    if series.error is not None:
        errors = [_height(series.error[i]) for i in keep]
        axes.errorbar(x, y, errors, fmt="none", ecolor=style["color"], elinewidth=1.2, capsize=2.5)
    for i in keep if series.labels is not None else ():
        note = axes.annotate(
            _short(series.labels[i], 20),  # type: ignore[index]
            (series.x[i], series.y[i]),
            (5, 4),
            textcoords="offset points",
            fontsize=8.5,
        )
        note.set_in_layout(False)


def _draw_bars(axes: Axes, series: Series, place: int, group: list[Series], name: str) -> None:
    """Draw the bars of one series beside those of the others."""
    places = sorted({x for one in group for x in one.x})
    gap = min((right - left for left, right in itertools.pairwise(places)), default=1.0)
    width = 0.8 * gap / len(group)
    offset = (next(i for i, one in enumerate(group) if one is series) - (len(group) - 1) / 2) * width
    heights = [y if math.isfinite(y) else 0.0 for y in series.y]
    errors = None if series.error is None else list(map(_height, series.error))
    axes.bar([x + offset for x in series.x], heights, width, yerr=errors, color=look(place)["color"], label=name)
    if series.labels is not None and series is group[0]:
        labels = [_short(label, 20) for label in series.labels]
        turned = sum(map(len, labels)) + 2 * len(labels) > 48
        axes.set_xticks(series.x, labels, rotation=90 if turned else 0, fontsize=8.5)


def _height(error: float) -> float:
    return error if math.isfinite(error) and error > 0 else 0.0


def _short(text: str, most: int) -> str:
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
    line = line if len(line) <= most else line[: most - 1] + "…"
    return f" {line}" if line.startswith("_") else line  # matplotlib hides names that begin so


def _letters(text: str) -> str:
    return re.sub(r"[^\w ,.()-]", " ", text)
