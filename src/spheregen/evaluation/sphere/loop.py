"""Does the loop of decoding and encoding hold still, contract, and take noise away?

One pass is v -> E(D(v)), on the sphere and without noise. Few-step generation is this pass with noise in between: it
can only work where a pass brings a noisy latent closer to the clean one, and leaves a clean one where it is. Angles in
degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.evaluation.sphere.codec import Codec, Starts, gaussian
from spheregen.sphere import angle_between, rotate, sigma_to_angle

ITERATES = 8
APART = (2.0, 5.0, 10.0, 20.0, 40.0)
_TURN_STREAM, _NOISE_STREAM = 21, 22


@dataclass(frozen=True, kw_only=True)
class LoopStudy:
    """What passes of the loop do to points of one kind."""

    start: str
    """`random` or `data`."""
    count: int
    drift: tuple[float, ...]
    """The mean angle between iterate k-1 and iterate k, for k = 1, 2, ..."""
    from_start: tuple[float, ...]
    """The mean angle between the start and iterate k."""
    apart: tuple[float, ...]
    """Angles between the two points of a pair,"""
    contraction: tuple[float, ...]
    """and the mean angle after one pass, over that angle: below 1 the loop contracts."""


@dataclass(frozen=True, kw_only=True)
class DenoisingStudy:
    """What one pass does to noisy latents of data."""

    noise: tuple[float, ...]
    """atan(sigma) of the noise."""
    before: tuple[float, ...]
    """The mean angle between a noisy latent and its clean one: `noise`, where L is large."""
    after: tuple[float, ...]
    """The mean angle between the noisy latent after one pass and the clean one before."""

    @property
    def gain(self) -> tuple[float, ...]:
        """Degrees by which a pass brings the latent closer."""
        return tuple(before - after for before, after in zip(self.before, self.after, strict=True))


@torch.no_grad()
def loop_study(
    codec: Codec, start: Starts, *, seed: int = 0, iterates: int = ITERATES, apart: Sequence[float] = APART
) -> LoopStudy:
    """Send points around the loop, again and again, and in pairs."""
    directions = gaussian(len(start.latents), tuple(start.latents.shape[1:]), seed, _TURN_STREAM)
    drift, away = [], []
    before = start.latents
    once = before
    for number in range(iterates):
        after = codec.around(before, start.labels)
        once = after if number == 0 else once
        drift.append(_mean(angle_between(before, after)))
        away.append(_mean(angle_between(start.latents, after)))
        before = after
    ratios = []
    for angle in apart:
        other = rotate(start.latents, directions.to(before.dtype), angle)
        ratios.append(_mean(angle_between(once, codec.around(other, start.labels))) / angle)
    return LoopStudy(
        start=start.name,
        count=len(start.latents),
        drift=tuple(drift),
        from_start=tuple(away),
        apart=tuple(apart),
        contraction=tuple(ratios),
    )


@torch.no_grad()
def denoising_study(codec: Codec, start: Starts, *, seed: int = 0) -> DenoisingStudy:
    """Tilt latents of data by noise up to what training knew and beyond, and send them around the loop once."""
    noise = gaussian(len(start.latents), tuple(start.latents.shape[1:]), seed, _NOISE_STREAM).to(start.latents.dtype)
    largest = sigma_to_angle(codec.model.sigma_max)
    known = [float(angle) for angle in range(0, 90, 10) if angle < largest - 1]
    angles = sorted({*known, round(largest, 6), *(angle for angle in (85.0, 89.0) if angle > largest + 1)})
    before, after = [], []
    for angle in angles:
        noisy = codec.model.prior.tilt(start.latents, noise, math.tan(math.radians(angle)))
        before.append(_mean(angle_between(noisy, start.latents)))
        after.append(_mean(angle_between(codec.around(noisy, start.labels), start.latents)))
    return DenoisingStudy(noise=tuple(angles), before=tuple(before), after=tuple(after))


def _mean(angles: Tensor) -> float:
    return float(angles.double().mean())
