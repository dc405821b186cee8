"""What needs no model: filled or bicubic starts, a Wiener filter, total variation alone and in a loop, a median."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from spheregen import restoration
from spheregen.restoration import Mask, Operator, Subsample

_LEAST = 0.05
"""Deviation of the error that total variation takes away where there is no noise, such as that of rounding."""


class SimpleMeans:
    """Restorations without a model.

    Args:
        x: images (B, C, S, S) in [0, 1], whose mean and spectrum the Wiener filter has.
    """

    def __init__(self, x: Tensor) -> None:
        moved = 2 * x - 1
        self.mean = moved.mean((0, 2, 3), keepdim=True)
        size = x.shape[-1] * x.shape[-2]
        self.gain = torch.fft.rfft2(moved - self.mean).abs().square().mean((0, 1)).div(size).sqrt().clamp_min(1e-3)

    def restored(self, y: Tensor, operator: Operator, noise: float) -> dict[str, Tensor]:
        """Return images by method, of observations of images in [-1, 1]."""
        start = operator.init(y)
        name = "fill" if isinstance(operator, Mask) else "bicubic" if isinstance(operator, Subsample) else "as it is"
        found = {name: start, "total variation": total_variation(start, noise or _LEAST)}
        denoises = isinstance(operator, restoration.Denoise)
        if operator.linear and not denoises:
            found["plug-and-play"] = plug_and_play(y, operator, noise)
        if operator.linear and not isinstance(operator, Mask):
            found["wiener"] = operator.prox(self.mean.expand_as(start), y, noise**2, self.gain)
        if denoises or not operator.linear:
            found["median"] = _median(y)
        return found


def plug_and_play(y: Tensor, operator: Operator, noise: float, iterations: int = 8) -> Tensor:
    """Return images of a loop of denoising and data steps as DPIR has it, with total variation as its denoiser.

    The deviation that the denoiser takes away falls from 0.4 of [-1, 1] to that of the noise, evenly in its logarithm.

    Source: Zhang et al. 2022, "Plug-and-Play Image Restoration with Deep Denoiser Prior", whose weight is 0.23.
    """
    x, least = operator.init(y), max(noise, 0.01)
    for step in range(iterations):
        deviation = 0.4 * (least / 0.4) ** (step / (iterations - 1))
        lam = max(0.23 * least**2 / deviation**2, operator.least_lambda)
        x = operator.prox(total_variation(x, deviation), y, lam)
    return x


def total_variation(y: Tensor, noise: float, iterations: int = 60) -> Tensor:
    """Return images (B, C, H, W) of less total variation, by a weight of 1.2 deviations of their noise.

    Source: Chambolle 2004, "An Algorithm for Total Variation Minimization and Applications".
    """
    weight = 1.2 * max(noise, 1e-3)
    rows, columns = torch.zeros_like(y), torch.zeros_like(y)

    def divergence() -> Tensor:
        down = rows.clone()
        down[..., 1:, :] -= rows[..., :-1, :]
        right = columns.clone()
        right[..., 1:] -= columns[..., :-1]
        return down + right

    for _ in range(iterations):
        u = divergence() - y / weight
        down = functional.pad(u.diff(dim=-2), (0, 0, 0, 1))
        right = functional.pad(u.diff(dim=-1), (0, 1))
        length = 1 + 0.125 * (down.square() + right.square()).sqrt()
        rows, columns = (rows + 0.125 * down) / length, (columns + 0.125 * right) / length
    return y - weight * divergence()


def _median(y: Tensor) -> Tensor:
    """Return the median of 3 x 3 pixels."""
    wide = functional.pad(y, (1, 1, 1, 1), mode="reflect")
    return wide.unfold(-2, 3, 1).unfold(-2, 3, 1).flatten(-2).median(-1).values
