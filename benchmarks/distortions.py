"""Ways to damage images, for benchmarks of distances and metrics."""

from __future__ import annotations

import torch
from torch.nn import functional


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of images (N, C, H, W), borders mirrored; `sigma` in pixels."""
    reach = min(int(3 * sigma + 0.5), *(side - 1 for side in images.shape[2:]))
    steps = torch.arange(-reach, reach + 1, dtype=images.dtype)
    kernel = torch.softmax(-steps.square() / (2 * sigma**2), dim=0)
    channels = images.shape[1]
    x = functional.pad(images, (reach,) * 4, mode="reflect")
    x = functional.conv2d(x, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return functional.conv2d(x, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def add_noise(images: torch.Tensor, level: float | torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Gaussian noise of deviation `level` on images (N, C, H, W), one number or (N, 1, 1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return images + level * torch.randn(images.shape, generator=generator)


def shift(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """Images (N, C, H, W) moved to the right, mirrored at the border."""
    return functional.pad(images, (pixels, 0, 0, 0), mode="reflect")[..., : images.shape[3]]
