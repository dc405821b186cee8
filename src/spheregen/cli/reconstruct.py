"""`spheregen reconstruct`: photos there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import (
    BatchSize,
    Device,
    Images,
    Json,
    Model,
    Quiet,
    RefinementSteps,
    SolverOption,
    Split,
    load_pipeline,
    output_file,
    pictures_of,
    print_json,
    sampler_options,
    say,
    sheet_of,
    watch,
)

COMPARED = 20


def reconstruct(
    model: Model,
    images: Images,
    out: Annotated[
        Path, typer.Option(help="A folder, .zip or .tar for the pictures, or a .png for the comparison alone.")
    ] = Path("reconstructions"),
    split: Split = "train",
    refinement_steps: RefinementSteps = None,
    solver: SolverOption = None,
    pictures: Annotated[bool, typer.Option(help="Write each reconstruction, not only the comparison.")] = True,
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Encode and decode pictures under the null class.

    Writes them with a comparison sheet, originals above their reconstructions, and prints the mean PSNR.
    """
    import contextlib

    import torch

    from spheregen.cli.pictures import SHEET_PIXELS, gather, parts
    from spheregen.data import image_grid, open_writer, save_png, to_pil
    from spheregen.data.inputs import load_pictures
    from spheregen.evaluation.fidelity import psnr

    files = gather(images, split)
    as_file = out.suffix.lower() in (".png", ".zip", ".tar")
    sheet = output_file(sheet_of(out) if as_file else out / "comparison.png", [file.where for file in files])
    writer = open_writer(out) if pictures and sheet != out else None
    pipe = load_pipeline(model, device, batch_size)
    options = sampler_options(refinement_steps=refinement_steps, solver=solver)
    metadata = {"model": model, "fingerprint": pipe.fingerprint}
    total, done = 0.0, 0
    rows: list[torch.Tensor] = []
    with contextlib.nullcontext() if writer is None else writer:
        for part in watch(parts(files), len(files), len, quiet=quiet):
            x = load_pictures([file.open() for file in part], pipe.image_options)
            y = pipe.reconstruct(x, seed=done, **options)
            total += psnr(y, x).sum().item()
            if not rows:
                shown = range(0, min(COMPARED, len(x)), 10)
                rows = [images[start : start + 10] for start in shown for images in (x[:COMPARED], y[:COMPARED])]
            if writer is not None:
                for number, (picture, file) in enumerate(zip(to_pil(y), part, strict=True), start=done):
                    writer.add(f"{number:06d}-{file.name}", picture, metadata | {"image": file.name})
            done += len(part)
    mean = total / len(files)
    grid = image_grid(torch.cat(rows), columns=len(rows[0]), scale=max(1, SHEET_PIXELS // rows[0].shape[-1]))
    save_png(grid, sheet, metadata)
    if as_json:
        print_json({"count": len(files), "psnr": mean, "comparison": str(sheet)})
    else:
        say(f"{pictures_of(len(files))} on {pipe.place}, mean PSNR {mean:.2f} dB; comparison: {sheet}")
