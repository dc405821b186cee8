"""Generators whose geometry is known exactly, and points with known structure."""

from __future__ import annotations

import torch
from torch import Tensor

from spheregen.models.protocol import Labels
from spheregen.prior import SPHERE, Prior
from spheregen.sphere import rotate, uniform_points

GAIN = 0.2
"""Latent to pixel, so that hardly any pixel leaves [-1, 1]."""


class Mirror:
    """An unconditional (or conditional) generator whose image is its latent: E(D(v)) = v, up to what `pull` adds.

    Args:
        pull: encoding moves every latent towards one fixed direction: spherify(v + pull * direction).
        fraction: the decoder keeps only the first part of a latent, the rest of the image is grey.
    """

    dtype = torch.float32
    prior: Prior = SPHERE
    sigma_max = 5.671281819617709  # tan(80 degrees)

    def __init__(self, *, size: int = 8, classes: int = 0, pull: float = 0.0, fraction: float = 1.0) -> None:
        self.image_shape = (1, size, size)
        self.latent_shape = (size, size)
        self.num_classes = classes
        self.pull = pull
        self.kept = (torch.arange(size * size) < fraction * size * size).float().view(size, size)
        self.seen: list[Tensor | None] = []
        self.direction = uniform_points(1, self.latent_shape, generator=torch.Generator().manual_seed(5))

    def condition(self, labels: Tensor | None) -> None:
        return None

    def encode_raw(self, images: Tensor, labels: Labels = None) -> Tensor:
        assert labels is None or isinstance(labels, Tensor)
        assert labels is None or self.num_classes
        self.seen.append(labels)
        return images[:, 0] / GAIN + self.pull * self.direction

    def encode(self, images: Tensor, labels: Labels = None) -> Tensor:
        return self.prior.project(self.encode_raw(images, labels))

    def decode(self, latents: Tensor, labels: Labels = None) -> Tensor:
        assert labels is None or isinstance(labels, Tensor)
        assert labels is None or self.num_classes
        self.seen.append(labels)
        return (GAIN * latents * self.kept)[:, None].clamp(-1, 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(count: int, dim: int, seed: int) -> Tensor:
    """Uniform points (count, dim) on the sphere of radius sqrt(dim)."""
    return uniform_points(count, (dim,), generator=generator(seed))


def cap_angles(count: int, dim: int, limit: float, seed: int) -> Tensor:
    """Angles from the centre of points that are uniform in a cap: density sin^(dim-2) up to `limit` degrees."""
    grid = torch.linspace(0, limit, 20_001, dtype=torch.float64)[1:]
    chance = torch.softmax((dim - 2) * torch.log(torch.sin(torch.deg2rad(grid))), dim=0).cumsum(0)
    drawn = torch.rand(count, generator=generator(seed), dtype=torch.float64)
    return grid[torch.searchsorted(chance, drawn).clamp_max(len(grid) - 1)].float()


def planted(count: int, dim: int, angles: Tensor, seed: int) -> Tensor:
    """Uniform points, the first of which lie at `angles` (k,) degrees from one random direction."""
    points = uniform(count, dim, seed)
    center = uniform(1, dim, seed + 10_000_000).expand(len(angles), -1)
    points[: len(angles)] = rotate(center, torch.randn(len(angles), dim, generator=generator(seed + 1)), angles)
    return points
