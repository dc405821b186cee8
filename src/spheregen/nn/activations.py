"""The gated SiLU of SwiGLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def computes_here(x: Tensor) -> bool:
    """Tell whether a CPU computes this in float32, operation by operation: it then pays to save passes over memory.

    A GPU has fused kernels of its own, and compilers and exporters want torch's own operations.
    """
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def gated_silu(gate_value: Tensor) -> Tensor:
    """`silu(gate) * value` of the two halves (..., H) of the last axis of (..., 2H)."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        gate, value = gate_value.chunk(2, dim=-1)
        return functional.silu(gate).mul_(value)
    return _GatedSilu.apply(gate_value)  # type: ignore[no-any-return,no-untyped-call]


class _GatedSilu(torch.autograd.Function):
    """Keeps its input, on a CPU what it made of the gate too, and writes both gradients into one tensor."""

    @staticmethod
    def forward(ctx: Any, gate_value: Tensor) -> Tensor:
        gate, value = gate_value.chunk(2, dim=-1)
        if computes_here(gate_value):
            share = torch.sigmoid(gate)
            active = gate * share
            ctx.save_for_backward(gate_value, share, active)
            return active * value
        ctx.save_for_backward(gate_value)
        return functional.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate_value, *kept = ctx.saved_tensors
        gate, value = gate_value.chunk(2, dim=-1)
        joined = torch.empty_like(gate_value)
        grad_gate, grad_value = joined.chunk(2, dim=-1)
        if kept:
            share, active = kept
            torch.mul(grad, active, out=grad_value)
            # the derivative y + s (1 - y) by the sigmoid s and the value y, in one pass
            slope = torch.lerp(active, active.new_ones(()), share)
            torch.mul(slope.mul_(value), grad, out=grad_gate)
            return joined
        torch.mul(grad, functional.silu(gate), out=grad_value)
        torch.ops.aten.silu_backward.grad_input(grad * value, gate, grad_input=grad_gate)
        return joined
