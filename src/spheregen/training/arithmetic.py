"""In which arithmetic a run computes, and whether its transformer blocks are compiled for it."""

from __future__ import annotations

import hashlib
import itertools
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton

from spheregen.family.recipe import Recipe
from spheregen.measure.precision import Precision, choose_precision, product_speeds
from spheregen.measure.remembered import recall, remember
from spheregen.nn.block import blocks_of
from spheregen.training.estimate import EFFICIENCY, step_cost

COMPILE_FROM_STEPS = 200
"""On a GPU: shorter runs do not win back the minute that compiling takes."""
SAVED_SHARE = 0.4
"""On a CPU with bf16 units: of the time of a step in float32, what bf16 with compiled blocks saves."""
COMPILE_SECONDS = 60.0
"""That compiling takes where it has not been measured."""
MEASURED = "compile-seconds.json"
"""In the cache folder: what compiling a network took on this machine the last time."""
_TIMED_STEPS = 8  # of a run, from which that is known


@dataclass(frozen=True)
class Arithmetic:
    """How a run computes, from its beginning to its end: its checkpoints know it."""

    precision: Precision
    compiled: bool

    def as_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"precision": self.precision.name, "compiled": self.compiled}


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
    eager = total * train.batch_size * step_cost(recipe).flops_per_image / (EFFICIENCY * product_speeds()[0])
    if SAVED_SHARE * eager < compile_seconds(recipe, model) or not _has_compiler():
        return Arithmetic(precision, compiled=False)
    return Arithmetic(fast, compiled=True)


def continued(chosen: Arithmetic, before: Mapping[str, Any] | None, recipe: Recipe, device: torch.device) -> Arithmetic:
    """Return how a run goes on that computed otherwise `before` it was interrupted: as it did, where that can be.

    What a recipe asks for stays; a choice that was made stays unless this device is slow at it.
    """
    if before is None or before == chosen.as_dict():
        return chosen
    precision, compiled = chosen.precision, chosen.compiled
    if recipe.train.precision == "auto" and before["precision"] != precision.name:
        if before["precision"] == "bf16" and choose_precision("auto", device).name != "bf16":
            return chosen
        precision = Precision(before["precision"], "as the run began")
    if recipe.train.compile == "auto":
        compiled = before["compiled"] and (_has_compiler() if device.type == "cpu" else has_triton())
    return Arithmetic(precision, compiled)


def compile_seconds(recipe: Recipe, model: nn.Module) -> float:
    """Return the seconds that compiling a network's blocks takes here, as far as known."""
    return recall(MEASURED, _blocks(recipe, model)) or COMPILE_SECONDS


class CompileClock:
    """Measures what compiling takes in a run, if it is to be `timed`, and remembers it."""

    def __init__(self, recipe: Recipe, model: nn.Module, *, timed: bool) -> None:
        self._name = _blocks(recipe, model) if timed else ""
        self._times = [time.monotonic()]

    def step(self) -> None:
        """Hear that a step is done."""
        if not self._name:
            return
        self._times.append(time.monotonic())
        if len(self._times) > _TIMED_STEPS:
            first, *others = (b - a for a, b in itertools.pairwise(self._times))
            remember(MEASURED, self._name, round(max(0.1, first - statistics.median(others)), 1))
            self._name = ""


def _blocks(recipe: Recipe, model: nn.Module) -> str:
    """Return a name for what is compiled: the shapes of the blocks, and the batch."""
    shapes = sorted({str([list(each.shape) for each in block.parameters()]) for block in blocks_of(model)})
    train = recipe.train
    text = f"{shapes} {train.batch_size} {train.micro_batch} {train.recompute}"
    return f"{recipe.kind} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler  # half a second

    try:
        return bool(get_cpp_compiler())
    except RuntimeError:  # there is none
        return False
