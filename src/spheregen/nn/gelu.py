"""The plain MLP of a transformer block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from spheregen.nn.linear import linear


class GELUMLP(nn.Module):
    """`out(gelu(hidden(x)))` with hidden width 4 W and the tanh form of GELU, as in SiT and DiT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = linear(width, 4 * width)
        self.out = linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.gelu(self.hidden(x), approximate="tanh"))  # type: ignore[no-any-return]
