"""Multi-head self-attention with rotary positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.nn.linear import linear
from spheregen.nn.norm import RMSNorm
from spheregen.nn.positions import AxialRotary
from spheregen.sphere import upcast

QK_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Self-attention: one linear for queries, keys and values, rotary positions on q and k, an output linear.

    Shapes: (B, T, W) to (B, T, W); W = heads * D.

    Args:
        qk_norm: an RMSNorm with a gain over the channels of each head of q and of k, before they are rotated.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width)
        self.q_norm = RMSNorm(width // heads, eps=QK_NORM_EPS) if qk_norm else None
        self.k_norm = RMSNorm(width // heads, eps=QK_NORM_EPS) if qk_norm else None

    def forward(self, x: Tensor, rotary: AxialRotary | None) -> Tensor:
        """`rotary=None`: no rotary positions."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, D)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        if self.q_norm is not None and self.k_norm is not None:
            # both at once, in one pass over memory
            wide = upcast(qk)
            weights: list[Tensor] = [norm.weight for norm in (self.q_norm, self.k_norm) if norm.weight is not None]
            gains = torch.stack(weights).to(wide.dtype).unsqueeze(1)  # (2, 1, D)
            qk = (functional.rms_norm(wide, wide.shape[-1:], eps=QK_NORM_EPS) * gains).to(qk.dtype)
        if rotary is not None:
            qk = rotary(qk)
        q, k = qk.unbind(2)
        mixed = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]
