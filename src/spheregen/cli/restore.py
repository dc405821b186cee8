"""`spheregen restore`, `inpaint` and `upscale`: known degradations undone with the sphere as a prior."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.edits import Work
from spheregen.cli.images import as_tensor
from spheregen.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from spheregen.pipeline import Pipeline, PipelineOutput

_SHOWN = 6  # iterates in a row of the sheet, at most

Mask = Annotated[Path, Option(help="An image, white where pixels are missing, of the images' size or the model's.")]


def restore(
    work: Work,
    loop: cli.Restoring,
    task: Annotated[
        str, Option(help="What is undone: inpaint, deblur, superres, denoise, decolour, dejpeg or dequantise.")
    ],
    mask: Annotated[
        Path | None, Option(help="Of inpaint: an image, white where pixels are missing, of the images' size or S.")
    ] = None,
    kernel: Annotated[
        str | None,
        Option(
            help="Of deblur: gaussian:SIGMA, motion:LENGTH:DEGREES or an image. Of superres: the filter before, the "
            "same or bicubic; none takes single pixels. Default: the mean of blocks."
        ),
    ] = None,
    factor: Annotated[
        int | None, Option(help="Of superres: pixels that become of one, along each side. Default: 2.")
    ] = None,
    noise: Annotated[
        str | None,
        Option(
            help="Deviation of the noise, of pixels in 0 to 1, or auto to estimate it. Default: auto in denoise, 0.01 "
            "in deblur, else 0."
        ),
    ] = None,
    angle: Annotated[
        float | None,
        Option(
            rich_help_panel="Sampling",
            help="Degrees of the noise of the model's first step, 0 to 90; later ones have less.",
        ),
    ] = None,
    lam: Annotated[
        float | None,
        Option("--lambda", rich_help_panel="Sampling", help="Weight of the model's image against the given one."),
    ] = None,
) -> None:
    """Undo a known degradation of images: one model, any task.

    The model makes the image likely, a step in closed form makes it agree with what was given, over and over. A row of
    the sheet shows what was given, some of the steps, the result and, with --set samples=N, where N results differ.
    Images are brought to the model's size, or with --set tiles=true stay as large as they are.

    Examples:
        spheregen restore runs/mine noisy.png --task denoise
        spheregen restore runs/mine photo.jpg --task deblur --kernel motion:9:30 --noise 0.02
        spheregen restore runs/mine photo.jpg --task inpaint --mask hole.png --set samples=8
        spheregen restore digits digits --split test --task superres --set degrade=true --out large.png
    """
    from spheregen.data import read_image
    from spheregen.data.inputs import load_whole
    from spheregen.pipeline.tasks import NOISE, degrade, task_operator

    given = loop.given(cli.TASK_NAMES)
    given |= {name: value for name, value in (("angle", angle), ("lam", lam)) if value is not None}
    known = {name: given.pop(name, None) for name in cli.TASK_NAMES}
    of_task = {
        "mask": None if mask is None else read_image(mask),
        "kernel": read_image(kernel) if kernel is not None and _is_file(kernel) else kernel,
        "factor": factor,
        "quality": known["quality"],
        "levels": known["levels"],
        "tiles": given.get("tiles", False),
    }
    if not isinstance(known["degrade"], bool | None):
        raise ConfigError(f"degrade is true or false, not {known['degrade']!r}")
    deviation = _deviation(noise if noise is not None else str(NOISE.get(task, 0)))
    degraded: dict[str, Tensor] = {}

    def clean(pipe: Pipeline, images: list[Image.Image]) -> Tensor:
        return load_whole(images, pipe.image_options) if given.get("tiles") else as_tensor(pipe, images)

    def call(pipe: Pipeline, images: list[Image.Image], **options: Any) -> PipelineOutput:
        operator = task_operator(pipe, task, images, **of_task)
        y: Any = images
        if known["degrade"]:
            if isinstance(deviation, str):
                raise ConfigError("degrade=true makes noise of a known strength; give --noise 0.1 or the like")
            y = degrade(clean(pipe, images), operator, deviation, options["seed"])
        output = pipe.restore(y, operator, noise=deviation, **options)
        degraded["start"] = output.start
        return output

    def before(pipe: Pipeline, images: list[Image.Image], output: PipelineOutput) -> list[Tensor]:
        return [*([clean(pipe, images)] if known["degrade"] else []), degraded["start"]]

    inputs = [path for path in (mask, Path(kernel) if kernel and _is_file(kernel) else None) if path is not None]
    work.do(call, "restored", given, before=before, after=_spread, inputs=inputs, most=_SHOWN)


def inpaint(work: Work, loop: cli.Restoring, mask: Mask) -> None:
    """Fill in a region of images; known pixels stay.

    A row of the sheet shows an image, what is known of it (the rest is grey), and some of the steps.

    Examples:
        spheregen inpaint runs/mine photo.jpg --mask hole.png --steps 30
        spheregen inpaint digits digits --split test --mask lower-half.png --out filled.zip
    """
    from spheregen.data import read_image
    from spheregen.data.inputs import load_mask

    def before(pipe: Pipeline, images: list[Image.Image], output: PipelineOutput) -> list[Tensor]:
        x = as_tensor(pipe, images)
        return [x, x.lerp(x.new_full((), 0.5), load_mask(missing, images, pipe.image_options))]

    missing = read_image(mask)
    work.do("inpaint", "inpainted", loop.given(), missing, before=before, after=_spread, inputs=[mask], most=_SHOWN)


def upscale(
    work: Work,
    loop: cli.Restoring,
    factor: Annotated[
        int | None,
        Option(
            help="Pixels that become of one, along each side; larger images are reduced first. Default: the model's "
            "size over theirs."
        ),
    ] = None,
) -> None:
    """Enlarge images to the model's size.

    Averaged back, they are the small ones again. A row of the sheet shows the small image, then some of the steps.

    Examples:
        spheregen upscale runs/mine thumbnails/
        spheregen upscale digits digits --factor 2 --out large.png
    """

    def before(pipe: Pipeline, images: list[Image.Image], output: PipelineOutput) -> list[Tensor]:
        blocks = output.settings["factor"]
        if blocks == 1:
            raise ConfigError(
                f"there is nothing to do: the images have the model's {pipe.image_options.image_size} px already; "
                "--factor 2 would reduce them first"
            )
        small = as_tensor(pipe, images, image_size=pipe.image_options.image_size // blocks)
        return [small.repeat_interleave(blocks, -1).repeat_interleave(blocks, -2)]

    work.do("upscale", "upscaled", loop.given(), factor, before=before, after=_spread, most=_SHOWN)


def _spread(output: Any) -> list[Tensor]:
    """The last column of a sheet: where several results differ, brighter for more."""
    if output.spread is None:
        return []
    return [(output.spread / output.spread.amax((1, 2, 3), keepdim=True).clamp_min(1e-6))]


def _deviation(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise ConfigError(f"--noise is a number such as 0.05, or auto, not {text!r}") from error


def _is_file(text: str) -> bool:
    return not text.startswith(("gaussian:", "motion:")) and text not in ("none", "bicubic")
