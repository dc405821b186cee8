"""`spheregen vary`: variations of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import (
    BatchSize,
    Device,
    EditSchedule,
    FreshNoise,
    Guidance,
    GuidanceAt,
    Json,
    Label,
    Model,
    Out,
    Quiet,
    RefinementGuidance,
    RefinementSteps,
    Seed,
    SolverOption,
    Strength,
    load_pipeline,
    sampler_options,
    watch,
)

IN_A_ROW = 7  # variations, behind the picture itself
AT_ONCE = 9 * IN_A_ROW


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
    schedule: EditSchedule = "fixed",
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = None,
    refinement_steps: RefinementSteps = None,
    solver: SolverOption = None,
    refinement_guidance: RefinementGuidance = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make variations of a picture.

    They are decoded from points at an exact angle around its code. Each row of the sheet begins with the picture.
    """
    import torch

    from spheregen.cli.pictures import EditWriter, file_name
    from spheregen.data.inputs import load_pictures, open_pictures
    from spheregen.errors import ConfigError

    if count < 1:
        raise ConfigError(f"--count is at least 1, not {count}")
    writer = EditWriter(out, [image])
    opened = open_pictures(image)
    pipe = load_pipeline(model, device, batch_size)
    options = sampler_options(
        schedule, guidance, guidance_at, fresh_noise, refinement_steps, solver, refinement_guidance
    )
    original = load_pictures(opened, pipe.image_options)
    columns = min(count, IN_A_ROW)
    parts = (range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE))
    with writer:
        for part in watch(parts, count, len, quiet=quiet):
            output = pipe.vary(
                original,
                len(part),
                angle=angle,
                label=label,
                steps=steps,
                strength=strength,
                seed=seed + part.start,
                **options,
            )
            blank = torch.ones_like(original).expand(-len(part) % columns, -1, -1, -1)
            rows = torch.cat([output.tensor, blank]).split(columns)
            writer.add(output, [file_name(image.stem)] * len(part), [torch.cat([original, row]) for row in rows])
    writer.finish(f"made on {pipe.place}", as_json=as_json)
