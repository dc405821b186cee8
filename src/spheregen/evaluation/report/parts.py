"""What a report is made of. Each study of the evaluation says its findings as one section of these parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

Cell = str | int | float | None
"""None is a figure that could not be had."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one name in a plot."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    error: tuple[float, ...] | None = None
    """Half the height of each error bar."""
    kind: Literal["line", "points", "bars", "step"] = "line"
    """`step` holds the height y around x, as a histogram does over the middles of its bins."""
    labels: tuple[str, ...] | None = None
    """Written beside the points; below the bars."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header, each as long as it."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image to look at."""

    image: Image.Image
    title: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page, in this order: text, warnings, tables, plots, pictures."""

    key: str
    """The anchor: letters and hyphens."""
    title: str
    text: tuple[str, ...] = ()
    """Paragraphs: what was done, how to read it."""
    warnings: tuple[str, ...] = ()
    """What speaks against the model or the figures."""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    pictures: tuple[Picture, ...] = ()
