"""`spheregen suggest`: a recipe fitted to a data set and this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_file
from spheregen.cli.stats import examine
from spheregen.errors import ConfigError


def suggest(
    source: cli.Source,
    split: cli.Split = "train",
    out: Annotated[Path | None, Option(help="Write the recipe to this YAML file.")] = None,
    hours: Annotated[float | None, Option(help="How long training may take.")] = None,
    image_size: cli.ImageSize = None,
    limit: Annotated[int, Option(help="Look at this many images, evenly spread.")] = 2000,
) -> None:
    """Suggest a recipe for a data set on this machine, with the reason for each setting, ready for `spheregen train`.

    It looks at the images, measures the machine for some seconds, and prints a YAML file.

    Examples:
        spheregen suggest photos/
        spheregen suggest photos/ --hours 8 --image-size 64 --out mine.yaml
    """
    from spheregen.data import open_source
    from spheregen.data.statistics import look_at
    from spheregen.devices import choose_device
    from spheregen.files import write_text
    from spheregen.measure.precision import choose_precision
    from spheregen.measure.timing import load_of_processors
    from spheregen.training.suggestion import check_wishes, suggest_recipe

    check_wishes(hours, image_size)
    if out is not None:
        if out.suffix.lower() not in (".yaml", ".yml"):
            raise ConfigError(f"a recipe is a YAML file, not {out}; give --out a name that ends in .yaml")
        output_file(out)
    place = choose_device(cli.everywhere.device)
    opened = open_source(source, split=split)
    suggestion = suggest_recipe(
        examine(opened, limit),
        look_at(opened, min(limit, 200)),
        _from_anywhere(source),
        device=place,
        precision=choose_precision("auto", place).name,
        hours=hours,
        image_size=image_size,
    )
    text = suggestion.yaml()
    if out is not None:
        write_text(out, text)
    if cli.everywhere.as_json or out is None:
        cli.answer(
            {**dataclasses.asdict(suggestion), "recipe": suggestion.recipe.model_dump(mode="json")}, text.rstrip("\n")
        )
    if suggestion.expectation:
        cli.say(f"what to expect: {suggestion.expectation}")
    for warning in suggestion.warnings:
        cli.warn(f"warning: {warning}")
    if place.type == "cpu" and (load := load_of_processors()) > 1.5:
        cli.say(f"note: other programs keep this machine busy (load {load:.1f} a core), so an idle one will be faster")
    on = "" if cli.everywhere.device == "auto" else f" --device {cli.everywhere.device}"
    where = "save this as mine.yaml, or give --out mine.yaml" if out is None else f"the recipe is in {out}"
    cli.say(f"{where}; train it with: spheregen train {out or 'mine.yaml'}{on}")


def _from_anywhere(source: str) -> str:
    """Return the data of a recipe by a path that means the same in every folder; names and URLs as they are."""
    from spheregen.data.embedded import EMBEDDED

    path = Path(source).expanduser()
    is_path = source not in EMBEDDED and (path.exists() or source.startswith(("./", "../")))
    return str(path.absolute()) if is_path else source
