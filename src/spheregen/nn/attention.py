"""Multi-head self-attention with rotary positions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from spheregen.nn.linear import linear
from spheregen.nn.positions import AxialRotary


class Attention(nn.Module):
    """Self-attention: one linear for queries, keys and values, rotary positions on q and k, an output linear.

    Shapes: (B, T, W) to (B, T, W); W = heads * D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width)

    def forward(self, x: Tensor, rotary: AxialRotary) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, D)
        qk, v = rotary(qkv[:, :, :2]), qkv[:, :, 2]
        q, k = qk.unbind(2)
        mixed = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]
