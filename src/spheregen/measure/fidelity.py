"""How close images are to their references: PSNR, SSIM, and LPIPS where its weights are found.

Legend: B images, C channels, H x W pixels; all images are in [0, 1], all answers (B,) float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ConfigError
from spheregen.measure.metrics import exact
from spheregen.networks.backbones.vgg16 import MIN_SIZE, Vgg16Features, load_vgg16
from spheregen.networks.perceptual import (
    LPIPS_SCALE,
    LPIPS_SHIFT,
    LPIPS_VGG,
    VGG16,
    as_colour,
    find_weights,
    lpips_weights,
    unit_norm,
)

SSIM_WINDOW = 11
"""Side of SSIM's window in pixels, and so of the smallest image that it takes."""
_SSIM_SIGMA = 1.5
_SSIM_K1, _SSIM_K2 = 0.01, 0.03


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in decibels, (B,); images (B, C, H, W) in [0, 1].

    10 log10(1 / mean squared error), at most 100 dB.
    """
    error = exact(images).sub(exact(reference)).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity of each image, (B,), 1 for equal ones; images (B, C, H, W) in [0, 1].

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity": a Gaussian window of
    11 x 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03, the mean over all places where the window fits into the
    image (nothing is padded), then over channels; the paper has grey images alone.

    Raises:
        ConfigError: two shapes, or images below 11 px: with a smaller window it would be another figure.
    """
    _check_shapes(images, reference, SSIM_WINDOW, "SSIM")
    x, y = exact(images), exact(reference)
    c1, c2 = _SSIM_K1**2, _SSIM_K2**2
    mean_x, mean_y = _windowed(x), _windowed(y)
    square_x, square_y, product = mean_x.square(), mean_y.square(), mean_x * mean_y
    variances = _windowed(x.square() + y.square()) - square_x - square_y
    covariance = _windowed(x * y) - product
    similarity = ((2 * product + c1) * (2 * covariance + c2)) / ((square_x + square_y + c1) * (variances + c2))
    return similarity.flatten(1).mean(1)


def _windowed(x: Tensor) -> Tensor:
    """Return means (B, C, H - 10, W - 10) of x (B, C, H, W), weighted by the window."""
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    weights = torch.softmax(-offsets.square() / (2 * _SSIM_SIGMA**2), dim=0)
    flat = x.flatten(0, 1).unsqueeze(1)
    flat = functional.conv2d(functional.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    means: Tensor = flat.squeeze(1).unflatten(0, x.shape[:2])
    return means


class Lpips(nn.Module):
    """LPIPS 0.1 on VGG16 (Zhang et al. 2018, arXiv 1801.03924), frozen; 0 for equal images, higher for less alike.

    The differences of five feature maps of unit norm over channels, squared, weighted by channel as people see
    likeness, averaged over space and added. `find_lpips` makes one from the published files.

    Args:
        vgg16: the network with ImageNet weights.
        channel_weights: five tensors (1, C, 1, 1) for C = 64, 128, 256, 512, 512.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg16: Vgg16Features, channel_weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.vgg16 = vgg16
        self.channel_weights = nn.ParameterList([weight.detach().clone().float() for weight in channel_weights])
        self.register_buffer("shift", torch.tensor(LPIPS_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(LPIPS_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        """Return the distance of each image to its reference, (B,); images (B, C, H, W) in [0, 1], C = 1 or 3.

        Raises:
            ConfigError: two shapes, another number of channels, or images smaller than 16 px.
        """
        _check_shapes(images, reference, MIN_SIZE, "LPIPS")
        total = torch.zeros(len(images), dtype=torch.float64)
        for weight, x, y in zip(self.channel_weights, self._maps(images), self._maps(reference), strict=True):
            apart = (weight * (unit_norm(x, 1e-10) - unit_norm(y, 1e-10)).square()).sum(dim=1)
            distance = exact(apart).mean(dim=(1, 2))
            total = total.to(distance.device) + distance
        return total

    def _maps(self, images: Tensor) -> tuple[Tensor, ...]:
        moved = 2 * as_colour(images).to(self.shift.device) - 1
        maps: tuple[Tensor, ...] = self.vgg16((moved - self.shift) / self.scale)
        return maps


def find_lpips(weights: Path | str | None = None) -> Lpips | None:
    """Return LPIPS from the files `vgg16-397923af.pth` and `vgg.pth`, on the CPU; None if one is missing.

    Args:
        weights: folder to search first; then $SPHEREGEN_WEIGHTS and torch.hub's checkpoints. Nothing is fetched.

    Raises:
        ConfigError: `weights` is a file.
        ModelFileError: a file is broken or holds other weights.
    """
    found = find_weights(weights)
    if VGG16 not in found or LPIPS_VGG not in found:
        return None
    return Lpips(load_vgg16(found[VGG16]), lpips_weights(found[LPIPS_VGG]))


def _check_shapes(images: Tensor, reference: Tensor, least: int, metric: str) -> None:
    if images.shape != reference.shape or images.ndim != 4 or min(images.shape[2:]) < least:
        raise ConfigError(
            f"{metric} compares two batches of one shape (B, C, H, W), of at least {least} px, not "
            f"{tuple(images.shape)} with {tuple(reference.shape)}"
        )
