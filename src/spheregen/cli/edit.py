"""`spheregen edit`: pull pictures towards a class."""

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
    Images,
    Json,
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


def edit(
    model: Model,
    images: Images,
    label: Annotated[str | None, typer.Option(help="The class to pull towards, by id or name.")] = None,
    out: Out = Path("edited"),
    strength: Strength = 0.25,
    steps: EditSteps = 4,
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
    """Pull pictures towards a class: encode with noise and decode under it, a few times."""
    from spheregen.cli.pictures import EditWriter, gather, parts, step_rows
    from spheregen.data.inputs import load_pictures
    from spheregen.pipeline import Pipeline

    writer = EditWriter(out, all_steps=all_steps)
    pipe = Pipeline.from_pretrained(model, device=device, batch_size=batch_size, progress=False, quiet=True)
    options = sampler_options(schedule, guidance, guidance_at, fresh_noise)
    files = gather(images, split)
    done = 0
    for part in watch(parts(files), len(files), len, quiet=quiet):
        x = load_pictures([file.open() for file in part], pipe.image_options)
        output = pipe.edit(x, label, strength=strength, steps=steps, seed=seed + done, **options)
        writer.add(output, [file.name for file in part], step_rows([x], output))
        done += len(part)
    writer.finish(f"edited pictures on {pipe.place}", as_json=as_json)
