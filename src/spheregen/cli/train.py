"""`spheregen train`: train a recipe, or continue it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import Device, Json, Quiet, output_folder, print_json, say


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `spheregen recipes`) or a YAML file.")],
    data: Annotated[
        str | None, typer.Option(help="Images: digits, a folder, zip, parquet or tar files, a Hub data set.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Fine-tune this model: a model folder, a bundled model or user/name of the Hub.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/RECIPE by default.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting, a.b=c; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and stop.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a generator, or fine-tune one. The same command again continues an interrupted run where it was saved."""
    from spheregen.training.recipe import RepresentationRecipe, load_recipe

    resolved = load_recipe(recipe, settings or (), data=data, init=init)
    if dry_run:
        if as_json:
            print_json(resolved.model_dump(mode="json"))
        else:
            import yaml

            print(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), end="")
        return
    from spheregen.distributed import is_first_process
    from spheregen.progress import default_reporter
    from spheregen.training.trainer import train as run_training

    folder = output_folder(out or Path("runs") / resolved.name)
    result = run_training(resolved, folder, device=device, reporter=default_reporter(quiet=quiet))
    if not is_first_process():
        return
    if as_json:
        print_json({**dataclasses.asdict(result), "folder": str(result.folder)})
    else:
        use = f"sample it with: spheregen sample {folder}"
        if isinstance(resolved, RepresentationRecipe):
            use = f"encode images with it: spheregen encode {folder} IMAGES"
        say(f"the model is in {folder}; look at {folder / 'previews'}, {use}")
