"""The moving average of the weights, in float32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from spheregen.distributed import local


class EMA:
    """A float32 copy of a model whose parameters follow it: `average += (1 - decay) * (weights - average)`.

    `model` is the averaged model, in evaluation mode and without gradients. Where the trained model is sharded
    afterwards, shard this one in the same way.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model: Any = copy.deepcopy(model).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model`."""
        ours, theirs = dict(self.model.named_parameters()), dict(model.named_parameters())
        if ours.keys() != theirs.keys():
            raise ValueError("the averaged model has other parameters than the trained one")
        average = [local(tensor) for tensor in ours.values()]
        torch._foreach_lerp_(average, [local(theirs[name]) for name in ours], 1 - self.decay)
