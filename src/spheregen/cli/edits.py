"""The commands that change images: `edit`, `crossover`, `vary`, `interpolate`, `refine` and `reconstruct`.

Each loads a pipeline, reads images, calls the method of its name, and writes images and a sheet."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from spheregen.cli import options as cli
from spheregen.cli.images import (
    AT_ONCE,
    EditWriter,
    as_tensor,
    file_name,
    gather,
    open_output,
    output_file,
    sheet_file,
    step_rows,
    warn_of_others,
    write_sheet,
)
from spheregen.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from spheregen.data import ImageWriter
    from spheregen.pipeline import Pipeline, PipelineOutput

ANIMATIONS = (".gif", ".mp4")
MOST_FRAMES = 10_000  # they are made in memory
IN_A_ROW = 7  # variations, behind the image itself
COMPARED, ACROSS = 20, 10  # reconstructions on the sheet, and in a row of it


@dataclass(frozen=True, kw_only=True)
class Work:
    """A model, images that it changes, and where they go: the options of the commands that change many images."""

    model: cli.Model
    images: cli.Images
    labels: cli.Labels = None
    out: Annotated[Path | None, Option(help=f"{cli.OUT_HELP} Default: edited, inpainted ...")] = None
    seed: cli.Seed = 0
    split: cli.Split = "train"

    def do(
        self,
        method: str | Callable[..., PipelineOutput],
        done: str,
        options: dict[str, Any],
        *own: Any,
        before: Callable[[Pipeline, list[Image.Image], PipelineOutput], list[Tensor]] | None = None,
        after: Callable[[PipelineOutput], list[Tensor]] = lambda output: [],
        inputs: Sequence[Path] = (),
        most: int | None = None,
    ) -> None:
        """Change images part by part by a method of the pipeline, and write them and a sheet.

        Args:
            method: its name, or a function of the pipeline, the images and the options.
            done: what is told in the end, such as "edited", and the default of `out`.
            own: further arguments of the method.
            before: what a row of the sheet begins with, tensors (B, C, S, S); by default the images themselves.
            after: what a row ends with.
            inputs: further files that are read, which nothing may overwrite.
            most: steps in a row, evenly spread; None: all.
        """
        parts = gather(self.images, self.split)
        writer = EditWriter(self.out or Path(done), [*inputs, *(file.where for part in parts for file in part)])
        pipe = cli.load_pipeline(self.model)
        named = cli.class_list(pipe, self.labels)
        count = 0
        with writer:
            for part in cli.watch(parts, sum(map(len, parts)), len):
                images = [file.open() for file in part]
                labels = cli.in_turn(named, len(part), count)
                call = functools.partial(method, pipe) if callable(method) else getattr(pipe, method)
                output = call(images, *own, labels=labels, seed=self.seed + count, **options)
                first = [as_tensor(pipe, images)] if before is None else before(pipe, images, output)
                writer.add(output, [file.name for file in part], step_rows(first, output, after(output), most))
                count += len(part)
        writer.finish(f"{done} on {pipe.place}")


def edit(work: Work, loop: cli.Editing) -> None:
    """Pull images towards a class.

    A model whose default is a fitted prior moves their codes into the class; others, and --set prior=sphere, encode
    with noise and decode under the class, a few times. A row of the sheet shows an image, then each step.

    Examples:
        spheregen edit digits seven.png --labels 3
        spheregen edit runs/mine holiday/ --labels fox --strength 0.4 --guidance 2 --out foxes.png
    """
    work.do("edit", "edited", loop.given())


def refine(work: Work, settings: cli.SamplerSet = None) -> None:
    """Refine rough images of any origin by the flow of a model of kind sphere-flow.

    A row of the sheet shows an image, then the refined one.

    Examples:
        spheregen refine runs/flow rough.png --labels 3 --set refinement_steps=8
    """
    work.do("refine", "refined", cli.sampler_settings(settings), before=lambda *_: [])


def crossover(
    model: cli.Model,
    a: Annotated[Path, Argument(help="An image.", metavar="A")],
    b: Annotated[Path, Argument(help="Another one.", metavar="B")],
    loop: cli.Editing,
    mask: Annotated[
        str,
        Option(
            help="Where A is taken: left-right (its left half), top-bottom (its upper half), diagonal or antidiagonal "
            "(its part above them), or an image, white for A, of the images' size or the model's."
        ),
    ] = "left-right",
    labels: cli.Labels = None,
    out: cli.Out = Path("crossover"),
    seed: cli.Seed = 0,
) -> None:
    """Join parts of two images and let a few steps heal the seam. The sheet shows both, then each step.

    Examples:
        spheregen crossover runs/mine cat.jpg dog.jpg
        spheregen crossover runs/mine cat.jpg dog.jpg --mask diagonal --strength 0.2 --steps 6
    """
    from spheregen.data.inputs import open_images

    writer = EditWriter(out, [a, b, mask])
    first, second = open_images([a, b])
    pipe = cli.load_pipeline(model)
    output = pipe.crossover([first], [second], mask=mask, labels=_one_label(pipe, labels), seed=seed, **loop.given())
    originals = [as_tensor(pipe, [image]) for image in (first, second)]
    with writer:
        writer.add(output, [file_name(f"{a.stem}-{b.stem}")], step_rows(originals, output))
    writer.finish(f"joined on {pipe.place}")


def vary(
    model: cli.Model,
    image: Annotated[Path, Argument(help="An image.", metavar="IMAGE")],
    loop: cli.Editing,
    count: cli.Count = IN_A_ROW,
    angle: Annotated[float, Option(help="Degrees on the sphere: 0 is the image, 90 nothing of it.")] = 30.0,
    labels: cli.Labels = None,
    out: cli.Out = Path("variations"),
    seed: cli.Seed = 0,
) -> None:
    """Make variations of an image.

    They are decoded from points at an exact angle around its code. Each row of the sheet begins with the image.

    Examples:
        spheregen vary runs/mine photo.jpg
        spheregen vary runs/mine photo.jpg -n 20 --angle 50 --steps 2 --out around.png
    """
    import torch

    from spheregen.data.inputs import open_images

    cli.check_count(count)
    writer = EditWriter(out, [image])
    opened = open_images(image)
    pipe = cli.load_pipeline(model)
    label = _one_label(pipe, labels)
    original = as_tensor(pipe, opened)
    columns, size = min(count, IN_A_ROW), AT_ONCE - AT_ONCE % IN_A_ROW
    parts = (range(start, min(start + size, count)) for start in range(0, count, size))
    with writer:
        for part in cli.watch(parts, count, len):
            output = pipe.vary(original, len(part), angle=angle, labels=label, seed=seed + part.start, **loop.given())
            blank = torch.ones_like(original).expand(-len(part) % columns, -1, -1, -1)
            rows = torch.cat([output.tensor, blank]).split(columns)
            writer.add(output, [file_name(image.stem)] * len(part), [torch.cat([original, row]) for row in rows])
    writer.finish(f"made on {pipe.place}")


def reconstruct(
    model: cli.Model,
    images: cli.Images,
    out: cli.Out = Path("reconstructions"),
    settings: cli.SamplerSet = None,
    split: cli.Split = "train",
) -> None:
    """Encode and decode images under the null class.

    Writes them with a comparison sheet, originals above their reconstructions, and prints the mean PSNR.

    Examples:
        spheregen reconstruct runs/mine holiday/
        spheregen reconstruct digits digits --split test --out comparison.png
    """
    import torch

    from spheregen.data import to_pil
    from spheregen.measure.fidelity import psnr

    parts = gather(images, split)
    as_file = out.suffix.lower() in (".png", ".zip", ".tar")
    inputs = [file.where for part in parts for file in part]
    sheet = sheet_file(out, inputs) if as_file else output_file(out / "comparison.png", inputs)
    writer = None if sheet == out else open_output(out)
    pipe = cli.load_pipeline(model)
    metadata = {"model": model, "fingerprint": pipe.fingerprint}
    total, done = 0.0, 0
    shown = {place * len(inputs) // COMPARED for place in range(COMPARED)}  # a spread of them
    pairs: list[Tensor] = []
    written = {sheet.stem}
    with contextlib.nullcontext() if writer is None else writer:
        for part in cli.watch(parts, len(inputs), len):
            x = as_tensor(pipe, [file.open() for file in part])
            y = pipe.reconstruct(x, seed=done, **cli.sampler_settings(settings))
            total += psnr(y, x).sum().item()
            pairs += [torch.stack([x[i], y[i]]) for i in range(len(part)) if done + i in shown]
            if writer is not None:
                for number, (image, file) in enumerate(zip(to_pil(y), part, strict=True), start=done):
                    writer.add(key := f"{number:06d}-{file.name}", image, metadata | {"image": file.name})
                    written.add(key)
            done += len(part)
    mean = total / len(inputs)
    both = torch.stack(pairs, dim=1)  # originals, reconstructions
    write_sheet(
        [row for start in range(0, len(pairs), ACROSS) for row in both[:, start : start + ACROSS]], sheet, metadata
    )
    warn_of_others(out, written.__contains__)
    cli.finish(
        {"count": len(inputs), "psnr": mean, "comparison": str(sheet)},
        f"{cli.count_of(len(inputs))} on {pipe.place}, mean PSNR {mean:.2f} dB; comparison: {sheet}",
    )


def interpolate(
    model: cli.Model,
    ends: Annotated[
        list[str],
        Argument(help="Two ends, or four corners: image files, or integers for seeds.", metavar="A B [C D]"),
    ],
    loop: cli.Editing,
    out: Annotated[
        Path,
        Option(
            help="A .png strip (a square sheet for four), a .gif, an .mp4 (needs ffmpeg or spheregen[video]), or a "
            "folder, .zip or .tar for single PNGs."
        ),
    ] = Path("interpolation.png"),
    frames: Annotated[int, Option(help="Images along each side, ends included.")] = 16,
    path: Annotated[
        str,
        Option(
            help="slerp (constant speed) or lerp (straight, then back to the sphere); after a comma that between two "
            "classes: lerp, slerp or hard, a switch in the middle."
        ),
    ] = "slerp",
    labels: Annotated[
        str | None,
        Option(
            help="A class, or one for each end: rose,tulip. Default: none for photos; for seeds the one that `sample` "
            "gives them."
        ),
    ] = None,
    seed: Annotated[int, Option(help="Seed of the refinements of photos; seeds bring their own.")] = 0,
    fps: Annotated[float, Option(help="Frames a second of a .gif or .mp4.")] = 12,
    bounce: Annotated[bool, Option("--bounce", help="There and back, in a .gif or .mp4.")] = False,
) -> None:
    """Show the way between images, seeds or classes.

    Two ends give a line of frames, four corners a square. A number is a seed, unless there is a file of that name. The
    same seed twice with two labels goes from class to class.

    Examples:
        spheregen interpolate digits 3 14
        spheregen interpolate digits 5 5 --labels 2,7 --out classes.gif --bounce
        spheregen interpolate runs/mine a.jpg b.jpg c.jpg d.jpg --frames 8
    """
    from spheregen.data import save_animation

    writer = _check_out(out, ends, fps=fps, bounce=bounce)
    if frames ** (len(ends) // 2) > MOST_FRAMES:
        raise ConfigError(f"{frames} frames along a side are too many, at most {MOST_FRAMES} in all; give fewer")
    pipe = cli.load_pipeline(model, progress=True)
    chosen = cli.class_list(pipe, labels)
    each = chosen[0] if chosen and len(chosen) == 1 else chosen
    found = [_end(end) for end in ends]
    path, _, classes = path.partition(",")
    how = {"path": path, "class_path": classes.strip() or None, "labels": each, "seed": seed}
    output = pipe.interpolate(found, frames, **how, **loop.given())  # type: ignore[arg-type]
    own = {"ends": ", ".join(ends)} | ({} if labels is None else {"labels": labels})
    if writer is not None:
        with writer:
            for number, image in enumerate(output):
                writer.add(f"{number:06d}", image, output.metadata(number) | own | {"frame": str(number)})
    elif out.suffix.lower() == ".png":
        write_sheet(output.tensor.split(frames), out, output.metadata(0) | own)
    else:
        save_animation(output.tensor, out, fps=fps, bounce=bounce, scale=max(1, 256 // output.tensor.shape[-1]))
    cli.finish(
        {"count": len(output), "out": str(out), "ends": ends, "labels": chosen, **output.settings},
        f"{len(output)} frames on {pipe.place}: {out}",
    )


def _check_out(out: Path, ends: list[str], *, fps: float, bounce: bool) -> ImageWriter | None:
    """Complain before any work is done; returns what writes single images, if `out` is for these."""
    import torch

    from spheregen.data import save_animation

    suffix = out.suffix.lower()
    if bounce and suffix not in ANIMATIONS:
        raise ConfigError(f"--bounce is for a {' or '.join(ANIMATIONS)}, not for {out.name}; leave it out")
    if suffix not in (".png", *ANIMATIONS):
        if re.fullmatch(r"\.[a-z]\w*", suffix) and suffix not in (".zip", ".tar"):
            raise ConfigError(f"frames become a .png, .gif, .mp4, .zip, .tar or a folder, not {out.name}")
        return open_output(out)
    output_file(out, ends)
    if suffix in ANIMATIONS:  # a rehearsal: is there an ffmpeg, can it be so fast?
        with tempfile.TemporaryDirectory() as folder:
            save_animation(torch.zeros(1, 1, 2, 2), Path(folder) / f"rehearsal{suffix}", fps=fps)
    return None


def _end(text: str) -> str | int:
    """A seed, unless there is a file of that name."""
    is_seed = re.fullmatch(r"\d{1,30}", text) and not os.path.exists(text)  # noqa: PTH110 (any text is welcome)
    return int(text) if is_seed else text


def _one_label(pipe: Pipeline, text: str | None) -> str | None:
    chosen = cli.class_list(pipe, text)
    if chosen and len(chosen) > 1:
        raise ConfigError(f"--labels, or --prompt, names one here, not {len(chosen)}")
    return chosen[0] if chosen else None
