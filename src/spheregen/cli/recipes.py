"""`spheregen recipes`: the shipped recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import Json, print_json, table


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's YAML instead of the list.")] = None,
    as_json: Json = False,
) -> None:
    """List the shipped recipes, or print one as YAML to start your own from."""
    from spheregen.training.recipe import load_recipe, shipped_recipes

    if name is not None:
        recipe = load_recipe(name)
        if as_json:
            print_json(recipe.model_dump(mode="json"))
        else:
            shipped = shipped_recipes()
            print(shipped[name] if name in shipped else Path(name).read_text(encoding="utf-8"), end="")
        return
    listed = [load_recipe(shipped) for shipped in shipped_recipes()]
    if as_json:
        print_json([{"name": recipe.name, "description": recipe.description} for recipe in listed])
    else:
        print(table([(recipe.name, recipe.description) for recipe in listed], ("recipe", "what it trains")))
