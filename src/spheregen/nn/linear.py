"""Linear layers and convolutions that come initialised and tagged."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from spheregen.nn.tags import tag_layer

Init = Literal["xavier", "zero", "normal", "scaled"]
"""Weights: Xavier-uniform; zeros; N(0, 1); N(0, 1/fan_in). Biases start at zero."""


def linear(inputs: int, outputs: int, *, bias: bool = True, init: Init = "xavier") -> nn.Linear:
    """A tagged `nn.Linear` with the given initialisation."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    initialise(layer.weight, init, fan_in=inputs)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    tag_layer(layer)
    return layer


@torch.no_grad()
def initialise(weight: torch.Tensor, init: Init, *, fan_in: int) -> None:
    """Fill a weight in place."""
    if init == "xavier":
        nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))
    elif init == "zero":
        nn.init.zeros_(weight)
    else:
        nn.init.normal_(weight, std=1.0 if init == "normal" else fan_in**-0.5)
