"""The page in a real browser, where there is one: it fits screens of every width and loads nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spheregen.evaluation.report.page import render, write_report
from spheregen.evaluation.report.sections import report_sections
from tests.evaluation.report.examples import example_result, example_studies

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
MARK = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if BROWSER is None:
        pytest.skip("needs chromium")
    flags = [*FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else FLAGS
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=flags)
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    result = example_result()
    result["model"]["name"] = result["line"] = MARK
    result["model"]["class_names"] = ["w" * 300]
    folder: Path = tmp_path_factory.mktemp("report")
    write_report(folder, render("Evaluation", MARK, report_sections(result, example_studies()), result), result)
    return (folder / "index.html").as_uri()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1280, "dark")])
def test_the_page_fits_and_loads_nothing(browser: Any, address: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    facts = page.evaluate(
        """() => ({
          width: document.documentElement.scrollWidth,
          title: document.title,
          broken: [...document.images].filter(one => !one.complete || !one.naturalWidth).length,
          images: document.images.length,
          paper: getComputedStyle(document.body).backgroundColor,
          drawn: [...document.querySelectorAll('.plot > svg')].map(one => one.getBoundingClientRect().height),
        })"""
    )
    context.close()
    assert facts["width"] == width  # wide tables scroll by themselves
    assert facts["title"] == "Evaluation" and said == []
    assert (facts["images"], facts["broken"]) == (2, 0)
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert facts["paper"] == ("rgb(20, 23, 27)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert facts["drawn"] and min(facts["drawn"]) > 150
