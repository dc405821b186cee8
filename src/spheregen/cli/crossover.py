"""`spheregen crossover`: join parts of two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import (
    AllSteps,
    BatchSize,
    Device,
    EditSteps,
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


def crossover(
    model: Model,
    a: Annotated[Path, typer.Argument(help="A picture.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    mask: Annotated[
        str,
        typer.Option(help="Where A is taken: left-right, top-bottom, diagonal, antidiagonal, or a picture, A white."),
    ] = "left-right",
    swap: Annotated[bool, typer.Option("--swap", help="Exchange A and B.")] = False,
    label: Label = None,
    out: Out = Path("crossover"),
    strength: Strength = 0.25,
    steps: EditSteps = 4,
    seed: Seed = 0,
    schedule: ScheduleOption = None,
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = False,
    all_steps: AllSteps = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Join parts of two pictures and let a few steps heal the seam. The sheet shows both, then each step."""
    from spheregen.cli.pictures import EditWriter, step_rows
    from spheregen.data.inputs import load_pictures
    from spheregen.pipeline import Pipeline

    writer = EditWriter(out, all_steps=all_steps)
    pipe = Pipeline.from_pretrained(model, device=device, batch_size=batch_size, progress=False, quiet=True)
    options = sampler_options(schedule, guidance, guidance_at, fresh_noise)
    output = pipe.crossover(
        a, b, mask=mask, swap=swap, label=label, strength=strength, steps=steps, seed=seed, **options
    )
    originals = load_pictures([a, b], pipe.image_options)
    writer.add(output, [f"{a.stem}-{b.stem}"], step_rows([originals[:1], originals[1:]], output))
    writer.finish(f"crossover on {pipe.place}", as_json=as_json)
