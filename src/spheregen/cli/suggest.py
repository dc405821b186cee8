"""`spheregen suggest`: a recipe fitted to a data set and this machine."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spheregen.cli.options import Device, Json, Quiet, print_json, say

if TYPE_CHECKING:
    from spheregen.data import ImageSource, SourceStatistics
    from spheregen.training.suggestion import Reason, Suggestion

WIDTH = 100  # characters of a line of comment


def suggest(
    source: Annotated[
        str,
        typer.Argument(
            help="`digits`, a folder of images, .zip, .parquet or .tar files (or a pattern), a URL, a Hub data set.",
            metavar="SRC",
        ),
    ],
    split: Annotated[str, typer.Option(help="Which part of the data: train, test, all.")] = "train",
    out: Annotated[Path | None, typer.Option(help="Write the recipe to this YAML file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    device: Device = "auto",
    hours: Annotated[float | None, typer.Option(help="How long training may take.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    limit: Annotated[int, typer.Option(help="Look at this many images, evenly spread.")] = 2000,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Suggest a recipe for a data set on this machine, with the reason for each setting, ready for `spheregen train`.

    It looks at the images, measures the machine for some seconds, and prints a YAML file.
    """
    from spheregen.data import open_source
    from spheregen.data.look import look_at
    from spheregen.devices import choose_device, choose_precision
    from spheregen.files import write_text
    from spheregen.training.ladder import check_wishes
    from spheregen.training.suggestion import suggest_recipe

    check_wishes(hours, image_size)
    if out is not None:
        _check_file(out, force)
    place = choose_device(device)
    opened = open_source(source, split=split)
    suggestion = suggest_recipe(
        _statistics(opened, limit, quiet),
        look_at(opened, min(limit, 200)),
        source,
        device=place,
        precision=choose_precision("auto", place),
        hours=hours,
        image_size=image_size,
    )
    text = recipe_text(suggestion)
    if out is not None:
        write_text(out, text)
    if as_json:
        print_json({**dataclasses.asdict(suggestion), "recipe": suggestion.recipe.model_dump(mode="json")})
    elif out is None:
        print(text, end="")
    for warning in suggestion.warnings:
        say(f"warning: {warning}")
    if place.type == "cpu" and (load := _load()) > 1.5:
        say(f"note: other programs keep this machine busy (load {load:.1f} a core), so an idle one will be faster")
    on = "" if device == "auto" else f" --device {device}"
    if out is not None:
        say(f"the recipe is in {out}; train it with: spheregen train {out}{on}")
    elif not as_json:
        say(f"save this as mine.yaml (or give --out mine.yaml), then: spheregen train mine.yaml{on}")


def recipe_text(suggestion: Suggestion) -> str:
    """The recipe as YAML, in the groups of the shipped ones, each setting under the comment that gives its reason."""
    import yaml

    text = yaml.safe_dump({"description": suggestion.recipe.description}, width=10_000, allow_unicode=True)
    section = ""
    for reason in suggestion.reasons:
        name, dot, _ = next(iter(reason.settings)).partition(".")
        if dot and name != section:
            text += f"{name}:\n"
        section = name
        text += textwrap.indent(_entry(reason), "  " if dot else "")
    return text


def _entry(reason: Reason) -> str:
    import yaml

    text = textwrap.fill(reason.why, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) + "\n"
    for key, value in reason.settings.items():
        listed = yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
        text += f"{key.rpartition('.')[2]}: {listed.strip()[1:-1]}\n"
    return text


def _load() -> float:
    """Programs that want a core, for each core; this one is among them. 0 where the system does not tell."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return 0.0


def _check_file(out: Path, force: bool) -> None:
    """Refuse, before the work, a file that could not be written or used."""
    from spheregen.errors import ConfigError

    if out.suffix.lower() not in (".yaml", ".yml") or out.is_dir():
        raise ConfigError(f"a recipe is a YAML file, not {out}; give --out a name that ends in .yaml")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; choose another name, or replace it with --force")


def _statistics(source: ImageSource, limit: int, quiet: bool) -> SourceStatistics:
    from spheregen.data import source_statistics
    from spheregen.progress import QuietReporter, default_reporter

    count = min(limit, len(source))
    reporter = default_reporter(quiet=quiet) if count > 500 else QuietReporter()
    reporter.start(max(1, count), 0, 1)
    try:
        return source_statistics(source, limit=limit, progress=lambda done, _: reporter.step(done, None))
    finally:
        reporter.stop()
