"""The time of a flow as a vector that networks are conditioned on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.nn.linear import linear
from spheregen.sphere import upcast

FREQUENCIES = 128
LOWEST = 10_000.0  # the slowest wave has this period, for times of 0 to SCALE
SCALE = 1000.0


class TimeEmbedding(nn.Module):
    """Times (B,) in [0, 1] to (B, W): 128 cosines, then sines, linear, SiLU, linear (as in DiT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = linear(2 * FREQUENCIES, width)
        self.outer = linear(width, width)

    def forward(self, times: Tensor) -> Tensor:
        speeds = torch.exp(-math.log(LOWEST) * torch.arange(FREQUENCIES, device=times.device) / FREQUENCIES)
        angles = SCALE * upcast(times)[:, None] * speeds
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.inner.weight.dtype)
        return self.outer(functional.silu(self.inner(waves)))  # type: ignore[no-any-return]
