"""Parts of a report. Each study of the evaluation tells its findings as one section of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

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
    kind: Literal["line", "points", "step"] = "line"
    """`step` holds the height y around x, as a histogram does over the middles of its bins."""
    labels: tuple[str, ...] | None = None
    """Written beside the points."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header, each as long as it."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    missing: str = "not measured, or it does not apply"
    """Why a cell is None; told below the table where one is."""


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell a number from anything else, truth values among them."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def table_of(
    title: str, columns: Iterable[tuple[str, Sequence[Cell]]], *, missing: str = Table.missing
) -> tuple[Table, ...]:
    """Return a table of columns, without those that hold nothing; none where there are no rows."""
    kept = [(name, cells) for name, cells in columns if any(cell is not None for cell in cells)]
    if not kept:
        return ()
    names, cells = zip(*kept, strict=True)
    return (Table(title=title, header=names, rows=tuple(zip(*cells, strict=True)), missing=missing),)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """An image to look at."""

    image: Image.Image
    title: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page, in this order: text, warnings, tables, plots, sheets."""

    key: str
    """The anchor: letters and hyphens."""
    title: str
    text: tuple[str, ...] = ()
    """Paragraphs: what was done, how to read it."""
    warnings: tuple[str, ...] = ()
    """Findings that speak against the model or the figures."""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    sheets: tuple[Sheet, ...] = ()
