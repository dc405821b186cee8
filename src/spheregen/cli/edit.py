"""`spheregen edit`: pull pictures towards a class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spheregen.cli.options import (
    AllSteps,
    BatchSize,
    Device,
    EditSchedule,
    EditSteps,
    FreshNoise,
    Guidance,
    GuidanceAt,
    Images,
    Json,
    Model,
    Out,
    Quiet,
    RefinementGuidance,
    RefinementSteps,
    Seed,
    SolverOption,
    Split,
    Strength,
    load_pipeline,
    sampler_options,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from spheregen.pipeline import PipelineOutput


def edit(
    model: Model,
    images: Images,
    label: Annotated[
        str | None, typer.Option(help="The class to pull towards, by id or name. Default: the null class.")
    ] = None,
    out: Out = Path("edited"),
    strength: Strength = 0.25,
    steps: EditSteps = 4,
    seed: Seed = 0,
    schedule: EditSchedule = "fixed",
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = None,
    refinement_steps: RefinementSteps = None,
    solver: SolverOption = None,
    refinement_guidance: RefinementGuidance = None,
    all_steps: AllSteps = False,
    split: Split = "train",
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Pull pictures towards a class.

    They are encoded with noise and decoded under the class, a few times. A row of the sheet shows a picture, then each
    step.
    """
    from spheregen.cli.pictures import EditWriter, change_all, gather
    from spheregen.data.inputs import load_pictures

    files = gather(images, split)
    writer = EditWriter(out, [file.where for file in files], all_steps=all_steps)
    pipe = load_pipeline(model, device, batch_size)
    options = sampler_options(
        schedule, guidance, guidance_at, fresh_noise, refinement_steps, solver, refinement_guidance
    )

    def change(pictures: list[Image.Image], seed: int) -> tuple[PipelineOutput, list[Tensor]]:
        x = load_pictures(pictures, pipe.image_options)
        return pipe.edit(x, label, strength=strength, steps=steps, seed=seed, **options), [x]

    change_all(files, change, writer, seed=seed, quiet=quiet)
    writer.finish(f"edited on {pipe.place}", as_json=as_json)
