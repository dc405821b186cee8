"""Linear layers that come initialised and tagged; an optimiser reads the tags.

Tags: `decay` (weight decay may apply: matrices and kernels) or `no_decay` (biases, norm gains, embeddings, learned
scalars), exactly one of them on each parameter; `hidden` on the matrices inside transformer blocks, which Muon may
train; `encoder` where a model trains that part at its own learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.nn import alone
from spheregen.nn.kept import kept

DECAY = "decay"
NO_DECAY = "no_decay"
HIDDEN = "hidden"
ENCODER = "encoder"


def tag(parameters: Iterable[nn.Parameter], *names: str) -> None:
    """Add tags to parameters."""
    for parameter in parameters:
        parameter.sphere_tags = tags_of(parameter) | set(names)  # type: ignore[attr-defined]


def tags_of(parameter: nn.Parameter) -> frozenset[str]:
    """The tags of a parameter, empty if no layer tagged it."""
    return frozenset(getattr(parameter, "sphere_tags", ()))


def tag_layer(layer: nn.Module) -> None:
    """Tag a plain linear or convolution: its weight `decay`, its bias `no_decay`."""
    for name, parameter in layer.named_parameters(recurse=False):
        tag([parameter], DECAY if name == "weight" else NO_DECAY)


Init = Literal["xavier", "zero", "normal", "scaled"]
"""Weights: Xavier-uniform; zeros; N(0, 1); N(0, 1/fan_in). Biases start at zero."""


class Linear(nn.Linear):
    """A linear that takes its input in the type of its weights, where those are half as wide.

    So a network in bfloat16 can keep its residual path in float32, as it has it under autocast.
    """

    pads = False
    """Whether it computes with zeros beside its numbers."""

    def forward(self, x: Tensor) -> Tensor:
        x = narrowed(x, self.weight)
        if alone.is_inference(x) and (ready := kept(self, self.numbers, self.pads)):
            return alone.in_company(x, ready)
        return alone.linear(x, *self.numbers())

    def numbers(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight and the bias that are computed with."""
        return self.weight, self.bias


def narrowed(x: Tensor, weight: Tensor) -> Tensor:
    """`x` in the type of a half-wide weight, else as it is: under autocast the weight is wide and `x` may be narrow."""
    return x.to(weight.dtype) if weight.dtype in (torch.bfloat16, torch.float16) else x


class PaddedLinear(Linear):
    """A linear that is computed with zeros added to its sides, while its parameters keep their shape.

    Matrix units are slow on odd sides: 2730 outputs take a third longer than 2736 in float32 on a CPU, and bf16 on a
    GPU wants multiples of 8. Copying the weight costs far less.

    Args:
        inputs, outputs: the true sides.
        parts: equal parts of the outputs, each padded for itself.
        pad_inputs: zero columns; the last axis of the input is this much longer than `inputs`.
        pad_outputs: zero rows of each part; the last axis of the output is this much longer for each part.
    """

    def __init__(self, inputs: int, outputs: int, *, parts: int = 1, pad_inputs: int = 0, pad_outputs: int = 0) -> None:
        super().__init__(inputs, outputs)
        self.parts, self.pad_inputs, self.pad_outputs = parts, pad_inputs, pad_outputs
        self.pads = bool(pad_inputs or pad_outputs)

    def numbers(self) -> tuple[Tensor, Tensor | None]:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.pad_inputs or self.pad_outputs:
            rows = weight.unflatten(0, (self.parts, -1))
            weight = functional.pad(rows, (0, self.pad_inputs, 0, self.pad_outputs)).flatten(0, 1)
        if self.pad_outputs:
            bias = functional.pad(bias.unflatten(0, (self.parts, -1)), (0, self.pad_outputs)).flatten()
        return weight, bias


def linear(inputs: int, outputs: int, *, bias: bool = True, init: Init = "xavier") -> nn.Linear:
    """A tagged `nn.Linear` with the given initialisation."""
    return prepared(Linear(inputs, outputs, bias=bias), init)


LinearLayer = TypeVar("LinearLayer", bound=nn.Linear)


def prepared(layer: LinearLayer, init: Init = "xavier") -> LinearLayer:
    """Initialise and tag a linear layer."""
    initialise(layer.weight, init, fan_in=layer.in_features)
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
