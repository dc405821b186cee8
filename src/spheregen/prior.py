"""Where latents live: on the sphere, or, to see what the sphere is good for, in a Gaussian cloud.

A prior is the one thing that training, sampling and editing ask a generator about its latent space: how raw latents
enter it, and how noise moves them there. A draw from either is `project(e)`, e ~ N(0, I). Latents are (B, ...) of L
numbers each; everything is computed in float32 or wider.

Source: Yue et al. 2026 (arXiv 2602.15030) and Do et al. 2026 (arXiv 2605.15592), the ablations without a sphere.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor

from spheregen import sphere
from spheregen.sphere import upcast

PriorName = Literal["sphere", "gaussian"]


class Prior(Protocol):
    """A latent space that a Gaussian draw can enter."""

    def project(self, z: Tensor) -> Tensor:
        """Raw latents, or Gaussian noise, (B, ...) as points of the latent space; points stay where they are."""

    def tilt(self, v: Tensor, direction: Tensor, sigma: Tensor | float) -> Tensor:
        """Points (B, ...) under noise of magnitude `sigma`, one number or (B,), along `direction`; 0 changes no bit."""


class SpherePrior:
    """Uniform points on the sphere of radius sqrt(L)."""

    def project(self, z: Tensor) -> Tensor:
        """`spherify(z)`."""
        return sphere.spherify(z)

    def tilt(self, v: Tensor, direction: Tensor, sigma: Tensor | float) -> Tensor:
        """`spherify(v + sigma * direction)`."""
        return sphere.tilt(v, direction, sigma)


class GaussianPrior:
    """N(0, I) in L dimensions: nothing is put on a sphere.

    Noise is mixed in at constant variance, so that what has variance 1 keeps it: `(v + sigma * direction) /
    sqrt(1 + sigma^2)`, the same angle atan(sigma) as on the sphere. Nothing here keeps raw latents at variance 1.
    """

    def project(self, z: Tensor) -> Tensor:
        """`z` itself."""
        return z

    def tilt(self, v: Tensor, direction: Tensor, sigma: Tensor | float) -> Tensor:
        """`(v + sigma * direction) / sqrt(1 + sigma^2)`."""
        wide_v, wide_e = upcast(v), upcast(direction)
        if not isinstance(sigma, Tensor):
            return v if sigma == 0 else ((wide_v + sigma * wide_e) / (1 + sigma**2) ** 0.5).to(v.dtype)
        each = sigma.view(-1, *(1 for _ in range(v.ndim - 1))).to(wide_v.dtype)
        return torch.where(each == 0, v, ((wide_v + each * wide_e) * torch.rsqrt(1 + each.square())).to(v.dtype))


SPHERE, GAUSSIAN = SpherePrior(), GaussianPrior()
PRIORS: Mapping[PriorName, Prior] = MappingProxyType({"sphere": SPHERE, "gaussian": GAUSSIAN})
"""The priors by their names in a configuration."""
