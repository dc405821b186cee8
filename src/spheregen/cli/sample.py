"""`spheregen sample`: make images."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.images import open_output, others_in, output_file, sample_sheet, sheet_file, warn_of_others
from spheregen.errors import ConfigError

GRID_IMAGES = 100
LARGEST_GRID = 10_000


def sample(
    loop: cli.Sampling,
    model: cli.OptionalModel = None,
    count: Annotated[
        int | None, Option("--count", "-n", help="How many images. Default: 16, or 1 with --like.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            help="A folder, .zip, .tar or numbered shards such as part-%06d.tar for single PNGs (a grid comes beside "
            "it), or a .png for the grid alone. Default: samples, or repeated with --like."
        ),
    ] = None,
    labels: cli.Labels = None,
    seed: Annotated[int | None, Option(help="Image i has seed SEED + i. Default: 0.")] = None,
    like: Annotated[
        Path | None,
        Option(help="A PNG made by this command: repeat it, except for what other options say. MODEL may be left out."),
    ] = None,
    shard_size: Annotated[int, Option(help="Images in a numbered shard.")] = 10_000,
    batch_size: cli.BatchSize = None,
) -> None:
    """Generate images. Each depends on its seed, class and settings alone; its PNG says which.

    Examples:
        spheregen sample digits
        spheregen sample runs/mine -n 64 --labels cat,dog --steps 4 --guidance 1.4 --out grid.png
        spheregen sample --like samples/000012.png --steps 6
    """
    if model is None and like is None:
        raise ConfigError("name a model: a folder, a bundled model (see `spheregen models`) or a Hub id")
    from spheregen.data import save_png
    from spheregen.folders.summary import bundled_models
    from spheregen.pipeline import GenerationOptions
    from spheregen.pipeline.output import PipelineOutput, join_outputs, read_record

    record = None if like is None else read_record(like)
    if record is not None and model is None:
        model = record.model
        if model not in bundled_models() and not (model and os.path.isdir(model)):  # noqa: PTH112 (any text is welcome)
            # an image may come from anywhere, so it cannot make us download a model
            raise ConfigError(
                f"{like} was made by {model[:200]!r}, which is not here; name its place: MODEL --like ..."
            )
    assert model is not None
    count = count if count is not None else 1 if record else 16
    out = out or Path("samples" if like is None else "repeated")
    grid = sheet_file(out, () if like is None else [like])
    as_grid = grid == out
    cli.check_count(count)
    if as_grid and count > LARGEST_GRID:
        raise ConfigError(f"a grid of {count} images is too large to look at; give a folder to --out")
    first = seed if seed is not None else 0 if record is None else record.seed
    if like is not None and like.stem.isdecimal() and first <= int(like.stem) < first + count:
        output_file(out / like.name, [like])
    writer = None if as_grid else open_output(out, shard_size=shard_size)  # complains before any work is done

    def mine(stem: str) -> bool:
        return stem == grid.stem or (stem.isdecimal() and first <= int(stem) < first + count)

    others = 0 if as_grid else others_in(out, mine)
    if others and like is None and not cli.everywhere.overwrite:
        raise ConfigError(
            f"{out} already holds {cli.count_of(others)} that this command would not replace, and new ones would mix "
            "with them; choose another --out, or write beside them with --overwrite"
        )
    pipe = cli.load_pipeline(model, batch_size)
    writer = None if as_grid else open_output(out, pipe.info.class_names, shard_size)
    options = GenerationOptions(**loop.given())
    named: Sequence[str | int] | None = cli.class_list(pipe, labels)
    if record is not None:
        if record.fingerprint and pipe.fingerprint != record.fingerprint:
            cli.warn(f"warning: {like} was made by other weights ({record.fingerprint!r}) than {model} has now")
        options = dataclasses.replace(GenerationOptions(**record.settings), **loop.given())
        before = record.prompt if record.prompt else record.label  # by id: a name may be another's number
        named = named or (None if before is None else [before])
    parts = pipe.stream(range(first, first + count), labels=cli.in_turn(named, count), options=options)
    shown: list[PipelineOutput] = []
    done = 0
    with contextlib.nullcontext() if writer is None else writer:
        for part in cli.watch(parts, count, len):
            if as_grid or done < GRID_IMAGES:
                shown.append(part)
            if writer is not None:
                part.save(writer)
            done += len(part)
    images = join_outputs(shown)[: None if as_grid else GRID_IMAGES]
    metadata = {
        key: value for key, value in part.metadata(0).items() if key not in ("label", "class", "prompt", "settings")
    }
    save_png(sample_sheet(images), grid, metadata | {"seed": str(first)})
    if others:
        warn_of_others(out, mine)
    cli.finish(
        {"count": count, "out": str(out), "grid": str(grid), "seed": first, **part.settings},
        f"{cli.count_of(count)}, made on {pipe.place}: {grid if as_grid else f'{out}, sheet {grid}'}",
    )
