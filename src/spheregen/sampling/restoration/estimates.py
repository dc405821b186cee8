"""The numbers that a restoration wants to know: how strong the noise of y is, and how the model's own images err.

Legend: B samples, images (B, C, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spheregen.conditioning import Labels
from spheregen.devices import own_defaults
from spheregen.errors import ConfigError
from spheregen.protocol import SphereGenerator
from spheregen.sampling.loop import reconstruct
from spheregen.sampling.restoration.operators import Operator
from spheregen.sampling.restoration.pixels import Mask

Spectrum = Sequence[float]
"""The deviation of a model's error a pixel, by frequency: `BINS` numbers for equal parts of 0 to 0.72 cycles a pixel,
along the distance from frequency 0."""
BINS, HIGHEST = 18, 0.72
GENERIC: Spectrum = (
    *(1.2, 0.75, 0.6, 0.5, 0.39, 0.31, 0.26, 0.21, 0.18),
    *(0.15, 0.13, 0.11, 0.09, 0.075, 0.06, 0.055, 0.05, 0.05),
)
"""Of small models in general: about the mean of three of ours, of flowers, letters and CIFAR-10."""
_MAD = 0.6744897501960817
"""The median of the absolute values of a standard Gaussian."""


def _bins(size: tuple[int, int]) -> Tensor:
    rows, columns = torch.fft.fftfreq(size[0], dtype=torch.float64), torch.fft.rfftfreq(size[1], dtype=torch.float64)
    distance = (rows[:, None].square() + columns.square()).sqrt()
    number: Tensor = (distance / HIGHEST * BINS).long().clamp_max(BINS - 1)
    return number


@own_defaults()
def gain_of(spectrum: Spectrum, size: tuple[int, int], like: Tensor) -> Tensor:
    """Return a spectrum as the `gain` of operators, (H, W // 2 + 1), in the type and on the device of a tensor.

    Raises:
        ConfigError: it does not hold `BINS` finite numbers above 0.
    """
    values = torch.tensor([float(value) for value in spectrum], dtype=torch.float64)
    if values.shape != (BINS,) or not bool(((values > 0) & values.isfinite()).all()):
        raise ConfigError(f"the spectrum of a model's error holds {BINS} numbers above 0, not {list(spectrum)!r:.100}")
    return values[_bins(size)].to(like.device, like.dtype)


@own_defaults()
@torch.no_grad()
def measure_spectrum(
    model: SphereGenerator, images: Tensor, labels: Labels = None, angle: float = 30.0, noise: Tensor | None = None
) -> tuple[float, ...]:
    """Return the spectrum of the error of D(perturb(E(x))) on images that the model never saw.

    Args:
        model: any generator of the family.
        images: (B, C, S, S) in [-1, 1].
        labels: or the condition.
        angle: degrees of the noise between, as in a restoration.
        noise: (B, N, d) Gaussian; drawn where None.
    """
    error = (images - reconstruct(model, images, labels, angle, noise)).double()
    size = (error.shape[-2], error.shape[-1])
    power = (torch.fft.rfft2(error).abs().square().mean((0, 1)) / (size[0] * size[1])).cpu()
    bins = _bins(size)
    found: list[float] = []
    for number in range(BINS):
        inside = power[bins == number]
        found.append(max(float(inside.mean().sqrt()), 1e-3) if len(inside) else found[-1])
    return tuple(round(value, 4) for value in found)


def estimate_noise(y: Tensor, operator: Operator | None = None) -> Tensor:
    """Return the deviation of the noise of each observation, (B,).

    The median of the absolute diagonal differences of cells of 2 x 2 pixels, (a - b - c + d) / 2, over that of a
    Gaussian: images are smooth there and noise is not. Fine texture and edges are taken for noise, so that clean images
    get about 0.01 to 0.05, and the small images of `Subsample` more. Cells with a pixel that a `Mask` hides are left
    out.

    Raises:
        ConfigError: y is no image, or has no whole cell.

    Source: Donoho and Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage", the estimate by the median.
    """
    if y.ndim != 4 or y.is_complex() or not (operator is None or operator.image_like) or min(y.shape[-2:]) < 2:
        raise ConfigError("noise can be estimated of images alone; give its deviation as a number")

    def diagonal(x: Tensor) -> Tensor:
        rows, columns = (side - side % 2 for side in x.shape[-2:])
        x = x[..., :rows, :columns]
        return (x[..., ::2, ::2] - x[..., 1::2, ::2] - x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 2

    cells = diagonal(y).flatten(1).abs()
    if isinstance(operator, Mask):
        hidden = (operator.known == 0).to(y.dtype).expand_as(y)
        rows, columns = (side - side % 2 for side in y.shape[-2:])
        cut = hidden[..., :rows, :columns].unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).amax((-1, -3))
        cells = cells.masked_fill(cut.flatten(1) > 0, float("nan"))
    median = cells.nanmedian(1).values
    if not bool(median.isfinite().all()):
        raise ConfigError("too few pixels are known to estimate their noise; give its deviation as a number")
    return median / _MAD
