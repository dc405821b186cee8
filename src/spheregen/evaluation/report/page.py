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
from spheregen.evaluation.report.parts import Cell, Section, Table, is_number
from spheregen.evaluation.report.plots import draw
from spheregen.evaluation.report.sections import RESULT
from spheregen.external import import_package
from spheregen.files import write_text

PAGE = "index.html"
MISSING = "–"
_SHOWN_WIDTH = 480  # small images are enlarged by whole factors up to about this
_LARGEST_FACTOR = 8
_TURNING = str.maketrans(dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"))


def check_report() -> None:
    """Refuse to begin a report that could not be written in the end."""
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
    """
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
    tools = {"cells": table_texts, "draw": draw, "image": _image}
    page: str = environment.get_template("page.html").render(
        tools, title=title, subtitle=subtitle, sections=sections, json=to_json(data), file=file
    )
    return page


def write_report(folder: Path, html: str, result: Mapping[str, Any]) -> None:
    """Write `evaluation.json` and `index.html` into `folder`, each as a whole or not at all."""
    write_text(folder / RESULT, to_json(result) + "\n")
    write_text(folder / PAGE, html)


def to_json(result: Any) -> str:
    """Return `result` as indented JSON that every reader takes: figures that are not finite become null."""
    text = json.dumps(_plain(result), indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode()  # names of files may be no text


def cell_text(cell: Cell) -> str:
    """Return a cell as text: numbers with four significant digits, whole digits never rounded away."""
    if cell is None:
        return MISSING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float) and not math.isfinite(cell):
        return str(cell)
    if isinstance(cell, int) or 1000 <= abs(cell) < 1e9:
        return f"{cell:,.0f}"
    return f"{cell:.4g}"


def table_texts(table: Table) -> tuple[list[bool], list[list[str]], bool]:
    """Return which columns hold numbers, all rows as texts, and whether a cell is missing."""
    if any(len(row) != len(table.header) for row in table.rows):
        raise ValueError(f"a row of the table {table.title!r} is not as long as its header")
    numeric = [all(cell is None or is_number(cell) for cell in column) for column in zip(*table.rows, strict=True)]
    missing = any(cell is None for row in table.rows for cell in row)
    return numeric, [list(map(cell_text, row)) for row in table.rows], missing


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
