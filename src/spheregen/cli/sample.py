"""`spheregen sample`: make pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, overload

import typer

from spheregen.cli.options import (
    BatchSize,
    Device,
    FreshNoise,
    Guidance,
    GuidanceAt,
    Json,
    Quiet,
    ScheduleOption,
    output_folder,
    print_json,
    sampler_options,
    say,
    split_list,
    watch,
)

if TYPE_CHECKING:
    from spheregen.metadata import PictureRecord

GRID_IMAGES = 100
LARGEST_GRID = 10_000


def sample(
    model: Annotated[
        str | None,
        typer.Argument(help="A model folder, the name of a bundled model, or a Hub id.", metavar="[MODEL]"),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", help="How many pictures; 16 by default.")] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="A folder, .zip, .tar or numbered shards such as part-%06d.tar for single PNGs, with a grid beside "
            "them; or a .png file for one grid."
        ),
    ] = Path("samples"),
    labels: Annotated[str | None, typer.Option(help="Classes by id or name, in turn: 3 or cat,dog.")] = None,
    seed: Annotated[int | None, typer.Option(help="Picture i has seed SEED + i; 0 by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Decodes; 1 is one step. Default: the model's.")] = None,
    schedule: ScheduleOption = None,
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = False,
    like: Annotated[
        Path | None, typer.Option(help="A PNG made by this command: repeat it, except for what other options say.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Pictures in a numbered shard.")] = 10_000,
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Generate pictures. Each depends on its seed, class and settings alone; its PNG says which."""
    import contextlib
    import dataclasses

    import torch

    from spheregen.data import image_grid, open_writer, save_png
    from spheregen.errors import ConfigError
    from spheregen.metadata import read_record
    from spheregen.pipeline import GenerationOptions, Pipeline

    record = None if like is None else read_record(like)
    if record is not None and model is None:
        model = _model_of(record, like)
    if model is None:
        raise ConfigError("name a model: a folder, a bundled model (see `spheregen models`) or a Hub id")
    count = count if count is not None else 1 if record else 16
    as_grid = out.suffix.lower() == ".png"
    output_folder(out.parent)
    if as_grid and out.is_dir():
        raise ConfigError(f"the output path {out} is a folder; choose a file for the grid")
    if count < 1:
        raise ConfigError(f"--count is at least 1, not {count}")
    if as_grid and count > LARGEST_GRID:
        raise ConfigError(f"a grid of {count} pictures is too large to look at; give a folder to --out")
    writer = None if as_grid else open_writer(out, shard_size=shard_size)  # complains before any work is done
    pipe = Pipeline.from_pretrained(model, device=device, batch_size=batch_size, progress=False, quiet=True)
    writer = None if as_grid else open_writer(out, class_names=pipe.info.class_names, shard_size=shard_size)
    options = GenerationOptions(steps=steps, **sampler_options(schedule, guidance, guidance_at, fresh_noise))
    named = split_list(labels)
    first = seed or 0
    if record is not None:
        if record.fingerprint and pipe.fingerprint != record.fingerprint:
            say(f"warning: {like} was made by other weights ({record.fingerprint}) than {model} has now")
        given = {name: value for name, value in vars(options).items() if value is not None}
        options = dataclasses.replace(options, **{**record.settings, **given})
        first = record.seed if seed is None else seed
        named = named or (None if record.label is None else [str(record.label)])
    parts = pipe.stream(
        range(first, first + count), labels=None if named is None else _InTurn(named, count), options=options
    )
    shown: list[torch.Tensor] = []
    done = 0
    with contextlib.nullcontext() if writer is None else writer:
        for part in watch(parts, count, lambda part: len(part.seeds), quiet=quiet):
            if as_grid or done < GRID_IMAGES:
                shown.append(part.tensor)
            if writer is not None:
                part.save(writer)
            done += len(part.seeds)
    pictures = torch.cat(shown)
    pictures = pictures if as_grid else pictures[:GRID_IMAGES]
    names = pipe.info.class_names
    columns = len(names) if named is None and 2 <= len(names) <= 20 else None
    grid = out if as_grid else out.with_name(f"{out.name.replace('%', '')}.png")  # beside what holds single pictures
    metadata = {key: value for key, value in part.metadata(0).items() if key not in ("label", "class", "settings")}
    image = image_grid(pictures, columns=columns, scale=max(1, 64 // pictures.shape[-1]))
    save_png(image, grid, metadata | {"seed": str(first)})
    if as_json:
        print_json({"count": count, "out": str(out), "grid": str(grid), "seed": first, **part.settings})
    else:
        say(f"{count} pictures, made on {pipe.place}: {grid if as_grid else f'{out}, the first in {grid}'}")


def _model_of(record: PictureRecord, like: Path | None) -> str:
    """The model that a picture names. A picture may come from anywhere, so it cannot make us download one."""
    from spheregen.errors import ConfigError
    from spheregen.model_source import bundled_models

    if record.model in bundled_models() or Path(record.model).is_dir():
        return record.model
    raise ConfigError(
        f"{like} was made by the model {record.model!r}, which is not here; name its place: MODEL --like ..."
    )


class _InTurn(Sequence[str]):
    """Labels in turn, any number of them in the memory of the few."""

    def __init__(self, labels: Sequence[str], count: int) -> None:
        self.labels, self.total = labels, count

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self.labels[i % len(self.labels)] for i in range(*place.indices(self.total))]
        if not 0 <= place < self.total:
            raise IndexError(place)
        return self.labels[place % len(self.labels)]
