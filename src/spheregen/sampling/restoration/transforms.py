"""Some of the numbers of a transform: DCT, Hadamard, Fourier, or any matrices on rows and columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.sampling.restoration.operators import CG_ITERATIONS, FEW, Lam, Operator, both_halves, conjugate_gradients


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
            return super().prox(v, y, lam, gain)
        return v + self.A_adjoint((y - self.A(v)) / (1 + self._lam(lam, v)))

    def step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        """Return `prox` under a white error, of the mean of the gain."""
        return self.prox(v, y, lam if gain is None else self._lam(lam, v).flatten() / gain.square().mean())

    def last_step(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        return conjugate_gradients(self, v, y, self._lam(lam, v), gain, FEW)

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
        power = torch.ones_like(share) if gain is None else both_halves(gain, (v.shape[-2], v.shape[-1])).square()
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
            return conjugate_gradients(self, v, y, weight, gain, 4 * CG_ITERATIONS)
        left, s, right = torch.linalg.svd(self.rows[0].to(v.dtype), full_matrices=False)
        left_2, s_2, right_2 = torch.linalg.svd(self.columns[0].to(v.dtype), full_matrices=False)
        power = s[:, None] * s_2
        residual = left.T @ (y - self.A(v)) @ left_2
        change: Tensor = right.T @ (power * residual / (power.square() + weight)) @ right_2
        return v + change

    def init(self, y: Tensor) -> Tensor:
        back = self.A_adjoint(y)
        return self.prox(torch.zeros_like(back), y, 1e-2)
