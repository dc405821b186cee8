"""The report: one HTML file that loads nothing, on screen and on paper, and the same figures as JSON beside it."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from PIL import Image

from spheregen.data.grids import encode_png
from spheregen.evaluation.report import plots
from spheregen.evaluation.report.cells import cell_text, column_texts, is_number
from spheregen.evaluation.report.markup import append, document, element
from spheregen.evaluation.report.parts import Picture, Plot, Section, Table
from spheregen.evaluation.report.sections import RESULT
from spheregen.files import write_text

PAGE = "index.html"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the page may load: the pictures and styles in it, and nothing from anywhere."""
_OWN_ANCHORS = ("main", "json")
_SHOWN_WIDTH = 480  # small pictures are enlarged by whole factors up to about this
_LARGEST_FACTOR = 8
_MOST_NUMBERS = 300  # rows of a plot's numbers on the page


def render(
    title: str, subtitle: str, sections: Sequence[Section], data: Mapping[str, Any], *, file: str = RESULT
) -> str:
    """The report as an HTML document. The same input gives the same text.

    Every text may come from anywhere: it is escaped, and the page's policy forbids scripts and requests besides.

    Args:
        title: the page's heading.
        subtitle: a line below it.
        sections: in their order; keys of letters and hyphens, each once.
        data: the whole result, shown as JSON at the end.
        file: what holds the same JSON beside the page.

    Raises:
        ValueError: a section's key is no anchor or occurs twice, or a table's row is not as long as its header.
    """
    keys = [section.key for section in sections]
    for key in keys:
        if not re.fullmatch(r"[A-Za-z]+(-[A-Za-z]+)*", key):
            raise ValueError(f"section key {key!r} is not of letters and hyphens")
        if keys.count(key) > 1 or key in _OWN_ANCHORS:
            raise ValueError(f"section key {key!r} is taken")
    main = element("main", *(_section(section) for section in sections), _json_section(data, file), id="main")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", _style()),
    )
    body = element(
        "body",
        element("a", "Skip to the figures", class_="skip", href="#main"),
        element("header", element("h1", title), element("p", subtitle, class_="subtitle") if subtitle else None),
        _navigation(sections),
        main,
    )
    for block in (head, body, *body, *main):
        block.tail = "\n"
    return document(element("html", head, body, lang="en"))


def write_report(folder: Path, html: str, result: Mapping[str, Any]) -> None:
    """Write `evaluation.json` and `index.html` into `folder`, each as a whole or not at all.

    Raises:
        SphereGenError: the folder cannot be written to.
    """
    write_text(folder / RESULT, to_json(result) + "\n")
    write_text(folder / PAGE, html)


def to_json(result: Any) -> str:
    """`result` as indented JSON that every reader takes: figures that are not finite become null."""
    text = json.dumps(_plain(result), indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode()  # names of files may be no text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _style() -> str:
    return "\n" + files(__package__).joinpath("page.css").read_text(encoding="utf-8")


def _navigation(sections: Sequence[Section]) -> Element:
    items = []
    for section in sections:
        count = len(section.warnings)
        words = f"{count} warning{'' if count == 1 else 's'}"
        mark = element("span", words, class_="count") if count else None
        items.append(element("li", element("a", section.title, href=f"#{section.key}"), mark))
    items.append(element("li", element("a", "All figures as JSON", href="#json")))
    return element("nav", element("h2", "Contents"), element("ul", *items), aria_label="Contents")


def _section(section: Section) -> Element:
    made = element("section", element("h2", section.title, id=f"{section.key}-title"), id=section.key)
    made.set("aria-labelledby", f"{section.key}-title")
    append(made, *(element("p", paragraph) for paragraph in section.text))
    if section.warnings:
        heading = "Warning" if len(section.warnings) == 1 else f"{len(section.warnings)} warnings"
        listed = element("ul", *(element("li", warning) for warning in section.warnings))
        append(made, element("div", element("h3", heading), listed, class_="warnings", role="note"))
    if section.tables:
        tables = (_table(table, section.title) for table in section.tables)
        append(made, element("div", *tables, class_="tables"))
    if section.plots:
        if not plots.available():
            install = element("code", plots.MISSING)
            append(made, element("p", "Drawing needs matplotlib: ", install, ". Here are the numbers.", class_="note"))
        drawn = (_plot(plot, f"{section.key}-plot-{place}") for place, plot in enumerate(section.plots, start=1))
        append(made, element("div", *drawn, class_="plots"))
    if section.pictures:
        append(made, element("div", *map(_picture, section.pictures), class_="pictures"))
    return made


def _table(table: Table, about: str) -> Element:
    """A table that scrolls by itself where it is too wide."""
    if any(len(row) != len(table.header) for row in table.rows):
        raise ValueError(f"a row of the table {table.title!r} is not as long as its header")
    columns = [[row[place] for row in table.rows] for place in range(len(table.header))]
    kinds = [
        "number" if all(is_number(cell) or cell is None for cell in column) and any(map(is_number, column)) else None
        for column in columns
    ]
    texts = [
        column_texts(column) if kind else [cell_text(cell) for cell in column]
        for column, kind in zip(columns, kinds, strict=True)
    ]
    made = element("table", element("caption", table.title) if table.title else None)
    head = zip(table.header, kinds, strict=True)
    if any(table.header):
        append(
            made,
            element("thead", element("tr", *(element("th", name, scope="col", class_=kind) for name, kind in head))),
        )
    body = element("tbody")
    for row in range(len(table.rows)):
        line = element("tr")
        for place, (column, kind) in enumerate(zip(texts, kinds, strict=True)):
            text: Element | str = column[row]
            if table.rows[row][place] is None:
                text = element("span", text, title="not available")
            append(line, element("td" if place else "th", text, class_=kind, scope=None if place else "row"))
        line.tail = "\n"
        append(body, line)
    append(made, body)
    label = f"Table: {table.title or about}"
    return element("div", made, class_="table", tabindex=0, role="region", aria_label=label)


def _plot(plot: Plot, name: str) -> Element:
    numbers = _numbers(plot)
    figure = element("figure", element("figcaption", element("h3", plot.title)), class_="plot")
    if not plots.available():
        append(figure, numbers)
        return figure
    drawing = plots.draw(plot, name)
    append(figure, drawing.svg)
    if len(plot.series) > 1:
        marked = (
            element("li", plots.legend_mark(series, place), element("span", series.name))
            for place, series in enumerate(plot.series)
        )
        append(figure, element("ul", *marked, class_="legend"))
    if drawing.omitted:
        words = "1 point has" if drawing.omitted == 1 else f"{drawing.omitted} points have"
        append(figure, element("p", f"{words} no place on these axes and cannot be shown.", class_="note"))
    append(figure, element("details", element("summary", "The numbers of this plot"), numbers))
    return figure


def _numbers(plot: Plot) -> Element:
    """A plot as a table."""
    errors = any(series.error is not None for series in plot.series)
    labels = any(series.labels is not None for series in plot.series)
    rows = []
    for series in plot.series:
        for place, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            label = series.labels[place] if series.labels is not None else None
            error = series.error[place] if series.error is not None else None
            rows.append((series.name, *((label,) if labels else ()), x, y, *((error,) if errors else ())))
    header = ("series", *(("label",) if labels else ()), plot.x_label, plot.y_label, *(("±",) if errors else ()))
    cut = len(rows) > _MOST_NUMBERS
    title = f"The first {_MOST_NUMBERS} of {len(rows)} points" if cut else ""
    return _table(Table(header=header, rows=tuple(rows[:_MOST_NUMBERS]), title=title), plot.title)


def _picture(picture: Picture) -> Element:
    image = picture.image
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    factor = max(1, min(_LARGEST_FACTOR, _SHOWN_WIDTH // max(1, image.width)))
    shown = element(
        "img",
        src="data:image/png;base64," + base64.b64encode(_png(image)).decode("ascii"),
        alt=f"{picture.title}. {picture.caption}".strip() if picture.caption else picture.title,
        width=image.width * factor,
        height=image.height * factor,
        class_="wide" if image.width > 880 else "large" if image.width > 340 else None,
    )
    caption = element("figcaption", element("h3", picture.title), picture.caption or None)
    return element("figure", caption, shown, class_="picture")


def _png(image: Image.Image) -> bytes:
    """The pixels alone: what an image was opened with, such as its text, has no place here."""
    plain = Image.new(image.mode, image.size)
    plain.paste(image)
    return encode_png(plain)


def _json_section(data: Mapping[str, Any], file: str) -> Element:
    made = element("section", element("h2", "All figures as JSON", id="json-title"), id="json")
    made.set("aria-labelledby", "json-title")
    reader = "; spheregen compare reads it" if file == RESULT else ""
    note = f"What the file {file} beside this page holds{reader}."
    summary = element("summary", "Show everything")
    append(made, element("p", note, class_="note"), element("details", summary, element("pre", to_json(data))))
    return made
