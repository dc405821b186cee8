"""Distances between images, and between latents."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.sphere import upcast


def to_unit(images: Tensor) -> Tensor:
    """Images from [-1, 1] to [0, 1], in float32 or wider: losses compare pixels there."""
    return (upcast(images) + 1) / 2


def pixel_distance(images: Tensor, reference: Tensor) -> Tensor:
    """Mean smooth L1 (beta 1) of images on [0, 1]: half the squared error wherever they differ by less than 1."""
    return functional.smooth_l1_loss(images, reference)


def latent_distance(z: Tensor, reference: Tensor) -> Tensor:
    """Mean over the batch of 1 - cos of the flattened latents (B, ...)."""
    cosine = torch.cosine_similarity(upcast(z).flatten(1), upcast(reference).flatten(1), dim=1)
    return (1 - cosine).mean()
