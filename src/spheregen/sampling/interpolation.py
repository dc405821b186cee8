"""Paths between points on the sphere: two along a line, four over a square.

Legend: F frames, latents (N, d) or with leading axes; all shapes but those axes are kept.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from spheregen.conditioning import Condition, rows_at
from spheregen.errors import ConfigError, did_you_mean
from spheregen.prior import SPHERE, Prior
from spheregen.protocol import PRIOR
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
        prior: the model's.

    Returns:
        (F, ...) points, or (F*F, ...) row by row: across along the upper and the lower side, then down between the two.

    Raises:
        ConfigError: another number of ends or frames, or an unknown path.
    """
    across, down = positions(len(ends), frames)
    if path not in PATHS:
        raise ConfigError(f"unknown path {path!r}{did_you_mean(path, PATHS)}; use {', '.join(PATHS)}")
    join = prior.slerp if path == "slerp" else functools.partial(lerp, prior=prior)
    corners = [end.expand(len(across), *end.shape) for end in ends]
    upper = join(corners[0], corners[1], across)
    return upper if len(ends) == 2 else join(upper, join(corners[2], corners[3], across), down)


def blend(ends: Tensor, frames: int) -> Tensor:
    """Return class mixtures of the ends (2 or 4, K) mixed linearly, as `interpolate` goes: (F, K) or (F*F, K)."""
    across, down = (t[:, None] for t in positions(len(ends), frames))
    upper, *lower = [(1 - across) * ends[i] + across * ends[i + 1] for i in range(0, len(ends), 2)]
    return (1 - down) * upper + down * lower[0] if lower else upper


CLASS_PATHS = ("lerp", "slerp", "hard")
"""The ways to mix the conditions of two ends: on a straight line between their embeddings, at constant angular speed,
or by a switch in the middle."""


def mix_conditions(first: Condition, second: Condition, t: Tensor, path: str = "lerp") -> Condition:
    """Return the condition between those of two ends, for each sample at its own place.

    Args:
        first, second: of B samples each.
        t: (B,) from 0 to 1.
        path: `lerp`, `slerp` (over the channels of an embedding) or `hard` (the second from 0.5 on).

    Raises:
        ConfigError: an unknown path, or a condition of any number of samples.

    Source: Sphere Encoder 2 (arXiv 2610.02208), interpolation; sphere2 code.
    """
    if path not in CLASS_PATHS:
        raise ConfigError(
            f"unknown path {path!r} of classes{did_you_mean(path, CLASS_PATHS)}; use one of {CLASS_PATHS}"
        )
    if first.index is None or second.index is None:
        if first.index is second.index:
            return first  # the null class at both ends
        raise ConfigError("one end has a class and the other has none; give labels for both, the null class for one")
    rows = {}
    for name, table in first.rows.items():
        a, b = (rows_at(end.rows[name], end.index) for end in (first, second) if end.index is not None)
        place = t.to(a.device, a.dtype)
        if path == "hard":
            mixed = torch.where(per_sample(place < 0.5, a), a, b)
        elif path == "slerp" and name != PRIOR:  # there the rows are shares of the classes
            mixed = slerp(a, b, place)
        else:
            mixed = torch.lerp(a, b, per_sample(place, a))
        rows[name] = torch.cat([mixed, table[-1:]])
    return Condition(rows, torch.arange(len(t), device=first.index.device))


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
