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
"""Samples that are compared with one another."""


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
        if what in parts:  # the standard deviation over the global batch, averaged over numbers
            mean = world.mean(parts[what].mean(dim=0))
            values[name] = world.mean((parts[what] - mean).square().mean(dim=0)).sqrt().mean()
    return {name: value.item() for name, value in values.items()}


@torch.no_grad()
def latent_statistics(z: Tensor) -> dict[str, Tensor]:
    """Return where the raw latents of a batch lie on the sphere.

    Args:
        z: raw encoder latents (B, ...) of a global batch, before the sphere, in any float type; of more than 1024 the
            first ones count.

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
        wide = wide[:LARGEST_BATCH]
        batch, numbers = wide.shape
        neighbour = mean_angle = 90 * torch.ones_like(radius)
        coverage = torch.ones_like(radius)
        if batch > 1:
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
    return {
        "latent_neighbour_angle": neighbour,
        "latent_mean_angle": mean_angle,
        "latent_coverage": coverage,
        "latent_radius": radius,
    }
