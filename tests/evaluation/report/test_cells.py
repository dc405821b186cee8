"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spheregen.evaluation.report.cells import GROUP, cell_text, column_texts
from spheregen.evaluation.report.parts import Cell


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        ("a < b", "a < b"),
        (True, "yes"),
        (0, "0"),
        (7, "7"),
        (9999, "9999"),
        (10_000, f"10{GROUP}000"),
        (-1_140_000, f"−1{GROUP}140{GROUP}000"),
        (0.0, "0"),
        (23.41, "23.41"),
        (23.4149, "23.41"),
        (0.01234567, "0.01235"),
        (9999.6, f"10{GROUP}000"),
        (1234.5, "1234"),
        (123456.7, f"123{GROUP}457"),
        (-0.5, "−0.5"),
        (1.234e-7, "1.234e-07"),
        (2.5e12, "2.500e+12"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_cells(cell: Cell, text: str) -> None:
    assert cell_text(cell) == text


@given(st.floats(-1e300, 1e300))
def test_four_digits_are_kept(value: float) -> None:
    read = float(cell_text(value).replace("−", "-").replace(GROUP, ""))
    assert math.isclose(read, value, rel_tol=6e-4, abs_tol=0)


@given(st.lists(st.one_of(st.none(), st.integers(-(10**6), 10**6), st.floats(1e-4, 1e6), st.floats(-1e6, -1e-4))))
def test_points_stand_below_one_another(column: list[Cell]) -> None:
    texts = column_texts(column)
    assert [text.rstrip("\u2007\u2008") for text in texts] == [cell_text(cell) for cell in column]
    behind = {len(text) - _point(text) for text in texts}
    assert len(behind) <= 1 or behind == {0}


def _point(text: str) -> int:
    """Where the point is, or would be."""
    found = max(text.find("."), text.find("\u2008"))
    return found if found >= 0 else len(text)
