"""The page of a report: one HTML file that loads nothing, on screen and on paper, and the same figures as JSON."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from spheregen.data.grids import encode_png
from spheregen.evaluation.report.parts import Cell, Section, Series, Table, is_number, table_of
from spheregen.evaluation.report.plots import draw
from spheregen.evaluation.report.sections import RESULT
from spheregen.external import import_package
from spheregen.files import write_text

PAGE = "index.html"
_SHOWN_WIDTH = 480  # small images are enlarged by whole factors up to about this
_LARGEST_FACTOR = 8
_MOST_NUMBERS = 300  # rows of a plot's numbers on the page
_TURNING = str.maketrans(dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"))


def check_report() -> None:
    """Refuse to begin a report that could not be written in the end.

    Raises:
        SphereGenError: a package of the extra `report` is missing.
    """
    for name in ("jinja2", "matplotlib"):
        import_package(name, "report", "a report")


def render(
    title: str, subtitle: str, sections: Sequence[Section], data: Mapping[str, Any], *, file: str = RESULT
) -> str:
    """Return the report as an HTML document. The same input gives the same text.

    Every text may come from anywhere: it is escaped, and the page's policy forbids scripts and requests besides.

    Args:
        title: the page's heading.
        subtitle: a line below it.
        sections: in their order; keys of letters and hyphens, each once.
        data: the whole result, shown as JSON at the end.
        file: the file beside the page that holds the same JSON.

    Raises:
        SphereGenError: a package of the extra `report` is missing.
        ValueError: a section's key occurs twice, or a table's row is not as long as its header.
    """
    keys = [section.key for section in sections]
    if len(set(keys)) < len(keys):
        raise ValueError(f"a key of the sections {', '.join(keys)} occurs twice")
    check_report()
    jinja2 = import_package("jinja2", "report", "a report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spheregen.evaluation.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    tools = {"cells": table_texts, "draw": draw, "image": _image, "numbers": _numbers}
    page: str = environment.get_template("page.html").render(
        tools, title=title, subtitle=subtitle, sections=sections, json=to_json(data), file=file
    )
    return page


def write_report(folder: Path, html: str, result: Mapping[str, Any]) -> None:
    """Write `evaluation.json` and `index.html` into `folder`, each as a whole or not at all.

    Raises:
        SphereGenError: the folder cannot be written to.
    """
    write_text(folder / RESULT, to_json(result) + "\n")
    write_text(folder / PAGE, html)


def to_json(result: Any) -> str:
    """Return `result` as indented JSON that every reader takes: figures that are not finite become null."""
    text = json.dumps(_plain(result), indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode()  # names of files may be no text


def cell_text(cell: Cell) -> str:
    """Return a cell as text: numbers with four significant digits, whole digits never rounded away."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float) and not math.isfinite(cell):
        return str(cell)
    size = abs(cell)
    if isinstance(cell, int) or 1000 <= size < 1e9:
        text = f"{cell:,.0f}" if size >= 10_000 else f"{cell:.0f}"
    else:
        text = f"{cell:.3e}" if size >= 1e9 or 0 < size < 1e-4 else f"{cell:.4g}"
    return text.replace(",", "\u202f")  # narrow space, which does not break


def table_texts(table: Table) -> tuple[list[bool], list[list[str]]]:
    """Return which columns hold numbers, and all rows as texts; decimal points stand below one another.

    Raises:
        ValueError: a row is not as long as the header.
    """
    if any(len(row) != len(table.header) for row in table.rows):
        raise ValueError(f"a row of the table {table.title!r} is not as long as its header")
    numeric, columns = [], []
    for column in zip(*table.rows, strict=True):
        texts = [cell_text(cell) for cell in column]
        numeric.append(any(map(is_number, column)) and all(cell is None or is_number(cell) for cell in column))
        if numeric[-1]:
            decimals = [len(text.partition(".")[2]) for text in texts]
            spaces = [max(decimals) - count for count in decimals]
            texts = [
                text + ("\u2007" * space if "." in text or not space else "\u2008" + "\u2007" * space)
                for text, space in zip(texts, spaces, strict=True)
            ]
        columns.append(texts)
    return numeric, [list(row) for row in zip(*columns, strict=True)]


def _numbers(series: Sequence[Series], x_label: str, y_label: str) -> Table | None:
    """The points of a plot as a table."""
    rows: list[tuple[Cell, ...]] = []
    for one in series:
        labels, errors = one.labels or [None] * len(one.x), one.error or [None] * len(one.x)
        rows += [(one.name, *point) for point in zip(labels, one.x, one.y, errors, strict=True)]
    columns = zip(("series", "label", x_label, y_label, "±"), zip(*rows[:_MOST_NUMBERS], strict=True), strict=False)
    title = f"The first {_MOST_NUMBERS} of {len(rows)} points" if len(rows) > _MOST_NUMBERS else ""
    return next(iter(table_of(title, columns)), None)


def _image(image: Image.Image) -> dict[str, Any]:
    """The source and the size of an image on the page: its pixels alone, without what its file said beside them."""
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    plain = Image.new(image.mode, image.size)
    plain.paste(image)
    factor = max(1, min(_LARGEST_FACTOR, _SHOWN_WIDTH // max(1, image.width)))
    source = "data:image/png;base64," + base64.b64encode(encode_png(plain)).decode("ascii")
    return {"source": source, "width": image.width * factor, "height": image.height * factor}


def _clean(value: Any) -> Any:
    """Replace what has no place in a page: controls, broken characters, marks that turn the direction of text."""
    if type(value) is not str:  # markup is ours
        return value
    text = value.encode("utf-8", "replace").decode().translate(_TURNING)
    return "".join(char if char >= " " or char in "\t\n" else "\ufffd" for char in text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
