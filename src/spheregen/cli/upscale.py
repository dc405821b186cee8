"""`spheregen upscale`: enlarge small pictures."""

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


def upscale(
    model: Model,
    images: Images,
    factor: Annotated[
        int | None, typer.Option(help="Enlarge by this; larger pictures are reduced first. Default: from their size.")
    ] = None,
    label: Label = None,
    out: Out = Path("upscaled"),
    strength: Strength = 0.25,
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
    """Enlarge pictures to the model's size; averaged back they are the small ones. The sheet begins with those."""
    from spheregen.cli.pictures import EditWriter, gather, parts, step_rows
    from spheregen.pipeline import Pipeline

    writer = EditWriter(out, all_steps=all_steps)
    pipe = Pipeline.from_pretrained(model, device=device, batch_size=batch_size, progress=False, quiet=True)
    options = sampler_options(schedule, guidance, guidance_at, fresh_noise)
    files = gather(images, split)
    done = 0
    for part in watch(parts(files), len(files), len, quiet=quiet):
        opened = [file.open() for file in part]
        output = pipe.upscale(opened, factor, label=label, strength=strength, steps=steps, seed=seed + done, **options)
        # what averages back to the small pictures is known of any step
        blocks = output.settings["factor"]
        small = output.tensor.unflatten(-1, (-1, blocks)).unflatten(-3, (-1, blocks)).mean((-3, -1))
        seen = small.repeat_interleave(blocks, -1).repeat_interleave(blocks, -2)
        writer.add(output, [file.name for file in part], step_rows([seen], output))
        done += len(part)
    writer.finish(f"enlarged pictures on {pipe.place}", as_json=as_json)
