"""What a training step really computes, for the figures that estimates give of it."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from spheregen.family.objective import Objective
from spheregen.training.estimate import synthetic_batch
from spheregen.training.recipe import Recipe
from spheregen.training.step import TrainingStep

BATCH = 16


def counted_flops(objective: Objective, recipe: Recipe) -> float:
    """Of a step for one image; with attention, and without gradients of the first inputs."""
    step = TrainingStep(objective, recipe, device=torch.device("cpu"), precision="float32")
    batch, noise = synthetic_batch(step, BATCH)
    with FlopCounterMode(display=False) as counter:
        step.backward(batch, noise)
    return counter.get_total_flops() / BATCH
