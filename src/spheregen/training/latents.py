"""How a batch of latents lies on the sphere: the numbers that show whether the encoder uses it.

Legend: B samples of a batch, L = N*d numbers of a latent, u_i the unit vectors of the latents, G the (B, B) Gram matrix
of cosines, G_ij = u_i . u_j. Everything is computed in float32 on the latents' device and stays there: reading a value
is what waits for the device, so it is left to the log interval.

For B independent uniform points on the sphere in L dimensions the cosine of a pair has mean 0 and variance 1/L, hence
E tr(G^2) = B + B (B - 1) / L exactly. `latent_coverage` compares a batch with that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spheregen.distributed import World
from spheregen.sphere import angle_between, full_precision

LARGEST_BATCH = 1024
"""Samples that are compared with one another; of a larger batch a part is measured."""


def observe(observed: Mapping[str, Sequence[Tensor]], world: World) -> dict[str, float]:
    """Return how the latents of a step's global batch lie on the sphere, and how varied its images and decodes are.

    Args:
        observed: see `LossTerms`; for each name a tensor of every micro-batch of this process.
    """
    parts = {name: torch.cat(list(tensors)) for name, tensors in observed.items()}
    values: dict[str, Tensor] = {}
    if "latent" in parts:
        values |= latent_statistics(world.gather(parts["latent"][: -(-LARGEST_BATCH // world.size)]))
    for name, what in (("data_deviation", "data"), ("image_deviation", "output")):
        if what in parts:
            values[name] = _deviation(parts[what], world)
    return {name: value.item() for name, value in values.items()}


def _deviation(images: Tensor, world: World) -> Tensor:
    """Return the standard deviation over the global batch (B, ...), averaged over numbers."""
    mean = world.mean(images.mean(dim=0))
    return world.mean((images - mean).square().mean(dim=0)).sqrt().mean()


@torch.no_grad()
def latent_statistics(z: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Where the raw latents of a batch lie on the sphere.

    Args:
        z: raw encoder latents (B, ...) of a global batch, before the sphere. Any float type.
        generator: chooses which 1024 samples of a larger batch are measured; None takes the first ones, which are a
            random choice already where the data are shuffled.

    Returns:
        Scalar float32 tensors on the device of `z`:

        - `latent_neighbour_angle`, degrees in [0, 180]: the angle from a sample to the nearest other one of the batch,
          averaged over the samples. It depends on B and L, so compare it within a run.
        - `latent_mean_angle`, degrees in [0, 180]: the mean angle of all pairs, 90 for uniform points.
        - `latent_coverage`, in (0, 1]: the effective rank (tr G)^2 / tr(G^2) of the batch, divided by its value
          B^2 / (B + B (B - 1) / L) for uniform points. 1 is as spread as uniform points (more than that counts as 1),
          (1 + (B - 1) / L) / B is one point for all.
        - `latent_radius`: the root mean square of all numbers of `z`; 1 is the scale of the sphere of radius sqrt(L).

        A batch of one has no pairs: its angles are 90 and its coverage 1, as if it were uniform. A latent of zeros
        counts as orthogonal to all others. Latents that are not finite give values that are not finite.
    """
    with full_precision(z.device.type):
        wide = z.detach().flatten(1).float()
        radius = wide.square().mean().sqrt()
        if wide.shape[0] > LARGEST_BATCH:
            wide = _some(wide, generator)
        batch, numbers = wide.shape
        if batch < 2:
            right = 90 * torch.ones_like(radius)
            return _named(right, right, torch.ones_like(radius), radius)
        unit = wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(1e-30)
        gram = unit @ unit.T
        itself = torch.eye(batch, dtype=torch.bool, device=z.device)
        # the nearest by the Gram matrix, its angle by the vectors: acos of a cosine near 1 loses half its digits
        nearest = gram.masked_fill(itself, -2.0).argmax(dim=1)
        neighbour = angle_between(unit, unit[nearest]).mean()
        angles = torch.rad2deg(torch.acos(gram.clamp(-1, 1))).masked_fill(itself, 0.0)
        mean_angle = angles.sum() / (batch * (batch - 1))
        uniform = batch * (1 + (batch - 1) / numbers)
        coverage = (uniform / gram.masked_fill(itself, 1.0).square().sum()).clamp(max=1.0)
        return _named(neighbour, mean_angle, coverage, radius)


def _some(z: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return z[:LARGEST_BATCH]
    chosen = torch.randperm(z.shape[0], generator=generator, device=generator.device)[:LARGEST_BATCH]
    return z[chosen.to(z.device)]


def _named(neighbour: Tensor, mean_angle: Tensor, coverage: Tensor, radius: Tensor) -> dict[str, Tensor]:
    return {
        "latent_neighbour_angle": neighbour,
        "latent_mean_angle": mean_angle,
        "latent_coverage": coverage,
        "latent_radius": radius,
    }
