"""`spheregen inpaint`: fill in a region of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import (
    AllSteps,
    BatchSize,
    Device,
    FreshNoise,
    Guidance,
    GuidanceAt,
    Images,
    Json,
    Label,
    Model,
    Out,
    Quiet,
    ScheduleOption,
    Seed,
    Split,
    Strength,
    sampler_options,
    watch,
)


def inpaint(
    model: Model,
    images: Images,
    mask: Annotated[
        Path, typer.Option(help="A picture, white where pixels are missing, of the images' size or the model's.")
    ],
    label: Label = None,
    out: Out = Path("inpainted"),
    strength: Strength = 0.5,
    steps: Annotated[int, typer.Option(help="Prior and data steps.")] = 8,
    seed: Seed = 0,
    schedule: ScheduleOption = None,
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = False,
    all_steps: AllSteps = False,
    split: Split = "train",
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fill in a region; known pixels stay. The sheet shows the picture, what was known of it, and each step."""
    from spheregen.cli.pictures import EditWriter, gather, parts, step_rows
    from spheregen.data.inputs import load_mask, load_pictures
    from spheregen.pipeline import Pipeline

    writer = EditWriter(out, all_steps=all_steps)
    pipe = Pipeline.from_pretrained(model, device=device, batch_size=batch_size, progress=False, quiet=True)
    options = sampler_options(schedule, guidance, guidance_at, fresh_noise)
    files = gather(images, split)
    done = 0
    for part in watch(parts(files), len(files), len, quiet=quiet):
        opened = [file.open() for file in part]
        output = pipe.inpaint(opened, mask, label=label, strength=strength, steps=steps, seed=seed + done, **options)
        x = load_pictures(opened, pipe.image_options)
        known = x * (1 - load_mask(mask, opened, pipe.image_options))
        writer.add(output, [file.name for file in part], step_rows([x, known], output))
        done += len(part)
    writer.finish(f"inpainted pictures on {pipe.place}", as_json=as_json)
