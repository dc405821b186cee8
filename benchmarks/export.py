"""What an exported model costs and loses: sizes, differences to torch, latency, and the page's first image.

    python benchmarks/export.py MODEL [MODEL ...] [--count 64] [--repeats 30] [--page]

Images of the runner are compared with those of `Pipeline` at the model's defaults and in one step; PSNR is of images in
[0, 1]. Latency is of one image in one step, the runner and torch in turn, as medians; torch is compiled as a whole.
`--page` opens a page of int8 in Chromium (playwright, onnxruntime-web) and waits for the first image.
"""

from __future__ import annotations

import argparse
import copy
import functools
import http.server
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from spheregen.export import Runner, export_model
from spheregen.export.folder import compared
from spheregen.export.weights import Precision
from spheregen.pipeline import Pipeline

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    print("| model | weights | MB | one step: largest, PSNR | as sampled: largest, PSNR | there and back: PSNR |")
    print("|---|---|---|---|---|---|")
    for name in given.models:
        pipe = Pipeline.from_pretrained(name, device="cpu", quiet=True).to(dtype="float32")
        with tempfile.TemporaryDirectory() as parent:
            for precision in PRECISIONS:
                folder = Path(parent) / precision
                size = export_model(pipe, folder, precision=precision).size
                print(
                    f"| {name} | {precision} | {size / 1e6:.2f} | {differences(folder, pipe, given.count)} |",
                    flush=True,
                )
            print(f"\n{name}, ms of one image in one step: {latencies(Path(parent) / 'float32', pipe, given.repeats)}")
            if given.page:
                folder = Path(parent) / "page"
                made = export_model(pipe, folder, "web")
                own = made.size - sum(path.stat().st_size for path in (folder / "runtime").iterdir())
                first = first_image(folder)
                print(f"{name}, page: {made.size / 1e6:.1f} MB, {own / 1e6:.1f} MB of it without the runtime; {first}")
            print()


def differences(folder: Path, pipe: Pipeline, count: int) -> str:
    """Return the differences of the runner's images to those of torch, for a row of the table."""
    runner, cells = Runner(folder), []
    for steps in (1, None):
        found = compared(runner.generate(count, steps=steps).array, pipe.generate(count, steps=steps).tensor.numpy())
        cells.append(f"{found['largest']:.2g}, {found['psnr']:.1f} dB")
    images = pipe.generate(count).images
    rebuilt = compared(runner.reconstruct(images), pipe.reconstruct(images).numpy())
    return " | ".join([*cells, f"{rebuilt['psnr']:.1f} dB"])


def latencies(folder: Path, pipe: Pipeline, repeats: int) -> str:
    """Return the medians of one image in one step, in turn, of the runner and of torch, with the noise and all."""
    runner = Runner(folder, threads=torch.get_num_threads())
    compiled = Pipeline(copy.deepcopy(pipe.model), pipe.info, device="cpu", progress=False)
    compiled.model.predict = torch.compile(compiled.model.predict, dynamic=False)  # type: ignore[method-assign]
    calls: dict[str, Callable[[], object]] = {
        "runner": lambda: runner.generate(1, steps=1),
        "torch": lambda: pipe.generate(1, steps=1),
        "torch compiled": lambda: compiled.generate(1, steps=1),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(5 + repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number >= 5:
                times[name].append(1000 * (time.perf_counter() - began))
    return ", ".join(f"{name} {statistics.median(each):.2f}" for name, each in times.items())


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def first_image(folder: Path) -> str:
    """Open a page three times, each in a new browser, and return how long the first image took."""
    from playwright.sync_api import sync_playwright

    found = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as play:
            for _ in range(3):
                browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                page = browser.new_page()
                began = time.perf_counter()
                page.goto(f"http://127.0.0.1:{server.server_port}/")
                page.wait_for_selector("body[data-ready]", timeout=120_000)
                found.append(time.perf_counter() - began)
                runs = page.inner_text("#status")
                browser.close()
        server.shutdown()
    return f"first image after {', '.join(f'{each:.1f}' for each in found)} s ({runs.split(' · ')[0]})"


if __name__ == "__main__":
    main()
