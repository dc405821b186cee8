"""The page in a browser: every control, a photo, no error, no request beyond its folder; and without a network."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spheregen.errors import ConfigError
from spheregen.export import Runner, export_model
from spheregen.export.page import find_runtime
from spheregen.pipeline.output import read_record
from tests.export.members import convolutional, texts

pytest.importorskip("onnxscript", reason="exports need onnxscript")
playwright = pytest.importorskip("playwright.sync_api", reason="pages are tried by playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOADED = 60_000  # milliseconds at most, on a machine with other work


def has_runtime() -> bool:
    try:
        return bool(find_runtime())
    except ConfigError:
        return False


pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="pages are tried in a Chromium, and there is none on the path"),
    pytest.mark.skipif(not has_runtime(), reason="pages need onnxruntime-web: npm install onnxruntime-web@1.30"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, http.server.ThreadingHTTPServer]]:
    """The address of a folder, and its server."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", server
        server.shutdown()
        thread.join()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, http.server.ThreadingHTTPServer]]:
    """The folder of an exported page, its address, and its server."""
    folder = tmp_path / "page"
    export_model(convolutional(), folder, "web", title="Tiny model")
    with serving(folder) as (address, server):
        yield folder, address, server


def test_a_page_follows_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    export_model(texts(), folder, "web")
    runner = Runner(folder)
    with serving(folder) as (address, _), playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(accept_downloads=True)
        page.set_default_timeout(LOADED)
        page.goto(f"{address}#seed=3&prompt=a+red+cup&steps=2&guidance=2")
        page.wait_for_selector("body[data-ready]")

        def saved() -> Path:
            page.wait_for_selector("body:not([aria-busy])")
            with page.expect_download() as download:
                page.click("#save")
            download.value.save_as(tmp_path / "saved.png")
            return tmp_path / "saved.png"

        def same(prompt: str) -> None:
            path = saved()
            theirs = np.asarray(runner.generate(prompt=prompt, seed=3, steps=2, guidance=2.0).images[0]).astype(int)
            assert np.abs(np.asarray(Image.open(path).convert("L")).astype(int) - theirs).max() <= 1
            assert read_record(path).prompt == prompt and prompt in page.inner_text("#caption")

        same("a red cup")
        page.fill("#prompt", " number   4 ")
        page.dispatch_event("#prompt", "change")
        same("number 4")
        assert "prompt=number+4" in page.evaluate("location.hash") and page.is_hidden("#class")
        if place := os.environ.get("SPHEREGEN_SCREENSHOTS"):
            page.screenshot(path=f"{place}/page-prompts.png", full_page=True)
        browser.close()


def test_the_page(served: tuple[Path, str, Any], tmp_path: Path) -> None:
    folder, address, server = served
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert sum(path.stat().st_size for path in files.values()) < 20e6
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == files.keys()
    kept = (folder / "offline.js").read_text()
    assert all(f'"./{name}"' in kept for name in files if name not in ("offline.js", "README.md"))
    policy = (folder / "index.html").read_text()
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy and "'unsafe-eval'" not in policy
    own = [
        path.read_text() for name, path in files.items() if "/" not in name and path.suffix in (".html", ".js", ".css")
    ]
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", "".join(own))
    problems: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, accept_downloads=True)
        page.set_default_timeout(LOADED)
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))

        def opened(link: str = "") -> None:
            page.goto("about:blank")
            page.goto(address + link)
            page.wait_for_selector("body[data-ready]")
            idle()

        def idle() -> None:
            page.wait_for_selector("body:not([aria-busy])")
            assert page.is_hidden("#problem"), page.inner_text("#problem")

        def until(expression: str) -> None:
            """Wait; the page's policy forbids what playwright has for it."""
            for _ in range(LOADED // 50):
                if page.evaluate(expression):
                    return
                page.wait_for_timeout(50)
            raise AssertionError(expression)

        def press(name: str) -> None:
            page.click(f"#{name}")
            idle()

        def pixels(name: str = "image") -> np.ndarray[Any, Any]:
            found = page.evaluate(
                """(name) => {
                  const brush = new OffscreenCanvas(16, 16).getContext("2d", {willReadFrequently: true});
                  brush.drawImage(document.getElementById(name), 0, 0);
                  return [...brush.getImageData(0, 0, 16, 16).data];
                }""",
                name,
            )
            return np.array(found).reshape(16, 16, 4)[..., 0]

        def changed(before: np.ndarray[Any, Any]) -> bool:
            return bool((pixels() != before).any())

        # the same seeds as everywhere, and links that hold everything
        opened()
        assert page.title() == "Tiny model" and page.inner_text("#status").startswith("WASM · int8")
        runner = Runner(folder)
        theirs = np.asarray(runner.generate(1).images[0]).astype(int)
        assert np.abs(pixels() - theirs).max() <= 1
        opened("#seed=9223372036854775807&class=1&steps=3&guidance=1.5&prior=fitted&temperature=0.5")
        how = {"steps": 3, "guidance": 1.5, "prior": "fitted", "temperature": 0.5}
        theirs = np.asarray(runner.generate(1, seed=2**63 - 1, labels=1, **how).images[0]).astype(int)
        assert np.abs(pixels() - theirs).max() <= 1
        assert "seed 9223372036854775807, class dog" in page.inner_text("#caption")

        # every setting changes the image
        for name, value in (("class", "2"), ("prior", "sphere")):
            before = pixels()
            page.select_option(f"#{name}", value)
            idle()
            assert changed(before), name
        assert page.is_hidden("#temperature-row")
        page.select_option("#prior", "fitted")
        idle()
        for name, value in (("seed", "5"), ("steps", "1"), ("steps", "2"), ("guidance", "3"), ("temperature", "1.5")):
            before = pixels()
            page.fill(f"#{name}", value)
            page.dispatch_event(f"#{name}", "change")
            idle()
            assert changed(before), name
        page.fill("#seed", "five")
        page.dispatch_event("#seed", "change")
        page.wait_for_selector("#problem:visible")
        assert "seed" in page.inner_text("#problem")
        page.fill("#seed", "5")
        page.dispatch_event("#seed", "change")
        idle()

        # new, nine, more like this, keys
        before = pixels()
        press("new")
        assert changed(before)
        press("again")
        labels = [each.get_attribute("aria-label") for each in page.query_selector_all("#nine button")]
        assert len(set(labels)) == 9
        page.focus("#nine button >> nth=0")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == labels[4]
        assert page.get_attribute("#nine button >> nth=4", "aria-pressed") == "true"
        page.fill("#angle", "10")
        press("like")
        page.click("#nine button >> nth=3")
        assert "1 step away" in page.inner_text("#caption")
        before, link = pixels(), page.evaluate("location.hash")
        page.keyboard.press("m")
        idle()
        opened(link)
        assert (pixels() == before).all()
        press("link")
        assert "link" in page.inner_text("#status").lower()

        # what is saved can be repeated
        opened("#seed=7&class=0&steps=2")
        with page.expect_download() as saved:
            page.keyboard.press("s")
        path = tmp_path / "saved.png"
        saved.value.save_as(path)
        record = read_record(path)
        assert (record.seed, record.label, record.settings["steps"]) == (7, 0, 2)
        shown = np.asarray(Image.open(path).convert("L")).astype(int)
        assert np.abs(shown - pixels()).max() <= 1

        # a photo: there and back, varied, changed; one that the model does not know
        page.click("#tab-photo")
        photo = tmp_path / "photo.png"
        runner.generate(1, seed=3).images[0].save(photo)
        page.set_input_files("#file", photo)
        page.wait_for_selector("#pair:visible")
        idle()
        theirs = np.asarray(Image.fromarray(np.rint(runner.reconstruct(photo)[0, 0] * 255).astype(np.uint8))).astype(
            int
        )
        assert np.abs(pixels("rebuilt") - theirs).max() <= 1
        press("rebuild")
        before = pixels()
        page.select_option("#target", "2")
        press("change")
        assert changed(before) and "changed, class horse" in page.inner_text("#caption")
        theirs = np.asarray(runner.edit(photo, 2).images[0]).astype(int)
        assert np.abs(pixels() - theirs).max() <= 2
        press("vary")
        page.click("#nine button >> nth=5")
        assert "a photo, 1 step away" in page.inner_text("#caption")
        strange = tmp_path / "strange.png"
        Image.effect_noise((64, 40), 120).save(strange)
        transfer = page.evaluate_handle(
            """([data]) => {
              const list = new DataTransfer();
              list.items.add(new File([new Uint8Array(data)], "strange.png", {type: "image/png"}));
              return list;
            }""",
            [list(strange.read_bytes())],
        )
        page.dispatch_event("body", "drop", {"dataTransfer": transfer})
        page.wait_for_selector("#far:visible")
        idle()
        assert "far from what the model knows" in page.inner_text("#far")
        (tmp_path / "text.png").write_text("no image")
        page.set_input_files("#file", tmp_path / "text.png")
        page.wait_for_selector("#problem:visible")
        assert "no image" in page.inner_text("#problem")

        # the pad, a corner, loop and roam
        page.click("#tab-photo")
        page.keyboard.press("ArrowRight")
        assert page.is_visible("#pad")
        idle_corners = "document.getElementById('corner-3').firstChild.width === 16"
        until(idle_corners)
        press("corners")
        before = pixels()
        page.focus("#pad")
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        until("document.getElementById('pad').getAttribute('aria-valuenow') === '70'")
        box = page.query_selector("#pad").bounding_box()
        page.mouse.click(box["x"] + 4, box["y"] + 4)
        until("document.getElementById('caption').textContent.startsWith('between')")
        assert changed(before)
        press("new")
        press("corner-1")
        for name in ("loop", "roam"):
            page.click(f"#{name}")
            until("document.getElementById('fps').textContent.includes('frames a second')")
            page.click(f"#{name}")
            assert page.get_attribute(f"#{name}", "aria-pressed") == "false"
        page.select_option("#backend", "wasm")
        page.wait_for_selector("body[data-ready]")
        idle()
        assert not page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        unnamed = "[...document.querySelectorAll('button, input, select, canvas.picture')].filter((each) => "
        unnamed += "!each.closest('[hidden]') && !(each.ariaLabel || each.labels?.length || each.textContent.trim() || "
        unnamed += "each.closest('button[aria-label]'))).map((each) => each.outerHTML)"
        assert page.evaluate(unnamed) == []

        assert problems == []
        outside = [url for url in requests if not url.startswith((address, "blob:", "data:", "about:"))]
        assert outside == []

        # without a network, and without the server
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        server.shutdown()
        server.server_close()
        page.goto("about:blank")
        page.goto(f"{address}#seed=7&class=0&steps=2")
        page.wait_for_selector("body[data-ready]")
        assert np.abs(pixels() - shown).max() <= 1
        browser.close()
