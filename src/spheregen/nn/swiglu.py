"""The gated MLP of a transformer block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from spheregen.nn.linear import PaddedLinear, prepared

ALIGNMENT = 8
"""The hidden width is computed as a multiple of this, with zeros; see `PaddedLinear`."""


class SwiGLU(nn.Module):
    """`out(silu(gate) * value)` with hidden width int(W * 4 * 2/3); gate and value in one linear, gate first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width * 4 * 2 / 3)
        extra = -hidden % ALIGNMENT
        self.gate_value = prepared(PaddedLinear(width, 2 * hidden, parts=2, pad_outputs=extra))
        self.out = prepared(PaddedLinear(hidden, width, pad_inputs=extra))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return self.out(functional.silu(gate) * value)  # type: ignore[no-any-return]
