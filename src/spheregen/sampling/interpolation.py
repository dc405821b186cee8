"""Paths between points on the sphere: two along a line, four over a square.

Legend: F frames, latents (N, d) or with leading axes; all shapes but those axes are kept.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from spheregen.errors import ConfigError, did_you_mean
from spheregen.prior import SPHERE, Prior
from spheregen.sphere import per_sample, slerp


def lerp(a: Tensor, b: Tensor, t: Tensor | float, *, prior: Prior = SPHERE) -> Tensor:
    """Return the straight line between points on the sphere (B, ...), put back on it: `spherify((1-t)*a + t*b)`.

    The ends are exact; the speed in between is not constant, unlike that of `slerp`. Under another prior the line is
    put back into its space; under a Gaussian one it stays straight, and is shorter than its ends in between.
    """
    weight = per_sample(torch.as_tensor(t, dtype=a.dtype, device=a.device), a)
    between = prior.project((1 - weight) * a + weight * b)
    return torch.where(weight == 0, a, torch.where(weight == 1, b, between))


MOST_FRAMES = 10_000
"""Along a side: more is a typing error."""
PATHS = ("slerp", "lerp")
"""The ways to join two points: on the great circle at constant speed, or on a straight line put back on the sphere."""


def interpolate(ends: Tensor, frames: int, path: str = "slerp", *, prior: Prior = SPHERE) -> Tensor:
    """Return points between two or four points on the sphere.

    Args:
        ends: (2, ...) or (4, ...) points on the sphere; four are the corners upper left, upper right, lower left, lower
            right.
        frames: F >= 2 points along each side, the ends included and exact.
        path: `slerp` or `lerp`.
        prior: the model's, where points are not on the sphere; `slerp` is the same for all.

    Returns:
        (F, ...) points, or (F*F, ...) row by row: across along the upper and the lower side, then down between the two.

    Raises:
        ConfigError: another number of ends or frames, or an unknown path.
    """
    across, down = positions(len(ends), frames)
    if path not in PATHS:
        raise ConfigError(f"unknown path {path!r}{did_you_mean(path, PATHS)}; use {', '.join(PATHS)}")
    join = slerp if path == "slerp" else functools.partial(lerp, prior=prior)
    corners = [end.expand(len(across), *end.shape) for end in ends]
    upper = join(corners[0], corners[1], across)
    return upper if len(ends) == 2 else join(upper, join(corners[2], corners[3], across), down)


def blend(ends: Tensor, frames: int) -> Tensor:
    """Return class mixtures of the ends (2 or 4, K) mixed linearly, as `interpolate` goes: (F, K) or (F*F, K)."""
    across, down = (t[:, None] for t in positions(len(ends), frames))
    upper, *lower = [(1 - across) * ends[i] + across * ends[i + 1] for i in range(0, len(ends), 2)]
    return (1 - down) * upper + down * lower[0] if lower else upper


def positions(ends: int, frames: int) -> tuple[Tensor, Tensor]:
    """Return the places of the points of `interpolate`, across and down, each (F,) or (F*F,) from 0 to 1."""
    if ends not in (2, 4):
        raise ConfigError(f"interpolation goes between two ends or the four corners of a square, not {ends}")
    if not 2 <= frames <= MOST_FRAMES:
        raise ConfigError(f"frames is at least 2, the ends themselves, and at most {MOST_FRAMES}, not {frames}")
    t = torch.linspace(0, 1, frames, dtype=torch.float32, device="cpu")
    if ends == 2:
        return t, torch.zeros_like(t)
    return t.repeat(frames), t.repeat_interleave(frames)
