"""What the tests of feature extractors share."""

from __future__ import annotations

import torch
from torch import Tensor


def random_images(count: int, channels: int = 3, height: int = 32, width: int | None = None) -> Tensor:
    """uint8 (count, channels, height, width), the same in every call; smooth enough that a shift matters little."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=generator) * 255
    size = (height, width or height)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").round().to(torch.uint8)
