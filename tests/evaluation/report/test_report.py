"""The page is whole, loads nothing, takes every text for text, and tells every figure of a result."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from spheregen.data.grids import to_pil
from spheregen.errors import SphereGenError
from spheregen.evaluation.report.page import cell_text, check_report, render, to_json, write_report
from spheregen.evaluation.report.parts import Cell, Plot, Section, Series, Sheet, Table
from spheregen.evaluation.report.sections import report_sections
from tests.evaluation.report.examples import example_result, example_studies

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

HOSTILE = (
    "<script>alert(1)</script>\"><img src=x onerror=alert(1)>'--></style></title></pre></details><svg onload=alert(1)>"
    "{{ 712 * 712 }}javascript:alert(1)&lt;&#60;]]>$\\frac{$ _name \u202egnp\u2066 \x00\x1b[31m\ud800"
)
TAGS = re.findall(
    r"\w+",
    "html head meta title style body a header h1 h2 h3 p nav ul li span main section div table caption thead tbody tr "
    "th td figure figcaption img details summary pre svg g defs path use text rect circle image clippath tspan",
)
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags and texts of a page, read by Python's own parser; tags that do not match are an error."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} occurs twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self) -> str:
        return "".join(text for tag, text in self.texts if tag != "style")

    def check_harmless(self) -> None:
        """Nothing in it acts, nothing comes from elsewhere, and what refers to a place in it finds one."""
        ids = [str(attributes["id"]) for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for tag, attributes in self.tags:
            assert tag in TAGS, tag
            for name, value in attributes.items():
                assert not name.startswith("on"), name
                if name in ("href", "src", "data", "action", "srcset", "poster"):
                    assert value and (
                        value.startswith("data:image/png;base64,") or (value[0] == "#" and value[1:] in ids)
                    )
                for target in re.findall(r"url\(([^)]*)\)", value or "") if name in ("style", "clip-path") else ():
                    assert target[0] == "#" and target[1:] in ids, target
        for tag, text in self.texts:
            assert tag != "style" or ("@import" not in text and "url(" not in text)


def page_of(*sections: Section, title: str = "t", result: Any = None) -> Page:
    return Page(render(title, "", sections, result or {}))


def whole(text: str | None = None) -> str:
    """The page of the example, with every text in it replaced."""
    result, studies = example_result(), example_studies()
    if text is not None:
        result, studies = poisoned(result, text), poisoned(studies, text)
    return render(text or "Evaluation of runs/cifar10", text or "today", report_sections(result, studies), result)


def poisoned(value: Any, text: str) -> Any:
    """`value` with `text` for each text in it; the keys of dicts stay, and so do what parts need to be parts."""
    if isinstance(value, str):
        return text
    if isinstance(value, dict):
        return {key: poisoned(one, text) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(poisoned(one, text) for one in value)
    if isinstance(value, Section | Table | Plot | Series | Sheet):
        names = [field.name for field in dataclasses.fields(value) if field.name not in ("key", "kind", "image")]
        return dataclasses.replace(value, **{name: poisoned(getattr(value, name), text) for name in names})
    return value


@pytest.fixture(scope="module")
def html() -> str:
    return whole()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_valid_and_refers_to_nothing_outside(html: str, page: Page) -> None:
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    page.check_harmless()
    assert not re.search(r"https?://|//[a-z]+\.", html)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {"http-equiv": "Content-Security-Policy", "content": policy} in page.all("meta")
    assert all(image["alt"] for image in page.all("img"))
    assert page.all("svg") and all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    shown = {text for tag, text in page.texts if tag in ("text", "tspan")}
    assert {"steps", "FD-own", "guidance scale", "airplane", "setting 7"} <= shown
    assert "matplotlib.pyplot" not in sys.modules  # no state


def test_every_section_is_in_the_contents_and_warnings_are_counted(page: Page) -> None:
    anchors = [str(link["href"]) for link in page.all("a")]
    sections = [str(section["id"]) for section in page.all("section")]
    assert anchors == ["#main", *(f"#{name}" for name in sections)]
    assert sections == [
        *("summary", "metrics", "reconstruction", "curves", "classes", "originality"),
        *("cost", "protocol", "recipe", "json"),
    ]
    counts = [text for tag, text in page.texts if tag == "span"]
    assert counts == ["1 warning", "2 warnings", "1 warning"]


def test_no_name_becomes_markup() -> None:
    page = Page(whole(HOSTILE))
    page.check_harmless()
    shown = page.text()
    assert shown.count("<script>alert(1)</script>\"><img src=x onerror=alert(1)>'-->") > 90 and "506944" not in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", shown)


def test_images_keep_their_pixels_and_nothing_else() -> None:
    (plain,) = to_pil(torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4))
    file, told = io.BytesIO(), PngImagePlugin.PngInfo()
    told.add_text("secret", "path")
    plain.save(file, format="PNG", pnginfo=told)
    images = [Image.open(file), Image.new("1", (700, 2)), plain.convert("P"), Image.new("LA", (1000, 3))]
    sheets = tuple(Sheet(image=image, title="one", caption="two") for image in images)
    shown = page_of(Section(key="images", title="p", sheets=sheets)).all("img")
    raw = [base64.b64decode(str(image["src"]).partition(",")[2]) for image in shown]
    assert not any(b"secret" in one for one in raw)
    assert Image.open(io.BytesIO(raw[0])).tobytes() == plain.tobytes()
    assert [image["width"] for image in shown] == ["32", "700", "32", "1000"]


def test_tables_align_numbers_of_four_digits() -> None:
    cells = (0.000123, 23.41234, 12345.6, 50000, None, True, math.inf, "x", 0.0)
    assert list(map(cell_text, cells)) == ["0.000123", "23.41", "12,346", "50,000", "–", "yes", "inf", "x", "0"]
    table = Table(header=("name", "value", "note"), rows=(("a", 1.5, "x"), ("b", None, None), ("c", 22, 3)))
    page = page_of(Section(key="one", title="One", tables=(table,)))
    assert [cell.get("class") for cell in page.all("td")] == ["number", None] * 3
    assert [cell.get("title") for cell in page.all("td")] == [None, None, table.missing, table.missing, None, None]
    assert page.text().count(table.missing) == 1
    with pytest.raises(ValueError, match="not as long"):
        page_of(Section(key="one", title="One", tables=(Table(header=("a", "b"), rows=(("only",),)),)))


def test_a_missing_package_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SphereGenError, match=r"matplotlib.*spheregen\[report\]"):
        check_report()


def test_a_report_is_written_as_a_whole(tmp_path: Path, html: str, page: Page) -> None:
    (text,) = [text for tag, text in page.texts if tag == "pre"]
    assert json.loads(text) == example_result()
    write_report(tmp_path / "new" / "report", html, example_result())
    assert (tmp_path / "new/report/index.html").read_text(encoding="utf-8") == html
    assert json.loads((tmp_path / "new/report/evaluation.json").read_text(encoding="utf-8")) == example_result()
    strange = to_json({"a": math.nan, "b": [math.inf, (2,)], 3: "\ud800"})
    assert json.loads(strange, parse_constant=pytest.fail) == {"a": None, "b": [None, [2]], "3": "?"}


def tables_of(result: dict[str, Any], key: str) -> list[dict[str, dict[str, Cell]]]:
    """The tables of a section, each by the first cell of its rows and the header."""
    (section,) = [each for each in report_sections(result) if each.key == key]
    return [{str(row[0]): dict(zip(table.header, row, strict=True)) for row in table.rows} for table in section.tables]


def test_every_figure_is_told_with_its_error_and_yardstick() -> None:
    result = example_result()
    (figures,), own = tables_of(result, "metrics"), tables_of(result, "protocol")[3]
    assert [*figures["KID (own)"].values()] == ["KID (own)", 0.0123, 0.0002, 0.0001, "lower"]
    assert figures["FID"]["samples"] == 18.02 and figures["recall (own)"]["held-out real"] == 0.771
    assert own["weights"]["value"] == "0123456789abcdef" and own["reference.image_size"]["value"] == "32"  # by the data
    (rebuilt,) = tables_of(result, "reconstruction")
    assert rebuilt["FD-own of reconstructions"]["value"] == 3.2
    parts, generation, _ = tables_of(result, "cost")
    assert parts["decoder"]["parameters"] == 628000 and generation["4"]["latency p50, ms"] == 12.0
    assert tables_of(result, "recipe")[0]["optimizer.betas"]["value"] == "0.9, 0.95"
