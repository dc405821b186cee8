"""Blurs, and smaller images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError
from spheregen.sampling.restoration.kernels import bicubic_kernel, check_factor, check_kernel
from spheregen.sampling.restoration.operators import (
    FEW,
    LEAST,
    Lam,
    Operator,
    both_halves,
    conjugate_gradients,
    filtered,
)


def _wrapped(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a kernel (B, C, h, w) on an image of `size`, its middle at the origin, its ends around the borders."""
    height, width = kernel.shape[-2:]
    rows = (torch.arange(height, device=kernel.device) - height // 2) % size[0]
    columns = (torch.arange(width, device=kernel.device) - width // 2) % size[1]
    place = (rows[:, None] * size[1] + columns[None]).flatten()
    flat = kernel.new_zeros((*kernel.shape[:2], size[0] * size[1]))
    wrapped: Tensor = flat.index_add(-1, place, kernel.flatten(2)).unflatten(-1, size)
    return wrapped


def _transfer(kernel: Tensor, like: Tensor) -> Tensor:
    size = (like.shape[-2], like.shape[-1])
    transfer: Tensor = torch.fft.rfft2(_wrapped(kernel.to(like.dtype), size))
    return transfer


def _mirror(x: Tensor) -> Tensor:
    """Return images and their mirror images on the right and below: their circular borders reflect."""
    wide = torch.cat([x, x.flip(-1)], dim=-1)
    mirrored: Tensor = torch.cat([wide, wide.flip(-2)], dim=-2)
    return mirrored


def _fold(x: Tensor) -> Tensor:
    """Return the adjoint of `_mirror`."""
    upper, lower = x.chunk(2, dim=-2)
    left, right = (upper + lower.flip(-2)).chunk(2, dim=-1)
    folded: Tensor = left + right.flip(-1)
    return folded


@dataclass(frozen=True)
class Blur(Operator):
    """A convolution with any kernel.

    Raises:
        ConfigError: a kernel that is none, or unknown borders.
    """

    kernel: Tensor
    """(B or 1, C or 1, h, w), or (h, w); its middle is (h // 2, w // 2)."""
    border: str = "circular"
    """`circular`, or `reflect`: mirrored at the edge, whose pixels come twice."""
    task = "deblur"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", check_kernel(self.kernel))
        if self.border not in ("circular", "reflect"):
            raise ConfigError(f"unknown border {self.border!r}; use circular or reflect")

    @property
    def _symmetric(self) -> bool:
        """The kernel is the same upside down and mirrored, so that reflecting borders stay reflecting."""
        odd = self.kernel.shape[-1] % 2 and self.kernel.shape[-2] % 2
        return bool(odd) and all(torch.allclose(self.kernel, self.kernel.flip(axis), atol=1e-7) for axis in (-1, -2))

    def A(self, x: Tensor) -> Tensor:
        if self.border == "circular":
            return filtered(x, self._transfer(x))
        wide = _mirror(x)
        return filtered(wide, self._transfer(wide))[..., : x.shape[-2], : x.shape[-1]]

    def A_adjoint(self, y: Tensor) -> Tensor:
        if self.border == "circular":
            return filtered(y, self._transfer(y).conj())
        wide = functional.pad(y, (0, y.shape[-1], 0, y.shape[-2]))
        return _fold(filtered(wide, self._transfer(wide).conj()))

    def _transfer(self, like: Tensor) -> Tensor:
        how = (like.shape[-2:], like.dtype, like.device)
        return self._kept("transfer", self.kernel, how, lambda: _transfer(self.kernel, like))

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        if self.border == "circular" or (gain is None and self._symmetric):
            return self.step(v, y, lam, gain)
        return super().prox(v, y, lam, gain)

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox`; under reflecting borders and a gain, that of a gain that reflects, or of circular borders
        where the kernel does not let it."""
        weight = self._lam(lam, v)
        if self.border == "circular" or not self._symmetric:
            return self._circular(v, y, weight, gain)
        (height, width), wide = v.shape[-2:], gain
        if gain is not None:
            rows, columns = (
                (torch.arange(length, device=v.device) / 2).round().long() for length in (2 * height, width + 1)
            )
            wide = gain[rows % height][:, columns]
        mirrored = self._kept("mirrored", y, None, lambda: _mirror(y))
        return self._circular(_mirror(v), mirrored, weight, wide)[..., :height, :width]

    def last_step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        if self.border == "circular" or self._symmetric:
            return self.step(v, y, lam, gain)
        return conjugate_gradients(self, v, y, self._lam(lam, v), gain, FEW)

    def _circular(self, v: Tensor, y: Tensor, weight: Tensor, gain: Tensor | None = None) -> Tensor:
        transfer = self._transfer(v)
        power = 1.0 if gain is None else gain.square()
        # F^-1[(conj(K) F y + lambda F v) / (|K|^2 + lambda)]
        seen = self._kept("seen", y, (v.shape, v.dtype), lambda: transfer.conj() * torch.fft.rfft2(y))
        strength = self._kept("strength", transfer, None, lambda: transfer.abs().square())
        mixed = power * seen + weight * torch.fft.rfft2(v)
        found: Tensor = torch.fft.irfft2(mixed / (power * strength + weight), s=v.shape[-2:])
        return found


@dataclass(frozen=True)
class Subsample(Operator):
    """The upper left pixel of each factor x factor block, perhaps after a circular convolution.

    Raises:
        ConfigError: a factor below 1, or a kernel that is none.
    """

    factor: int
    kernel: Tensor | None = None
    """(B or 1, C or 1, h, w), or (h, w), of the filter before; None: none."""
    task = "superres"

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if self.kernel is not None:
            object.__setattr__(self, "kernel", check_kernel(self.kernel))

    @property
    def least_lambda(self) -> float:  # type: ignore[override]
        return 0.0 if self.kernel is None else LEAST

    @classmethod
    def bicubic(cls, factor: int) -> Subsample:
        """Return the reduction by a cubic filter (a = -1/2) that is as wide as `factor` asks for, as Pillow has it."""
        return cls(factor, bicubic_kernel(factor))

    def A(self, x: Tensor) -> Tensor:
        _check_divides(self.factor, x)
        seen = x if self.kernel is None else filtered(x, _transfer(self.kernel, x))
        return seen[..., :: self.factor, :: self.factor]

    def A_adjoint(self, y: Tensor) -> Tensor:
        spread = self._spread(y)
        return spread if self.kernel is None else filtered(spread, _transfer(self.kernel, spread).conj())

    def _spread(self, y: Tensor) -> Tensor:
        wide = y[..., :, None, :, None]
        far = self.factor - 1
        return functional.pad(wide, (0, far, 0, 0, 0, far)).flatten(-4, -3).flatten(-2, -1)

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        return self._solve(v, y, self._lam(lam, v), gain)

    def _solve(self, v: Tensor, y: Tensor, weight: Tensor, gain: Tensor | None) -> Tensor:
        residual = y - self.A(v)
        if self.kernel is None and gain is None:
            return v + self._spread(residual / (1 + weight))
        size = (v.shape[-2], v.shape[-1])
        power = v.new_ones(1, 1, *size)
        if self.kernel is not None:
            power = torch.fft.fft2(_wrapped(self.kernel.to(v.dtype), size)).abs().square()
        if gain is not None:
            power = power * both_halves(gain, size).square()
        # Q: the mean of |K|^2 over the frequencies that fall together
        rows, columns = (side // self.factor for side in size)
        folded = power.unflatten(-1, (self.factor, columns)).mean(-2).unflatten(-2, (self.factor, rows)).mean(-3)
        solved = torch.fft.ifft2(torch.fft.fft2(residual) / (folded + weight)).real
        change = self.A_adjoint(solved)
        return v + (change if gain is None else filtered(change, gain.square()))

    def init(self, y: Tensor) -> Tensor:
        """Return a bicubic enlargement, whose pixels lie where those of y do."""
        size = [side * self.factor for side in y.shape[-2:]]
        if self.kernel is not None:
            return functional.interpolate(y, size=size, mode="bicubic")
        # without a filter pixel j shows place factor * j, not the middle of its block: shift by half a block
        wide = functional.pad(y, (2, 2, 2, 2), mode="replicate")
        large = functional.interpolate(wide, scale_factor=float(self.factor), mode="bicubic")
        start = 2 * self.factor + (self.factor - 1) / 2
        low, share = int(start), start - int(start)
        for axis in (-2, -1):
            count = size[axis]
            here, later = large.narrow(axis, low, count), large.narrow(axis, low + 1, count)
            large = torch.lerp(here, later, share)
        return large


@dataclass(frozen=True)
class BlockMean(Operator):
    """The mean of each factor x factor block.

    Raises:
        ConfigError: a factor below 1.
    """

    factor: int
    task = "superres"
    least_lambda = 0.0

    def __post_init__(self) -> None:
        check_factor(self.factor)

    def A(self, x: Tensor) -> Tensor:
        _check_divides(self.factor, x)
        return functional.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self._repeat(y) / self.factor**2

    def _repeat(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        share, weight = 1 / self.factor**2, self._lam(lam, v)
        if gain is None or self.factor == 1:
            return v + self._repeat((y - self.A(v)) * share / (share + weight))
        # the same by another name: a filter, then the upper left pixel of each block
        mean = v.new_zeros((2 * self.factor - 1,) * 2)
        mean[: self.factor, : self.factor] = share
        return Subsample(self.factor, mean)._solve(v, y, weight, gain)

    def bounded(self, x: Tensor, y: Tensor) -> Tensor:
        """Return images whose blocks keep their means where they can: drawn together, not cut off, at -1 and 1."""
        cut = x.clamp(-1, 1)
        mean, wanted = self.A(cut), self.A(x).clamp(-1, 1)
        lacking = wanted - mean  # what clamping took: a step of the whole block towards 1 or -1 gives it back
        bound = torch.where(lacking > 0, 1.0, -1.0).to(x.dtype)
        share = lacking / (bound - mean).where(bound != mean, bound)
        return cut + self._repeat(share) * (self._repeat(bound) - cut)

    def init(self, y: Tensor) -> Tensor:
        """Return a bicubic enlargement."""
        size = [side * self.factor for side in y.shape[-2:]]
        return functional.interpolate(y.float(), size=size, mode="bicubic").to(y.dtype)


def _check_divides(factor: int, x: Tensor) -> None:
    if any(side % factor for side in x.shape[-2:]):
        raise ConfigError(f"a factor of {factor} does not divide images of {x.shape[-1]} x {x.shape[-2]} pixels")
