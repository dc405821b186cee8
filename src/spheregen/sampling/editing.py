"""Changing images through the sphere: towards a class, halves of two joined, variations. Inversion is one encode.

Source: Yue et al. 2026 (arXiv 2602.15030), conditional manipulation and image crossover. Legend: T steps, B samples,
latents (B, N, d), images (B, C, S, S) in [-1, 1], predictions one or the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from spheregen.errors import ConfigError, did_you_mean
from spheregen.models.protocol import SphereGenerator, mix_images
from spheregen.sampling.guidance import Guidance, guide
from spheregen.sampling.loop import Samples, StepNoise, check_labels, refine, step_directions
from spheregen.sampling.schedules import Schedule, edit_radii
from spheregen.sphere import rotate

MASKS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "left-right": lambda row, column: column < 0,
        "top-bottom": lambda row, column: row < 0,
        "diagonal": lambda row, column: column > row,
        "antidiagonal": lambda row, column: column < -row,
    }
)
"""Where a crossover takes its first image: rows grow downwards and columns to the right, both 0 in the middle.
`diagonal` runs from the upper left to the lower right with the first image above it, `antidiagonal` from the lower left
to the upper right with the first image above it."""


@dataclass(frozen=True)
class Joined:
    """Two images of which `edit` makes one: pixels are joined, or, where the model predicts latents, tokens."""

    first: Tensor
    """(B, C, S, S) in [-1, 1]."""
    second: Tensor
    """(B, C, S, S) in [-1, 1]."""
    mask: Tensor
    """(B or 1, 1, S, S) in [0, 1]: 1 where the first image is taken, 0 where the second one is."""


@torch.no_grad()
def edit(
    model: SphereGenerator,
    images: Tensor | Joined,
    labels: Tensor | None = None,
    steps: int = 4,
    strength: float = 0.25,
    schedule: Schedule = "fixed",
    guidance: float | Guidance = 1.0,
    guidance_at: str = "both",
    step_noise: StepNoise | None = None,
    generator: torch.Generator | None = None,
    share_noise: bool = True,
) -> Samples:
    """Pull images towards a condition: T pairs of encode, with noise scaled by `strength`, and decode.

    A model that predicts latents refines those of its tokenizer instead, and decodes them at the end.

    Args:
        images: (B, C, S, S) in [-1, 1], or two of them `Joined`, whose seam the steps heal. Every encode, the first
            included, is under the target `labels`.
        steps: T >= 1 pairs; the trajectory has T images.
        strength: the noise of a step as a fraction of sigma_max (`decay`: strength * (1 - t/(T+1))).

    The other arguments are those of `sample`; a list of step noise holds T tensors.

    Raises:
        ConfigError: steps, strength, schedule, guidance or noise that do not fit together.
    """
    radii = edit_radii(schedule, steps, strength, model.sigma_max)
    first = images.first if isinstance(images, Joined) else images
    check_labels(labels, first.shape[0])
    steered = guide(model, labels, guidance, guidance_at)
    like = first.new_empty((first.shape[0], *model.latent_shape))
    directions = step_directions(step_noise, len(radii), like, generator, share=share_noise)
    prediction = model.from_image(first)
    if isinstance(images, Joined):
        prediction = model.mix(prediction, model.from_image(images.second), images.mask)
    predictions = []
    for radius, direction in zip(radii, directions, strict=True):
        prediction = refine(steered, prediction, radius, direction, prior=model.prior)
        predictions.append(prediction)
    return Samples.of(predictions, model.to_image)


def crossover_mask(name: str, size: int) -> Tensor:
    """One of `MASKS` for images of `size` pixels: (1, 1, S, S) float32, 1 where the first image is taken, else 0.

    On the pixels of a diagonal itself both images are mixed half and half.

    Raises:
        ConfigError: no such mask.
    """
    if name not in MASKS:
        raise ConfigError(f"unknown mask {name!r}{did_you_mean(name, MASKS)}; use {', '.join(MASKS)}, or a picture")
    place = torch.arange(size) - (size - 1) / 2
    row, column = place[:, None].expand(size, size), place[None, :].expand(size, size)
    first = MASKS[name](row, column).float()
    if name in ("diagonal", "antidiagonal"):
        on_it = (row == column) if name == "diagonal" else (row == -column)
        first = torch.where(on_it, 0.5, first)
    return first[None, None]


def stitch(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Two images (B, C, S, S) as one: `first` where the mask (B or 1, 1, S, S) is 1, `second` where it is 0."""
    return mix_images(first, second, mask)


def vary(v: Tensor, direction: Tensor, angle: float) -> Tensor:
    """Points (B, N, d) at exactly `angle` degrees from `v` on the sphere, towards Gaussian noise `direction`.

    Raises:
        ConfigError: an angle outside 0 to 180 degrees.
    """
    if not 0 <= angle <= 180:
        raise ConfigError(f"the angle of a variation lies between 0 and 180 degrees, not {angle:g}")
    return rotate(v, direction, angle)
