"""adaLN-Zero: a condition shifts, scales and gates what a block computes."""

from __future__ import annotations

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
    return x * (1 + scale) + shift
