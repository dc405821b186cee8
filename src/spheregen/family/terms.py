"""A loss: its named terms, their weighted total, and what it computed on the way; distances that terms are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError, Settings, check_choices
from spheregen.sphere import upcast


@dataclass(frozen=True)
class LossTerms:
    """Named terms of a loss, each a scalar before its weight, and the weighted total that is minimised."""

    total: Tensor
    terms: Mapping[str, Tensor]
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of the batch, detached, from which the trainer's statistics are computed where they are wanted: `latent`
    (B, N, d) before the sphere, if there is one, `data` and `output`, what the model shall give and what it gave, of
    one shape (images in [0, 1] for an autoencoder, latents for a denoiser)."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(Settings):
    """The settings of a loss; a member derives its own, whose fields are the weights of its terms, and more.

    Raises:
        ConfigError: a value outside of its range.
    """

    weighted: ClassVar[tuple[str, ...]] = ()
    """The fields that are weights; a term of weight 0 is not computed."""
    shares: ClassVar[tuple[str, ...]] = ()
    """The fields that are probabilities or shares, from 0 to 1."""

    def __post_init__(self) -> None:
        check_choices(self, "loss.")
        for name in self.weighted:
            if not 0 <= (weight := getattr(self, name)) < float("inf"):
                raise ConfigError(f"loss.{name} is a weight, a finite number and not negative: {weight:g}")
        for name in self.shares:
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ConfigError(f"loss.{name} is a probability or share from 0 to 1, not {share:g}")

    def weights(self) -> dict[str, float]:
        """Return the weight of each term, by its name."""
        return {name: getattr(self, name) for name in self.weighted}


def weighted_total(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], observed: Mapping[str, Tensor] | None = None
) -> LossTerms:
    """Return terms with their sum by weights."""
    total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return LossTerms(
        total=total, terms={name: value.detach() for name, value in terms.items()}, observed=observed or {}
    )


def to_unit(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as [0, 1], in float32 or wider: losses compare pixels there."""
    return (upcast(images) + 1) / 2


def pixel_distance(images: Tensor, reference: Tensor) -> Tensor:
    """Return the mean smooth L1 (beta 1) of images on [0, 1]: half the squared error for differences below 1."""
    return functional.smooth_l1_loss(images, reference)


def latent_distance(z: Tensor, reference: Tensor) -> Tensor:
    """Return the mean over the batch of 1 - cos of the flattened latents (B, ...)."""
    cosine = torch.cosine_similarity(upcast(z).flatten(1), upcast(reference).flatten(1), dim=1)
    return (1 - cosine).mean()
