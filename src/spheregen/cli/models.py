"""`spheregen models`: the bundled models, and those that somebody offers on the Hub."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from spheregen.cli.options import Json, print_json, say, table


def models(
    hub: Annotated[
        str | None,
        typer.Option("--hub", help="List also what this organisation or user offers on the Hub.", metavar="NAME"),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models that a name alone loads: the bundled ones, and with --hub those of the Hugging Face Hub.

    Nothing but --hub uses the network.
    """
    from spheregen.errors import SphereGenError
    from spheregen.model_source import bundled_models, list_hub_models, summarise_model

    bundled = {name: summarise_model(folder) for name, folder in bundled_models().items()}
    as_dicts = [{"name": name, **dataclasses.asdict(summary)} for name, summary in bundled.items()]
    if as_json:
        try:
            offered = None if hub is None else [dataclasses.asdict(model) for model in list_hub_models(hub)]
        except SphereGenError:
            print_json({"bundled": as_dicts, "hub": None})
            raise
        print_json({"bundled": as_dicts, "hub": offered})
        return
    if bundled:
        rows = [
            (
                name,
                f"{one.image_size} px",
                str(one.num_classes or "none"),
                f"{one.parameters / 1e6:.2f} M",
                one.license or "",
                one.description or "",
            )
            for name, one in bundled.items()
        ]
        print(table(rows, ("model", "images", "classes", "parameters", "licence", "what it is")), flush=True)
    else:
        say("no models come with this version")
    if hub is None:
        return
    found = list_hub_models(hub)
    if not found:
        say(f"{hub} offers no SphereGen models on the Hub that you may see; check the name for a typo")
        return
    if bundled:
        print()
    offers = [(one.name, str(one.downloads), str(one.likes), one.updated or "") for one in found]
    print(table(offers, ("model on the Hub", "downloads", "likes", "updated")))
