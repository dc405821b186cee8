"""Degradations of single pixels: noise, missing ones, lost colours."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError
from spheregen.sampling.restoration.operators import Lam, Operator, filtered

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601, as Pillow has them."""


@dataclass(frozen=True)
class Denoise(Operator):
    """Noise alone: A is the identity."""

    task = "denoise"
    least_lambda = 0.0

    def A(self, x: Tensor) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        weight = self._lam(lam, v)
        if gain is not None:
            return v + filtered(y - v, gain.square() / (gain.square() + weight))
        return (y + weight * v) / (1 + weight)


@dataclass(frozen=True)
class Mask(Operator):
    """Pixels times a mask: 1 where they are known, 0 where they are missing."""

    known: Tensor
    """(B or 1, C or 1, H, W) in [0, 1]; values between dim a pixel."""
    task = "inpaint"
    least_lambda = 0.0

    def __post_init__(self) -> None:
        if self.known.ndim != 4 or not bool(((self.known >= 0) & (self.known <= 1)).all()):
            raise ConfigError(f"a mask is (B or 1, C or 1, H, W) in [0, 1], not {tuple(self.known.shape)}")

    def A(self, x: Tensor) -> Tensor:
        if self.known.shape[-2:] != x.shape[-2:]:
            (height, width), (rows, columns) = self.known.shape[-2:], x.shape[-2:]
            raise ConfigError(f"a mask of {width} x {height} pixels does not fit images of {columns} x {rows}")
        return self.known.to(x.dtype) * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.A(y)

    @functools.cached_property
    def _pyramid(self) -> Sequence[Tensor]:
        known = self.known if self.known.is_floating_point() else self.known.float()
        return _halved(known.square())

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        if gain is not None:
            x = super().prox(v, y, lam, gain)
            return torch.where((self.known.to(v.dtype) == 1) & (self._lam(lam, v) == 0), y, x)
        known, weight = self.known.to(v.dtype).expand_as(v), self._lam(lam, v)
        square = known.square() + weight
        safe = torch.where(square == 0, torch.ones_like(square), square)
        # not v plus a correction, so that pixels known without noise are kept to the bit
        kept = torch.where(known == 1, (y + weight * v) / (1 + weight), (known * y + weight * v) / safe)
        return torch.where(known == 0, v, kept)

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox`; under a gain what v lacks at known pixels flows smoothly into the others, not exactly."""
        if gain is None:
            return self.prox(v, y, lam)
        known = self.known.to(v.dtype).expand(len(v), -1, -1, -1)
        weight = self._lam(lam, v) / gain.square().mean()
        smooth = v + _smooth_fill(known * (y - known * v), self._pyramid)
        return torch.where(known == 1, (y + weight * v) / (1 + weight), smooth)

    def init(self, y: Tensor) -> Tensor:
        """Return the known pixels, which flow smoothly into the missing region; 0 if nothing is known."""
        known = self.known.to(y.dtype).expand(len(y), -1, -1, -1)
        filled = _smooth_fill(known * y, self._pyramid)
        return torch.where(known == 1, y, filled)


@dataclass(frozen=True)
class SoftMask(Mask):
    """A mask whose values between 0 and 1 mix known and restored pixels in these shares; y holds pixels as they are."""

    @functools.cached_property
    def _hard(self) -> Mask:
        return Mask((self.known > 0).to(self.known.dtype))

    def A(self, x: Tensor) -> Tensor:
        return self._hard.A(x)

    def _mixed(self, v: Tensor, x: Tensor) -> Tensor:
        known = self.known.to(v.dtype)
        return torch.where((known == 0) | (known == 1), x, torch.lerp(v, x, known))

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        return self._mixed(v, self._hard.prox(v, y, lam, gain))

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return the mixture of v and the step of a mask without greys."""
        return self._mixed(v, self._hard.step(v, y, lam, gain))

    def init(self, y: Tensor) -> Tensor:
        known = self.known.to(y.dtype).expand(len(y), -1, -1, -1)
        return torch.where(known == 1, y, _smooth_fill(known * y, _halved(self.known)))


def _halved(weights: Tensor) -> Sequence[Tensor]:
    """Return weights (B or 1, C or 1, H, W), then at half the size again and again until none is 0, or one is left."""
    found = [weights]
    while min(found[-1].shape[-2:]) > 1 and not bool((found[-1] > 0).all()):
        found.append(_half(found[-1]))
    return found


def _half(values: Tensor) -> Tensor:
    height, width = values.shape[-2:]
    return functional.adaptive_avg_pool2d(values, (-(-height // 2), -(-width // 2)))


def _smooth_fill(weighted: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Sums of pixels (B, C, H, W) by the first ones of their `_halved` weights; where those are 0, by the next."""
    known, *smaller = weights
    known = known.to(weighted.dtype)
    here = weighted / known.clamp_min(1e-6)
    if not smaller:
        return here
    coarse = _smooth_fill(_half(weighted), smaller)
    return torch.where(known > 0, here, functional.interpolate(coarse, size=known.shape[-2:], mode="bilinear"))


@dataclass(frozen=True)
class Grey(Operator):
    """Colours to grey, (B, 1, H, W): a weighted sum of the channels."""

    weights: tuple[float, ...] = LUMA
    task = "decolour"
    least_lambda = 0.0

    def __post_init__(self) -> None:
        if not any(self.weights) or not all(map(math.isfinite, self.weights)):
            raise ConfigError(f"the weights of grey are finite and not all 0, not {self.weights}")

    def _of(self, like: Tensor) -> Tensor:
        return torch.tensor(self.weights, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)

    def A(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(self.weights):
            raise ConfigError(f"grey of {len(self.weights)} channels cannot be taken of images of {x.shape[1]}")
        return (self._of(x) * x).sum(1, keepdim=True)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self._of(y) * y

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        square = sum(weight**2 for weight in self.weights)
        if gain is not None:
            power, weight = gain.square(), self._lam(lam, v)
            return v + self.A_adjoint(filtered(y - self.A(v), power / (square * power + weight)))
        return v + self.A_adjoint((y - self.A(v)) / (square + self._lam(lam, v)))

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox`; under a gain the change is one of brightness, alike in all channels: errors of colour images
        mostly are."""
        if gain is None:
            return self.prox(v, y, lam)
        total, power = sum(self.weights), gain.square()
        return v + filtered(y - self.A(v), total * power / (total**2 * power + self._lam(lam, v))).expand_as(v)

    def init(self, y: Tensor) -> Tensor:
        """Return the grey image in all channels."""
        return (y / sum(self.weights)).expand(-1, len(self.weights), -1, -1)
