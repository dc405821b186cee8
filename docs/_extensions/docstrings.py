"""Docstrings as sphinx reads them: ours are plain text with `code`, not reStructuredText."""

from __future__ import annotations

import re
from typing import Any

_written: dict[str, list[str]] = {}


def setup(app: Any) -> dict[str, Any]:
    """Work before and after napoleon, which takes what stands before a colon in an attribute's docstring for a type."""
    app.connect("autodoc-process-docstring", _before, priority=100)
    app.connect("autodoc-process-docstring", _after, priority=900)
    return {"parallel_read_safe": True}


def _before(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [*_readable(lines)]
    _written[name] = list(lines)


def _after(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what in ("attribute", "property", "data"):
        lines[:] = _written[name]


def _readable(lines: list[str]) -> Any:
    """Yield lines with tables as literal text and without characters that mean something else there."""
    in_table = False
    for line in lines:
        is_table = line.lstrip().startswith("| ") or line.lstrip().startswith("|-")
        if is_table and not in_table:
            yield from (".. code-block:: text", "")
        if in_table and not is_table:
            yield ""
        in_table = is_table
        parts = [f"    {line}"] if is_table else re.split(r"(`[^`]*`)", line)
        yield "".join(part if is_table or part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in parts)
