"""What stands in for data where memory and speed alone count."""

from __future__ import annotations

import torch

from spheregen.data import Batch
from spheregen.training.step import TrainingStep
from spheregen.training.systems import Draws


def synthetic_batch(step: TrainingStep, count: int) -> tuple[Batch, Draws]:
    """`count` random inputs with labels, as the system of `step` has them, and their draws, on its device.

    The draws are of the end of a run, where every term of the loss counts.
    """
    generator = torch.Generator().manual_seed(0)
    inputs, labels = step.system.synthetic(count, generator)
    draws = step.system.draw(count, generator, progress=1.0).each(lambda tensor: tensor.to(step.device))
    batch = Batch(
        inputs=inputs.to(step.device),
        labels=None if labels is None else labels.to(step.device),
        indices=torch.arange(count),
        step=0,
    )
    return batch, draws
