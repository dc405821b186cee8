"""How training latents are perturbed: a strong and a weak noise along one direction, with stratified magnitudes.

Magnitudes are radii r relative to sigma_max = tan(alpha_max). They are drawn for the whole global batch at once, on
the CPU, so that neither the device nor the split into processes and micro-batches changes them.

Source: Yue et al. 2026 (arXiv 2602.15030), the training noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spheregen.errors import ConfigError, check_choices
from spheregen.prior import SPHERE, Prior
from spheregen.sphere import angle_to_sigma

STRATUM_FLOOR = 1e-3  # the smallest place of a draw inside its stratum, as published
HARD_ANGLE_MARGIN = 5.0  # hard cases reach this many degrees beyond alpha_max,
HARD_ANGLE_LIMIT = 89.0  # but never beyond this angle


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The laws of the training noise.

    Raises:
        ConfigError: a value outside its range.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

    radius_law: Literal["magnitude", "angle"] = "magnitude"
    """What is uniform: the magnitude r in [0, 1] (published), or the angle in [0, alpha_max]."""
    weak_fraction: float = 0.5
    """The weak noise is r*s of sigma_max, s ~ U[0, weak_fraction]."""
    hard_probability: float = 0.1
    """The share of samples whose strong noise goes beyond alpha_max."""
    hard_law: Literal["uniform", "published"] = "uniform"
    """Hard radii are uniform up to tan(min(alpha_max + 5, 89)) / tan(alpha_max); "published" repeats the released
    code, where one draw decides both whether and how hard, so only the lowest tenth of that range occurs."""

    def __post_init__(self) -> None:
        check_choices(self, "noise.")
        for name in ("weak_fraction", "hard_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"noise.{name} lies in [0, 1], not {getattr(self, name):g}")


@dataclass(frozen=True)
class Radii:
    """Noise magnitudes of a global batch, as fractions of sigma_max."""

    strong: Tensor
    """(B,) in [0, 1], beyond 1 for hard cases."""
    weak: Tensor
    """(B,) in [0, weak_fraction]."""

    def __getitem__(self, part: slice) -> Radii:
        return Radii(strong=self.strong[part], weak=self.weak[part])


@dataclass(frozen=True)
class NoisePair:
    """Two perturbed copies of points of the latent space, along one direction."""

    strong: Tensor
    """v_NOISY of the paper, (B, N, d)."""
    weak: Tensor
    """v_noisy of the paper, (B, N, d)."""


def stratified(count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """`count` stratified draws from [0, 1], shuffled, (count,) float32.

    count - 2 draws (i + u_i)/(count - 2) with u_i in [1e-3, 1), one exactly 1 and one exactly 0. A count of 2 gives
    {0, 1} and a count of 1 one uniform draw.
    """
    if count < 1:
        raise ValueError(f"a batch holds at least one sample, not {count}")
    if count == 1:
        return torch.rand(1, generator=generator)
    inner = count - 2
    u = STRATUM_FLOOR + (1 - STRATUM_FLOOR) * torch.rand(inner, generator=generator)
    strata = (torch.arange(inner) + u) / max(inner, 1)
    values = torch.cat([strata, torch.tensor([1.0, 0.0])])
    return values[torch.randperm(count, generator=generator)]


def draw_radii(count: int, config: NoiseConfig, max_angle: float, *, generator: torch.Generator | None = None) -> Radii:
    """The radii of a global batch of `count` samples for noise up to `max_angle` degrees."""
    r = stratified(count, generator=generator)
    s = config.weak_fraction * stratified(count, generator=generator)
    if config.radius_law == "angle":
        r = (torch.tan(r.double() * math.radians(max_angle)) / angle_to_sigma(max_angle)).float()
    chance = torch.rand(count, generator=generator)
    # the released code decides "whether" and "how hard" by one draw, see NoiseConfig.hard_law
    extra = chance if config.hard_law == "published" else torch.rand(count, generator=generator)
    hard = 1 + extra * (hard_limit(max_angle) - 1)
    return Radii(strong=torch.where(chance < config.hard_probability, hard, r), weak=r * s)


def hard_limit(max_angle: float) -> float:
    """The largest radius of a hard case: tan(min(alpha_max + 5, 89)) / tan(alpha_max), at least 1."""
    sigma_max = angle_to_sigma(max_angle)
    return max(1.0, angle_to_sigma(min(max_angle + HARD_ANGLE_MARGIN, HARD_ANGLE_LIMIT)) / sigma_max)


def perturb(v: Tensor, direction: Tensor, radii: Radii, sigma_max: float, *, prior: Prior = SPHERE) -> NoisePair:
    """Perturb points by a strong and a weak noise.

    Args:
        v: points on the sphere, or of another `prior`, (B, N, d).
        direction: standard Gaussian noise e, (B, N, d), the same for both noises of a sample.
        radii: of these B samples.
        sigma_max: tan(alpha_max).
        prior: the latent space, which the perturbed points stay in.
    """
    strong, weak = (r.to(v.device) * sigma_max for r in (radii.strong, radii.weak))
    return NoisePair(strong=prior.tilt(v, direction, strong), weak=prior.tilt(v, direction, weak))
