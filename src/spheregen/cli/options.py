"""Options that several commands share, and small helpers for their output."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from spheregen.errors import ConfigError

if TYPE_CHECKING:
    from spheregen.pipeline import Pipeline, SamplerOptions

Part = TypeVar("Part")
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Plain lines instead of a progress bar.")]
NoBar = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
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
RestoreSteps = Annotated[int, typer.Option(help="Prior and data steps.")]
Strength = Annotated[float, typer.Option(help="Noise of a step as a fraction of the training noise, 0 to 1.")]
Seed = Annotated[int, typer.Option(help="The noise of picture i has seed SEED + i.")]
AllSteps = Annotated[bool, typer.Option("--all-steps", help="Write the picture after every step, too.")]
Out = Annotated[
    Path,
    typer.Option(
        help="A folder, .zip or .tar for single PNGs (a sheet comes beside it), or a .png for the sheet alone."
    ),
]
ScheduleOption = Annotated[
    str | None, typer.Option("--schedule", help="Noise of the steps: fixed, decay or angle. Default: the model's.")
]
EditSchedule = Annotated[str, typer.Option("--schedule", help="Noise of the steps: fixed, decay or angle.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="Classifier-free guidance scale; 1 is none. Default: the model's; 1 without a class."),
]
GuidanceAt = Annotated[str | None, typer.Option(help="pixel, latent or both. Default: the model's.")]
FreshNoise = Annotated[
    bool | None,
    typer.Option("--fresh-noise/--shared-noise", help="New noise at each step, or one for all. Default: the model's."),
]
RefinementSteps = Annotated[
    int | None,
    typer.Option(help="Steps of the flow of a model that refines; 0 leaves pictures rough. Default: the model's."),
]
SolverOption = Annotated[
    str | None, typer.Option("--solver", help="Of the flow: euler, heun or midpoint. Default: the model's.")
]
RefinementGuidance = Annotated[
    float | None, typer.Option(help="Guidance of the flow. Default: the model's, or that of the loop.")
]


def sampler_options(
    schedule: str | None = None,
    guidance: float | None = None,
    guidance_at: str | None = None,
    fresh_noise: bool | None = None,
    refinement_steps: int | None = None,
    solver: str | None = None,
    refinement_guidance: float | None = None,
) -> SamplerOptions:
    """What was given of the options that all few-step loops share; the rest is the model's default."""
    options: SamplerOptions = {}
    if schedule is not None:
        options["schedule"] = schedule
    if guidance is not None:
        options["guidance"] = guidance
    if guidance_at is not None:
        options["guidance_at"] = guidance_at
    if fresh_noise is not None:
        options["share_noise"] = not fresh_noise
    if refinement_steps is not None:
        options["refinement_steps"] = refinement_steps
    if solver is not None:
        options["solver"] = solver
    if refinement_guidance is not None:
        options["refinement_guidance"] = refinement_guidance
    return options


def print_json(value: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """A line for people, on stderr: stdout is for answers."""
    print(text, file=sys.stderr, flush=True)


def load_pipeline(model: str, device: str, batch_size: int | None, *, progress: bool | None = False) -> Pipeline:
    """The model of a command, which tells of its progress by `watch`, or with `progress` leaves that to the pipeline.

    Raises:
        ModelFileError, ConfigError: as `Pipeline.from_pretrained`.
    """
    from spheregen.pipeline import Pipeline

    return Pipeline.from_pretrained(model, device=device, batch_size=batch_size, progress=progress, quiet=True)


def pictures_of(count: int) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count} picture{'' if count == 1 else 's'}"


def output_folder(path: Path) -> Path:
    """`path`, if it can be a folder to write into.

    Raises:
        ConfigError: it is a file, or impossible.
    """
    try:
        above = next((part for part in (path, *path.parents) if part.exists()), None)
    except OSError as error:  # a name that is too long, no permission
        raise ConfigError(f"the output path {path} is impossible ({error.strerror}); choose another") from error
    if above is not None and not above.is_dir():
        raise ConfigError(f"the output path {above} is a file; choose a folder with --out")
    return path


def output_file(path: Path, inputs: Iterable[str | Path] = ()) -> Path:
    """`path`, if it can be a file to write, and is none of the command's inputs.

    Raises:
        ConfigError: it is a folder, below a file, impossible, or would overwrite an input.
    """
    output_folder(path.parent)
    try:
        if path.is_dir():
            raise ConfigError(f"the output path {path} is a folder; choose another file name with --out")
        for given in inputs:
            if Path(given).name == path.name and path.exists() and path.samefile(given):
                raise ConfigError(f"the output would overwrite {path}, which is read here; choose another --out")
    except OSError as error:
        raise ConfigError(f"the output path {path} is impossible ({error.strerror}); choose another") from error
    return path


def sheet_of(out: Path) -> Path:
    """The sheet of what is written to `out`: that file itself, or beside the folder, zip or shards of single PNGs."""
    if out.suffix.lower() == ".png":
        return out
    if out.name in ("", ".."):  # the folder that we are in, and others without a name
        return out / "sheet.png"
    name = out.stem if out.suffix.lower() in (".zip", ".tar") else out.name
    return out.with_name((re.sub(r"[-_.]?%\d+d", "", name) or "sheet") + ".png")


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
