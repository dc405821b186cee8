"""The gated MLP of a transformer block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
        return self.out(gated_silu(self.gate_value(x)))  # type: ignore[no-any-return]


def gated_silu(gate_value: Tensor) -> Tensor:
    """`silu(gate) * value` of the two halves (..., H) of the last axis of (..., 2H)."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        gate, value = gate_value.chunk(2, dim=-1)
        return functional.silu(gate) * value
    return _GatedSilu.apply(gate_value)  # type: ignore[no-any-return,no-untyped-call]


class _GatedSilu(torch.autograd.Function):
    """Keeps its input alone, and writes both gradients into one tensor: less memory, and no copy to join them."""

    @staticmethod
    def forward(ctx: Any, gate_value: Tensor) -> Tensor:
        ctx.save_for_backward(gate_value)
        gate, value = gate_value.chunk(2, dim=-1)
        return functional.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_value,) = ctx.saved_tensors
        gate, value = gate_value.chunk(2, dim=-1)
        joined = torch.empty_like(gate_value)
        grad_gate, grad_value = joined.chunk(2, dim=-1)
        torch.mul(grad, functional.silu(gate), out=grad_value)
        torch.ops.aten.silu_backward.grad_input(grad * value, gate, grad_input=grad_gate)
        return joined
