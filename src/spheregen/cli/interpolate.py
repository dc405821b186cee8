"""`spheregen interpolate`: the way between pictures, seeds or classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import (
    BatchSize,
    Device,
    FreshNoise,
    Guidance,
    GuidanceAt,
    Json,
    Model,
    Quiet,
    ScheduleOption,
    Seed,
    output_folder,
    print_json,
    sampler_options,
    say,
    split_list,
)

ANIMATIONS = (".png", ".gif", ".mp4")


def interpolate(
    model: Model,
    ends: Annotated[
        list[str],
        typer.Argument(help="Two ends, or four corners: picture files, or integers for seeds.", metavar="A B [C D]"),
    ],
    out: Annotated[
        Path, typer.Option(help="A .png strip (a square sheet for four), a .gif, an .mp4 (needs ffmpeg), or a folder.")
    ] = Path("interpolation.png"),
    frames: Annotated[int, typer.Option(help="Pictures along each side, ends included.")] = 16,
    path: Annotated[str, typer.Option(help="slerp (constant speed) or lerp (straight, then back to the sphere).")] = (
        "slerp"
    ),
    labels: Annotated[
        str | None, typer.Option(help="A class, or one for each end: rose,tulip. Default: photos have none.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Decodes of each frame; those after the first refine.")] = 1,
    strength: Annotated[
        float | None, typer.Option(help="Noise of the refinements. Default: 1 between seeds, 0.25 with photos.")
    ] = None,
    seed: Seed = 0,
    schedule: ScheduleOption = None,
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = False,
    fps: Annotated[float, typer.Option(help="Frames a second of a .gif or .mp4.")] = 12,
    bounce: Annotated[bool, typer.Option("--bounce", help="There and back, in a .gif or .mp4.")] = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Pictures on the way between two ends, or over the square between four, as a strip, animation or folder."""
    from spheregen.data import image_grid, save_animation, save_png
    from spheregen.errors import ConfigError
    from spheregen.pipeline import Pipeline

    suffix = out.suffix.lower()
    if suffix in ANIMATIONS:
        output_folder(out.parent)
        if out.is_dir():
            raise ConfigError(f"the output path {out} is a folder; choose another file name")
    elif suffix:
        raise ConfigError(f"frames become a file that ends in {', '.join(ANIMATIONS)}, or a folder; not {out.name}")
    else:
        output_folder(out)
    pipe = Pipeline.from_pretrained(
        model, device=device, batch_size=batch_size, progress=None if not quiet else False, quiet=True
    )
    chosen = split_list(labels)
    output = pipe.interpolate(
        [_end(end) for end in ends],
        frames,
        path=path,
        labels=chosen[0] if chosen and len(chosen) == 1 else chosen,
        steps=steps,
        strength=strength,
        seed=seed,
        **sampler_options(schedule, guidance, guidance_at, fresh_noise),
    )
    scale = max(1, 64 // output.tensor.shape[-1])
    if suffix == ".png":
        sheet = image_grid(output.tensor, columns=frames, scale=scale)
        save_png(sheet, out, {"ends": ", ".join(ends)} | {key: str(value) for key, value in output.settings.items()})
    elif suffix:
        save_animation(output.tensor, out, fps=fps, bounce=bounce, scale=max(1, 256 // output.tensor.shape[-1]))
    else:
        for number, picture in enumerate(output.images):
            metadata = output.metadata(number) | {"ends": ", ".join(ends), "frame": str(number)}
            save_png(picture, out / f"{number:06d}.png", metadata, durable=False)
    if as_json:
        print_json({"count": len(output.tensor), "out": str(out), **output.settings})
    else:
        say(f"{len(output.tensor)} frames on {pipe.place}: {out}")


def _end(text: str) -> str | int:
    """A seed, unless there is a file of that name."""
    return int(text) if text.isdecimal() and not Path(text).exists() else text
