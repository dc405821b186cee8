"""`spheregen app`: a page to generate, edit and explore images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spheregen.cli import options as cli
from spheregen.errors import ConfigError


def app(
    models: Annotated[
        list[str] | None,
        Argument(
            help="Model folders, bundled models or Hub ids; NAME=MODEL for another name. Default: the bundled ones.",
            metavar="[MODEL...]",
        ),
    ] = None,
    host: Annotated[str, Option(help="The address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(help="The port.")] = 7860,
    runs: Annotated[
        Path | None, Option(help="A folder of runs of `spheregen train`, whose curves and previews can be watched.")
    ] = None,
    browser: Annotated[bool, Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Open a page to generate, edit, interpolate, inpaint and explore images. Works offline, and on a phone's width.

    Examples:
        spheregen app
        spheregen app runs/mine letters=runs/letters
        spheregen app runs/mine --runs runs --host 0.0.0.0 --no-browser
    """
    from spheregen.external import import_package
    from spheregen.folders.model_source import find_model
    from spheregen.folders.summary import bundled_models

    for package in ("gradio", "greenlet"):
        import_package(package, "app", "the app")
    from spheregen.serving.server import load_pipelines
    from spheregen.serving.settings import Settings
    from spheregen.serving.studio import Studio, card_of, launch

    settings = Settings(models=tuple(models or bundled_models()), device=cli.everywhere.device, host=host, port=port)
    if runs is not None and not runs.is_dir():
        raise ConfigError(f"{runs} is no folder; give the one that holds your runs to --runs")
    if not settings.is_local:
        cli.warn(f"warning: everybody who reaches {host}:{port} may use the page")
    pipelines = load_pipelines(settings)
    cards = {name: card_of(find_model(place), pipelines[name], name) for name, place in settings.named_models.items()}
    studio = Studio(pipelines, cards, runs)
    try:
        page, address = launch(studio, host=host, port=port, browser=browser)
        cli.say(f"{', '.join(pipelines)} at {address}; Ctrl+C stops it")
        page.block_thread()
    finally:
        studio.close()
