"""Kernels of blurs, and masks of missing pixels, (1, 1, h, w) float64 on the CPU.

Source: method.md, section 5, the tasks that the literature measures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spheregen.devices import own_defaults
from spheregen.errors import ConfigError


def check_kernel(kernel: Tensor) -> Tensor:
    """Return a kernel (h, w) or (B or 1, C or 1, h, w) as four axes.

    Raises:
        ConfigError: it has another shape, is empty, holds what is no finite number, or nothing but 0.
    """
    if kernel.ndim not in (2, 4) or not kernel.numel():
        raise ConfigError(f"a kernel is (h, w) or (B or 1, C or 1, h, w), not {tuple(kernel.shape)}")
    if not bool(kernel.isfinite().all()) or not bool(kernel.any()):
        raise ConfigError("a kernel holds finite numbers that are not all 0")
    return kernel if kernel.ndim == 4 else kernel[None, None]


def check_factor(factor: int) -> None:
    """Refuse a factor of an enlargement below 1."""
    if factor < 1:
        raise ConfigError(f"the factor of an enlargement is at least 1, not {factor}")


@own_defaults()
def gaussian_kernel(sigma: float, size: int | None = None) -> Tensor:
    """Return a Gaussian of deviation `sigma` pixels that sums to 1.

    Args:
        size: its side, odd; by default it reaches four deviations.

    Raises:
        ConfigError: a deviation that is not above 0, or an even size.
    """
    if not 0 < sigma < 1e4:
        raise ConfigError(f"the deviation of a blur is above 0 pixels, not {sigma:g}")
    side = 2 * max(1, math.ceil(4 * sigma)) + 1 if size is None else size
    if side < 1 or side % 2 == 0:
        raise ConfigError(f"the size of a kernel is odd, not {side}")
    place = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.softmax(-place.square() / (2 * sigma**2), 0)
    return (line[:, None] * line)[None, None]


@own_defaults()
def motion_kernel(length: float, degrees: float = 0.0) -> Tensor:
    """Return a straight line of `length` pixels at an angle from the horizontal, anticlockwise, that sums to 1.

    Raises:
        ConfigError: a length that is not above 0.
    """
    if not 0 < length < 1e4 or not math.isfinite(degrees):
        raise ConfigError(f"a motion has a length above 0 pixels and finite degrees, not {length:g} and {degrees:g}")
    reach = math.ceil(length / 2)
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    count = 16 * reach + 1
    along = torch.linspace(-(length - 1) / 2, (length - 1) / 2, count, dtype=torch.float64) if length > 1 else (
        torch.zeros(1, dtype=torch.float64)
    )  # fmt: skip
    turn = math.radians(degrees)
    rows, columns = reach - along * math.sin(turn), reach + along * math.cos(turn)
    top, left = rows.floor(), columns.floor()
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):  # each point is shared by the four pixels around it
        share = (1 - (rows - top - down).abs()) * (1 - (columns - left - right).abs())
        place = ((top + down).clamp(max=2 * reach).long(), (left + right).clamp(max=2 * reach).long())
        kernel.index_put_(place, share, accumulate=True)
    return (kernel / kernel.sum())[None, None]


@own_defaults()
def bicubic_kernel(factor: int) -> Tensor:
    """Return the cubic filter (a = -1/2) of a reduction by `factor`, for `Subsample`: its pixel is that of a block.

    Raises:
        ConfigError: a factor below 1.
    """
    check_factor(factor)
    reach = 3 * factor
    # tap i of a convolution weighs pixel -i of a block whose middle is (factor - 1) / 2
    place = (-(torch.arange(2 * reach + 1, dtype=torch.float64) - reach) - (factor - 1) / 2).abs() / factor
    inner = (1.5 * place - 2.5) * place.square() + 1
    outer = ((-0.5 * place + 2.5) * place - 4) * place + 2
    line = torch.where(place < 1, inner, torch.where(place < 2, outer, torch.zeros_like(place)))
    line = line / line.sum()
    return (line[:, None] * line)[None, None]


# masks ----------------------------------------------------------------------------------------------------------------


@own_defaults()
def box_mask(size: int, share: float = 40 / 128) -> Tensor:
    """Return the mask of a square hole in the middle of an image of `size` pixels: 1 where a pixel is known.

    Args:
        share: the hole's side over that of the image.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the share of a hole lies between 0 and 1, not {share:g}")
    side = max(1, round(share * size))
    start = (size - side) // 2
    mask = torch.ones(1, 1, size, size, dtype=torch.float64)
    mask[..., start : start + side, start : start + side] = 0
    return mask


@own_defaults()
def brush_mask(size: int, seed: int = 0, *, lines: int = 10) -> Tensor:
    """Return the mask of random thick lines near the middle of an image of `size` pixels: 1 where a pixel is known."""
    generator = torch.Generator().manual_seed(seed)
    ends = (torch.randn(lines, 2, 2, generator=generator, dtype=torch.float64) * 0.18 + 0.5) * size
    widths = (torch.rand(lines, generator=generator, dtype=torch.float64) * 0.03 + 0.03) * size
    place = torch.arange(size, dtype=torch.float64) + 0.5
    points = torch.stack(torch.meshgrid(place, place, indexing="ij"), -1)
    mask = torch.ones(size, size, dtype=torch.float64)
    for (a, b), width in zip(ends, widths.tolist(), strict=True):
        way = b - a
        share = (((points - a) @ way) / way.square().sum().clamp_min(1e-9)).clamp(0, 1)
        mask[torch.linalg.vector_norm(points - a - share[..., None] * way, dim=-1) < width / 2 + 0.5] = 0
    return mask[None, None]


@own_defaults()
def random_mask(size: int, seed: int = 0, *, missing: float = 0.7) -> Tensor:
    """Return a mask that leaves out a share of the pixels, all channels alike: 1 where a pixel is known."""
    if not 0 <= missing < 1:
        raise ConfigError(f"the share of missing pixels lies from 0 to below 1, not {missing:g}")
    order = torch.randperm(size * size, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(size * size, dtype=torch.float64)
    mask[order[: round(missing * size * size)]] = 0
    return mask.view(1, 1, size, size)
