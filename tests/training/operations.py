"""What a training step really computes, for the figures that systems give of it."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from spheregen.training.recipe import Recipe
from spheregen.training.step import TrainingStep
from spheregen.training.synthetic import synthetic_batch
from spheregen.training.systems.base import System

BATCH = 16


def counted_flops(system: System, recipe: Recipe) -> float:
    """Of a step for one image; with attention, and without gradients of the first inputs."""
    step = TrainingStep(system, recipe, device=torch.device("cpu"), precision="float32")
    batch, draws = synthetic_batch(step, BATCH)
    with FlopCounterMode(display=False) as counter:
        step.backward(batch, draws)
    return counter.get_total_flops() / BATCH
