"""adaLN-Zero: a condition shifts, scales and gates what a block computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.nn.linear import linear


class Modulation(nn.Module):
    """SiLU and a linear W -> count*W, zero at the start: `count` vectors (B, 1, W) from a condition (B, W)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = linear(width, count * width, init="zero")

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(functional.silu(condition)).unsqueeze(1).chunk(self.count, dim=-1)  # type: ignore[no-any-return]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x * (1 + scale) + shift`."""
    return _multiply_add(shift, x, 1 + scale)


def gated(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """`x + gate * change`."""
    return _multiply_add(x, gate, change)


def _multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a + b * c`, in one pass over memory where the types agree."""
    if a.dtype == b.dtype == c.dtype:
        return torch.addcmul(a, b, c)
    return a + b * c  # under autocast: addcmul would copy each of them to the widest type first
