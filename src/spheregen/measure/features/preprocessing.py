"""How 8-bit images become the input of a feature network: checks, colour, resizing, normalisation.

A distance of features depends on the filter that enlarged or shrank the images (Parmar et al. 2022, arXiv 2104.11222),
so each network gets the one of the literature that made it a yardstick, and says which in `FeatureInfo.preprocessing`.

Shapes: images (B, C, H, W), values 0..255 unless said otherwise.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Filter = Literal["bilinear", "bicubic"]


def check_images(images: Tensor) -> None:
    """Accept what every feature network takes: uint8 (B, C, H, W), C = 1 or 3, at least one pixel of one image.

    Raises:
        ConfigError: another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        kind = str(images.dtype).removeprefix("torch.")
        raise ConfigError(
            f"a feature network takes uint8 images (B, 3, H, W) or (B, 1, H, W), not {kind} {tuple(images.shape)}; see "
            "to_uint8"
        )


def as_colour(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W); grey is repeated."""
    return images if images.shape[1] == 3 else images.repeat(1, 3, 1, 1)


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """Resize to (B, C, size, size), float32, as TensorFlow 1 does unless asked otherwise.

    Pixel i of the result lies at i * H / size of the source: corners are aligned at the upper left alone, without
    half-pixel centres. It mixes the two source pixels around linearly, the last one standing in for what is beyond the
    edge. There is no filter before shrinking. Inception's features of the literature rest on exactly this.
    """
    x = images.float()
    for axis in (3, 2):  # within a row first, as there
        low, high, share = _taps(x.shape[axis], size, x.device)
        first, second = x.index_select(axis, low), x.index_select(axis, high)
        x = first + (second - first) * (share if axis == 3 else share.unsqueeze(1))
    return x


def _taps(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of `target` pixels: the two source pixels and the share of the second; float32 coordinates, as there."""
    scale = torch.tensor(source, dtype=torch.float32) / target
    place = torch.arange(target, dtype=torch.float32) * scale
    low = place.floor().long().clamp(max=source - 1)
    high = (low + 1).clamp(max=source - 1)
    return low.to(device), high.to(device), (place - low).to(device)


def antialiased(images: Tensor, size: int, kind: Filter, *, eight_bit: bool = False) -> Tensor:
    """Resize to (B, C, size, size), float32 in 0..255, with a filter as wide as the reduction, as Pillow does.

    Bicubic overshoots at edges; what leaves 0..255 is clamped, since no 8-bit image could hold it.

    Args:
        kind: the filter; bicubic is the one of a = -0.5.
        eight_bit: as Pillow does with 8-bit images: round to whole levels and clamp after the rows and again after the
            columns. Else, as with its images of floating-point numbers: no rounding, clamped at the end.
    """
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images.float()
    home = images.device
    x = (images.cpu() if home.type == "mps" else images).float()  # Apple's GPU lacks some of these filters
    for shape in [(height, size), (size, size)] if eight_bit else [(size, size)]:
        x = functional.interpolate(x, size=shape, mode=kind, antialias=True, align_corners=False).clamp(0, 255)
        x = x.round() if eight_bit else x
    return x.to(home)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x / 255 - mean) / std of each of three channels, float32."""
    middle, width = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) for each in (mean, std))
    return (images.float() / 255 - middle) / width
