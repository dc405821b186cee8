"""`spheregen inpaint`: fill in a region of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spheregen.cli.options import (
    AllSteps,
    BatchSize,
    Device,
    EditSchedule,
    FreshNoise,
    Guidance,
    GuidanceAt,
    Images,
    Json,
    Label,
    Model,
    Out,
    Quiet,
    RefinementGuidance,
    RefinementSteps,
    RestoreSteps,
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


def inpaint(
    model: Model,
    images: Images,
    mask: Annotated[
        Path, typer.Option(help="A picture, white where pixels are missing, of the images' size or the model's.")
    ],
    label: Label = None,
    out: Out = Path("inpainted"),
    strength: Strength = 0.25,
    steps: RestoreSteps = 4,
    seed: Seed = 0,
    schedule: EditSchedule = "decay",
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
    """Fill in a region of pictures; known pixels stay.

    A row of the sheet shows a picture, what is known of it (the rest is grey), and each step.
    """
    from spheregen.cli.pictures import EditWriter, change_all, gather
    from spheregen.data import read_image
    from spheregen.data.inputs import load_mask, load_pictures

    files = gather(images, split)
    writer = EditWriter(out, [mask, *(file.where for file in files)], all_steps=all_steps)
    missing = read_image(mask)
    pipe = load_pipeline(model, device, batch_size)
    options = sampler_options(
        schedule, guidance, guidance_at, fresh_noise, refinement_steps, solver, refinement_guidance
    )

    def change(pictures: list[Image.Image], seed: int) -> tuple[PipelineOutput, list[Tensor]]:
        output = pipe.inpaint(pictures, missing, label=label, strength=strength, steps=steps, seed=seed, **options)
        x = load_pictures(pictures, pipe.image_options)
        return output, [x, x.lerp(x.new_full((), 0.5), load_mask(missing, pictures, pipe.image_options))]

    change_all(files, change, writer, seed=seed, quiet=quiet)
    writer.finish(f"inpainted on {pipe.place}", as_json=as_json)
