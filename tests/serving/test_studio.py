"""The app: every tab does its work in a browser, on a desktop's and a phone's width, without any other host."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import spheregen as sg
from spheregen.errors import ConfigError
from spheregen.folders.model_folder import save_model
from tests.factories import tiny_model_folder, tiny_text_pipeline
from tests.random_networks import import_or_skip

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]  # of gradio and its parts, about each other
gr = import_or_skip("gradio")
import_or_skip("greenlet")
PATIENCE = 60_000.0
TABS = ("Generate", "Edit", "Interpolate", "Inpaint", "Restore", "Explore", "Model", "Training")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the log and a preview of a run."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "mine" / "previews").mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": 1 / step, "lr": 1e-3}) for step in (10, 20, 30)]
    (folder / "mine" / "log.jsonl").write_text("\n".join(lines) + "\n")
    Image.new("L", (32, 32), 99).save(folder / "mine" / "previews" / "step-000000030.png")
    return folder


@pytest.fixture(scope="module")
def address(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of `digits`, of a tiny model and of one that follows texts, served by this process."""
    from spheregen.folders.model_source import find_model
    from spheregen.serving.studio import Studio, card_of, launch

    folder, texts = tmp_path_factory.mktemp("models"), tiny_text_pipeline()
    save_model(folder / "words", texts.model, texts.info)
    places = {"digits": "digits", "tiny": tiny_model_folder(folder / "tiny"), "words": folder / "words"}
    pipes = {name: sg.Pipeline.from_pretrained(place, device="cpu", quiet=True) for name, place in places.items()}
    cards = {name: card_of(find_model(place), pipes[name], name) for name, place in places.items()}
    studio = Studio(pipes, cards, runs)
    page, found = launch(studio, host="127.0.0.1", port=_free_port())
    yield found
    page.close(verbose=False)
    studio.close()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Visitor:
    """A browser on the page, which notes errors and requests to other hosts."""

    def __init__(self, browser: Any, address: str, width: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda told: self.errors.append(told.text) if told.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda sent: None if self._own(sent.url, address) else self.foreign.append(sent.url))
        self.page.goto(address)
        self.page.wait_for_selector("#generate")

    @staticmethod
    def _own(url: str, address: str) -> bool:
        return url.startswith((address, "data:", "blob:"))

    def leave(self) -> None:
        if folder := os.environ.get("SPHEREGEN_SCREENSHOTS"):
            selected = self.page.locator("button[role=tab][aria-selected=true]").first.inner_text()
            self.page.screenshot(path=f"{folder}/{self.page.viewport_size['width']}-{selected}.png", full_page=True)
        assert not self.errors and not self.foreign
        self.page.close()

    def tab(self, name: str) -> None:
        found = self.page.get_by_role("tab", name=name)
        if found.is_visible():
            found.click()
        else:  # on a phone the last ones are behind a button
            self.page.locator(".overflow-menu > button").first.click()
            self.page.locator(".overflow-dropdown button", has_text=name).click()

    def press(self, button: str, result: str) -> None:
        """Press a button and wait for the image that it makes, which is another one than before."""
        before = self.source(result)
        self.page.click(button)
        self.page.wait_for_function(
            "([place, before]) => { const image = document.querySelector(place + ' img');"
            " return image && image.src !== before && image.naturalWidth > 0; }",
            arg=[result, before],
        )

    def source(self, place: str) -> str:
        images = self.page.locator(f"{place} img")
        return images.first.get_attribute("src") or "" if images.count() else ""

    def paint(self, canvas: str) -> None:
        """Draw a line on a canvas."""
        box = self.page.locator(f"{canvas} canvas").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x - 40, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 40, y + 20, steps=8)
        self.page.mouse.up()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.is_file():
        pytest.skip(f"needs Chromium at {CHROMIUM}")
    playwright = import_or_skip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def desk(browser: Any, address: str) -> Iterator[Visitor]:
    """A visitor with a large screen, who in the end has seen no error and no other host."""
    visitor = Visitor(browser, address, 1280)
    yield visitor
    visitor.leave()


def test_generate_and_more_like_the_chosen_one(desk: Visitor) -> None:
    desk.press("#generate", "#made")
    desk.press("#others", "#made")
    assert desk.page.locator("#seed input").input_value() == "9"
    desk.page.locator("#made .thumbnail-item").nth(2).click()
    desk.page.wait_for_function("document.querySelector('#facts').textContent.includes('image 3')")
    desk.page.keyboard.press("Escape")
    desk.press("#more", "#made")


def test_edit_and_vary_what_was_drawn(desk: Visitor) -> None:
    desk.tab("Edit")
    desk.page.locator("#edit-image button[aria-label='Brush']").click()
    desk.paint("#edit-image")
    desk.press("#edit", "#edited")
    desk.press("#vary", "#edited")


def test_interpolate_two_ends_and_four_corners(desk: Visitor) -> None:
    desk.tab("Interpolate")
    desk.press("#interpolate", "#moving")
    desk.page.locator("#ends").get_by_text("four corners").click()
    desk.press("#interpolate", "#moving")


def test_inpaint_what_was_painted_over(desk: Visitor) -> None:
    desk.tab("Inpaint")
    desk.page.click("#example")
    desk.page.wait_for_timeout(3000)  # a canvas does not tell when it has drawn
    desk.page.locator("#inpaint-image button[aria-label='Brush']").click()
    desk.paint("#inpaint-image")
    desk.press("#inpaint", "#inpainted")


def test_restore_what_is_dropped(desk: Visitor, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 99).save(tmp_path / "degraded.png")
    desk.tab("Restore")
    desk.page.set_input_files("#degraded input[type=file]", tmp_path / "degraded.png")
    desk.page.wait_for_selector("#degraded img")
    desk.press("#restore", "#restored")


def test_explore_by_touch(desk: Visitor) -> None:
    desk.tab("Explore")
    desk.press("#draw-pad", "#here")
    before = desk.source("#here")
    desk.page.locator("#pad img").click(position={"x": 8, "y": 8})
    desk.page.wait_for_function("before => document.querySelector('#here img').src !== before", arg=before)


def test_watch_a_training(desk: Visitor) -> None:
    desk.tab("Training")
    desk.page.click("#look")
    desk.page.wait_for_function("document.querySelector('#run-facts').textContent.includes('Step 30')")
    desk.page.wait_for_selector("#curves img")
    desk.page.wait_for_selector("#preview img")


def test_all_fits_a_phone(browser: Any, address: str) -> None:
    visitor = Visitor(browser, address, 390)
    visitor.press("#generate", "#made")
    for tab in TABS:
        visitor.tab(tab)
        visitor.page.wait_for_timeout(300)
        assert visitor.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth + 1")
    visitor.leave()


def test_choices_follow_the_model_and_mistakes_are_told(browser: Any, address: str) -> None:
    visitor = Visitor(browser, address, 1280)
    visitor.page.locator("#model input").click()
    visitor.page.get_by_role("option", name="tiny").click()
    visitor.press("#generate", "#made")
    visitor.tab("Model")
    visitor.page.wait_for_function("document.querySelector('#card').textContent.includes('4 tokens of 4 channels')")
    visitor.tab("Edit")
    visitor.page.click("#edit")
    visitor.page.get_by_text("drop an image or draw one first").first.wait_for()


def test_prompts_of_a_model_that_follows_texts(browser: Any, address: str) -> None:
    visitor = Visitor(browser, address, 1280)
    visitor.page.locator("#model input").click()
    visitor.page.get_by_role("option", name="words").click()
    visitor.page.get_by_label("Prompt").first.fill("a red cup")
    visitor.press("#generate", "#made")
    visitor.page.get_by_text("a red cup, seed 0").first.wait_for()
    before = visitor.source("#made")
    visitor.page.get_by_label("Prompt").first.fill("")
    visitor.press("#generate", "#made")  # under the null, without guidance
    assert visitor.source("#made") != before
    visitor.tab("Edit")
    visitor.page.locator("#edit-image button[aria-label='Brush']").click()
    visitor.paint("#edit-image")
    visitor.page.locator(".prompt:visible textarea").fill("a tree")
    visitor.press("#edit", "#edited")
    visitor.leave()


def test_a_port_in_use_is_told(address: str) -> None:
    from spheregen.serving.studio import Studio, launch

    pipes = {"digits": sg.Pipeline.from_pretrained("digits", device="cpu", quiet=True)}
    studio = Studio(pipes, {"digits": ""}, None)
    try:
        with pytest.raises(ConfigError, match="--port"):
            launch(studio, host="127.0.0.1", port=int(address.rstrip("/").rpartition(":")[2]))
    finally:
        studio.close()
