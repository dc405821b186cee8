"""Where latents live: on the sphere, or, to see what the sphere is good for, in a Gaussian cloud or nowhere special.

A prior is the one thing that training, sampling and editing ask a generator about its latent space: how raw latents
enter it, and how noise moves them there. A draw from each is `project(e)`, e ~ N(0, I). Latents are (B, ...) of L
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

PriorName = Literal["sphere", "gaussian", "additive"]


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
        each = _as_rows(sigma, v)
        tilted = (upcast(v) + each * upcast(direction)) * torch.rsqrt(1 + each.square())
        return torch.where(each == 0, v, tilted.to(v.dtype))


class AdditivePrior:
    """N(0, I) in L dimensions, where noise is added and stays: the sphere's formulas without spherify.

    Strong noise makes points that are larger than any draw, and a draw is taken for a point under weak noise. So it
    shows what holding the size is worth, on the sphere or by the Gaussian's constant variance.
    """

    def project(self, z: Tensor) -> Tensor:
        """`z` itself."""
        return z

    def tilt(self, v: Tensor, direction: Tensor, sigma: Tensor | float) -> Tensor:
        """`v + sigma * direction`."""
        each = _as_rows(sigma, v)
        return torch.where(each == 0, v, (upcast(v) + each * upcast(direction)).to(v.dtype))


def _as_rows(sigma: Tensor | float, v: Tensor) -> Tensor:
    """Magnitudes in the wider type, one for all samples or (B,), to multiply `v` by."""
    wide = upcast(v)
    if not isinstance(sigma, Tensor):
        return torch.as_tensor(sigma, device=wide.device, dtype=wide.dtype)
    return sigma.view(-1, *(1 for _ in range(v.ndim - 1))).to(wide.dtype)


SPHERE, GAUSSIAN, ADDITIVE = SpherePrior(), GaussianPrior(), AdditivePrior()
PRIORS: Mapping[PriorName, Prior] = MappingProxyType({"sphere": SPHERE, "gaussian": GAUSSIAN, "additive": ADDITIVE})
"""The priors by their names in a configuration."""
