"""What a linear computes with, made of its frozen weights once and kept while they stay as they are, on a CPU.

Zeros beside a weight are a copy of it, and oneDNN turns each bf16 weight into the order of its matrix units: for a few
images that takes as long as the product. Kept, it costs the memory of the weights once more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS_HINT = 1024  # of a product, for which oneDNN lays weights out


@dataclass(frozen=True)
class Kept:
    """The numbers of a linear, ready for products."""

    of: weakref.ref[Tensor]
    """The weight that it was made of."""
    state: tuple[object, ...]
    """Of that and its bias, then."""
    weight: Tensor
    """(outputs, inputs), or in oneDNN's order."""
    bias: Tensor | None
    packed: bool
    """Whether the weight is in oneDNN's order."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the product (..., outputs) of rows (..., inputs)."""
        if self.packed:
            made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return made
        return functional.linear(x, self.weight, self.bias)


_KEPT: weakref.WeakKeyDictionary[nn.Module, Kept] = weakref.WeakKeyDictionary()


def kept(layer: nn.Linear, made: Callable[[], tuple[Tensor, Tensor | None]], pads: bool) -> Kept | None:
    """Return what a layer computes with; None where that is its weight as it is.

    Args:
        made: makes the weight and the bias that count.
        pads: whether they have zeros beside them.
    """
    weight, bias = layer.weight, layer.bias
    packed = weight.dtype == torch.bfloat16 and _packs()
    # a weight that learns may change unseen, by fused optimisers, and so may one that was made in inference mode
    if not (packed or pads) or weight.device.type != "cpu" or weight.requires_grad or weight.is_inference():
        return None
    state = (weight.data_ptr(), weight._version, None if bias is None else bias._version, weight.dtype, weight.shape)
    found = _KEPT.get(layer)
    if found is None or found.of() is not layer.weight or found.state != state:
        weight, bias = made()  # type: ignore[assignment]
        if packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)
        found = _KEPT[layer] = Kept(weakref.ref(layer.weight), state, weight, bias, packed)
    return found


@cache
def _packs() -> bool:
    """Tell whether this processor has bf16 units and torch the operations of oneDNN for its compiled programs."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and callable(torch.ops.mkldnn._linear_pointwise)
    except (AttributeError, RuntimeError):
        return False
