"""Normalisation over the last axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.nn.tags import NO_DECAY, tag
from spheregen.sphere import upcast


class RMSNorm(nn.Module):
    """`x * rsqrt(mean(x^2) + eps) * gain` over the last axis, in float32 or wider; the result has the type of `x`.

    `affine=False` leaves the gain out.
    """

    def __init__(self, width: int, *, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        if self.weight is not None:
            tag([self.weight], NO_DECAY)

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)
        gain = None if self.weight is None else self.weight.to(wide.dtype)
        return functional.rms_norm(wide, (self.width,), gain, self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """Mean 0 and variance 1 over the last axis, without gain and shift: for blocks whose condition brings them.

    Computed in float32 or wider; the result has the type of `x`.
    """

    def __init__(self, width: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(upcast(x), (self.width,), eps=self.eps).to(x.dtype)
