"""Known degradations y = A(x) + noise, each with the data step of a restoration in closed form.

`prox(v, y, lam)` is the minimiser of |A x - y|^2 + lam |x - v|^2, which for a linear A is

    v + A' (A A' + lam)^-1 (y - A v).

With a `gain` G over frequencies, the prior's error is not white but of amplitude G, as that of a network that keeps
coarse things better or worse than fine ones: |A x - y|^2 + lam |G^-1 (x - v)|^2 is minimal at

    v + G G' A' (A G G' A' + lam)^-1 (y - A v).

Names are those of deepinv, whose linear physics `from_deepinv` takes as they are. All are differentiable in x, v and y,
and work on any device and in any floating type.

Source: SP3 (arXiv 2606.16396), the data step; method.md, section 5, its closed forms. Legend: B samples, images
(B, C, H, W) of any range: a linear operator does not mind. `lam` is one number or (B,).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError
from spheregen.sampling.restoration.kernels import bicubic_kernel, check_kernel
from spheregen.sphere import per_sample

Lam = Tensor | float
"""Weight of the prior's image against the squared residual, from 0 up: one number, or (B,)."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601, as Pillow has them."""
CG_ITERATIONS = 50
FEW = 12
"""Of conjugate gradients within a loop."""
LEAST = 1e-4
"""The least weight of the prior for operators that lose some of an image for good but have no exact limit at 0."""


@dataclass(frozen=True)
class Operator:
    """A degradation. A subclass is a frozen dataclass whose tensors have the batch, or 1, as their first axis.

    It defines `A`, `A_adjoint` and `prox`; what is no linear map has no adjoint and says so by `linear`.
    """

    linear = True
    """`A` is linear, so a shift and a scale of images mean those of y."""
    task = "other"
    """The name that defaults are recorded under."""
    image_like = True
    """Neighbours in y are neighbours in the image, so that noise can be told from it."""
    least_lambda = LEAST
    """The least `lam` that `prox` takes; 0 where the limit exists in closed form: the nearest image that agrees."""

    def A(self, x: Tensor) -> Tensor:
        """Return the observation of images (B, C, H, W), without noise."""
        raise NotImplementedError

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return the adjoint's image (B, C, H, W) of an observation: <A x, y> = <x, A' y>."""
        raise NotImplementedError

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return the images x that minimise |A x - y|^2 + lam |G^-1 (x - v)|^2.

        Args:
            v: the prior's images (B, C, H, W).
            y: observations.
            lam: not below `least_lambda`.
            gain: G, real and above 0, (H, W // 2 + 1) over the frequencies of `torch.fft.rfft2`; None: 1.

        Raises:
            ConfigError: an impossible `lam`.
        """
        raise NotImplementedError

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return what a loop takes for `prox`: the same, or nearly so at a small share of the cost."""
        return self.prox(v, y, lam, gain)

    def last_step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return what a loop ends with: `prox`, by `FEW` iterations where it has no closed form."""
        return self.step(v, y, lam, gain)

    def bounded(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the result of a restoration as images in [-1, 1]."""
        return x.clamp(-1, 1)

    def init(self, y: Tensor) -> Tensor:
        """Return first guesses (B, C, H, W) that have no holes."""
        return y

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the same with every tensor changed, also those of operators inside."""

        def changed(value: Any) -> Any:
            if isinstance(value, Operator):
                return value.each(change)
            return change(value) if isinstance(value, Tensor) else value

        fields = [field.name for field in dataclasses.fields(self) if field.init]
        return dataclasses.replace(self, **{name: changed(getattr(self, name)) for name in fields})

    def to(self, *where: Any) -> Self:
        """Return the same on a device, or in a floating type."""
        return self.each(lambda tensor: tensor.to(*where))

    def __getitem__(self, part: slice) -> Self:
        """Return the operator of these samples."""
        return self.each(lambda tensor: tensor if len(tensor) == 1 else tensor[part])

    def __matmul__(self, inner: Operator) -> Composition:
        """Return the composition: `inner` first, then this."""
        return Composition(self, inner)

    def _lam(self, lam: Lam, like: Tensor) -> Tensor:
        """Return the weight, checked, shaped to multiply samples."""
        each = torch.as_tensor(lam, device=like.device, dtype=like.real.dtype)
        if not bool((torch.isfinite(each) & (each >= self.least_lambda)).all()):
            kind = type(self).__name__
            raise ConfigError(
                f"lambda of {kind} is finite and at least {self.least_lambda:g}, not {lam}: "
                + ("it is a weight" if self.least_lambda == 0 else "below it the data step is singular")
            )
        return per_sample(each, like)


def check_adjoint(operator: Operator, shape: tuple[int, ...], *, tolerance: float = 1e-3) -> None:
    """Refuse an operator whose adjoint is none, by the dot-product test on images of `shape` (C, H, W).

    Raises:
        ConfigError: <A x, y> and <x, A' y> differ by more than `tolerance` of |A x| |y|; or A is not linear.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn((2, *shape), generator=generator).double().to(_place(operator))
    try:
        seen = operator.A(x)
    except RuntimeError:  # one in a narrower type
        x = x.float()
        seen = operator.A(x)
    y = torch.randn(seen.shape, generator=generator).to(seen.device, seen.real.dtype).to(seen.dtype)
    back = operator.A_adjoint(y)
    if back.shape != x.shape:
        raise ConfigError(
            f"A_adjoint of {type(operator).__name__} gives shape {tuple(back.shape)}, and images have {tuple(x.shape)}"
        )
    left, right = (seen * y.conj()).real.sum(), (x * back).sum()
    scale = torch.linalg.vector_norm(seen) * torch.linalg.vector_norm(y)
    if not float((left - right).abs()) <= tolerance * float(scale):
        raise ConfigError(
            f"A_adjoint of {type(operator).__name__} is not the adjoint of A: <A x, y> = {float(left):.6g} and "
            f"<x, A_adjoint y> = {float(right):.6g}; they must be equal for all x and y"
        )
    if not torch.allclose(operator.A(-2 * x), -2 * seen, rtol=1e-3, atol=1e-3 * float(seen.abs().max())):
        raise ConfigError(f"A of {type(operator).__name__} is not linear: A(-2 x) is not -2 A(x)")


def _place(operator: Operator) -> torch.device:
    values = (getattr(operator, field.name) for field in dataclasses.fields(operator))
    return next((value.device for value in values if isinstance(value, Tensor)), torch.device("cpu"))


# pixels ---------------------------------------------------------------------------------------------------------------


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
            return v + _filter(y - v, gain.square() / (gain.square() + weight))
        return (y + weight * v) / (1 + weight)


@dataclass(frozen=True)
class Mask(Operator):
    """Pixels times a mask: 1 where they are known, 0 where they are missing."""

    task = "inpaint"

    known: Tensor
    """(B or 1, C or 1, H, W) in [0, 1]; values between dim a pixel."""
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

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        if gain is not None:
            x = _coloured(self, v, y, self._lam(lam, v), gain)
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
        smooth = v + _smooth_fill(known * (y - known * v), known.square())
        return torch.where(known == 1, (y + weight * v) / (1 + weight), smooth)

    def init(self, y: Tensor) -> Tensor:
        """Return the known pixels, which flow smoothly into the missing region; 0 if nothing is known."""
        known = self.known.to(y.dtype).expand(len(y), -1, -1, -1)
        filled = _smooth_fill(known * y, known.square())
        return torch.where(known == 1, y, filled)


@dataclass(frozen=True)
class SoftMask(Mask):
    """A mask whose values between 0 and 1 mix known and restored pixels in these shares; y holds pixels as they are."""

    @property
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
        return torch.where(known == 1, y, _smooth_fill(known * y, known))


def _smooth_fill(weighted: Tensor, known: Tensor) -> Tensor:
    """Sums of pixels (B, C, H, W) by their weights (B, 1 or C, H, W); where those are 0, the same at half the size."""
    here = weighted / known.clamp_min(1e-6)
    if min(known.shape[-2:]) == 1 or bool((known > 0).all()):
        return here
    size = (-(-known.shape[-2] // 2), -(-known.shape[-1] // 2))
    coarse = _smooth_fill(*(functional.adaptive_avg_pool2d(values, size) for values in (weighted, known)))
    return torch.where(known > 0, here, functional.interpolate(coarse, size=known.shape[-2:], mode="bilinear"))


@dataclass(frozen=True)
class Grey(Operator):
    """Colours to grey, (B, 1, H, W): a weighted sum of the channels."""

    task = "decolour"

    weights: tuple[float, ...] = LUMA
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
            return v + self.A_adjoint(_filter(y - self.A(v), power / (square * power + weight)))
        return v + self.A_adjoint((y - self.A(v)) / (square + self._lam(lam, v)))

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox`; under a gain the change is one of brightness, alike in all channels: errors of colour images
        mostly are."""
        if gain is None:
            return self.prox(v, y, lam)
        total, power = sum(self.weights), gain.square()
        return v + _filter(y - self.A(v), total * power / (total**2 * power + self._lam(lam, v))).expand_as(v)

    def init(self, y: Tensor) -> Tensor:
        """Return the grey image in all channels."""
        return (y / sum(self.weights)).expand(-1, len(self.weights), -1, -1)


# blurs and smaller images ---------------------------------------------------------------------------------------------


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


def _filter(x: Tensor, transfer: Tensor) -> Tensor:
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])
    return filtered


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

    task = "deblur"

    kernel: Tensor
    """(B or 1, C or 1, h, w), or (h, w); its middle is (h // 2, w // 2)."""
    border: str = "circular"
    """`circular`, or `reflect`: mirrored at the edge, whose pixels come twice."""

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
            return _filter(x, _transfer(self.kernel, x))
        wide = _mirror(x)
        return _filter(wide, _transfer(self.kernel, wide))[..., : x.shape[-2], : x.shape[-1]]

    def A_adjoint(self, y: Tensor) -> Tensor:
        if self.border == "circular":
            return _filter(y, _transfer(self.kernel, y).conj())
        wide = functional.pad(y, (0, y.shape[-1], 0, y.shape[-2]))
        return _fold(_filter(wide, _transfer(self.kernel, wide).conj()))

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        weight = self._lam(lam, v)
        if self.border == "circular":
            return self._circular(v, y, weight, gain)
        if gain is not None:
            return _coloured(self, v, y, weight, gain)
        if self._symmetric:
            return self._circular(_mirror(v), _mirror(y), weight)[..., : v.shape[-2], : v.shape[-1]]
        return conjugate_gradients(self, v, y, weight)

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox`; under reflecting borders and a gain, that of a gain that reflects, or of circular borders
        where the kernel does not let it."""
        if self.border == "circular" or (gain is None and self._symmetric):
            return self.prox(v, y, lam, gain)
        weight = self._lam(lam, v)
        if not self._symmetric:
            return self._circular(v, y, weight, gain)
        assert gain is not None
        rows, columns = ((torch.arange(length, device=v.device) / 2).round().long() for length in (
            2 * v.shape[-2], v.shape[-1] + 1
        ))  # fmt: skip
        wide = gain[rows % len(gain)][:, columns]
        return self._circular(_mirror(v), _mirror(y), weight, wide)[..., : v.shape[-2], : v.shape[-1]]

    def last_step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        if self.border == "circular" or self._symmetric:
            return self.step(v, y, lam, gain)
        return _coloured(self, v, y, self._lam(lam, v), gain, FEW)

    def _circular(self, v: Tensor, y: Tensor, weight: Tensor, gain: Tensor | None = None) -> Tensor:
        transfer = _transfer(self.kernel, v)
        power = 1.0 if gain is None else gain.square()
        # F^-1[(conj(K) F y + lambda F v) / (|K|^2 + lambda)]
        mixed = power * transfer.conj() * torch.fft.rfft2(y) + weight * torch.fft.rfft2(v)
        found: Tensor = torch.fft.irfft2(mixed / (power * transfer.abs().square() + weight), s=v.shape[-2:])
        return found


@dataclass(frozen=True)
class Subsample(Operator):
    """The upper left pixel of each factor x factor block, perhaps after a circular convolution.

    Raises:
        ConfigError: a factor below 1, or a kernel that is none.
    """

    task = "superres"

    factor: int
    kernel: Tensor | None = None
    """(B or 1, C or 1, h, w), or (h, w), of the filter before; None: none."""

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ConfigError(f"the factor of an enlargement is at least 1, not {self.factor}")
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
        seen = x if self.kernel is None else _filter(x, _transfer(self.kernel, x))
        return seen[..., :: self.factor, :: self.factor]

    def A_adjoint(self, y: Tensor) -> Tensor:
        spread = self._spread(y)
        return spread if self.kernel is None else _filter(spread, _transfer(self.kernel, spread).conj())

    def _spread(self, y: Tensor) -> Tensor:
        wide = y[..., :, None, :, None]
        far = self.factor - 1
        return functional.pad(wide, (0, far, 0, 0, 0, far)).flatten(-4, -3).flatten(-2, -1)

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        return self.solve(v, y, self._lam(lam, v), gain)

    def solve(self, v: Tensor, y: Tensor, weight: Tensor, gain: Tensor | None = None) -> Tensor:
        """Return `prox` for a weight that was checked."""
        residual = y - self.A(v)
        if self.kernel is None and gain is None:
            return v + self._spread(residual / (1 + weight))
        size = (v.shape[-2], v.shape[-1])
        power = v.new_ones(1, 1, *size)
        if self.kernel is not None:
            power = torch.fft.fft2(_wrapped(self.kernel.to(v.dtype), size)).abs().square()
        if gain is not None:
            power = power * _both_halves(gain, size).square()
        # Q: the mean of |K|^2 over the frequencies that fall together
        rows, columns = (side // self.factor for side in size)
        folded = power.unflatten(-1, (self.factor, columns)).mean(-2).unflatten(-2, (self.factor, rows)).mean(-3)
        solved = torch.fft.ifft2(torch.fft.fft2(residual) / (folded + weight)).real
        change = self.A_adjoint(solved)
        return v + (change if gain is None else _filter(change, gain.square()))

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

    task = "superres"

    factor: int
    least_lambda = 0.0

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ConfigError(f"the factor of an enlargement is at least 1, not {self.factor}")

    def A(self, x: Tensor) -> Tensor:
        _check_divides(self.factor, x)
        return functional.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self._repeat(y) / self.factor**2

    def _repeat(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        if (
            gain is not None and self.factor > 1
        ):  # the same by another name: a filter, then the upper left pixel of each block
            mean = torch.full((2 * self.factor - 1,) * 2, 1 / self.factor**2, dtype=v.dtype, device=v.device)
            mean[self.factor :] = 0
            mean[:, self.factor :] = 0
            return Subsample(self.factor, mean).solve(v, y, self._lam(lam, v), gain)
        share = 1 / self.factor**2
        return v + self._repeat((y - self.A(v)) * share / (share + self._lam(lam, v)))

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


# transforms -----------------------------------------------------------------------------------------------------------


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II (size, size) float64: rows are frequencies."""
    place = torch.arange(size, dtype=torch.float64, device="cpu")
    matrix = torch.cos(math.pi / size * (place + 0.5) * place[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def hadamard_matrix(size: int) -> Tensor:
    """Return the orthonormal Hadamard matrix (size, size) float64.

    Raises:
        ConfigError: the size is no power of two.
    """
    if size < 1 or size & (size - 1):
        raise ConfigError(f"a Hadamard transform takes sides that are a power of two, not {size}")
    matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / math.sqrt(2)
    return matrix


TRANSFORMS: Mapping[str, Callable[[int], Tensor]] = MappingProxyType({"dct": dct_matrix, "hadamard": hadamard_matrix})
"""Orthonormal matrices M of a size; images become M x M'."""


@dataclass(frozen=True)
class MaskedTransform(Operator):
    """Some of the numbers of an orthonormal transform; the others are 0 in y.

    Raises:
        ConfigError: an unknown transform, or a mask that is none.
    """

    image_like = False

    known: Tensor
    """(B or 1, C or 1, H, W), 1 where a number is known, else 0."""
    transform: str = "dct"
    """`dct` or `hadamard`."""
    least_lambda = 0.0

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ConfigError(f"unknown transform {self.transform!r}; use {', '.join(TRANSFORMS)}")
        _check_binary(self.known)

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        of = TRANSFORMS[self.transform]
        rows, columns = (of(side).to(like.device, like.dtype) for side in like.shape[-2:])
        return rows, columns

    def A(self, x: Tensor) -> Tensor:
        rows, columns = self._matrices(x)
        return self.known.to(x.dtype) * (rows @ x @ columns.T)

    def A_adjoint(self, y: Tensor) -> Tensor:
        rows, columns = self._matrices(y)
        return rows.T @ (self.known.to(y.dtype) * y) @ columns

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        if gain is not None:
            return _coloured(self, v, y, self._lam(lam, v), gain)
        return v + self.A_adjoint((y - self.A(v)) / (1 + self._lam(lam, v)))

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox` under a white error, of the mean of the gain."""
        return self.prox(v, y, lam if gain is None else self._lam(lam, v).flatten() / gain.square().mean())

    def last_step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        return _coloured(self, v, y, self._lam(lam, v), gain, FEW)

    def init(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y)


@dataclass(frozen=True)
class MaskedFourier(Operator):
    """Some of the numbers of the orthonormal Fourier transform, complex (B, C, H, W), the others 0."""

    image_like = False

    known: Tensor
    """(B or 1, C or 1, H, W), 1 where a number is known, else 0; frequency 0 is at the upper left."""
    least_lambda = 0.0

    def __post_init__(self) -> None:
        _check_binary(self.known)

    def A(self, x: Tensor) -> Tensor:
        seen: Tensor = self.known.to(x.dtype) * torch.fft.fft2(x, norm="ortho")
        return seen

    def A_adjoint(self, y: Tensor) -> Tensor:
        back: Tensor = torch.fft.ifft2(self.known.to(y.real.dtype) * y, norm="ortho").real
        return back

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        known, weight = self.known.to(v.dtype), self._lam(lam, v)
        # of a real image a frequency tells its opposite: A'A weighs both by the mean of their masks
        opposite = known.flip((-2, -1)).roll((1, 1), (-2, -1))
        share = (known + opposite) / 2
        power = torch.ones_like(share) if gain is None else _both_halves(gain, (v.shape[-2], v.shape[-1])).square()
        residual = power * torch.fft.fft2(self.A_adjoint(y - self.A(v)), norm="ortho")
        safe = torch.where(share == 0, torch.ones_like(share), power * share + weight)
        change: Tensor = torch.fft.ifft2(residual / safe, norm="ortho").real
        return v + change

    def init(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y)


def _check_binary(known: Tensor) -> None:
    if known.ndim != 4 or not bool(((known == 0) | (known == 1)).all()):
        raise ConfigError(f"a mask of numbers is (B or 1, C or 1, H, W) of 0 and 1, not {tuple(known.shape)}")


@dataclass(frozen=True)
class Separable(Operator):
    """M x N', a matrix on the rows and one on the columns, by their singular values."""

    image_like = False

    rows: Tensor
    """M, (1, h, H)."""
    columns: Tensor
    """N, (1, w, W)."""

    def A(self, x: Tensor) -> Tensor:
        return self.rows[0].to(x.dtype) @ x @ self.columns[0].to(x.dtype).T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.rows[0].to(y.dtype).T @ y @ self.columns[0].to(y.dtype)

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        weight = self._lam(lam, v)
        if gain is not None:
            return _coloured(self, v, y, weight, gain, 4 * CG_ITERATIONS)
        left, s, right = torch.linalg.svd(self.rows[0].to(v.dtype), full_matrices=False)
        left_2, s_2, right_2 = torch.linalg.svd(self.columns[0].to(v.dtype), full_matrices=False)
        power = s[:, None] * s_2
        residual = left.T @ (y - self.A(v)) @ left_2
        change: Tensor = right.T @ (power * residual / (power.square() + weight)) @ right_2
        return v + change

    def init(self, y: Tensor) -> Tensor:
        back = self.A_adjoint(y)
        return self.prox(torch.zeros_like(back), y, 1e-2)


# any other ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear(Operator):
    """Any linear map given as two functions; the data step is by conjugate gradients.

    `check_adjoint` tells whether the second function is the adjoint of the first one; `restore` asks it.
    """

    image_like = False

    forward: Callable[[Tensor], Tensor]
    """A: images (B, C, H, W) to observations, sample by sample."""
    adjoint: Callable[[Tensor], Tensor]
    """A': back."""
    iterations: int = CG_ITERATIONS

    def A(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        return _coloured(self, v, y, self._lam(lam, v), gain, self.iterations)

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox`, by few iterations."""
        return _coloured(self, v, y, self._lam(lam, v), gain, min(FEW, self.iterations))

    def init(self, y: Tensor) -> Tensor:
        """Return the least-squares image of least norm, nearly."""
        return conjugate_gradients(self, torch.zeros_like(self.A_adjoint(y)), y, 1e-2, self.iterations)


def from_deepinv(physics: Any) -> Linear:
    """Return a linear physics of deepinv as an operator; its noise model is left out.

    Raises:
        ConfigError: it has not `A` and `A_adjoint`.
    """
    if not callable(getattr(physics, "A", None)) or not callable(getattr(physics, "A_adjoint", None)):
        raise ConfigError(f"a linear physics has A and A_adjoint; {type(physics).__name__} has not")
    return Linear(physics.A, physics.A_adjoint)


@dataclass(frozen=True)
class Composition(Operator):
    """One operator after another; the data step is by conjugate gradients."""

    outer: Operator
    inner: Operator
    iterations: int = CG_ITERATIONS

    def __post_init__(self) -> None:
        for part in (self.outer, self.inner):
            if not part.linear:
                raise ConfigError(f"only linear operators can be composed, and {type(part).__name__} is not linear")

    def A(self, x: Tensor) -> Tensor:
        return self.outer.A(self.inner.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.inner.A_adjoint(self.outer.A_adjoint(y))

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        return _coloured(self, v, y, self._lam(lam, v), gain, self.iterations)

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox`, by few iterations."""
        return _coloured(self, v, y, self._lam(lam, v), gain, min(FEW, self.iterations))

    @property
    def image_like(self) -> bool:  # type: ignore[override]
        return self.outer.image_like

    def init(self, y: Tensor) -> Tensor:
        return self.inner.init(self.outer.init(y))


def conjugate_gradients(
    operator: Operator, v: Tensor, y: Tensor, lam: Tensor | float, iterations: int = CG_ITERATIONS
) -> Tensor:
    """Return the data step of any linear operator: (A'A + lam) d = A'(y - A v), x = v + d, each sample by itself.

    It ends where the residual is a millionth of rounding, or after `iterations` products with A'A.
    """
    residual = operator.A_adjoint(y - operator.A(v))
    change, step = torch.zeros_like(residual), residual
    power = _dot(residual, residual)
    floor = torch.finfo(residual.dtype).eps ** 2 * power
    for _ in range(iterations):
        seen = operator.A_adjoint(operator.A(step)) + lam * step
        curve = _dot(step, seen)
        going = (power > floor) & (curve > 0)
        if not bool(going.any()):
            break
        length = torch.where(going, power / torch.where(going, curve, torch.ones_like(curve)), torch.zeros_like(power))
        change = change + length * step
        residual = residual - length * seen
        after = _dot(residual, residual)
        ratio = torch.where(going, after / torch.where(going, power, torch.ones_like(power)), torch.zeros_like(power))
        step, power = residual + ratio * step, torch.where(going, after, torch.zeros_like(power))
    return v + change


def _coloured(
    operator: Operator, v: Tensor, y: Tensor, lam: Tensor, gain: Tensor | None, iterations: int = CG_ITERATIONS
) -> Tensor:
    """Return the data step under a gain: with x = v + G u, that of A G from u = 0 under a white error."""
    if gain is None:
        return conjugate_gradients(operator, v, y, lam, iterations)
    residual = y - operator.A(v)
    inside = Composition(operator, _Filter(gain))
    return v + _filter(conjugate_gradients(inside, torch.zeros_like(v), residual, lam, iterations), gain)


@dataclass(frozen=True)
class _Filter(Operator):
    """A filter by a real gain over frequencies, which is its own adjoint."""

    gain: Tensor

    def A(self, x: Tensor) -> Tensor:
        return _filter(x, self.gain)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return _filter(y, self.gain)


def _both_halves(gain: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a gain over the frequencies of `torch.fft.fft2`, from that over half of them."""
    columns = torch.arange(size[1], device=gain.device)
    rows = torch.arange(size[0], device=gain.device)
    mirrored = columns > size[1] // 2
    rows = torch.where(mirrored[None], (-rows[:, None]) % size[0], rows[:, None])
    return gain[rows, torch.where(mirrored, size[1] - columns, columns)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return per_sample((a * b).flatten(1).sum(1), a)


# boxes ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantise(Operator):
    """Images in [-1, 1] rounded to evenly spaced levels.

    The data step stays with images that round to y: among them it weighs y, whose error has the variance of rounding,
    a twelfth of a step squared, against v; `lam` multiplies that variance.

    Raises:
        ConfigError: fewer than 2 levels.
    """

    task = "dejpeg"

    levels: int
    linear = False
    least_lambda = 0.0

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ConfigError(f"an image has at least 2 levels, not {self.levels}")

    def A(self, x: Tensor) -> Tensor:
        half = (self.levels - 1) / 2
        return ((x.clamp(-1, 1) + 1) * half).round() / half - 1

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        half = 1 / (self.levels - 1)
        x = Denoise().prox(v, y, self._lam(lam, v) * half**2 / 3, gain)
        return x.clamp(y - half, y + half)


_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
"""The tables of ITU-T T.81, annex K, as the standard library of JPEG scales them."""
_LEVEL = 0.5 / 127.5
"""JPEG takes 128 of 255 from brightness, not half of 255."""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True)
class Jpeg(Operator):
    """JPEG of a quality, chroma not reduced (4:4:4). Images are in [-1, 1], of sides that 8 divides.

    y is the image that the file decodes to. Images that compress to the same file form a box: each number of the 8 x 8
    DCT lies within half a quantisation step. The data step stays in the box: there it weighs the middle, whose error
    has a twelfth of a step squared as variance, against v; `lam` multiplies that variance.

    Raises:
        ConfigError: a quality outside 1 to 100.
    """

    task = "dejpeg"

    quality: int
    linear = False
    least_lambda = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"the quality of a JPEG lies between 1 and 100, not {self.quality}")

    def _steps(self, like: Tensor) -> Tensor:
        """(1, C, 1, 8, 1, 8) quantisation steps, of images in [-1, 1]."""
        scale = 5000 / self.quality if self.quality < 50 else 200 - 2 * self.quality
        tables = [_LUMINANCE] if like.shape[1] == 1 else [_LUMINANCE, _CHROMINANCE, _CHROMINANCE]
        table = torch.tensor(tables, dtype=torch.float64, device="cpu")
        steps = ((table * scale + 50) / 100).floor().clamp(1, 255) / 127.5
        return steps.to(like.device, like.dtype)[None, :, None, :, None, :]

    def _numbers(self, x: Tensor) -> Tensor:
        """Images as the DCT of their blocks, (B, C, H/8, 8, W/8, 8)."""
        if any(side % 8 for side in x.shape[-2:]):
            raise ConfigError(f"JPEG is made of blocks of 8 pixels; {x.shape[-1]} x {x.shape[-2]} cannot be cut so")
        ycc = torch.einsum("oc,bchw->bohw", self._colours(x), x) if x.shape[1] == 3 else x
        ycc = torch.cat([ycc[:, :1] - _LEVEL, ycc[:, 1:]], 1)
        blocks = ycc.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8))
        dct = dct_matrix(8).to(x.device, x.dtype)
        return torch.einsum("ur,bchrwk,vk->bchuwv", dct, blocks, dct)

    def _image(self, numbers: Tensor) -> Tensor:
        dct = dct_matrix(8).to(numbers.device, numbers.dtype)
        blocks = torch.einsum("ur,bchuwv,vk->bchrwk", dct, numbers, dct)
        ycc = blocks.flatten(-2, -1).flatten(-3, -2)
        ycc = torch.cat([ycc[:, :1] + _LEVEL, ycc[:, 1:]], 1)
        if ycc.shape[1] != 3:
            return ycc
        return torch.einsum("oc,bchw->bohw", torch.linalg.inv(self._colours(ycc)), ycc)

    @staticmethod
    def _colours(like: Tensor) -> Tensor:
        return torch.tensor(_TO_YCC, dtype=like.dtype, device=like.device)

    def A(self, x: Tensor) -> Tensor:
        steps = self._steps(x)
        return self._image((self._numbers(x) / steps).round() * steps)

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        steps, weight = self._steps(v), self._lam(lam, self._steps(v).expand(len(v), *[-1] * 5))
        middle = (self._numbers(y) / steps).round() * steps
        noise = weight * steps.square() / 12
        if gain is not None:
            noise = noise / self._power(gain, v)
        mixed = (middle + noise * self._numbers(v)) / (1 + noise)
        return self._image(torch.maximum(torch.minimum(mixed, middle + steps / 2), middle - steps / 2))

    @staticmethod
    def _power(gain: Tensor, like: Tensor) -> Tensor:
        """The squares of a gain at the frequencies of the DCT, (8, 1, 8)."""
        height, width = like.shape[-2:]
        half = torch.arange(8, device=gain.device) / 16  # cycles a pixel
        rows, columns = (half * height).round().long(), (half * width).round().long()
        power: Tensor = gain.square()[rows[:, None], columns]
        return power[:, None]
