"""The codes of a data set under a trained model, and the prior that is fitted to them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from spheregen.distributed import World
from spheregen.fitted import FittedPrior, fit_prior, fit_text_prior
from spheregen.protocol import SphereGenerator

SEEN_SHARE = 0.2
"""Images whose codes a run fits its prior to, as a share of those it was trained on, repetitions included: an encode is
about a twelfth of a training step, so that the prior takes less than 2 % of the run."""
MOST_NUMBERS = 1 << 28
"""Of all codes together, which are held in memory: 1 GiB."""


def most_codes(model: SphereGenerator) -> int:
    """Return how many codes of a model are held at once."""
    return max(2, MOST_NUMBERS // math.prod(model.latent_shape))


@torch.no_grad()
def fitted_to(
    model: SphereGenerator,
    inputs: Iterable[tuple[Tensor, Tensor | None]],
    *,
    encoded: bool = False,
    world: World | None = None,
) -> FittedPrior:
    """Fit the prior of a model to inputs, those of this process.

    Args:
        model: a generator, on any device.
        inputs: images (B, C, S, S) in [-1, 1] and their labels: class ids (B,), texts (B, D + 1), or None without.
        encoded: inputs are latents (B, N, d) as the model's tokenizer makes them.
        world: all processes that hold inputs.

    Raises:
        DataError: fewer than two images in all.
    """
    device = next(model.parameters()).device
    nothing = torch.empty(0, model.text_width + 1) if model.text_width else torch.empty(0, dtype=torch.int64)
    codes, labels = [torch.empty(0, math.prod(model.latent_shape))], [nothing]
    for batch, ids in inputs:
        told = ids.to(device) if ids is not None and model.label_width else None
        here = batch.to(device)
        points = model.prior.project(here) if encoded else model.encode(here, told)
        codes.append(points.float().cpu().flatten(1))
        if ids is not None:
            labels.append(ids.cpu())
    classes, gather = model.num_classes, (world or World()).gather_objects
    if model.text_width:
        told = torch.cat(labels)
        vectors = torch.cat([told[:, : model.vector_width], told[:, -1:]], dim=1)
        return fit_text_prior(torch.cat(codes), vectors, gather=gather)
    return fit_prior(torch.cat(codes), torch.cat(labels) if classes else None, classes, gather=gather)
