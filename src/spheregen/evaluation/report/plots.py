"""Plots as SVG elements that take the page's colours, drawn by matplotlib without global state.

The picture holds axes and data; its title and legend are for the page to write, where they stay readable on a phone.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from spheregen.colours import COLOURS, DASHES
from spheregen.errors import ConfigError
from spheregen.evaluation.report.markup import clean, element
from spheregen.evaluation.report.parts import Plot, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING = 'pip install "spheregen[plot]"'
"""What gets the package that draws."""
_INK, _SOFT, _RULE = "#1c2128", "#59636e", "#d8dde3"
_SIZE = (5.0, 3.1)  # inches
_FEW_TICKS = 8
_LONG_LABELS = 48  # characters below an axis before they are turned
_LONGEST_LABEL, _LONGEST_X, _LONGEST_Y = 20, 60, 42  # longer texts leave no room for the plot
_MANY_POINTS = 2000  # more become pixels: the page would be megabytes
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spheregen",
    "text.parse_math": False,  # names are names, a dollar sign included
    "font.size": 10.0,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
}


@dataclass(frozen=True)
class Drawing:
    """A plot that was drawn."""

    svg: Element
    """Axes and data; ids in it begin with the plot's name, colours are the page's variables."""
    omitted: int
    """Points that could not be shown: not finite, or not positive on a logarithmic axis."""


def available() -> bool:
    """Whether plots can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(plot: Plot, name: str) -> Drawing:
    """Draw a plot. The same plot and name give the same element.

    An axis that asks for logarithms stays linear if nothing on it is positive. The labels of bars stand below them.

    Args:
        name: begins every id in the drawing; letters, digits and hyphens, and of its own in a page.

    Raises:
        ConfigError: matplotlib is missing.
    """
    if not available():
        raise ConfigError(f"drawing needs matplotlib, which is missing: {MISSING}")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    log_x = plot.log_x and any(x > 0 for series in plot.series for x in series.x if math.isfinite(x))
    log_y = plot.log_y and any(y > 0 for series in plot.series for y in series.y if math.isfinite(y))
    shown = [_shown(series, log_x=log_x, log_y=log_y) for series in plot.series]
    file = io.BytesIO()
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has its own fonts
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)  # without pyplot, hence without global state and without a display
        axes = figure.subplots()
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log", nonpositive="clip")
        for place, series in enumerate(shown):
            look = {"color": COLOURS[place % len(COLOURS)]}
            if series.kind == "bars":
                _draw_bars(axes, series, [one for one in shown if one.kind == "bars"], look)
            else:
                _draw_series(axes, series, {**look, "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]})
        _dress(axes, plot, shown, log_x=log_x, log_y=log_y)
        figure.savefig(file, format="svg", dpi=200, transparent=True, metadata={"Date": None})
    colours = {_INK: "--ink", _SOFT: "--soft", _RULE: "--rule"}
    colours |= {colour.lower(): f"--series-{place}" for place, colour in enumerate(COLOURS)}
    omitted = sum(len(series.x) for series in plot.series) - sum(len(series.x) for series in shown)
    return Drawing(_for_page(file.getvalue(), name, colours, _description(plot)), omitted)


def legend_mark(series: Series, place: int) -> Element:
    """A small drawing of how the series in this place looks."""

    colour = f"var(--series-{place % len(COLOURS)}, {COLOURS[place % len(COLOURS)].lower()})"
    if series.kind == "bars":
        shape = element("rect", x=6, y=1, width=10, height=10, fill=colour)
    elif series.kind == "points":
        shape = element("circle", cx=11, cy=6, r=4, fill=colour)
    else:
        dashes = (None, "6 3", "6 3 1.5 3", "1.5 3")[place // len(COLOURS) % 4]
        shape = element("path", d="M0 6H22", stroke=colour, stroke_width="2.2", stroke_dasharray=dashes)
    return element("svg", shape, width=22, height=12, aria_hidden="true")


def _shown(series: Series, *, log_x: bool, log_y: bool) -> Series:
    """What of a series has a place on the axes."""
    keep = [
        place
        for place, (x, y) in enumerate(zip(series.x, series.y, strict=True))
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
    ]
    errors, labels = series.error, series.labels
    return Series(
        name=series.name,
        x=tuple(series.x[place] for place in keep),
        y=tuple(series.y[place] for place in keep),
        error=None if errors is None else tuple(_height(errors[place]) for place in keep),
        kind=series.kind,
        labels=None if labels is None else tuple(labels[place] for place in keep),
    )


def _height(error: float) -> float:
    return error if math.isfinite(error) and error > 0 else 0.0


def _draw_series(axes: Axes, series: Series, look: dict[str, Any]) -> None:
    rasterized = len(series.x) > _MANY_POINTS
    if series.kind == "points":
        size = 5.0 if len(series.x) < 200 else 3.0
        look = {**look, "linestyle": "none", "marker": "o", "markersize": size, "markeredgewidth": 0}
        if len(series.x) >= 200:
            look["alpha"] = 0.5
    elif series.kind == "step":
        look = {**look, "drawstyle": "steps-mid"}
    elif len(series.x) <= 20 and (len(series.x) != 2 or series.labels is not None):  # two points are a mere rule
        look = {**look, "marker": "o"}
    axes.plot(series.x, series.y, rasterized=rasterized, **look)
    if series.error is not None:
        bars = {"fmt": "none", "color": look["color"], "markerfacecolor": look["color"]}
        axes.errorbar(series.x, series.y, series.error, elinewidth=1.2, capsize=2.5, **bars)
    for x, y, label in zip(series.x, series.y, series.labels or (), strict=False):
        note = axes.annotate(_short(label, _LONGEST_LABEL), (x, y), (5, 4), textcoords="offset points", fontsize=8.5)
        note.set_in_layout(False)


def _draw_bars(axes: Axes, series: Series, group: list[Series], look: dict[str, Any]) -> None:
    """The bars of one series, beside those of the others in its group."""
    places = sorted({x for one in group for x in one.x})
    gap = min((right - left for left, right in itertools.pairwise(places)), default=1.0)
    width = 0.8 * gap / len(group)
    offset = (next(i for i, one in enumerate(group) if one is series) - (len(group) - 1) / 2) * width
    at = [x + offset for x in series.x]
    axes.bar(at, series.y, width, yerr=series.error, linewidth=0, error_kw={"ecolor": _INK, "elinewidth": 1.2}, **look)
    if series.labels is not None and series is group[0]:
        labels = [_short(label, _LONGEST_LABEL) for label in series.labels]
        turned = sum(map(len, labels)) + 2 * len(labels) > _LONG_LABELS
        axes.set_xticks(series.x, labels, rotation=90 if turned else 0, fontsize=8.5)


def _dress(axes: Axes, plot: Plot, shown: list[Series], *, log_x: bool, log_y: bool) -> None:
    """Labels, ticks in plain numbers, a quiet grid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set_xlabel(_short(plot.x_label, _LONGEST_X))
    axes.set_ylabel(_short(plot.y_label, _LONGEST_Y))
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    named = any(series.kind == "bars" and series.labels is not None for series in shown)
    for axis, log, of_points in (
        (axes.xaxis, log_x, [x for series in shown for x in series.x]),
        (axes.yaxis, log_y, [y for series in shown for y in series.y]),
    ):
        values = sorted(set(of_points))
        few = axis is axes.xaxis and 0 < len(values) <= _FEW_TICKS
        whole = all(float(value).is_integer() for value in values)
        if named and axis is axes.xaxis:
            axis.set_tick_params(length=0)
        elif few and (log or whole) and _apart([math.log(value) for value in values] if log else values):
            axis.set_ticks(values)  # such as 1, 2, 4 steps
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(plain)
        elif log:
            span = values[-1] / values[0] if values else 1.0
            between = (1, 1.5, 2, 3, 5, 7) if span < 8 else (1, 2, 5) if span < 50 else (1,)
            axis.set_major_locator(LogLocator(subs=between, numticks=9))
            axis.set_major_formatter(plain)
            axis.set_minor_formatter(NullFormatter())
        elif values:
            axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=whole))
    axes.grid(True, axis="y" if named else "both", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _short(text: str, most: int) -> str:
    one_line = clean(" ".join(text.split()))
    return one_line if len(one_line) <= most else one_line[: most - 1] + "…"


def _apart(places: list[float]) -> bool:
    """Whether labels at these places of an axis, in their order, do not touch."""
    span = places[-1] - places[0]
    return all(right - left > 0.09 * span for left, right in itertools.pairwise(places))


def _description(plot: Plot) -> str:
    names = ", ".join(series.name for series in plot.series)
    return f"Plot of {plot.y_label} against {plot.x_label}: {plot.title}{f' ({names})' if names else ''}"


def _for_page(svg: bytes, name: str, colours: dict[str, str], description: str) -> Element:
    """An SVG file as an element of a page: no ids but those that are used, the page's colours, a description."""
    source = ElementTree.fromstring(svg)
    for parent in list(source.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        parent.tail = None
        if not (parent.text or "").strip():
            parent.text = None
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style", "title"):
                parent.remove(child)
        for key in list(parent.attrib):  # xlink:href is href to browsers of today
            parent.attrib[key.rpartition("}")[2]] = parent.attrib.pop(key)
    used = {
        found
        for one in source.iter()
        for key, value in one.attrib.items()
        for found in re.findall(r"#([\w-]+)\)" if key != "href" else r"^#([\w-]+)$", value)
    }
    for one in source.iter():
        for key, value in one.attrib.items():
            if key == "href":
                one.set(key, re.sub(r"^#", f"#{name}-", value))
            elif "url(#" in value:
                one.set(key, value.replace("url(#", f"url(#{name}-"))
            elif key == "style":
                one.set(key, re.sub(r"#[0-9a-f]{6}", lambda found: _variable(found[0], colours), value))
        if one.get("id") in used:
            one.set("id", f"{name}-{one.get('id')}")
        else:
            one.attrib.pop("id", None)
    for key in ("width", "height", "version"):
        source.attrib.pop(key, None)
    source.attrib |= {"role": "img", "aria-label": clean(description), "stroke-linejoin": "round"}
    return source


def _variable(colour: str, colours: dict[str, str]) -> str:
    return f"var({colours[colour]}, {colour})" if colour in colours else colour
