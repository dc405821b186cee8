"""`spheregen upscale`: enlarge small pictures."""

from __future__ import annotations

import dataclasses
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


def upscale(
    model: Model,
    images: Images,
    factor: Annotated[
        int | None,
        typer.Option(
            help="Pixels that become of one, along each side; larger pictures are reduced first. Default: the model's "
            "size over theirs."
        ),
    ] = None,
    label: Label = None,
    out: Out = Path("upscaled"),
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
    """Enlarge pictures to the model's size.

    Averaged back, they are the small ones again. A row of the sheet shows the small picture, then each step.
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
        output = pipe.upscale(pictures, factor, label=label, strength=strength, steps=steps, seed=seed, **options)
        blocks = output.settings["factor"]
        small_options = dataclasses.replace(pipe.image_options, image_size=pipe.image_options.image_size // blocks)
        small = load_pictures(pictures, small_options)
        return output, [small.repeat_interleave(blocks, -1).repeat_interleave(blocks, -2)]

    change_all(files, change, writer, seed=seed, quiet=quiet)
    writer.finish(f"enlarged on {pipe.place}", as_json=as_json)
