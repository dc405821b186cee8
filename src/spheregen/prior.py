"""Latent spaces: how raw latents enter one, and how noise of an angle moves its points.

On the sphere there are two laws of noise, of which rotation may have a sphere for each token; without it there are two
spaces that show what the sphere is good for.

| prior | project(z) | perturb(v, e, a) |
|---|---|---|
| `SPHERE` | spherify(z) | spherify(v + tan(a) e), at 90 degrees spherify(e) |
| `ROTATION` | f(z) | cos(a) v + sin(a) f(e), f = spherify with 1e-5 in place of 1e-6 |
| `TOKEN_ROTATION` | f of each token | the same |
| `GAUSSIAN` | z | cos(a) v + sin(a) e: constant variance |
| `ADDITIVE` | z | v + tan(a) e: strong noise makes points that are larger than any draw |

A draw from each is `project(e)`, e ~ N(0, I). Points are (B, ...) of L numbers each; angles are in radians, 0 to pi/2,
one for all samples or (B,); in high dimension noise of angle a moves a point by a. All is computed in float32 or wider.

Source: Yue et al. 2026 (arXiv 2602.15030), the noise on the sphere (method.md, section 0) and the ablations without it;
Sphere Encoder 2 (arXiv 2610.02208), rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from spheregen.sphere import by_token, per_sample, slerp, spherify, upcast

PriorName = Literal["sphere", "rotation", "token-rotation", "gaussian", "additive"]
Angle = Tensor | float
"""Radians, 0 to pi/2: one for all samples, or (B,)."""

LEAST_COSINE = 1e-8
"""Stands for cos(90 degrees): float32 sees nothing of a point beside so much noise, and squares of it are finite. An
angle of pi/2 rounded to float32 is a little more than that, where the tangent is negative."""


@dataclass(frozen=True)
class Prior:
    """A latent space that a Gaussian draw can enter."""

    name: str
    project: Callable[[Tensor], Tensor]
    """Raw latents, or Gaussian noise, (B, ...) to points of the space; points stay where they are."""
    move: Callable[[Tensor, Tensor, Tensor], Tensor]
    """The law of the noise: points, Gaussian noise and angles, all wide and of shapes that multiply, to points."""
    on_sphere: bool = True
    """Points are of one length, so that their directions are all there is."""
    slerp: Callable[[Tensor, Tensor, Tensor | float], Tensor] = slerp
    """The way between two points (B, ...) at constant angular speed, see `sphere.slerp`."""
    turns: bool = False
    """The law of the noise has a right angle: 90 degrees are pure noise, and networks can be trained there."""

    def perturb(self, v: Tensor, noise: Tensor, angle: Angle) -> Tensor:
        """Move points (B, ...) by standard Gaussian noise of their shape and an angle; an angle of 0 changes no bit."""
        if not isinstance(angle, Tensor):
            return v if angle == 0 else self._moved(v, noise, torch.tensor(angle, dtype=torch.float64, device="cpu"))
        each = per_sample(angle.to(v.device), v)
        return torch.where(each == 0, v, self._moved(v, noise, each))

    def _moved(self, v: Tensor, noise: Tensor, angle: Tensor) -> Tensor:
        return self.move(upcast(v), upcast(noise), angle).to(v.dtype)


def _magnitude(angle: Tensor, v: Tensor) -> Tensor:
    return (torch.sin(angle) / torch.cos(angle).clamp_min(LEAST_COSINE)).to(v.dtype)


def _turn(v: Tensor, noise: Tensor, angle: Tensor) -> Tensor:
    return torch.cos(angle).to(v.dtype) * v + torch.sin(angle).to(v.dtype) * noise


def _same(z: Tensor) -> Tensor:
    return z


# method.md 0: spherify(v + sigma e), sigma = tan(a)
SPHERE = Prior("sphere", spherify, lambda v, noise, angle: spherify(v + _magnitude(angle, v) * noise))
ROTATION_EPS = 1e-5
"""Of Sphere Encoder 2; the first one has 1e-6."""


def _rotation_sphere(z: Tensor) -> Tensor:
    return spherify(z, ROTATION_EPS)


def _token_sphere(z: Tensor) -> Tensor:
    return by_token(spherify, z, eps=ROTATION_EPS)


def _token_slerp(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    each = t.repeat_interleave(a.shape[1]) if isinstance(t, Tensor) and t.ndim else t
    return by_token(lambda x, y: slerp(x, y, each), a, b)


# method.md 4; sphere2 code: the sum is not put back on the sphere
ROTATION = Prior(
    "rotation", _rotation_sphere, lambda v, noise, angle: _turn(v, _rotation_sphere(noise), angle), turns=True
)
TOKEN_ROTATION = Prior(
    "token-rotation",
    _token_sphere,
    lambda v, noise, angle: _turn(v, _token_sphere(noise), angle),
    slerp=_token_slerp,
    turns=True,
)
GAUSSIAN = Prior("gaussian", _same, _turn, on_sphere=False, turns=True)
ADDITIVE = Prior("additive", _same, lambda v, noise, angle: v + _magnitude(angle, v) * noise, on_sphere=False)

PRIORS: Mapping[PriorName, Prior] = MappingProxyType(
    {
        "sphere": SPHERE,
        "rotation": ROTATION,
        "token-rotation": TOKEN_ROTATION,
        "gaussian": GAUSSIAN,
        "additive": ADDITIVE,
    }
)
"""The priors that a configuration names."""
