"""The moving average of the weights, in float32."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """A float32 copy of a model whose parameters follow it: `average += (1 - decay) * (weights - average)`.

    `model` is the averaged model, in evaluation mode and without gradients.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model: Model = copy.deepcopy(model).float().eval().requires_grad_(False)
        ours, theirs = dict(self.model.named_parameters()), dict(model.named_parameters())
        if ours.keys() != theirs.keys():
            raise ValueError("the averaged model has other parameters than the trained one")
        self._average: list[Tensor] = list(ours.values())
        self._weights: list[Tensor] = [theirs[name] for name in ours]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights."""
        torch._foreach_lerp_(self._average, self._weights, 1 - self.decay)
