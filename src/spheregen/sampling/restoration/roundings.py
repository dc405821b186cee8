"""Roundings: fewer levels, JPEG. Their data step stays among the images that round to y."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.sampling.restoration.operators import Lam, Operator
from spheregen.sampling.restoration.pixels import LUMA, Denoise
from spheregen.sampling.restoration.transforms import dct_matrix


@dataclass(frozen=True)
class Quantise(Operator):
    """Images in [-1, 1] rounded to evenly spaced levels.

    The data step stays with images that round to y: among them it weighs y, whose error has the variance of rounding,
    a twelfth of a step squared, against v; `lam` multiplies that variance.

    Raises:
        ConfigError: fewer than 2 levels.
    """

    levels: int
    task = "dequantise"
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
_TO_YCC = (LUMA, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True)
class Jpeg(Operator):
    """JPEG of a quality, chroma not reduced (4:4:4). Images are in [-1, 1], of sides that 8 divides.

    y is the image that the file decodes to. Images that compress to the same file form a box: each number of the 8 x 8
    DCT lies within half a quantisation step. The data step stays in the box: there it weighs the middle, whose error
    has a twelfth of a step squared as variance, against v; `lam` multiplies that variance.

    Raises:
        ConfigError: a quality outside 1 to 100.
    """

    quality: int
    task = "dejpeg"
    linear = False
    least_lambda = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"the quality of a JPEG lies between 1 and 100, not {self.quality}")

    def _steps(self, like: Tensor) -> Tensor:
        """(1, C, 1, 1, 64) quantisation steps, of images in [-1, 1]."""
        scale = 5000 / self.quality if self.quality < 50 else 200 - 2 * self.quality
        tables = [_LUMINANCE] if like.shape[1] == 1 else [_LUMINANCE, _CHROMINANCE, _CHROMINANCE]
        table = torch.tensor(tables, dtype=torch.float64, device="cpu")
        steps = ((table * scale + 50) / 100).floor().clamp(1, 255) / 127.5
        return steps.to(like.device, like.dtype).flatten(1)[None, :, None, None]

    def _numbers(self, x: Tensor) -> Tensor:
        """Images as the DCT of their blocks, (B, C, H/8, W/8, 64)."""
        if any(side % 8 for side in x.shape[-2:]):
            raise ConfigError(f"JPEG is made of blocks of 8 pixels; {x.shape[-1]} x {x.shape[-2]} cannot be cut so")
        matrix, shift = _to_ycc(x)
        ycc = _recoloured(x, matrix, shift)
        blocks = ycc.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2).flatten(-2)
        numbers: Tensor = blocks @ _block_dct(x).T
        return numbers

    def _image(self, numbers: Tensor) -> Tensor:
        blocks = (numbers @ _block_dct(numbers)).unflatten(-1, (8, 8)).transpose(-3, -2)
        ycc = blocks.flatten(-2, -1).flatten(-3, -2)
        matrix, shift = _to_ycc(ycc)
        back = torch.linalg.inv(matrix)
        return _recoloured(ycc, back, -back @ shift)

    def A(self, x: Tensor) -> Tensor:
        steps = self._steps(x)
        return self._image((self._numbers(x) / steps).round() * steps)

    def prox(self, v: Tensor, y: Tensor, lam: Lam, gain: Tensor | None = None) -> Tensor:
        steps = self._kept("steps", y, (v.dtype, v.device), lambda: self._steps(v))
        weight = self._lam(lam, steps.expand(len(v), *[-1] * 4))
        middle = self._kept("middle", y, (v.dtype, v.device), lambda: (self._numbers(y) / steps).round() * steps)
        noise = weight * steps.square() / 12
        if gain is not None:
            noise = noise / self._power(gain, v)
        mixed = (middle + noise * self._numbers(v)) / (1 + noise)
        return self._image(torch.maximum(torch.minimum(mixed, middle + steps / 2), middle - steps / 2))

    @staticmethod
    def _power(gain: Tensor, like: Tensor) -> Tensor:
        """The squares of a gain at the frequencies of the DCT, (64,)."""
        height, width = like.shape[-2:]
        half = torch.arange(8, device=gain.device) / 16  # cycles a pixel
        rows, columns = (half * height).round().long(), (half * width).round().long()
        power: Tensor = gain.square()[rows[:, None], columns]
        return power.flatten()


def _block_dct(like: Tensor) -> Tensor:
    """The orthonormal DCT (64, 64) of a block whose pixels lie row by row."""
    return torch.kron(dct_matrix(8), dct_matrix(8)).to(like.device, like.dtype)


def _to_ycc(like: Tensor) -> tuple[Tensor, Tensor]:
    """What brings the colours of images (B, C, H, W) to JPEG's: a matrix (C, C) and a shift (C, 1), float64."""
    channels = like.shape[1]
    shift = torch.zeros(channels, 1, dtype=torch.float64, device="cpu")
    shift[0] = -_LEVEL
    if channels == 3:
        return torch.tensor(_TO_YCC, dtype=torch.float64, device="cpu"), shift
    return torch.eye(channels, dtype=torch.float64, device="cpu"), shift


def _recoloured(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    matrix, shift = (each.to(x.device, x.dtype).expand(len(x), -1, -1) for each in (matrix, shift))
    mixed: Tensor = torch.baddbmm(shift, matrix, x.flatten(2)).unflatten(-1, x.shape[-2:])
    return mixed
