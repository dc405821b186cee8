"""`spheregen models` and `spheregen recipes`: what there is to name in other commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from typer import Option

from spheregen.cli import options as cli
from spheregen.errors import SphereGenError


def models(
    hub: Annotated[
        str | None,
        Option("--hub", help="List also what this organisation or user offers on the Hub.", metavar="NAME"),
    ] = None,
) -> None:
    """List the models that a name alone loads: the bundled ones, and with --hub those of the Hugging Face Hub.

    Nothing but --hub uses the network.

    Examples:
        spheregen models
        spheregen models --hub someone --json
    """
    from spheregen.folders.summary import bundled_models, summarise_model

    bundled = {name: summarise_model(folder) for name, folder in bundled_models().items()}
    tables = [
        cli.table(
            {
                "model": name,
                "images": f"{one.image_size} px",
                "classes": one.num_classes or "none",
                "parameters": f"{one.parameters / 1e6:.2f} M",
                "licence": one.license or "",
                "what it is": one.description or "",
            }
            for name, one in bundled.items()
        )
        if bundled
        else "no models come with this version"
    ]
    offered, missing = None, None
    try:
        if hub is not None:
            from spheregen.folders.model_source import list_hub_models

            offered = [dataclasses.asdict(one) for one in list_hub_models(hub)]
    except SphereGenError as error:  # the bundled ones are told all the same
        missing = error
    if offered is not None:
        tables.append(
            cli.table(offered) if offered else f"{hub} offers no SphereGen models on the Hub that you may see"
        )
    listed = [{"name": name, **dataclasses.asdict(one)} for name, one in bundled.items()]
    cli.answer({"bundled": listed, "hub": offered}, "\n\n".join(tables))
    if missing is not None:
        raise missing


def recipes(name: cli.OptionalRecipe = None) -> None:
    """List the shipped recipes, or print one as YAML to start your own from.

    Examples:
        spheregen recipes
        spheregen recipes digits > mine.yaml
    """
    from spheregen.training.recipe import load_recipe, shipped_recipes

    shipped = shipped_recipes()
    if name is None:
        listed = [load_recipe(each) for each in shipped]
        rows = [{"name": recipe.name, "description": recipe.description} for recipe in listed]
        cli.answer(rows, lambda: cli.table([tuple(row.values()) for row in rows], ("recipe", "what it trains")))
        return
    recipe = load_recipe(name)
    text = shipped[name] if name in shipped else Path(name).read_text(encoding="utf-8")
    cli.answer(recipe.model_dump(mode="json"), text.removesuffix("\n"))
