"""Figures of matplotlib without its global state: one palette and one quiet style for all plots."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from spheregen.external import import_package

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, RULE = "#1c2128", "#59636e", "#d8dde3"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
"""Told apart under every kind of colour blindness (Okabe and Ito 2008)."""
DASHES = ("-", "--", "-.", ":")
"""For lines beyond the number of colours."""
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spheregen",
    "text.parse_math": False,  # names are names, a dollar sign included
    "axes.formatter.useoffset": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}


@contextlib.contextmanager
def new_figure(width: float, height: float, *, extra: str = "plot", **style: Any) -> Iterator[Figure]:
    """Yield a figure of so many inches; save it inside the block, where the style holds.

    Args:
        extra: the extra of this package that installs matplotlib, for the error.
        style: more settings of matplotlib, with `_` in place of `.` (`font_size=9`).

    Raises:
        SphereGenError: matplotlib is missing.
    """
    matplotlib = import_package("matplotlib", extra, "drawing")
    from matplotlib.figure import Figure  # without pyplot, hence without global state and without a display

    more = {name.replace("_", "."): value for name, value in style.items()}
    with matplotlib.rc_context(_STYLE | more), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield Figure(figsize=(width, height), layout="constrained")


def look(place: int) -> dict[str, Any]:
    """Return colour and dashes of the series number `place` of a plot."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]}


def plain_ticks(axes: Axes, *, log_x: bool = False, log_y: bool = False) -> None:
    """Put the axes on their scales, with ticks in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
        if log:
            getattr(axes, f"set_{axis.axis_name}scale")("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
