"""`spheregen refine`: run the flow of a model on rough pictures of any origin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spheregen.cli.options import (
    BatchSize,
    Device,
    Images,
    Json,
    Label,
    Model,
    Out,
    Quiet,
    RefinementGuidance,
    RefinementSteps,
    Seed,
    SolverOption,
    Split,
    load_pipeline,
    sampler_options,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from spheregen.pipeline import PipelineOutput


def refine(
    model: Model,
    images: Images,
    label: Label = None,
    out: Out = Path("refined"),
    refinement_steps: RefinementSteps = None,
    solver: SolverOption = None,
    refinement_guidance: RefinementGuidance = None,
    seed: Seed = 0,
    split: Split = "train",
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Refine rough pictures of any origin by the flow of a model of kind sphere-flow.

    A row of the sheet shows a picture, then the refined one.
    """
    from spheregen.cli.pictures import EditWriter, change_all, gather
    from spheregen.data.inputs import load_pictures

    files = gather(images, split)
    writer = EditWriter(out, [file.where for file in files])
    pipe = load_pipeline(model, device, batch_size)
    options = sampler_options(refinement_steps=refinement_steps, solver=solver, refinement_guidance=refinement_guidance)

    def change(pictures: list[Image.Image], seed: int) -> tuple[PipelineOutput, list[Tensor]]:
        x = load_pictures(pictures, pipe.image_options)
        return pipe.refine(x, label, seed=seed, **options), []

    change_all(files, change, writer, seed=seed, quiet=quiet)
    writer.finish(f"refined on {pipe.place}", as_json=as_json)
