"""Counting the memory of a real forward and backward pass on torch's meta device, which holds no numbers.

`OnMeta` builds the networks, `LiveBytes` counts every tensor while it lives, and `AsOnDevice` puts in what the meta
device does not know: lower precision under autocast, and attention and norms that are fused.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


def keep_random_state() -> contextlib.AbstractContextManager[Any]:
    """Put back torch's random states, of the CPU and of the GPUs in use, at the end."""
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ())


class OnMeta(contextlib.ExitStack):
    """Tensors are made on the meta device, initialising them costs nothing, and no random state changes."""

    def __enter__(self) -> OnMeta:
        super().__enter__()
        self.enter_context(keep_random_state())
        self.enter_context(torch.device("meta"))
        self.enter_context(_NoFilling())  # type: ignore[no-untyped-call]
        return self


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that were made under it and still live, each storage once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _quick(func, args, kwargs or {})
        if result is None:
            result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _NoFilling(TorchDispatchMode):
    """Skips what only writes random numbers, for which torch's rules on the meta device are slow."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return args[0]
        return func(*args, **(kwargs or {}))


class AsOnDevice(TorchFunctionMode):
    """Makes the meta device keep what a real one keeps: autocast's copies, and the inputs of fused operations."""

    _PRODUCTS = (
        functional.linear,
        torch.conv2d,
        torch.conv_transpose2d,
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
    )

    def __init__(self, precision: str, device_type: str) -> None:
        super().__init__()
        self._low = precision == "bf16"
        self._fused_norms = device_type == "cuda"
        self._copies: dict[int, Tensor] = {}

    def forget(self) -> None:
        """Drop the low-precision copies of weights, as autocast does when it ends."""
        self._copies.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            q, k, v = (self._lower(tensor) for tensor in args[:3])
            return _FusedAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
        if self._fused_norms and func is functional.rms_norm:
            weight = args[2] if len(args) > 2 else kwargs.get("weight")
            return _FusedNorm.apply(args[0], weight)  # type: ignore[no-untyped-call]
        if self._low and func in self._PRODUCTS:
            args = tuple(self._lower(value) for value in args)
            kwargs = {name: self._lower(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not self._low or not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(torch.bfloat16)
        return self._copies[id(value)]


class _FusedAttention(torch.autograd.Function):
    """The memory of flash attention: it keeps its inputs, its output and a number for each query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.transpose(1, 2).new_empty(q.transpose(1, 2).shape).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _FusedNorm(torch.autograd.Function):
    """The memory of a fused norm: it keeps its input and a number for each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1]))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


_aten = torch.ops.aten
_ELEMENTWISE = frozenset(
    {
        *(_aten.mul.Tensor, _aten.add.Tensor, _aten.sub.Tensor, _aten.div.Tensor),
        *(_aten.mul.Scalar, _aten.add.Scalar, _aten.div.Scalar, _aten.pow.Tensor_Scalar),
    }
)
_REDUCTIONS = frozenset([_aten.sum.dim_IntList, _aten.mean.dim])


def _quick(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The commonest operations on the meta device; torch's own rules for them are slow. None for any other."""
    if func in _ELEMENTWISE:
        tensors = [value for value in args if isinstance(value, Tensor)]
        if not all(tensor.is_floating_point() for tensor in tensors):
            return None
        dtype = tensors[0].dtype if len(tensors) == 1 else torch.result_type(*tensors)
        sides = itertools.zip_longest(*(reversed(tensor.shape) for tensor in tensors), fillvalue=1)
        shape = [max(side) for side in sides][::-1]
        full = next((tensor for tensor in tensors if list(tensor.shape) == shape), None)
        if full is not None and not full.is_contiguous():
            return torch.empty_like(full, dtype=dtype)  # keeps the order of the axes
        return tensors[0].new_empty(shape, dtype=dtype)
    if func in _REDUCTIONS and len(args) > 1 and args[1] and not kwargs:
        x, dims, keeps = args[0], {dim % args[0].ndim for dim in args[1]}, len(args) > 2 and args[2]
        kept = [1 if dim in dims else side for dim, side in enumerate(x.shape) if keeps or dim not in dims]
        return x.new_empty(kept)  # type: ignore[no-any-return]
    if func is _aten.addmm.default and not kwargs:
        return args[1].new_empty(args[1].shape[0], args[2].shape[1])  # type: ignore[no-any-return]
    return None
