"""`spheregen reconstruct`: photos there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import BatchSize, Device, Json, Model, Quiet, output_folder, print_json, say, watch

COMPARED = 20


def reconstruct(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(help="Image files, or any data set: folders, .zip, .parquet, .tar, `digits`.")
    ],
    out: Annotated[Path, typer.Option(help="A folder for the pictures.")] = Path("reconstructions"),
    split: Annotated[str, typer.Option(help="Which part of a data set: train, test, all.")] = "train",
    pictures: Annotated[bool, typer.Option(help="Write each reconstruction, not only the comparison.")] = True,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Encode and decode pictures (null class); write them with a comparison sheet, and print the mean PSNR."""
    import torch

    from spheregen.data import ARCHIVES, ImageSource, image_grid, load_image, open_source, read_image, save_png, to_pil
    from spheregen.errors import ConfigError
    from spheregen.evaluation.fidelity import psnr
    from spheregen.pipeline import Pipeline

    output_folder(out)
    if batch_size < 1:
        raise ConfigError(f"--batch-size is at least 1, not {batch_size}")
    pipe = Pipeline.from_pretrained(model, device=device)

    sources: list[ImageSource | Path] = []
    for name in images:
        path = Path(name)
        is_image = path.is_file() and path.suffix.lower() not in ARCHIVES
        sources.append(path if is_image else open_source(name, split=split))
    places = [(source, i) for source in sources for i in range(1 if isinstance(source, Path) else len(source))]

    total = 0.0
    compared: list[torch.Tensor] = []
    for start in watch(range(0, len(places), batch_size), len(places), batch_size, quiet=quiet):
        part = places[start : start + batch_size]
        opened = [read_image(source) if isinstance(source, Path) else source.read(i) for source, i in part]
        x = torch.stack([load_image(picture, pipe.image_options) for picture in opened]) / 255
        y = pipe.reconstruct(x)
        total += psnr(y, x).sum().item()
        if start == 0:
            compared = [x[:COMPARED], y[:COMPARED]]
        if pictures:
            for offset, (picture, (source, i)) in enumerate(zip(to_pil(y), part, strict=True)):
                where = source if isinstance(source, Path) else Path(source.describe(i).partition(" row ")[0])
                save_png(picture, out / f"{start + offset:06d}-{where.stem}.png", {"model": model}, durable=False)
    mean = total / len(places)
    rows = torch.cat([torch.cat([a[i : i + 10], b[i : i + 10]]) for a, b in [compared] for i in range(0, len(a), 10)])
    sheet = out / "comparison.png"
    columns = min(10, len(compared[0]))
    save_png(image_grid(rows, columns=columns, scale=max(1, 64 // rows.shape[-1])), sheet, {"model": model})
    if as_json:
        print_json({"count": len(places), "psnr": mean, "comparison": str(sheet)})
    else:
        say(f"{len(places)} pictures, mean PSNR {mean:.2f} dB; originals above reconstructions: {sheet}")
