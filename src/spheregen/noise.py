"""How training latents are perturbed: a strong and a weak noise along one direction, with stratified magnitudes.

Magnitudes are radii r relative to sigma_max = tan(alpha_max). They are drawn for the whole global batch at once, on
the CPU, so that neither the device nor the split into processes and micro-batches changes them.

Sources: Yue et al. 2026 (arXiv 2602.15030), the training noise; Do et al. 2026 (arXiv 2605.15592), its laws for a
latent denoiser.
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

    law: Literal["stratified", "logit_normal", "uniform"] = "stratified"
    """How the two noises of a sample are drawn: "stratified" as in the Sphere Encoder, the weak one a fraction of the
    strong one; else two independent draws in (0, 1), logit-normal (Sphere Latent Encoder) or uniform, of which the
    larger is the strong one."""
    logit_mean: float = 0.0
    """Of the logit-normal draws: sigmoid(N(mean, deviation^2)). Not published."""
    logit_deviation: float = 1.0
    """See `logit_mean`."""
    radius_law: Literal["magnitude", "angle"] = "magnitude"
    """What the draws in [0, 1] are fractions of: the magnitude sigma_max (published), or the angle alpha_max."""
    weak_fraction: float = 0.5
    """Of "stratified": the weak noise is r*s of sigma_max, s ~ U[0, weak_fraction]."""
    hard_probability: float = 0.1
    """The share of samples whose strong noise goes beyond alpha_max."""
    hard_angle: float | None = None
    """How far hard cases go, in degrees; None: min(alpha_max + 5, 89), as published for the Sphere Encoder."""
    hard_law: Literal["uniform", "published"] = "uniform"
    """Hard radii are uniform up to tan(hard_angle) / tan(alpha_max); "published" repeats the released code, where one
    draw decides both whether and how hard, so only the lowest tenth of that range occurs."""

    def __post_init__(self) -> None:
        check_choices(self, "noise.")
        for name in ("weak_fraction", "hard_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"noise.{name} lies in [0, 1], not {getattr(self, name):g}")
        if not math.isfinite(self.logit_mean):
            raise ConfigError(f"noise.logit_mean is a finite number, not {self.logit_mean:g}")
        if not 0 <= self.logit_deviation < math.inf:
            raise ConfigError(f"noise.logit_deviation is not negative, and finite: {self.logit_deviation:g}")
        if self.hard_angle is not None and not 0 < self.hard_angle < 90:
            raise ConfigError(f"noise.hard_angle lies between 0 and 90 degrees, not {self.hard_angle:g}")


@dataclass(frozen=True)
class Radii:
    """Noise magnitudes of a global batch, as fractions of sigma_max."""

    strong: Tensor
    """(B,) in [0, 1], beyond 1 for hard cases."""
    weak: Tensor
    """(B,) in [0, 1], at most `strong`; [0, weak_fraction] under the stratified law."""

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
    if config.law == "stratified":
        r = stratified(count, generator=generator)
        s = config.weak_fraction * stratified(count, generator=generator)
        strong = _magnitudes(r, config, max_angle)
        weak = strong * s
    else:
        if config.law == "uniform":
            draws = torch.rand((2, count), generator=generator)
        else:
            normal = torch.randn((2, count), generator=generator)
            draws = torch.sigmoid(config.logit_mean + config.logit_deviation * normal)
        pair = _magnitudes(draws, config, max_angle)
        strong, weak = pair.amax(0), pair.amin(0)
    chance = torch.rand(count, generator=generator)
    # the released code decides "whether" and "how hard" by one draw, see NoiseConfig.hard_law
    extra = chance if config.hard_law == "published" else torch.rand(count, generator=generator)
    hard = 1 + extra * (hard_limit(max_angle, config.hard_angle) - 1)
    return Radii(strong=torch.where(chance < config.hard_probability, hard, strong), weak=weak)


def _magnitudes(fractions: Tensor, config: NoiseConfig, max_angle: float) -> Tensor:
    """Draws in [0, 1] as fractions of sigma_max."""
    if config.radius_law == "magnitude":
        return fractions
    return (torch.tan(fractions.double() * math.radians(max_angle)) / angle_to_sigma(max_angle)).float()


def hard_limit(max_angle: float, hard_angle: float | None = None) -> float:
    """The largest radius of a hard case: tan(hard_angle) / tan(alpha_max), at least 1. See `NoiseConfig.hard_angle`."""
    if hard_angle is None:
        hard_angle = min(max_angle + HARD_ANGLE_MARGIN, HARD_ANGLE_LIMIT)
    return max(1.0, angle_to_sigma(hard_angle) / angle_to_sigma(max_angle))


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


def directions(batch: int, shape: tuple[int, ...], generator: torch.Generator, rows: slice | None = None) -> Tensor:
    """The Gaussian directions (len(rows), *shape) of these rows of a global batch, on the CPU.

    Each has a seed of its own, so that a process draws only what it needs, and they are the same whatever the number
    of processes.
    """
    seeds = torch.randint(2**62, (batch,), generator=generator)[rows or slice(0, batch)].tolist()
    drawn = torch.empty(len(seeds), *shape)
    own = torch.Generator()
    for row, seed in zip(drawn, seeds, strict=True):
        row.normal_(generator=own.manual_seed(seed))
    return drawn
