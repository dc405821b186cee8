"""Plots become elements that fit into any page, whatever is in them."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
import sys
from typing import Literal
from xml.etree import ElementTree

import pytest

from spheregen.colours import COLOURS
from spheregen.errors import ConfigError
from spheregen.evaluation.report.parts import Plot, Series
from spheregen.evaluation.report.plots import draw, legend_mark
from tests.evaluation.report.examples import example_studies

pytest.importorskip("matplotlib")
EXAMPLES = example_studies()[0].plots
LINE = Series(name="a", x=(1.0, 2.0, 4.0), y=(3.0, 2.0, 1.0))


def plot_of(*series: Series, log_x: bool = False, log_y: bool = False) -> Plot:
    return Plot(title="title", x_label="steps", y_label="FID", series=series, log_x=log_x, log_y=log_y)


def text_of(plot: Plot) -> str:
    return ElementTree.tostring(draw(plot, "p").svg, encoding="unicode")


def words(plot: Plot) -> list[str]:
    """What is written into a drawing, in its order."""
    return [(one.text or "").replace("−", "-") for one in draw(plot, "p").svg.iter("text")]


@pytest.mark.parametrize("plot", EXAMPLES, ids=lambda plot: plot.title[:10])
def test_the_same_plot_gives_the_same_drawing(plot: Plot) -> None:
    assert text_of(plot) == text_of(plot)


@pytest.mark.parametrize("plot", EXAMPLES, ids=lambda plot: plot.title[:10])
def test_a_drawing_fits_into_a_page(plot: Plot) -> None:
    """Its ids are its own, it brings no style sheet, and colours are the page's."""
    drawing = draw(plot, "name-1").svg
    assert drawing.tag == "svg" and drawing.get("viewBox") and not {"width", "height", "xmlns"} & set(drawing.keys())
    for one in drawing.iter():
        assert "}" not in one.tag and one.tag not in ("style", "metadata", "script", "title")
        assert one.get("id", "name-1-x").startswith("name-1-")
    text = ElementTree.tostring(drawing, encoding="unicode")
    assert "http" not in text
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", text))
    assert used == set(re.findall(r"\sid=\"([^\"]+)\"", text))
    assert not re.findall(r"(?<!, )#[0-9a-f]{6}\b", re.sub(r"(url\(|href=\")#[\w-]+", "", text))
    for place in range(min(len(plot.series), len(COLOURS))):
        assert f"var(--series-{place}, {COLOURS[place].lower()})" in text


def test_axes_and_labels_are_written() -> None:
    written = words(plot_of(dataclasses.replace(LINE, labels=("x", "y", "$\\frac{"))))
    assert {"steps", "FID", "x", "y", "$\\frac{"} <= set(written)


def test_few_places_on_a_logarithmic_axis_are_its_ticks() -> None:
    series = Series(name="a", x=(1, 2, 4, 6), y=(40, 30, 25, 22))
    assert [text for text in words(plot_of(series, log_x=True)) if text in "0123456789"] == ["1", "2", "4", "6"]
    wide = Series(name="a", x=(0.01, 1, 1000), y=(1e-7, 1, 100))
    written = words(plot_of(wide, log_x=True, log_y=True))
    assert "1000" in written and "1e-06" in written  # in plain words, not as raw formulas
    assert not any("$" in text for text in written)


@pytest.mark.parametrize(
    "values",
    [(), (1.0,), (0.0, 0.0), (-1.0, 2.0), (math.nan, 1.0), (math.nan, math.nan), (1e-300, 1e300), (math.inf, 1.0)],
    ids=str,
)
def test_any_values_can_be_drawn(values: tuple[float, ...]) -> None:
    """Without a warning either: they are errors here."""
    kinds: tuple[Literal["line", "points", "bars", "step"], ...] = ("line", "points", "bars", "step")
    places = tuple(float(place) for place in range(len(values)))
    series = tuple(
        Series(name=f"_{kind}", x=places, y=values, error=values, kind=kind, labels=("字",) * len(values))
        for kind in kinds
    )
    hidden = 4 * sum(not math.isfinite(value) for value in values)
    assert draw(plot_of(*series), "p").omitted == hidden
    assert draw(plot_of(*series, log_x=True, log_y=True), "p").omitted >= hidden


def test_what_logarithms_cannot_show_is_counted() -> None:
    series = Series(name="a", x=(0.0, 1.0, 10.0), y=(1.0, -1.0, 1.0))
    assert draw(plot_of(series), "p").omitted == 0
    assert draw(plot_of(series, log_x=True), "p").omitted == 1
    assert draw(plot_of(series, log_x=True, log_y=True), "p").omitted == 2


def test_names_below_bars() -> None:
    one = Series(name="a", x=(0, 1), y=(1, 2), kind="bars", labels=("cat", "dog"))
    assert words(plot_of(one, dataclasses.replace(one, name="b")))[:3] == ["cat", "dog", "steps"]
    assert words(plot_of()) and words(plot_of(dataclasses.replace(one, labels=None)))


def test_long_names_leave_room_for_the_plot() -> None:
    bars = Series(name="a", x=(0, 1), y=(1, 2), kind="bars", labels=("c" * 300, "d\ne"))
    plot = Plot(title="t" * 300, x_label="x" * 300, y_label="y" * 300, series=(bars, LINE))
    assert words(plot)[:3] == ["c" * 19 + "…", "d e", "x" * 59 + "…"]
    assert "t" * 300 in (draw(plot, "p").svg.get("aria-label") or "")


def test_many_points_become_pixels() -> None:
    places = tuple(map(float, range(5000)))
    text = text_of(plot_of(Series(name="a", x=places, y=places, kind="points")))
    assert text.count("data:image/png;base64,") == 1
    assert len(text) < 200_000


def test_drawing_leaves_no_global_state() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    sys.modules.pop("matplotlib.pyplot", None)
    draw(plot_of(LINE), "p")
    assert "matplotlib.pyplot" not in sys.modules
    assert dict(matplotlib.rcParams) == before


def test_marks_of_the_legend_differ() -> None:
    bars, points = (dataclasses.replace(LINE, kind="bars"), dataclasses.replace(LINE, kind="points"))
    marks = [ElementTree.tostring(legend_mark(series, place)) for series in (LINE, bars, points) for place in range(7)]
    assert len(set(marks)) == len(marks)
    assert ElementTree.tostring(legend_mark(LINE, 0)) != ElementTree.tostring(legend_mark(LINE, 7))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(ConfigError) as caught:
        draw(plot_of(LINE), "p")
    assert 'pip install "spheregen[plot]"' in str(caught.value)
