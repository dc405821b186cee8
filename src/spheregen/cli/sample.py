"""`spheregen sample`: make pictures."""

from __future__ import annotations

import os
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
    RefinementGuidance,
    RefinementSteps,
    ScheduleOption,
    SolverOption,
    load_pipeline,
    output_file,
    pictures_of,
    print_json,
    sampler_options,
    say,
    sheet_of,
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
        typer.Argument(help="A model folder, the name of a bundled model, or a Hub id.", metavar="MODEL"),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="How many pictures. Default: 16, or 1 with --like.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder, .zip, .tar or numbered shards such as part-%06d.tar for single PNGs (a grid comes beside "
            "it), or a .png for the grid alone. Default: samples, or repeated with --like."
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Classes by id or name, in turn: 3 or cat,dog. Default: all in turn.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Picture i has seed SEED + i. Default: 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="Decodes; 1 is one step. Default: the model's.")] = None,
    schedule: ScheduleOption = None,
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = None,
    refinement_steps: RefinementSteps = None,
    solver: SolverOption = None,
    refinement_guidance: RefinementGuidance = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="A PNG made by this command: repeat it, except for what other options say. MODEL may be left out."
        ),
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
    from spheregen.pipeline import GenerationOptions

    record = None if like is None else read_record(like)
    if record is not None and model is None:
        model = _model_of(record, like)
    if model is None:
        raise ConfigError("name a model: a folder, a bundled model (see `spheregen models`) or a Hub id")
    count = count if count is not None else 1 if record else 16
    out = out or Path("samples" if like is None else "repeated")
    grid = output_file(sheet_of(out), () if like is None else [like])
    as_grid = grid == out
    if count < 1:
        raise ConfigError(f"--count is at least 1, not {count}")
    if as_grid and count > LARGEST_GRID:
        raise ConfigError(f"a grid of {count} pictures is too large to look at; give a folder to --out")
    first = seed if seed is not None else 0 if record is None else record.seed
    if like is not None and like.stem.isdecimal() and first <= int(like.stem) < first + count:
        output_file(out / like.name, [like])
    writer = None if as_grid else open_writer(out, shard_size=shard_size)  # complains before any work is done
    pipe = load_pipeline(model, device, batch_size)
    writer = None if as_grid else open_writer(out, class_names=pipe.info.class_names, shard_size=shard_size)
    options = GenerationOptions(
        steps=steps,
        **sampler_options(schedule, guidance, guidance_at, fresh_noise, refinement_steps, solver, refinement_guidance),
    )
    named: list[str] | list[int] | None = split_list(labels)
    if record is not None:
        if record.fingerprint and pipe.fingerprint != record.fingerprint:
            say(f"warning: {like} was made by other weights ({record.fingerprint!r}) than {model} has now")
        given = {name: value for name, value in vars(options).items() if value is not None}
        options = dataclasses.replace(options, **{**record.settings, **given})
        named = named or (None if record.label is None else [record.label])  # by id: a name may be another's number
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
    metadata = {key: value for key, value in part.metadata(0).items() if key not in ("label", "class", "settings")}
    image = image_grid(pictures, columns=columns, scale=max(1, 64 // pictures.shape[-1]))
    save_png(image, grid, metadata | {"seed": str(first)})
    if as_json:
        print_json({"count": count, "out": str(out), "grid": str(grid), "seed": first, **part.settings})
    else:
        say(f"{pictures_of(count)}, made on {pipe.place}: {grid if as_grid else f'{out}, sheet {grid}'}")


def _model_of(record: PictureRecord, like: Path | None) -> str:
    """The model that a picture names. A picture may come from anywhere, so it cannot make us download one."""
    from spheregen.errors import ConfigError
    from spheregen.model_source import bundled_models

    if record.model in bundled_models() or (record.model and os.path.isdir(record.model)):  # noqa: PTH112 (any text)
        return record.model
    raise ConfigError(
        f"{like} was made by the model {record.model[:200]!r}, which is not here; name its place: MODEL --like ..."
    )


class _InTurn(Sequence[int | str]):
    """Labels in turn, any number of them in the memory of the few."""

    def __init__(self, labels: Sequence[int | str], count: int) -> None:
        self.labels, self.total = labels, count

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, place: int) -> int | str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int | str]: ...
    def __getitem__(self, place: int | slice) -> int | str | Sequence[int | str]:
        if isinstance(place, slice):
            return [self.labels[i % len(self.labels)] for i in range(*place.indices(self.total))]
        if not 0 <= place < self.total:
            raise IndexError(place)
        return self.labels[place % len(self.labels)]
