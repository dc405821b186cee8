"""`spheregen sample`: make pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import (
    BatchSize,
    Device,
    Json,
    Model,
    Quiet,
    output_folder,
    print_json,
    say,
    split_list,
    watch,
)

GRID_IMAGES = 100


def sample(
    model: Model,
    count: Annotated[int, typer.Option("--count", "-n", help="How many pictures.")] = 16,
    out: Annotated[
        Path, typer.Option(help="A folder for single PNGs (a grid comes beside it), or a .png file for one grid.")
    ] = Path("samples"),
    labels: Annotated[str | None, typer.Option(help="Classes by id or name, in turn: 3 or cat,dog.")] = None,
    seed: Annotated[int, typer.Option(help="Picture i has seed SEED + i.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Decodes; 1 is one step. Default: the model's.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Noise of the refinement steps: fixed or decay.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = None,
    guidance_at: Annotated[str | None, typer.Option(help="pixel, latent or both.")] = None,
    fresh_noise: Annotated[bool, typer.Option("--fresh-noise", help="New noise at each refinement step.")] = False,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Generate pictures. Each depends on its seed, class and settings alone; its PNG says which."""
    import torch

    from spheregen.cli.pictures import metadata_of
    from spheregen.data import image_grid, save_png, to_pil
    from spheregen.errors import ConfigError
    from spheregen.pipeline import GenerationOptions, Pipeline

    as_grid = out.suffix.lower() == ".png"
    output_folder(out.parent if as_grid else out)
    if as_grid and out.is_dir():
        raise ConfigError(f"the output path {out} is a folder; choose a file for the grid")
    if count < 1:
        raise ConfigError(f"--count is at least 1, not {count}")
    if as_grid and count > 10_000:
        raise ConfigError(f"a grid of {count} pictures is too large to look at; give a folder to --out")
    pipe = Pipeline.from_pretrained(model, device=device)
    options = GenerationOptions(
        steps=steps,
        schedule=schedule,
        guidance=guidance,
        guidance_at=guidance_at,
        share_noise=False if fresh_noise else None,
    )
    named = split_list(labels)
    chosen = None if named is None else [named[i % len(named)] for i in range(count)]
    shown = []
    done = 0
    parts = pipe.stream(range(seed, seed + count), labels=chosen, options=options, batch_size=batch_size)
    for part in watch(parts, count, max(1, batch_size), quiet=quiet):
        if as_grid or done < GRID_IMAGES:
            shown.append(part.tensor)
        if not as_grid:
            for index, (picture, picture_seed) in enumerate(zip(to_pil(part.tensor), part.seeds, strict=True)):
                label = None if part.labels is None else part.labels[index]
                metadata = metadata_of(pipe, model, part.settings, seed=picture_seed, label=label)
                save_png(picture, out / f"{picture_seed:06d}.png", metadata, durable=False)
        done += len(part.seeds)
    pictures = torch.cat(shown)
    pictures = pictures if as_grid else pictures[:GRID_IMAGES]
    scale = max(1, 64 // pictures.shape[-1])
    columns = len(pipe.info.class_names) if labels is None and 2 <= len(pipe.info.class_names) <= 20 else None
    grid = out if as_grid else out.with_name(f"{out.name}.png")  # beside the folder, which holds single pictures only
    metadata = metadata_of(pipe, model, part.settings, seed=seed, label=None)
    save_png(image_grid(pictures, columns=columns, scale=scale), grid, metadata)
    if as_json:
        print_json({"count": count, "out": str(out), "grid": str(grid), "seed": seed, **part.settings})
    else:
        say(f"{count} pictures, made on {pipe.device.type}: {grid if as_grid else f'{out}, the first in {grid}'}")
