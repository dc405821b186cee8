"""`spheregen crossover`: join parts of two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import (
    AllSteps,
    Device,
    EditSchedule,
    EditSteps,
    FreshNoise,
    Guidance,
    GuidanceAt,
    Json,
    Label,
    Model,
    Out,
    RefinementGuidance,
    RefinementSteps,
    SolverOption,
    Strength,
    load_pipeline,
    sampler_options,
)


def crossover(
    model: Model,
    a: Annotated[Path, typer.Argument(help="A picture.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Another one.", metavar="B")],
    mask: Annotated[
        str,
        typer.Option(
            help="Where A is taken: left-right (its left half), top-bottom (its upper half), diagonal or antidiagonal "
            "(its part above them), or a picture, white for A, of the pictures' size or the model's."
        ),
    ] = "left-right",
    swap: Annotated[bool, typer.Option("--swap", help="Exchange A and B.")] = False,
    label: Label = None,
    out: Out = Path("crossover"),
    strength: Strength = 0.25,
    steps: EditSteps = 4,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    schedule: EditSchedule = "fixed",
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = None,
    refinement_steps: RefinementSteps = None,
    solver: SolverOption = None,
    refinement_guidance: RefinementGuidance = None,
    all_steps: AllSteps = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Join parts of two pictures and let a few steps heal the seam. The sheet shows both, then each step."""
    from spheregen.cli.pictures import EditWriter, file_name, step_rows
    from spheregen.data.inputs import load_pictures, open_pictures

    writer = EditWriter(out, [a, b, mask], all_steps=all_steps)
    first, second = open_pictures([a, b])
    pipe = load_pipeline(model, device, None)
    options = sampler_options(
        schedule, guidance, guidance_at, fresh_noise, refinement_steps, solver, refinement_guidance
    )
    output = pipe.crossover(
        [first], [second], mask=mask, swap=swap, label=label, strength=strength, steps=steps, seed=seed, **options
    )
    originals = [load_pictures([picture], pipe.image_options) for picture in (first, second)]
    with writer:
        writer.add(output, [file_name(f"{a.stem}-{b.stem}")], step_rows(originals, output))
    writer.finish(f"joined on {pipe.place}", as_json=as_json)
