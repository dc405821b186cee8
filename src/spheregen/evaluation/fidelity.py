"""How close images are to their references."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels, (B,); images (B, C, H, W) in [0, 1].

    10 log10(1 / mean squared error), at most 100 dB.
    """
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-10))
