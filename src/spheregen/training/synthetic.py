"""What stands in for data and trained networks where memory and speed alone count: random pictures and weights."""

from __future__ import annotations

import torch

from spheregen.data import Batch
from spheregen.losses.autoencoder import AutoencoderDraws
from spheregen.losses.perceptual import PerceptualLoss, available_provider, random_perceptual
from spheregen.training.recipe import Recipe
from spheregen.training.step import TrainingStep


def synthetic_batch(step: TrainingStep, count: int) -> tuple[Batch, AutoencoderDraws]:
    """`count` random pictures of 256 levels in [-1, 1] with labels, and their draws, on the device of `step`."""
    config = step.recipe.model
    generator = torch.Generator().manual_seed(0)
    shape = (count, config.image_channels, config.image_size, config.image_size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).float() / 127.5 - 1
    labels = torch.randint(config.num_classes, (count,), generator=generator) if config.num_classes else None
    draws = step.system.draw(count, generator).each(lambda tensor: tensor.to(step.device))
    batch = Batch(
        images=images.to(step.device),
        labels=None if labels is None else labels.to(step.device),
        indices=torch.arange(count),
        step=0,
    )
    return batch, draws


def synthetic_perceptual(recipe: Recipe) -> PerceptualLoss | None:
    """The perceptual networks that a recipe asks for with random weights, on the current device; None for none."""
    if not recipe.loss.needs_perceptual or recipe.perceptual == "none":
        return None
    return random_perceptual(available_provider() if recipe.perceptual == "auto" else recipe.perceptual)
