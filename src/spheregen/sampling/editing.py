"""Changing images through the sphere: towards a class, halves of two joined, variations. Inversion is one encode.

Source: Yue et al. 2026 (arXiv 2602.15030), conditional manipulation and image crossover (method.md, section 1.3).
Legend: T steps, B samples, latents (B, N, d), images (B, C, S, S) in [-1, 1], predictions one or the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from spheregen.conditioning import Labels
from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, did_you_mean
from spheregen.protocol import SphereGenerator
from spheregen.sampling.loop import (
    Callback,
    Guidance,
    Samples,
    StepNoise,
    draw_noise,
    guide,
    run,
    sample,
    step_noises,
    streams_of,
)
from spheregen.sampling.schedules import Schedule, edit_angles
from spheregen.sphere import rotate

MASKS: Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = MappingProxyType(
    {
        "left-right": (lambda row, column: -column, 0),
        "top-bottom": (lambda row, column: -row, 0),
        "diagonal": (lambda row, column: column - row, 0.5),
        "antidiagonal": (lambda row, column: -column - row, 0.5),
    }
)
"""The places of a crossover's first image: where this is positive, and its share where this is 0. Rows grow downwards
and columns to the right, both 0 in the middle.
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


@own_defaults()
@torch.no_grad()
def edit(
    model: SphereGenerator,
    images: Tensor | Joined,
    labels: Labels = None,
    steps: int = 4,
    strength: float = 0.25,
    schedule: Schedule = "fixed",
    guidance: float | Guidance | None = None,
    guidance_at: str = "both",
    step_noise: StepNoise | None = None,
    generator: torch.Generator | None = None,
    share_noise: bool = True,
    callback: Callback | None = None,
) -> Samples:
    """Pull images towards a condition: T pairs of encode, with noise scaled by `strength`, and decode.

    A model that predicts latents takes those of its tokenizer through the steps, and decodes them at the end.

    Args:
        images: (B, C, S, S) in [-1, 1], or two of them `Joined`, whose seam the steps heal. Every encode, the first
            included, is under the target `labels`.
        steps: T >= 1 pairs; the trajectory has T images.
        strength: the noise of a step as a fraction of the training noise's magnitude (`decay`: times 1 - t/(T+1)).

    The other arguments are those of `sample`; a list of step noise holds T tensors.

    Raises:
        ConfigError: steps, strength, schedule, guidance or noise that do not fit together.
    """
    angles = edit_angles(schedule, steps, strength, model.alpha_max)
    first = images.first if isinstance(images, Joined) else images
    guided = guide(model, model.condition(labels).check(len(first)), guidance, guidance_at)
    like = first.new_empty((len(first), *model.latent_shape))
    noises = step_noises(step_noise, steps, like, generator, share=share_noise, streams=streams_of(guided))
    start = model.from_image(first)
    if isinstance(images, Joined):
        start = model.mix(start, model.from_image(images.second), images.mask)
    return run(guided, start, angles, noises, model.to_image, callback=callback)


@own_defaults()
@torch.no_grad()
def revise(
    model: SphereGenerator,
    images: Tensor,
    labels: Labels = None,
    steps: int = 8,
    angle: float = 85.0,
    loop_angle: float | None = None,
    guidance: float | Guidance | None = None,
    step_noise: StepNoise | None = None,
    generator: torch.Generator | None = None,
    share_noise: bool = True,
    callback: Callback | None = None,
) -> Samples:
    """Decode the codes of images as if noise had turned them by an angle, then turn and decode again, steps-1 times.

    The first decode is of the clean code, told `angle`; so it keeps the image's layout and changes what an angle of
    that size leaves open.

    Args:
        model: any generator of the family; one that is told no angle decodes its code as it is.
        images: (B, C, S, S) in [-1, 1].
        labels: the class under which it is decoded; None is the null class.
        steps: T >= 1 decodes.
        angle: degrees that the first decode is told.
        loop_angle: degrees by which the later ones turn; None: `angle`.

    The other arguments are those of `sample`.

    Source: Sphere Encoder 2 (arXiv 2610.02208), image editing; sphere2 code, the reconstruction loop.
    """
    condition = model.condition(labels).check(len(images))
    points = model.encode(images, condition)
    if step_noise is None and share_noise:
        step_noise = draw_noise(points, generator)
    return sample(
        model,
        points,
        condition,
        steps,
        guidance=guidance,
        step_noise=step_noise,
        generator=generator,
        share_noise=share_noise,
        angle=angle,
        loop_angle=loop_angle,
        callback=callback,
    )


def crossover_mask(name: str, size: int) -> Tensor:
    """Return one of `MASKS` for images of `size` pixels: (1, 1, S, S) float32, 1 where the first image is.

    On the pixels of a diagonal itself both images are mixed half and half.

    Raises:
        ConfigError: no such mask.
    """
    if name not in MASKS:
        raise ConfigError(f"unknown mask {name!r}{did_you_mean(name, MASKS)}; use {', '.join(MASKS)}, or an image")
    inside, share = MASKS[name]
    place = torch.arange(size, dtype=torch.float32, device="cpu") - (size - 1) / 2
    row, column = torch.meshgrid(place, place, indexing="ij")
    return torch.heaviside(inside(row, column), place.new_tensor(share))[None, None]


def vary(v: Tensor, noise: Tensor, angle: float) -> Tensor:
    """Return points (B, N, d) at exactly `angle` degrees from `v` on the sphere, towards Gaussian noise.

    Raises:
        ConfigError: an angle outside 0 to 180 degrees.
    """
    if not 0 <= angle <= 180:
        raise ConfigError(f"the angle of a variation lies between 0 and 180 degrees, not {angle:g}")
    return rotate(v, noise, angle)
