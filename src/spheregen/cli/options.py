"""Options that several commands share, and small helpers for their output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from spheregen.errors import ConfigError

if TYPE_CHECKING:
    from spheregen.pipeline import SamplerOptions

Part = TypeVar("Part")
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Plain lines instead of a progress bar.")]
Model = Annotated[
    str, typer.Argument(help="A model folder, the name of a bundled model, or a Hub id.", metavar="MODEL")
]
BatchSize = Annotated[
    int | None, typer.Option(help="Images in one pass through the network; does not change them. Default: what fits.")
]
Images = Annotated[
    list[str],
    typer.Argument(help="Image files, or any data set: folders, .zip, .parquet, .tar, `digits`.", metavar="IMAGES"),
]
Split = Annotated[str, typer.Option(help="Which part of a data set: train, test, all.")]
Label = Annotated[str | None, typer.Option(help="A class by id or name. Default: the null class.")]
EditSteps = Annotated[int, typer.Option(help="Pairs of encode and decode.")]
Strength = Annotated[float, typer.Option(help="Noise of a step as a fraction of the training noise, 0 to 1.")]
Seed = Annotated[int, typer.Option(help="Picture i has seed SEED + i.")]
AllSteps = Annotated[bool, typer.Option("--all-steps", help="Write the picture after every step, too.")]
Out = Annotated[Path, typer.Option(help="A folder for single PNGs (a sheet comes beside it), or a .png for the sheet.")]
ScheduleOption = Annotated[str | None, typer.Option("--schedule", help="Noise of the steps: fixed or decay.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")]
GuidanceAt = Annotated[str | None, typer.Option(help="pixel, latent or both.")]
FreshNoise = Annotated[bool, typer.Option("--fresh-noise", help="New noise at each step.")]


def sampler_options(
    schedule: str | None, guidance: float | None, guidance_at: str | None, fresh_noise: bool
) -> SamplerOptions:
    """What was given of the options that all few-step loops share; the rest is the model's default."""
    options: SamplerOptions = {}
    if schedule is not None:
        options["schedule"] = schedule
    if guidance is not None:
        options["guidance"] = guidance
    if guidance_at is not None:
        options["guidance_at"] = guidance_at
    if fresh_noise:
        options["share_noise"] = False
    return options


def print_json(value: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """A line for people, on stderr: stdout is for answers."""
    print(text, file=sys.stderr, flush=True)


def output_folder(path: Path) -> Path:
    """`path`, if it can be a folder to write into.

    Raises:
        ConfigError: it is a file.
    """
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise ConfigError(f"the output path {part} is a file; choose a folder with --out")
            break
    return path


def watch(parts: Iterable[Part], count: int, size: Callable[[Part], int], *, quiet: bool) -> Iterator[Part]:
    """Pass on batches of `count` images and show progress, rate and remaining time where there are several."""
    from spheregen.progress import default_reporter, watched

    return watched(parts, count, size, lambda: default_reporter(quiet=quiet))


def split_numbers(text: str, name: str, kind: Callable[[str], Part]) -> list[Part]:
    """`1,2,4` as numbers.

    Raises:
        ConfigError: an item is no number.
    """
    try:
        return [kind(item) for item in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{name} takes numbers such as 1,2,4, not {text!r}") from error


def split_list(text: str | None) -> list[str] | None:
    """`3,7,cat` as a list; None stays None.

    Raises:
        ConfigError: there is nothing between two commas.
    """
    if text is None:
        return None
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ConfigError(f"{text!r} is not a list such as 3,7 or cat,dog")
    return items


def table(rows: Iterable[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """A plain table with aligned columns."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
