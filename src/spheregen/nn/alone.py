"""Linears and convolutions that give a sample the same numbers, to the last bit, alone and in any batch.

The libraries of a CPU sum in another order where a product has fewer than four rows, and torch takes another library
where a convolution sees a single image. Outside of training, few rows get zeros for company, and oneDNN does every
convolution. So an image depends on its seed, and not on how many are made with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `functional.linear`."""
    if not _is_inference(x) or (rows := x.shape[:-1].numel()) >= ROWS:
        return functional.linear(x, weight, bias)
    filled = functional.pad(x.reshape(rows, -1), (0, 0, 0, ROWS - rows))
    return functional.linear(filled, weight, bias)[:rows].reshape(*x.shape[:-1], -1)


class Conv2d(nn.Conv2d):
    """An `nn.Conv2d` whose padding is numbers."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _is_inference(input) or len(input) > 1 or not _is_of_onednn(input, weight):
            plain: Tensor = super()._conv_forward(input, weight, bias)
            return plain
        padding: tuple[int, ...] = (0, 0)
        if self.padding_mode == "zeros":
            padding = self.padding  # type: ignore[assignment]
        else:
            input = functional.pad(input, self._reversed_padding_repeated_twice, self.padding_mode)
        return torch.mkldnn_convolution(input, weight, bias, padding, self.stride, self.dilation, self.groups)


def _is_inference(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and not torch.is_grad_enabled()


def _is_of_onednn(x: Tensor, weight: Tensor) -> bool:
    whole = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return whole and torch.backends.mkldnn.is_available()
