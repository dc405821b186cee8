"""`spheregen vary`: variations of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import (
    BatchSize,
    Device,
    FreshNoise,
    Guidance,
    GuidanceAt,
    Json,
    Label,
    Model,
    Out,
    Quiet,
    ScheduleOption,
    Seed,
    Strength,
    sampler_options,
)


def vary(
    model: Model,
    image: Annotated[Path, typer.Argument(help="A picture.", metavar="IMAGE")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many variations.")] = 7,
    angle: Annotated[float, typer.Option(help="Degrees on the sphere: 0 is the picture, 90 nothing of it.")] = 30.0,
    label: Label = None,
    out: Out = Path("variations"),
    steps: Annotated[int, typer.Option(help="Decodes; those after the first refine.")] = 1,
    strength: Strength = 0.25,
    seed: Seed = 0,
    schedule: ScheduleOption = None,
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Variations of a picture: points at an exact angle around its code. The sheet begins with the picture."""
    import torch

    from spheregen.cli.pictures import EditWriter
    from spheregen.data.inputs import load_pictures
    from spheregen.pipeline import Pipeline

    writer = EditWriter(out)
    pipe = Pipeline.from_pretrained(
        model, device=device, batch_size=batch_size, progress=None if not quiet else False, quiet=True
    )
    options = sampler_options(schedule, guidance, guidance_at, fresh_noise)
    output = pipe.vary(image, count, angle=angle, label=label, steps=steps, strength=strength, seed=seed, **options)
    original = load_pictures(image, pipe.image_options)
    writer.add(output, [image.stem] * count, [torch.cat([original, output.tensor])])
    writer.finish(f"variations on {pipe.place}", as_json=as_json)
