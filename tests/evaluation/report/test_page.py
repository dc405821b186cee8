"""The page is whole, loads nothing, and takes every text for text."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import io
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from spheregen.data.grids import to_pil
from spheregen.errors import SphereGenError
from spheregen.evaluation.report.page import POLICY, render, to_json, write_report
from spheregen.evaluation.report.parts import Picture, Plot, Section, Series, Table
from spheregen.evaluation.report.sections import report_sections
from tests.evaluation.report.examples import example_result, example_studies
from tests.evaluation.report.pages import Page, read

HOSTILE = (
    "<script>alert(1)</script>\"><img src=x onerror=alert(1)>'--></style></title></pre></details><svg onload=alert(1)>"
    "javascript:alert(1)&lt;&#60;]]>$\\frac{$ _name \u202egnp\u2066 \x00\x1b[31m\x9b\ud800"
)
TAGS = re.findall(
    r"\w+",
    "html head meta title style body a header h1 h2 h3 p nav ul li span main section div table caption thead tbody tr "
    "th td figure figcaption img details summary pre code svg g defs path use text rect circle image clippath",
)


def whole(text: str | None = None) -> str:
    """The page of the example, with every text in it replaced."""
    result, studies = example_result(), example_studies()
    if text is not None:
        result = poisoned(result, text)
        studies = tuple(poisoned(section, text) for section in studies)
    return render(text or "Evaluation of runs/cifar10", text or "today", report_sections(result, studies), result)


def poisoned(value: Any, text: str) -> Any:
    """`value` with `text` for each text in it; the keys of dicts stay, and so do what parts need to be parts."""
    if isinstance(value, str):
        return text
    if isinstance(value, dict):
        return {key: poisoned(one, text) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(poisoned(one, text) for one in value)
    if isinstance(value, Section | Table | Plot | Series | Picture):
        names = [field.name for field in dataclasses.fields(value) if field.name not in ("key", "kind", "image")]
        return dataclasses.replace(value, **{name: poisoned(getattr(value, name), text) for name in names})
    return value


@pytest.fixture(scope="module")
def html() -> str:
    return whole()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return read(html)


def check_harmless(page: Page) -> None:
    """Nothing in it acts, nothing comes from elsewhere, and what refers to a place in it finds one."""
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag in TAGS, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("href", "src", "data", "action", "srcset", "poster"):
                assert value is not None
                assert value.startswith("data:image/png;base64,") or (value[0] == "#" and value[1:] in ids), value[:80]
            for target in re.findall(r"url\(([^)]*)\)", value or "") if name in ("style", "clip-path") else ():
                assert target[0] == "#" and target[1:] in ids, target
    for tag, text in page.texts:
        if tag == "style":
            assert "@import" not in text and "url(" not in text


def test_the_page_is_valid_and_refers_to_nothing_outside(html: str, page: Page) -> None:
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert page.declarations == ["DOCTYPE html"]
    check_harmless(page)
    assert not re.search(r"https?://|//[a-z]+\.", html)
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in page.all("meta")
    assert POLICY == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_page_can_be_used_without_seeing_it(page: Page) -> None:
    assert all(image["alt"] for image in page.all("img"))
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))
    drawings = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert drawings and all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)
    scrolling = [div for div in page.all("div") if div.get("class") == "table"]
    assert scrolling and all(div["tabindex"] == "0" and div["aria-label"] for div in scrolling)
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))


def test_every_section_is_in_the_contents_and_warnings_are_counted(html: str, page: Page) -> None:
    anchors = [str(link["href"]) for link in page.all("a")]
    sections = [str(section["id"]) for section in page.all("section")]
    assert anchors == ["#main", *(f"#{name}" for name in sections)]
    assert sections[0] == "summary" and sections[-1] == "json" and {"classes", "originality"} <= set(sections)
    assert [text for tag, text in page.texts if tag == "span" and "warning" in text] == [
        "1 warning",
        "2 warnings",
        "1 warning",
    ]
    boxes = [div for div in page.all("div") if div.get("class") == "warnings"]
    assert len(boxes) == 3 and all(div["role"] == "note" for div in boxes)


def test_the_same_data_gives_the_same_page(html: str) -> None:
    assert whole() == html


def test_no_name_becomes_markup() -> None:
    page = read(whole(HOSTILE))
    check_harmless(page)
    shown = page.text()
    assert shown.count(re.sub("[\x00\x1b\x9b\ud800\u202e\u2066]", "\ufffd", HOSTILE)) > 100
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", shown)


@settings(max_examples=30, deadline=None)
@given(st.text())
def test_any_text(text: str) -> None:
    section = Section(
        key="one",
        title=text,
        text=(text,),
        warnings=(text,),
        tables=(Table(header=(text,), rows=((text,),), title=text),),
    )
    page = read(render(text, text, (section,), {text: text, "list": [text]}))
    check_harmless(page)
    assert not any(tag in ("img", "script") for tag, _ in page.tags)


def test_pictures_keep_their_pixels_and_nothing_else() -> None:
    pixels = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    (plain,) = to_pil(pixels)
    file, told = io.BytesIO(), PngImagePlugin.PngInfo()
    told.add_text("secret", "path")
    plain.save(file, format="PNG", pnginfo=told)
    images = [Image.open(file), Image.new("1", (700, 2)), plain.convert("P"), Image.new("LA", (1000, 3))]
    section = Section(
        key="pictures", title="p", pictures=tuple(Picture(image=image, title="one", caption="two") for image in images)
    )
    page = read(render("t", "", (section,), {}))
    shown = page.all("img")
    decoded = []
    for image in shown:
        raw = base64.b64decode(str(image["src"]).partition(",")[2])
        assert b"secret" not in raw
        decoded.append(Image.open(io.BytesIO(raw)))
    assert decoded[0].tobytes() == plain.tobytes()
    assert [image["width"] for image in shown] == ["32", "700", "32", "1000"]
    assert [image.get("class") for image in shown] == [None, "large", None, "wide"]
    assert shown[0]["alt"] == "one. two"


def test_tables_align_numbers_and_tell_what_is_missing() -> None:
    table = Table(header=("name", "value", "note"), rows=(("a", 1.5, "x"), ("b", None, None), ("c", 22, 3)))
    html = render("t", "", (Section(key="one", title="One", tables=(table,)),), {})
    page = read(html)
    assert [cell.get("class") for cell in page.all("td")] == ["number", None] * 3
    assert [cell["scope"] for cell in page.all("th")] == ["col"] * 3 + ["row"] * 3
    assert len([span for span in page.all("span") if span.get("title") == "not available"]) == 2
    assert "22\u2008\u2007" in html


def test_mistakes_of_sections_are_found() -> None:
    for keys in (("two words",), ("1",), ("",), ("a", "a"), ("json",), ("main",)):
        with pytest.raises(ValueError, match="section key"):
            render("t", "", tuple(Section(key=key, title="x") for key in keys), {})
    table = Table(header=("a", "b"), rows=(("only",),))
    with pytest.raises(ValueError, match="not as long"):
        render("t", "", (Section(key="a", title="x", tables=(table,)),), {})


def test_without_matplotlib_the_numbers_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    series = Series(name="loss", x=(1.0, 2.0), y=(0.5, math.nan), error=(0.125, 0.25), labels=("first", "second"))
    many = Series(name="many", x=tuple(map(float, range(1000))), y=(1.0,) * 1000)
    plot = Plot(title="P", x_label="step", y_label="height", series=(series,))
    section = Section(key="one", title="One", plots=(plot, dataclasses.replace(plot, series=(many,))))
    page = read(render("t", "", (section,), {}))
    check_harmless(page)
    assert not page.all("svg")
    text = page.text()
    for words in ('pip install "spheregen[plot]"', "first", "0.125", "NaN", "height", "The first 300 of 1000 points"):
        assert words in text
    assert text.count("pip install") == 1


def test_the_whole_result_is_on_the_page(page: Page) -> None:
    (text,) = [text for tag, text in page.texts if tag == "pre"]
    assert json.loads(text) == example_result()


def test_json_takes_what_json_cannot() -> None:
    value = {"a": math.nan, "b": [math.inf, 1.5, (2,)], 3: "\ud800", "name": "Fréchet"}
    text = to_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 1.5, [2]],
        "3": "?",
        "name": "Fréchet",
    }
    assert "Fréchet" in text


def test_a_report_is_written_as_a_whole(tmp_path: Path, html: str) -> None:
    folder = tmp_path / "new" / "report"
    write_report(folder, html, example_result())
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "index.html"]
    assert (folder / "index.html").read_text(encoding="utf-8") == html
    assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) == example_result()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SphereGenError, match="cannot write"):
        write_report(file, html, {})
