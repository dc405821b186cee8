"""Restoring images with the sphere as a prior: fill in what is missing, enlarge what is small.

Given y = A(x) with a known A, alternate a prior step, one noisy encode and decode, and a data step in closed form that
makes the image agree with y again. No gradients; the image is usable after every step.

Source: SP3 (arXiv 2606.16396). Legend: T steps, B samples, images (B, C, S, S) in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.conditioning import Labels
from spheregen.devices import own_defaults
from spheregen.errors import ConfigError
from spheregen.protocol import SphereGenerator
from spheregen.sampling.loop import (
    Callback,
    Guidance,
    Samples,
    StepNoise,
    guide,
    run,
    same,
    step_noises,
    streams_of,
)
from spheregen.sampling.schedules import Schedule, edit_angles


class Observation(Protocol):
    """The facts known of the images: y = A(x)."""

    def start(self) -> Tensor:
        """A first guess (B, C, S, S) that agrees with what is known."""

    def agree(self, images: Tensor) -> Tensor:
        """The images nearest to `images` (B, C, S, S) that agree with what is known."""


@dataclass(frozen=True)
class Masked:
    """Images of which a region is missing.

    Raises:
        ConfigError: shapes that do not fit together.
    """

    images: Tensor
    """(B, C, S, S) in [-1, 1]; what it holds in the missing region does not matter."""
    missing: Tensor
    """(B or 1, 1, S, S) in [0, 1]: 1 where a pixel is missing, 0 where it is known; values between are mixed."""

    def __post_init__(self) -> None:
        size = self.images.shape[-2:]
        if self.missing.shape[1:] != (1, *size) or self.missing.shape[0] not in (1, self.images.shape[0]):
            raise ConfigError(
                f"a mask of shape {tuple(self.missing.shape)} does not fit images of shape {tuple(self.images.shape)}"
            )

    def start(self) -> Tensor:
        """The known pixels, which flow smoothly into the missing region; grey if nothing is known."""
        known = (1 - self.missing).to(self.images.dtype).expand(len(self.images), -1, -1, -1)
        return self.agree(_smooth_fill(self.images * known, known))

    def agree(self, images: Tensor) -> Tensor:
        """`images` in the missing region, the known pixels elsewhere."""
        mixed = torch.lerp(self.images, images, self.missing.to(images.dtype))
        return torch.where(self.missing == 0, self.images, mixed)


def _smooth_fill(weighted: Tensor, known: Tensor) -> Tensor:
    """Sums of pixels (B, C, H, W) by their weights (B, 1, H, W); where those are 0, the same at half the size."""
    here = weighted / known.clamp_min(1e-6)
    if min(known.shape[-2:]) == 1 or bool((known > 0).all()):
        return here
    size = (-(-known.shape[-2] // 2), -(-known.shape[-1] // 2))
    coarse = _smooth_fill(*(functional.adaptive_avg_pool2d(values, size) for values in (weighted, known)))
    return torch.where(known > 0, here, functional.interpolate(coarse, size=known.shape[-2:], mode="bilinear"))


@dataclass(frozen=True)
class Reduced:
    """Small images, each of whose pixels is the mean of factor x factor pixels of the image that is looked for.

    Raises:
        ConfigError: a factor below 1.
    """

    small: Tensor
    """(B, C, S/factor, S/factor) in [-1, 1]."""
    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ConfigError(f"the factor of an enlargement is at least 1, not {self.factor}")

    def start(self) -> Tensor:
        """A bicubic enlargement that agrees with the small image."""
        size = [side * self.factor for side in self.small.shape[-2:]]
        smooth = functional.interpolate(self.small.float(), size=size, mode="bicubic").to(self.small.dtype)
        return self.agree(smooth)

    def agree(self, images: Tensor) -> Tensor:
        """Each block of pixels moved to the mean that it must have, and drawn together where it would leave [-1, 1].

        The pseudo-inverse of averaging is repetition, so the move is the smallest that there is.
        """
        moved = (images + self._repeat(self.small - functional.avg_pool2d(images, self.factor))).clamp(-1, 1)
        mean = functional.avg_pool2d(moved, self.factor)
        lacking = self.small - mean  # what clamping took: a step of the whole block towards 1 or -1 gives it back
        bound = torch.where(lacking > 0, 1.0, -1.0).to(moved.dtype)
        share = lacking / (bound - mean).where(bound != mean, bound)
        return moved + self._repeat(share) * (self._repeat(bound) - moved)

    def _repeat(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)


@own_defaults()
@torch.no_grad()
def restore(
    model: SphereGenerator,
    observation: Observation,
    labels: Labels = None,
    steps: int = 4,
    strength: float = 0.25,
    schedule: Schedule = "decay",
    guidance: float | Guidance | None = None,
    guidance_at: str = "both",
    step_noise: StepNoise | None = None,
    generator: torch.Generator | None = None,
    share_noise: bool = True,
    callback: Callback | None = None,
) -> Samples:
    """Images that look like the model's and agree with an observation: T times D(spherify(spherify(E(x)) + noise)) and
    the data step.

    A model that predicts latents decodes and encodes around each data step, except under `Masked`: there the data step
    is on tokens, known ones are put back, and the image is decoded once, where known pixels are put back.

    Args:
        observation: `Masked` (inpainting), `Reduced` (super-resolution), or your own.
        steps: T >= 1; the trajectory has T images, each of which agrees with the observation.
        strength: the noise of a step as a fraction of the training noise's magnitude, scaled down by the schedule.

    The other arguments are those of `edit`. Images of an observation of yours that leave [-1, 1] are clamped.

    Raises:
        ConfigError: arguments that do not fit together.
    """
    angles = edit_angles(schedule, steps, strength, model.alpha_max)
    start = observation.start().clamp(-1, 1)
    guided = guide(model, model.condition(labels).check(len(start)), guidance, guidance_at)
    like = start.new_empty((len(start), *model.latent_shape))
    noises = step_noises(step_noise, steps, like, generator, share=share_noise, streams=streams_of(guided))

    def agree(images: Tensor) -> Tensor:
        return observation.agree(images).clamp(-1, 1)

    def agreed(prediction: Tensor) -> Tensor:
        return agree(model.to_image(prediction))

    if isinstance(observation, Masked) and not model.predicts_images:
        known, missing = model.from_image(start), observation.missing
        after = functools.partial(model.mix, second=known, mask=missing)
        samples = run(guided, known, angles, noises, agreed, after=after, callback=callback)
    else:
        before = model.from_image
        samples = run(guided, start, angles, noises, same, before=before, after=agreed, callback=callback)
    return dataclasses.replace(samples, agree=agree)
