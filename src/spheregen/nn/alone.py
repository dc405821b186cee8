"""Linears, convolutions and activations that give a sample the same numbers, to the last bit, alone and in any batch.

The libraries of a CPU sum in another order where a product has few rows (fewer than 4 with AVX2, fewer than 16 with
AVX-512), and torch takes another library where a convolution sees a single image. Outside of training, few rows get
zeros for company, and oneDNN does every convolution. So an image depends on its seed, and not on how many are made with
it. In bf16 it does up to rounding: there the order depends on the rows of every product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 16
PACK = 32
"""Numbers that torch takes at a time on a CPU, at most; it computes what is left of a tensor in another way."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `functional.linear`."""
    product = functools.partial(functional.linear, weight=weight, bias=bias)
    return in_company(x, product) if is_inference(x) else product(x)


def in_company(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the product (..., outputs) of rows (..., inputs), beside zeros where they are few."""
    if (rows := x.shape[:-1].numel()) >= ROWS:
        return product(x)
    filled = functional.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, ROWS - rows))
    return product(filled)[:rows].reshape(*x.shape[:-1], -1)


class Conv2d(nn.Conv2d):
    """An `nn.Conv2d` whose padding is numbers."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not is_inference(input) or len(input) > 1 or not _is_of_onednn(input, weight):
            plain: Tensor = super()._conv_forward(input, weight, bias)
            return plain
        padding: tuple[int, ...] = (0, 0)
        if self.padding_mode == "zeros":
            padding = self.padding  # type: ignore[assignment]
        else:
            input = functional.pad(input, self._reversed_padding_repeated_twice, self.padding_mode)
        return torch.mkldnn_convolution(input, weight, bias, padding, self.stride, self.dilation, self.groups)


def silu(x: Tensor) -> Tensor:
    """Return `functional.silu`."""
    return in_packs(x, functional.silu)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return `functional.gelu`."""
    return in_packs(x, functools.partial(functional.gelu, approximate=approximate))


def in_packs(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a function of each number, of the last ones as of the others: beside zeros where a pack is not full."""
    if not is_inference(x) or not (left := x.numel() % PACK):
        return function(x)
    return function(functional.pad(x.flatten(), (0, PACK - left)))[: x.numel()].view(x.shape)


class SiLU(nn.SiLU):
    """An `nn.SiLU` of `silu`."""

    def forward(self, input: Tensor) -> Tensor:
        return silu(input)


def is_inference(x: Tensor) -> bool:
    """Tell whether a CPU computes this and nothing learns from it."""
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and not torch.is_grad_enabled()


def _is_of_onednn(x: Tensor, weight: Tensor) -> bool:
    whole = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return whole and torch.backends.mkldnn.is_available()
