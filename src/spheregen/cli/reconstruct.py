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
    Split,
    output_folder,
    print_json,
    say,
    watch,
)

COMPARED = 20


def reconstruct(
    model: Model,
    images: Images,
    out: Annotated[Path, typer.Option(help="A folder for the pictures.")] = Path("reconstructions"),
    split: Split = "train",
    pictures: Annotated[bool, typer.Option(help="Write each reconstruction, not only the comparison.")] = True,
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Encode and decode pictures (null class); write them with a comparison sheet, and print the mean PSNR."""
    import torch

    from spheregen.cli.pictures import gather, parts
    from spheregen.data import image_grid, save_png, to_pil
    from spheregen.data.inputs import load_pictures
    from spheregen.evaluation.fidelity import psnr
    from spheregen.pipeline import Pipeline

    output_folder(out)
    pipe = Pipeline.from_pretrained(model, device=device, batch_size=batch_size, progress=False, quiet=True)
    files = gather(images, split)
    total, done = 0.0, 0
    rows: list[torch.Tensor] = []
    for part in watch(parts(files), len(files), len, quiet=quiet):
        x = load_pictures([file.open() for file in part], pipe.image_options)
        y = pipe.reconstruct(x)
        total += psnr(y, x).sum().item()
        if not rows:
            shown = range(0, min(COMPARED, len(x)), 10)
            rows = [images[start : start + 10] for start in shown for images in (x[:COMPARED], y[:COMPARED])]
        if pictures:
            for number, (picture, file) in enumerate(zip(to_pil(y), part, strict=True), start=done):
                save_png(picture, out / f"{number:06d}-{file.name}.png", {"model": model}, durable=False)
        done += len(part)
    mean = total / len(files)
    sheet = out / "comparison.png"
    grid = image_grid(torch.cat(rows), columns=len(rows[0]), scale=max(1, 64 // rows[0].shape[-1]))
    save_png(grid, sheet, {"model": model})
    if as_json:
        print_json({"count": len(files), "psnr": mean, "comparison": str(sheet)})
    else:
        say(f"{len(files)} pictures on {pipe.place}, mean PSNR {mean:.2f} dB; originals above reconstructions: {sheet}")
