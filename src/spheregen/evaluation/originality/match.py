"""How surely one image is a copy of another: mirrored, shifted, recoloured, softened or compressed, it still is one.

The score is the share of an image's brightness steps (differences between neighbouring pixels, in every channel) that
a linear map of the other image's steps explains, at the best of a few shifts. Steps rather than pixels, since natural
images agree in their large smooth parts by chance: any two skies explain each other's pixels, but not their texture.
Measured on CIFAR-10, where a tenth of the held-out images reach 0.8 in pixels, they reach 0.3 in steps.

Legend: P pairs, C channels, H x W pixels, M shift range.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WORKING_SIZE = 64
"""Pixels of the larger side at which images are compared; larger ones are reduced by averaging."""
SMALL = 16
"""Pixels of the smaller side under which a shift by a pixel is a large one."""
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_ROUNDING = 1 / 6
"""Variance of a step that rounding to 8 bits alone makes: steps as small as this explain nothing."""
_RIDGE = 1e-3
"""Of the mean variance of the explaining steps: colours and their blur are nearly dependent."""


def working_images(images: Tensor) -> Tensor:
    """Images (B, C, H, W) uint8 at the size at which they are compared, at most 64 pixels.

    Whoever reads a large data set may apply this to each part: `find_copies` does the same to what it is given.
    """
    return reduced(images, WORKING_SIZE)


def reduced(images: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) uint8 whose larger side is at most `size` pixels, by averaging areas."""
    height, width = images.shape[-2:]
    larger = max(height, width)
    if larger <= size:
        return images
    shape = (max(1, round(height * size / larger)), max(1, round(width * size / larger)))
    parts = [
        functional.interpolate(part.float(), shape, mode="area").round().to(torch.uint8) for part in images.split(256)
    ]
    return torch.cat(parts)


def luma(images: Tensor) -> Tensor:
    """Brightness (B, 1, H, W) float32 of images (B, C, H, W) of any type, C = 1 or 3."""
    images = images.float()
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def shift_range(height: int, width: int) -> int:
    """M: shifts of -M..M pixels are tried; 1 for images under 16 pixels, which have little to spare, else 2."""
    return 1 if min(height, width) < SMALL else 2


def is_small(images: Tensor) -> bool:
    """Whether images (B, C, H, W) have so few pixels that a shift by one is large, and unrelated ones are alike."""
    return min(images.shape[-2:]) < SMALL


def blurred(images: Tensor) -> Tensor:
    """Images (B, 1, H, W) under the binomial filter 1-2-1 in both directions, twice (deviation 1 pixel)."""
    kernel = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    mode = "reflect" if min(images.shape[-2:]) > 2 else "replicate"
    images = functional.pad(images, (2, 2, 2, 2), mode=mode)
    return functional.conv2d(functional.conv2d(images, kernel.view(1, 1, 5, 1)), kernel.view(1, 1, 1, 5))


def steps(images: Tensor) -> Tensor:
    """Differences to the pixel below and to the right: (B, C, H, W) -> (B, C, 2, H-1, W-1)."""
    corner = images[..., :-1, :-1]
    return torch.stack([images[..., 1:, :-1] - corner, images[..., :-1, 1:] - corner], dim=2)


def aligned(images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """The shift under which brightness steps of pairs agree best.

    Args:
        images: (P, C, H, W) uint8.
        originals: (P, C, H, W) uint8.

    Returns:
        The explained share (P,) in [0, 1], and the shift's place (P,) int64, row-major in -M..M twice.
    """
    reach = shift_range(*images.shape[-2:])
    wanted, given = steps(luma(images))[:, 0], steps(luma(originals))[:, 0]
    height, width = wanted.shape[-2] - 2 * reach, wanted.shape[-1] - 2 * reach
    inner = wanted[..., reach : reach + height, reach : reach + width]
    energy = inner.square().sum((1, 2, 3)) + _ROUNDING * inner[0].numel()
    energies = functional.avg_pool2d(given.square().sum(1, keepdim=True), (height, width), 1, divisor_override=1)
    shares = []
    for row in range(2 * reach + 1):
        for column in range(2 * reach + 1):
            window = given[..., row : row + height, column : column + width]
            agreement = (inner * window).sum((1, 2, 3)).clamp_min(0)
            shares.append(agreement.square() / (energies[:, 0, row, column] * energy).clamp_min(1e-12))
    best = torch.stack(shares).max(dim=0)
    return best.values, best.indices


def score(images: Tensor, originals: Tensor, shift: Tensor) -> Tensor:
    """The share of the steps of `images` that steps of `originals` explain: 1 is a copy, unrelated images are near 0.1.

    Explained by least squares: each channel's steps from those of all channels of the original, which is any linear
    change of colours, and of its blurred brightness, which makes softened and sharpened copies.

    Args:
        images: (P, C, H, W) uint8.
        originals: (P, C, H, W) uint8.
        shift: (P,) int64, as `aligned` gives it.

    Returns:
        (P,) float64 in [0, 1], on the CPU.
    """
    reach = shift_range(*images.shape[-2:])
    wanted = steps(images.float())
    given = steps(torch.cat([originals.float(), blurred(luma(originals))], dim=1))
    height, width = wanted.shape[-2] - 2 * reach, wanted.shape[-1] - 2 * reach
    target = wanted[..., reach : reach + height, reach : reach + width].flatten(2)
    source = _windows(given, shift, height, width, 2 * reach + 1)
    gram = (source @ source.transpose(1, 2)).cpu().double()  # (P, C+1, C+1)
    mixed = (source @ target.transpose(1, 2)).cpu().double()  # (P, C+1, C)
    total = target.square().sum((1, 2)).cpu().double()
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
    weights = torch.linalg.solve(gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=torch.float64), mixed)
    explained = 2 * (weights * mixed).sum((1, 2)) - (weights * (gram @ weights)).sum((1, 2))
    shares: Tensor = (explained / (total + _ROUNDING * target[0].numel())).clamp(0, 1)
    return shares


def _windows(given: Tensor, shift: Tensor, height: int, width: int, places: int) -> Tensor:
    """The part of each pair's steps that its shift chooses, (P, C+1, 2 * height * width)."""
    rows = (shift // places)[:, None] + torch.arange(height, device=shift.device)
    columns = (shift % places)[:, None] + torch.arange(width, device=shift.device)
    flat = rows[:, :, None] * given.shape[-1] + columns[:, None, :]
    flat = flat.flatten(1)[:, None, None].expand(-1, given.shape[1], 2, -1)
    return given.flatten(3).gather(3, flat).flatten(2)
