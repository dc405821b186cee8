"""Figures as text: four significant digits, and decimal points that stand below one another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spheregen.evaluation.report.parts import Cell

NONE = "–"
GROUP = "\u202f"  # narrow space, which does not break
_DIGIT_WIDE, _POINT_WIDE = "\u2007", "\u2008"


def is_number(cell: object) -> bool:
    """Whether a cell is a number, True and False not being ones."""
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def cell_text(cell: Cell) -> str:
    """One cell: numbers to four significant digits (whole digits are never rounded away), from 10 000 in groups."""
    if cell is None:
        return NONE
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        text = f"{cell:_d}" if abs(cell) >= 10_000 else str(cell)
    elif not math.isfinite(cell):
        text = "NaN" if math.isnan(cell) else "∞" if cell > 0 else "-∞"
    elif 0 < abs(cell) < 1e-4 or abs(cell) >= 1e9:
        text = f"{cell:.3e}"
    elif round(abs(cell)) >= 10_000:
        text = f"{cell:_.0f}"
    else:
        text = f"{cell:.4g}" if abs(cell) < 1000 else f"{cell:.0f}"
    exponent = text.find("e")
    mantissa = text if exponent < 0 else text[:exponent]
    return mantissa.replace("-", "\u2212").replace("_", GROUP) + ("" if exponent < 0 else text[exponent:])


def column_texts(column: Sequence[Cell]) -> list[str]:
    """The cells of a column; digits behind the point are padded with spaces as wide as digits."""
    texts = [cell_text(cell) for cell in column]
    lengths = [
        len(text.partition(".")[2]) if cell is None or (is_number(cell) and "e" not in text) else None
        for cell, text in zip(column, texts, strict=True)
    ]
    longest = max((length for length in lengths if length is not None), default=0)
    padded = []
    for text, length in zip(texts, lengths, strict=True):
        missing = 0 if length is None else longest - length
        point = _POINT_WIDE if length == 0 and missing else ""
        padded.append(text + point + _DIGIT_WIDE * missing)
    return padded
