"""`spheregen interpolate`: the way between pictures, seeds or classes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spheregen.cli.options import (
    BatchSize,
    Device,
    EditSchedule,
    FreshNoise,
    Guidance,
    GuidanceAt,
    Json,
    Model,
    NoBar,
    RefinementGuidance,
    RefinementSteps,
    SolverOption,
    load_pipeline,
    output_file,
    print_json,
    sampler_options,
    say,
    split_list,
)

if TYPE_CHECKING:
    from spheregen.data import PictureWriter

ANIMATIONS = (".gif", ".mp4")
MOST_FRAMES = 10_000  # they are made in memory


def interpolate(
    model: Model,
    ends: Annotated[
        list[str],
        typer.Argument(help="Two ends, or four corners: picture files, or integers for seeds.", metavar="A B [C D]"),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="A .png strip (a square sheet for four), a .gif, an .mp4 (needs ffmpeg), or a folder, .zip or .tar "
            "for single PNGs."
        ),
    ] = Path("interpolation.png"),
    frames: Annotated[int, typer.Option(help="Pictures along each side, ends included.")] = 16,
    path: Annotated[str, typer.Option(help="slerp (constant speed) or lerp (straight, then back to the sphere).")] = (
        "slerp"
    ),
    labels: Annotated[
        str | None,
        typer.Option(
            help="A class, or one for each end: rose,tulip. Default: none for photos; for seeds the one that `sample` "
            "gives them."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Decodes of each frame; those after the first refine.")] = 1,
    strength: Annotated[
        float | None, typer.Option(help="Noise of the refinements, 0 to 1. Default: 1 between seeds, 0.25 with photos.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the refinements of photos; seeds bring their own.")] = 0,
    schedule: EditSchedule = "fixed",
    guidance: Guidance = None,
    guidance_at: GuidanceAt = None,
    fresh_noise: FreshNoise = None,
    refinement_steps: RefinementSteps = None,
    solver: SolverOption = None,
    refinement_guidance: RefinementGuidance = None,
    fps: Annotated[float, typer.Option(help="Frames a second of a .gif or .mp4.")] = 12,
    bounce: Annotated[bool, typer.Option("--bounce", help="There and back, in a .gif or .mp4.")] = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    quiet: NoBar = False,
    as_json: Json = False,
) -> None:
    """Show the way between pictures, seeds or classes.

    Two ends give a line of frames, four corners a square. A number is a seed, unless there is a file of that name. The
    same seed twice with two labels goes from class to class.
    """
    from spheregen.data import image_grid, save_animation, save_png
    from spheregen.errors import ConfigError

    suffix = out.suffix.lower()
    writer = _check_out(out, ends, fps=fps, bounce=bounce)
    if frames ** (len(ends) // 2) > MOST_FRAMES:
        raise ConfigError(f"{frames} frames along a side are too many, at most {MOST_FRAMES} in all; give fewer")
    pipe = load_pipeline(model, device, batch_size, progress=False if quiet else None)
    chosen = split_list(labels)
    output = pipe.interpolate(
        [_end(end) for end in ends],
        frames,
        path=path,
        labels=chosen[0] if chosen and len(chosen) == 1 else chosen,
        steps=steps,
        strength=strength,
        seed=seed,
        **sampler_options(schedule, guidance, guidance_at, fresh_noise, refinement_steps, solver, refinement_guidance),
    )
    own = {"ends": ", ".join(ends)} | ({} if labels is None else {"labels": labels})
    if writer is not None:
        with writer:
            for number, picture in enumerate(output.images):
                writer.add(f"{number:06d}", picture, output.metadata(number) | own | {"frame": str(number)})
    elif suffix == ".png":
        scale = max(1, 64 // output.tensor.shape[-1])
        save_png(image_grid(output.tensor, columns=frames, scale=scale), out, output.metadata(0) | own)
    else:
        save_animation(output.tensor, out, fps=fps, bounce=bounce, scale=max(1, 256 // output.tensor.shape[-1]))
    if as_json:
        print_json({"count": len(output.tensor), "out": str(out), "ends": ends, "labels": chosen, **output.settings})
    else:
        say(f"{len(output.tensor)} frames on {pipe.place}: {out}")


def _check_out(out: Path, ends: list[str], *, fps: float, bounce: bool) -> PictureWriter | None:
    """Complain before any work is done; returns what writes single pictures, if `out` is for these."""
    import tempfile

    import torch

    from spheregen.data import open_writer, save_animation
    from spheregen.errors import ConfigError

    suffix = out.suffix.lower()
    if bounce and suffix not in ANIMATIONS:
        raise ConfigError(f"--bounce is for a {' or '.join(ANIMATIONS)}, not for {out.name}; leave it out")
    if suffix in (".png", *ANIMATIONS):
        output_file(out, ends)
        if suffix in ANIMATIONS:  # a rehearsal: is there an ffmpeg, can it be so fast?
            with tempfile.TemporaryDirectory() as folder:
                save_animation(torch.zeros(1, 1, 2, 2), Path(folder) / f"rehearsal{suffix}", fps=fps)
        return None
    if re.fullmatch(r"\.[a-z]\w*", suffix) and suffix not in (".zip", ".tar"):
        raise ConfigError(f"frames become a .png, .gif, .mp4, .zip, .tar or a folder, not {out.name}")
    return open_writer(out)


def _end(text: str) -> str | int:
    """A seed, unless there is a file of that name."""
    is_seed = re.fullmatch(r"\d{1,30}", text) and not os.path.exists(text)  # noqa: PTH110 (any text is welcome)
    return int(text) if is_seed else text
