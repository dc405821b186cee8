"""Preview pictures of a run: originals, their reconstructions, and samples of fixed seeds in one and more steps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spheregen.data import image_grid, save_png
from spheregen.losses.reconstruction import to_unit
from spheregen.models.protocol import SphereGenerator
from spheregen.sampling import reconstruct, sample, seeded_noise

COLUMNS = 10
STEPS = (1, 4)


@torch.no_grad()
def save_preview(model: SphereGenerator, originals: Tensor, path: Path, metadata: dict[str, str]) -> None:
    """Write a grid: a row of originals (B, C, S, S) in [-1, 1], a row of reconstructions, then two rows of samples for
    each step count. The same seeds every time, so that pictures of a run can be compared."""
    originals = originals[:COLUMNS]
    device = originals.device
    rows = [originals, reconstruct(model, originals)]
    columns = originals.shape[0]
    count = 2 * columns
    labels = torch.arange(count, device=device) % model.num_classes if model.num_classes else None
    for steps in STEPS:
        noise = seeded_noise(range(count), model.latent_shape, steps - 1)
        step_noise = noise.steps.to(device) if isinstance(noise.steps, Tensor) else noise.steps
        rows.append(sample(model, noise.initial.to(device), labels, steps=steps, step_noise=step_noise).images)
    size = originals.shape[-1]
    grid = image_grid(to_unit(torch.cat(rows)).clamp(0, 1).cpu(), columns=columns, scale=max(1, 48 // size))
    save_png(grid, path, metadata)
