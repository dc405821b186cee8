"""Degradations by the names of tasks, as the command and the service take them, and done to good images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spheregen.data.inputs import ImageInput, ImageInputs, load_mask, load_whole
from spheregen.errors import ConfigError, did_you_mean
from spheregen.pipeline import Pipeline
from spheregen.pipeline.options import named
from spheregen.pipeline.restoration import check_factor
from spheregen.sampling import restoration
from spheregen.sampling.restoration import Operator
from spheregen.sampling.seeds import derived_seed, gaussians
from spheregen.sphere import per_sample

TASKS: Mapping[str, tuple[str, ...]] = {
    "inpaint": ("mask",),
    "deblur": ("kernel",),
    "superres": ("factor", "kernel"),
    "denoise": (),
    "decolour": (),
    "dejpeg": ("quality",),
    "dequantise": ("levels",),
}
"""Task -> what tells its degradation."""
NOISE: Mapping[str, float | str] = {"denoise": "auto", "deblur": 0.01}
"""Task -> the deviation of its noise where nobody says it, as `Pipeline.restore` takes it; 0 for the others."""
_NEEDED = {"inpaint": "a mask", "deblur": "a kernel: gaussian:SIGMA, motion:LENGTH:DEGREES or an image"}
_LARGEST_KERNEL = 512  # pixels along a side


@named
def task_operator(
    pipe: Pipeline,
    task: str,
    images: ImageInputs,
    *,
    mask: ImageInput | None = None,
    kernel: str | Image.Image | None = None,
    factor: int | None = None,
    quality: int | None = None,
    levels: int | None = None,
    tiles: bool = False,
) -> Operator:
    """Return the degradation that a task undoes.

    Args:
        pipe: the model that will undo it.
        task: one of `TASKS`.
        images: the degraded images, whose sizes a mask may have.
        mask: of inpaint, white where pixels are missing.
        kernel: of deblur `gaussian:SIGMA`, `motion:LENGTH:DEGREES` or an image, white where the blur spreads light. Of
            superres the filter before pixels are taken: the same, `bicubic`, or `none`; by default the mean of blocks.
        factor: of superres, pixels that become of one along each side; 2 by default.
        quality: of dejpeg, 1 to 100; 10 by default.
        levels: of dequantise; 8 by default.
        tiles: images stay as large as they are, and the mask too.

    Raises:
        ConfigError: an unknown task, one that lacks something, or something that is of another task.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}{did_you_mean(task, TASKS)}; use {', '.join(TASKS)}")
    given = {"mask": mask, "kernel": kernel, "factor": factor, "quality": quality, "levels": levels}
    for name, value in given.items():
        if value is not None and name not in TASKS[task]:
            of = " and ".join(each for each, names in TASKS.items() if name in names)
            raise ConfigError(f"{name} is of the task {of}; leave it out")
    if task in _NEEDED and given[TASKS[task][0]] is None:
        raise ConfigError(f"the task {task} needs {_NEEDED[task]}")
    if task == "superres":
        return _reduction(pipe, 2 if factor is None else factor, kernel)
    if task == "decolour" and pipe.model.image_shape[0] != 3:
        raise ConfigError("colours can be found by a model of colour images alone, and this one's are grey")

    def missing() -> Tensor:
        options = pipe.image_options
        if not tiles:
            return load_mask(_here(mask), images, options)
        return load_whole(_here(mask), dataclasses.replace(options, channels=1, background=(0, 0, 0)))

    makers: Mapping[str, Callable[[], Operator]] = {
        "inpaint": lambda: restoration.SoftMask(1 - missing()),
        "deblur": lambda: restoration.Blur(read_kernel(_here(kernel)), "reflect"),
        "denoise": restoration.Denoise,
        "decolour": restoration.Grey,
        "dejpeg": lambda: restoration.Jpeg(10 if quality is None else quality),
        "dequantise": lambda: restoration.Quantise(8 if levels is None else levels),
    }
    return makers[task]()


def degrade(x: Tensor, operator: Operator, noise: float | Tensor, seed: int) -> Tensor:
    """Return what a degradation makes of images (B, C, H, W) in [0, 1], as `Pipeline.restore` takes it.

    Args:
        noise: deviation of the noise behind the operator, one number or (B,); that of image i depends on seed + i
            alone.

    Raises:
        ConfigError: noise behind an operator that rounds.
    """
    if not operator.linear:
        if bool(torch.as_tensor(noise).any()):
            raise ConfigError(f"{type(operator).__name__} rounds, and what is rounded has no noise; leave noise out")
        return (operator.A(2 * x - 1) + 1) / 2
    y = operator.A(x)
    shape = tuple(y.shape[1:])
    drawn = [gaussians(derived_seed(seed + number, "noise") % 2**32, shape)[0] for number in range(len(y))]
    return y + per_sample(torch.as_tensor(noise), y) * torch.stack(drawn)


def read_kernel(kernel: str | Image.Image) -> Tensor:
    """Return the kernel (h, w) float32 of sum 1 that a text or an image says, as `task_operator` takes it.

    Raises:
        ConfigError: it says none.
    """
    if isinstance(kernel, Image.Image):
        pixels = torch.from_numpy(np.array(kernel.convert("L"), dtype=np.float64))
        if max(pixels.shape) > _LARGEST_KERNEL or not float(pixels.sum()):
            raise ConfigError("a kernel is a small image, white where the blur spreads light, not all black")
        return (pixels / pixels.sum()).float()
    kind, *rest = kernel.split(":")
    try:
        numbers = [float(each) for each in rest]
    except ValueError as error:
        raise ConfigError(f"the kernel {kernel[:50]!r} holds what is no number ({error})") from error
    if kind == "gaussian" and len(numbers) == 1 and not numbers[0] > _LARGEST_KERNEL / 8:
        return restoration.gaussian_kernel(numbers[0]).float()
    if kind == "motion" and 1 <= len(numbers) <= 2 and not numbers[0] > _LARGEST_KERNEL:
        return restoration.motion_kernel(*numbers).float()
    raise ConfigError(
        f"the kernel {kernel[:50]!r} is not gaussian:SIGMA or motion:LENGTH:DEGREES of {_LARGEST_KERNEL} px at most"
    )


def _reduction(pipe: Pipeline, factor: int, kernel: str | Image.Image | None) -> Operator:
    check_factor(factor, pipe.image_options.image_size)
    if kernel is None:
        return restoration.BlockMean(factor)
    if kernel == "bicubic":
        return restoration.Subsample.bicubic(factor)
    return restoration.Subsample(factor, None if kernel == "none" else read_kernel(kernel))


def _here(value: Any) -> Any:
    assert value is not None
    return value
