"""The geometry of the latent sphere: everything else in this library is built on these few functions.

A latent is a token grid of shape (B, N, d), in general (B, ...); one sample has L = N*d numbers. All functions act on
the L flattened numbers of a sample (never on single tokens), so every point lives on one sphere of radius sqrt(L) per
sample. Statistics are computed in float32 or wider, whatever the input's type. Angles between points are in degrees,
as people give and read them; angles of noise (`scale_noise` and `spheregen.prior`) are in radians.

Source: Yue et al. 2026, "Image Generation with a Sphere Encoder" (arXiv 2602.15030), the sphere and its noise
(method.md, section 0).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EPS = 1e-6
"""Added to the mean square before its inverse root; the published value."""


def upcast(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged where it is that wide already."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def full_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off on this type of device: products of upcast tensors would go back to a half type under it."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def spherify(z: Tensor, eps: float = EPS) -> Tensor:
    """Scale each sample to the sphere of radius sqrt(L).

    `z * rsqrt(mean(z^2 over all L) + eps)`: one RMS over tokens and channels of a sample, not a per-token norm.

    Args:
        z: latents (B, ...).
        eps: added to the mean square: 1e-6 in the Sphere Encoder, 1e-5 in Sphere Encoder 2.

    Returns:
        Points on the sphere, same shape and type.
    """
    wide = upcast(z)
    # z * rsqrt(mean(z^2) + eps), method.md 0
    mean_square = wide.square().mean(dim=_sample_axes(z), keepdim=True)
    return (wide * torch.rsqrt(mean_square + eps)).to(z.dtype)


def by_token(act: Callable[..., Tensor], *points: Tensor, **options: Any) -> Tensor:
    """Return what a function of samples makes of the tokens of points (B, N, d), as if each token were a sample."""
    return act(*(each.flatten(0, 1) for each in points), **options).view_as(points[0])


def uniform_points(
    count: int,
    shape: tuple[int, ...],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw `count` uniform points on the sphere, (count, *shape): the spherified Gaussian."""
    return spherify(torch.randn((count, *shape), generator=generator, device=device, dtype=torch.float32))


def angle_to_sigma(angle: float) -> float:
    """Return the noise magnitude that moves a point by `angle` degrees in high dimension: sigma = tan(angle).

    0 <= angle < 90; at 90 the magnitude is infinite.
    """
    if not 0 <= angle < 90:
        raise ValueError(f"a noise magnitude belongs to an angle in [0, 90) degrees, not {angle:g}")
    return math.tan(math.radians(angle))


def sigma_to_angle(sigma: float) -> float:
    """Return the angle in degrees by which noise of magnitude `sigma` >= 0 moves a point: atan(sigma)."""
    if sigma < 0:
        raise ValueError(f"a noise magnitude is not negative: {sigma:g}")
    return math.degrees(math.atan(sigma))


def scale_noise(angle: Tensor | float, factor: Tensor | float) -> Tensor:
    """Return the angle of noise whose magnitude is `factor` times that of noise of `angle`: atan(factor * tan(angle)).

    Args:
        angle: radians, 0 to pi/2, the end included: there every factor but 0 leaves the angle.
        factor: not negative.

    Returns:
        Radians in float64, computed where the tensors are.
    """
    wide, by = (
        each.double() if isinstance(each, Tensor) else torch.tensor(each, dtype=torch.float64, device="cpu")
        for each in (angle, factor)
    )
    return torch.atan2(by * torch.sin(wide), torch.cos(wide))


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle between samples in degrees, (B,), in [0, 180].

    2*atan2(|u-w|, |u+w|) of the unit vectors: exact for small angles, where acos of a cosine loses half its digits.
    """
    u, w = _unit(a), _unit(b)
    axes = _sample_axes(u)
    apart = torch.linalg.vector_norm(u - w, dim=axes)
    together = torch.linalg.vector_norm(u + w, dim=axes)
    return torch.rad2deg(2 * torch.atan2(apart, together))


def rotate(v: Tensor, towards: Tensor, angle: Tensor | float) -> Tensor:
    """Rotate points on the sphere by exactly `angle` degrees, along the great circle that leads to `towards`.

    Args:
        v: points on the sphere (B, ...).
        towards: any points not parallel to `v`; only their part orthogonal to `v` counts.
        angle: degrees, one number or (B,).
    """
    wide_v, wide_t = upcast(v), upcast(towards)
    axes = _sample_axes(v)
    along = (wide_v * wide_t).sum(axes, keepdim=True) / wide_v.square().sum(axes, keepdim=True).clamp_min(1e-30)
    orthogonal = wide_t - along * wide_v
    radius = torch.linalg.vector_norm(wide_v, dim=axes, keepdim=True)
    orthogonal = orthogonal * (radius / torch.linalg.vector_norm(orthogonal, dim=axes, keepdim=True).clamp_min(1e-30))
    radians = torch.deg2rad(torch.as_tensor(angle, dtype=wide_v.dtype, device=v.device))
    radians = per_sample(radians, v)
    rotated: Tensor = torch.cos(radians) * wide_v + torch.sin(radians) * orthogonal
    return rotated.to(v.dtype)


def slerp(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """Walk from `a` (t = 0) to `b` (t = 1) on the great circle, at constant angular speed; both ends are exact.

    Points closer than about 1e-4 degrees are joined by a straight line, the limit of the formula. Opposite points have
    no unique great circle: one of them is taken, always the same for the same points.

    Args:
        a, b: points on the sphere (B, ...).
        t: position, one number or (B,).
    """
    wide_a, wide_b = upcast(a), upcast(b)
    position = per_sample(torch.as_tensor(t, dtype=wide_a.dtype, device=a.device), a)
    omega = per_sample(torch.deg2rad(angle_between(a, b)).to(wide_a.dtype), a)
    sine = torch.sin(omega)
    degenerate = sine < 2e-6  # divide safely before where, for the gradients' sake
    safe = torch.where(degenerate, torch.ones_like(sine), sine)
    weight_a = torch.where(degenerate, 1 - position, torch.sin((1 - position) * omega) / safe)
    weight_b = torch.where(degenerate, position.expand_as(weight_a), torch.sin(position * omega) / safe)
    between = weight_a * wide_a + weight_b * wide_b
    # near opposite points the weights above cancel: turn towards what the two have in common, or just anywhere
    opposite = math.pi - omega < 0.1
    aside = wide_b.flatten(1).roll(1, dims=-1).view_as(wide_b)
    turned = rotate(wide_a, torch.where(degenerate, aside, wide_a + wide_b), torch.rad2deg(position * omega).flatten())
    between = torch.where(opposite, turned, between)
    return torch.where(position == 0, wide_a, torch.where(position == 1, wide_b, between)).to(a.dtype)


def _sample_axes(x: Tensor) -> tuple[int, ...]:
    if x.ndim < 2:
        raise ValueError(f"latents have a batch axis and at least one more, not shape {tuple(x.shape)}")
    return tuple(range(1, x.ndim))


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return (B,) values shaped to broadcast over the samples of `like`; a scalar stays one."""
    if not values.ndim:
        return values
    return values.view(-1, *(1 for _ in range(like.ndim - 1)))


def _unit(x: Tensor) -> Tensor:
    wide = upcast(x)
    norm: Tensor = torch.linalg.vector_norm(wide, dim=_sample_axes(x), keepdim=True)
    return wide / norm.clamp_min(1e-30)
