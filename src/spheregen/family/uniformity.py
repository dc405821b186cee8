"""Uniformity of the latents of a batch: two terms that ask the encoder to use the whole sphere.

Both are numbers of one batch and small for evenly spread points, but not 0: compare values of equal batch sizes only.
Both see latents as `spherify` does, whatever their scale, and compute in float32 or wider.

Legend: B samples, L numbers of a latent, K projections.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spheregen.prior import SPHERE, Prior
from spheregen.sphere import full_precision, spherify, upcast

SOFTENING = 1e-2
"""Points of the unit sphere that are nearer to each other than this (0.6 degrees) repel each other no more for it:
two images with one code give a finite energy, and a gradient that does not drown all others."""
LARGEST_EXPONENT = 2.0


def projection_directions(count: int, numbers: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw `count` uniform unit vectors of `numbers` dimensions, (count, numbers) float32."""
    device = None if generator is None else generator.device
    directions = torch.randn(count, numbers, generator=generator, device=device)
    unit: Tensor = directions / torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    return unit


def sliced_wasserstein(latents: Tensor, directions: Tensor, *, prior: Prior = SPHERE) -> Tensor:
    """Return the squared sliced 2-Wasserstein distance between the points of a batch and N(0, I), a scalar.

    Uniform points on the sphere of radius sqrt(L) look like N(0, 1) from every direction if L is large. So the points
    are projected on K directions, and each direction's sorted projections are compared with the B quantiles of N(0, 1)
    at (i + 1/2) / B. Those are fixed: as many normal draws would have the same meaning and more noise.

    Args:
        latents: (B, ...), raw or on the sphere. A single one has no distribution: 0, without a gradient.
        directions: (K, L) unit vectors, see `projection_directions`.
        prior: the latent space; under `GAUSSIAN` raw latents themselves are compared with N(0, I), scale included.

    Source: Bonneel et al. 2015, sliced distances; Kolouri et al. 2018 (arXiv 1804.01947), as a term for autoencoders.
    """
    points = prior.project(upcast(latents)).flatten(1)
    batch = len(points)
    if batch < 2:
        return 0.0 * points.sum()
    with full_precision(points.device.type):
        projected = (points @ directions.to(points.device, points.dtype).T).sort(dim=0).values
        places = (2 * torch.arange(batch, device=points.device, dtype=points.dtype) + 1 - batch) / batch
        quantiles = math.sqrt(2) * torch.erfinv(places)
        return (projected - quantiles[:, None]).square().mean()


def hyperspherical_energy(latents: Tensor, exponent: float = 1.0) -> Tensor:
    """Return the mean Riesz energy of the pairs of a batch's directions, a scalar.

    With x the points on the unit sphere it is the mean over pairs of |x_i - x_j|^-s, and for s = 0 of
    log(2 / |x_i - x_j|), which is never negative. Lengths are softened: |x|^2 + `SOFTENING`^2. Uniform points have the
    least expected energy; rotating all points changes nothing.

    Args:
        latents: (B, ...), of any length. A single one has no pairs: 0, without a gradient.
        exponent: s, 0 to 2; the larger, the more near neighbours count.

    Source: Liu et al. 2018 (arXiv 1805.09298), minimum hyperspherical energy.
    """
    points = spherify(upcast(latents)).flatten(1)  # safe for latents of zeros, unlike a division by the norm
    batch, numbers = points.shape
    if batch < 2:
        return 0.0 * points.sum()
    with full_precision(points.device.type):
        unit = points / math.sqrt(numbers)
        square = 2 - 2 * unit @ unit.T + SOFTENING**2  # rounding errs by less than the softening: positive
        energy = math.log(2) - 0.5 * square.log() if exponent == 0 else square.pow(-0.5 * exponent)
        itself = torch.eye(batch, dtype=torch.bool, device=points.device)
        return energy.masked_fill(itself, 0.0).sum() / (batch * (batch - 1))
