"""Normalisation over the last axis, in float32 or wider.

The statistics of a `BatchNorm` are measured anew when the weights are final: those that run along in training are of
weights that have changed since, and of no use to an EMA (`recalibrate`).

Legend: rows are all but the last axis of (..., d), images and tokens alike; there are n of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from spheregen.nn.activations import computes_here
from spheregen.nn.linear import NO_DECAY, tag
from spheregen.sphere import upcast


class Wide(nn.Module):
    """A module whose tensors stay at least float32 when the model around it is cast to a half type."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        return super()._apply(keep_wide, recurse)  # type: ignore[no-untyped-call, no-any-return]


def multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a + b * c`, in one pass over memory where the types agree."""
    if a.dtype == b.dtype == c.dtype:
        return torch.addcmul(a, b, c)
    return a + b * c  # under autocast: addcmul would copy each of them to the widest type first


def normalised(x: Tensor, factor: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    """Return `x * rsqrt(mean(x^2) + eps) * factor + shift` over the last axis, all of one type.

    Args:
        x: (..., W).
        factor, shift: of any shape that broadcasts to that of `x`; None: 1 and 0.
        eps: added to the mean square.
    """
    if computes_here(x) and torch.is_grad_enabled():
        return _Normalised.apply(x, factor, shift, eps, x.shape[-1])  # type: ignore[no-any-return,no-untyped-call]
    if x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        unit = x * _inverse(x, eps, x.shape[-1])
        if factor is None:
            return unit if shift is None else unit.add_(shift)
        return unit.mul_(factor) if shift is None else torch.addcmul(shift, unit, factor)
    if factor is None or factor.ndim == 1:  # a gain, which torch's norm takes
        x = functional.rms_norm(x, x.shape[-1:], factor, eps)
        return x if shift is None else x + shift
    x = functional.rms_norm(x, x.shape[-1:], None, eps)
    return x * factor if shift is None else torch.addcmul(shift, x, factor)


def unit_vectors(x: Tensor, eps: float) -> Tensor:
    """Return `x * rsqrt(sum(x^2) + eps)` over the last axis: vectors of length 1, or shorter where `eps` counts."""
    if computes_here(x):
        return _Normalised.apply(x, None, None, eps, 1)  # type: ignore[no-any-return,no-untyped-call]
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def _inverse(x: Tensor, eps: float, parts: int) -> Tensor:
    """Return `rsqrt(sum(x^2) / parts + eps)` (..., 1): torch's length of vectors is one pass over memory, its norm is
    many."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().mul_(1 / parts).add_(eps).rsqrt_()


class _Normalised(torch.autograd.Function):
    """A norm, its gain and its modulation as one: a third of the passes over memory that autograd makes of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | None, shift: Tensor | None, eps: float, parts: int) -> Tensor:
        inverse = _inverse(x, eps, parts)
        unit = x * inverse
        ctx.parts = parts
        ctx.save_for_backward(unit, inverse, factor)
        ctx.shift = None if shift is None else shift.shape
        if factor is None:
            return unit if shift is None else unit + shift
        return unit * factor if shift is None else torch.addcmul(shift, unit, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, inverse, factor = ctx.saved_tensors
        of_x, of_factor, of_shift, *_ = ctx.needs_input_grad
        shift = grad.sum_to_size(ctx.shift) if of_shift else None
        along = grad * unit
        gain = along.sum_to_size(factor.shape) if of_factor else None
        if not of_x:
            return None, gain, shift, None, None
        if factor is not None:
            into = None if factor.shape == grad.shape else along  # which is the gain itself
            along, grad = torch.mul(along, factor, out=into), grad * factor
        share = along.sum(-1, keepdim=True)
        of_unit = torch.addcmul(grad, unit, share, value=-1 / ctx.parts, out=along)  # into memory that is warm
        return of_unit.mul_(inverse), gain, shift, None, None


class RMSNorm(nn.Module):
    """`x * rsqrt(mean(x^2) + eps) * gain` over the last axis, in float32 or wider; the result has the type of `x`.

    `affine=False` leaves the gain out. With a modulation it is that times `1 + scale`, plus `shift`.
    """

    def __init__(self, width: int, *, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        if self.weight is not None:
            tag([self.weight], NO_DECAY)

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        wide = upcast(x)
        factor = None if self.weight is None else self.weight.to(wide.dtype)
        if scale is not None:
            change = 1 + scale.to(wide.dtype)
            factor = change if factor is None else change * factor
        return normalised(wide, factor, None if shift is None else shift.to(wide.dtype), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Mean 0 and variance 1 over the last axis, in float32 or wider; the result has the type of `x`.

    By default without gain and shift: for blocks whose condition brings them, as `forward` of `RMSNorm` takes it.
    """

    def __init__(self, width: int, *, eps: float = 1e-6, affine: bool = False) -> None:
        super().__init__(width, eps=eps, elementwise_affine=affine)

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        wide = upcast(x)
        gain, move = (each if each is None else each.to(wide.dtype) for each in (self.weight, self.bias))
        normal = functional.layer_norm(wide, self.normalized_shape, gain, move, self.eps).to(x.dtype)
        return normal if shift is None or scale is None else multiply_add(shift, normal, 1 + scale)


Batch = TypeVar("Batch")


class BatchNorm(nn.Module):
    """`(x - mean) * rsqrt(variance + eps)` of (..., d) by channel, in float32 or wider, in the type of `x`.

    In training by the mean and variance of these very rows, which also move the running statistics by `momentum`; in
    evaluation by the running statistics, so that a sample does not depend on its batch. The variance is that of the
    rows themselves (divided by n). There is no gain and no shift to learn. A single row has no variance of its own and
    is normalised by the running statistics in training too.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)
        if self.training and wide.shape[:-1].numel() > 1:
            variance, mean = torch.var_mean(wide, dim=tuple(range(wide.ndim - 1)), correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_variance.lerp_(variance.to(self.running_variance.dtype), self.momentum)
        else:
            mean, variance = self.running_mean.to(wide.dtype), self.running_variance.to(wide.dtype)
        return ((wide - mean) * torch.rsqrt(variance + self.eps)).to(x.dtype)


@dataclass(frozen=True)
class Moments:
    """Mean and spread of the rows of a data set, of which parts are put together without loss (Chan et al. 1983)."""

    count: int
    """n."""
    mean: Tensor
    """(d,) float64 on the CPU."""
    squares: Tensor
    """(d,) float64 on the CPU: the sum over the rows of their squared distances from the mean."""

    @staticmethod
    def of(x: Tensor) -> Moments:
        """Of the rows of (..., d), n >= 1."""
        rows = x.detach().flatten(0, -2).cpu().double()  # Apple's GPUs have no float64
        mean = rows.mean(dim=0)
        return Moments(rows.shape[0], mean, (rows - mean).square().sum(dim=0))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        squares = self.squares + other.squares + apart.square() * (self.count * other.count / count)
        return Moments(count, mean, squares)


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    run: Callable[[Batch], object],
    batches: Iterable[Batch],
    *,
    gather: Callable[[object], list[Any]] = lambda value: [value],
) -> None:
    """Set the running statistics of each `BatchNorm` in a model to those of all that reaches it, in float64.

    One pass: what one norm does to another behind it is not looked at. A model without any, or no batches, is left
    alone, and nothing is computed.

    Args:
        model: in evaluation mode.
        run: sends a batch through the model.
        batches: of the data that the statistics shall be of.
        gather: all-gathers an object over processes, in their order, where each has a part of the data.

    Raises:
        ValueError: the model is in training mode, in which the statistics would run along.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    if not norms:
        return
    if any(norm.training for norm in norms):
        raise ValueError("statistics are measured on a model in evaluation mode; call model.eval() first")
    found: list[list[Moments]] = [[] for _ in norms]
    handles = [
        norm.register_forward_pre_hook(lambda _, arguments, parts=parts: parts.append(Moments.of(arguments[0])))
        for norm, parts in zip(norms, found, strict=True)
    ]
    try:
        for batch in batches:
            run(batch)
            for parts in found:
                parts[:] = [reduce(Moments.__add__, parts)] if parts else []
    finally:
        for handle in handles:
            handle.remove()
    for norm, *everywhere in zip(norms, *gather(found), strict=True):
        parts = [part for rank in everywhere for part in rank]
        if parts:
            total = reduce(Moments.__add__, parts)
            norm.running_mean.copy_(total.mean)
            norm.running_variance.copy_(total.squares / total.count)
