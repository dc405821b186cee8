"""What a loss returns: its named terms, their weighted total, and what it computed on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """Named terms of a loss, each a scalar before its weight, and the weighted total that is minimised."""

    total: Tensor
    terms: Mapping[str, Tensor]
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of the batch, detached, from which the trainer's statistics are computed where they are wanted: `latent`
    (B, N, d) before the sphere, if there is one, `data` and `output`, what the model shall give and what it gave, of
    one shape (images in [0, 1] for an autoencoder, latents for a denoiser)."""


def weighted_total(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], observed: Mapping[str, Tensor] | None = None
) -> LossTerms:
    """Sum terms by their weights."""
    total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return LossTerms(
        total=total, terms={name: value.detach() for name, value in terms.items()}, observed=observed or {}
    )
