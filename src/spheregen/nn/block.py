"""A pre-norm transformer block, conditional or not."""

from __future__ import annotations

from torch import Tensor, nn

from spheregen.nn.attention import Attention
from spheregen.nn.modulation import Modulation, modulate
from spheregen.nn.norm import RMSNorm
from spheregen.nn.positions import AxialRotary
from spheregen.nn.swiglu import SwiGLU


class Block(nn.Module):
    """Attention, then SwiGLU, each behind an RMSNorm and on a residual path; (B, T, W) to (B, T, W).

    A conditional block modulates both by adaLN-Zero (shift, scale, gate of the attention, then of the MLP); an
    unconditional one has no modulation and gates of 1.
    """

    def __init__(self, width: int, heads: int, *, conditional: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width)
        self.modulation = Modulation(width, 6) if conditional else None

    def forward(self, x: Tensor, rotary: AxialRotary, condition: Tensor | None) -> Tensor:
        if self.modulation is None or condition is None:
            x = x + self.attention(self.attention_norm(x), rotary)
            return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)
        x = x + gate_a * self.attention(modulate(self.attention_norm(x), shift_a, scale_a), rotary)
        return x + gate_m * self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m))  # type: ignore[no-any-return]
