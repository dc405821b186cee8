"""In which arithmetic a run computes, and whether its transformer blocks are compiled for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._triton import has_triton

from spheregen.family.recipe import Recipe
from spheregen.measure.precision import Precision, choose_precision
from spheregen.nn.block import blocks_of
from spheregen.training.estimate import step_cost

COMPILE_FROM_STEPS = 200
"""On a GPU: shorter runs do not win back the minute that compiling takes."""
COMPILE_FROM_FLOPS = 2e13
"""On a CPU with bf16 units: ten minutes of its work in eager mode. Compiling takes one, and saves two fifths."""


@dataclass(frozen=True)
class Arithmetic:
    """How a run computes: the same for the same recipe on the same machine, so that a continued run stays exact."""

    precision: Precision
    compiled: bool


def choose_arithmetic(recipe: Recipe, device: torch.device, model: nn.Module, total: int) -> Arithmetic:
    """Return how a run of `total` steps computes on a device.

    Under `auto` a GPU compiles what is long enough. A CPU with bf16 units compiles it in bf16, which makes small
    networks faster too: compiled blocks hardly read memory between their products. In float32 it does not pay there.

    Args:
        model: the network, which may be on the meta device.
    """
    train = recipe.train
    precision = choose_precision(train.precision, device, model)
    if train.compile != "auto":
        return Arithmetic(precision, train.compile)
    if device.type == "cuda":
        return Arithmetic(precision, total >= COMPILE_FROM_STEPS and has_triton())
    fast = choose_precision("auto", device)  # of any network
    if device.type != "cpu" or "float32" in (fast.name, train.precision) or not any(True for _ in blocks_of(model)):
        return Arithmetic(precision, compiled=False)
    work = total * train.batch_size * step_cost(recipe).flops_per_image
    if work < COMPILE_FROM_FLOPS or not _has_compiler():
        return Arithmetic(precision, compiled=False)
    return Arithmetic(fast, compiled=True)


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler  # half a second

    try:
        return bool(get_cpp_compiler())
    except RuntimeError:  # there is none
        return False
