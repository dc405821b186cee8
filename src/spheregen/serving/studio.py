"""The app: a page on which people generate, edit, join and explore images, by Gradio on the engine.

All tabs ask the engine, so that several people share a model as the callers of the service do.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spheregen.errors import ConfigError, SphereGenError
from spheregen.folders.summary import CARD
from spheregen.pipeline import Pipeline
from spheregen.serving.engine import Engine

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio reads it
import gradio as gr

from spheregen.serving import tabs

_KEPT = 20  # folders of files that were made: the page holds copies
FONTS = ("system-ui", "sans-serif")
CSS = """
.pixels img { image-rendering: pixelated; }
.grid-wrap { max-height: none !important; }
.caption-label { font-size: 11px !important; padding: 1px 5px !important; }
#card thead { display: none; }
@media (min-width: 640px) { #card td:first-child { white-space: nowrap; } }
#card code { white-space: pre-wrap; overflow-wrap: anywhere; }
#degraded img { width: 100%; object-fit: contain; }
footer { display: none !important; }
"""


class Studio:
    """What the tabs have in common: the models, the engine, and a folder for files that are made."""

    def __init__(self, pipelines: Mapping[str, Pipeline], cards: Mapping[str, str], runs: Path | None) -> None:
        self.pipelines, self.cards, self.runs = dict(pipelines), dict(cards), runs
        self.engine = Engine(self.pipelines)
        self._made = tempfile.TemporaryDirectory(prefix="spheregen-app-")
        self.folder = Path(self._made.name)

    def close(self) -> None:
        """End the engine, and remove what was made."""
        self.engine.close(10)
        self._made.cleanup()

    def place_for_files(self) -> Path:
        """Return a new folder; of those before, the last ones are kept."""
        for old in sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self.folder))

    def run(self, name: str, work: Callable[[Pipeline], Any], images: int = 1) -> Any:
        """Do work on a model; what a person did wrong is told on the page."""
        try:
            return self.engine.run(name, work, images=images)
        except SphereGenError as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from error

    def classes(self, name: str) -> list[str]:
        """Return the names of a model's classes."""
        known = self.pipelines[name].classes
        return [known.name(number) for number in range(known.count)]


def build(studio: Studio) -> gr.Blocks:
    """Return the page."""
    names = list(studio.pipelines)
    page: gr.Blocks
    with gr.Blocks(title="SphereGen", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# SphereGen\nImages in one to a few steps, on a sphere.")
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
        with gr.Tabs():
            for title, lay_out in tabs.TABS.items():
                with gr.Tab(title):
                    lay_out(studio, model)
            if studio.runs is not None:
                with gr.Tab("Training"):
                    tabs.training(studio)
    return page


def launch(studio: Studio, *, host: str, port: int, browser: bool = False) -> tuple[gr.Blocks, str]:
    """Serve the page from threads of this process, and return it with its address.

    Args:
        browser: open it.

    Raises:
        ConfigError: the address cannot be bound.
    """
    page = build(studio)
    theme = gr.themes.Soft(primary_hue="blue", font=FONTS, font_mono=("ui-monospace", "monospace"))
    try:
        _, address, _ = page.queue(default_concurrency_limit=8).launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=browser,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            theme=theme,
            css=CSS,
            max_file_size="16mb",
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
        )
    except OSError as error:
        raise ConfigError(f"nothing can listen at {host}:{port}; choose another --port or --host") from error
    return page, str(address)


def card_of(folder: Path, pipe: Pipeline, name: str) -> str:
    """Return what the page tells of a model: the card in its folder, and its defaults of sampling."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else f"# {name}"
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"```python\n.*?```\n", "", text, flags=re.DOTALL)
    rows = "\n".join(f"| {name} | {value} |" for name, value in pipe.settings().items())
    return f"{text}\n\n## Defaults of generation\n\n| | |\n|---|---|\n{rows}\n"
