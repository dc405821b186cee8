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

SMALLEST_PERCEIVED = 8
"""Pixels along a side of the smallest images that perceptual networks take."""


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


def pixel_distances(images: Tensor, reference: Tensor, kind: str = "smooth_l1") -> Tensor:
    """Return the distance (B,) of each image on [0, 1], a mean over numbers: that of `pixel_distance`, or `l2`."""
    if kind == "l2":
        return (images - reference).square().flatten(1).mean(dim=1)
    return functional.smooth_l1_loss(images, reference, reduction="none").flatten(1).mean(dim=1)


def latent_distances(z: Tensor, reference: Tensor) -> Tensor:
    """Return 1 - cos (B,) of the flattened latents (B, ...)."""
    return 1 - torch.cosine_similarity(upcast(z).flatten(1), upcast(reference).flatten(1), dim=1)


def latent_distance(z: Tensor, reference: Tensor) -> Tensor:
    """Return the mean of `latent_distances` over the batch."""
    return latent_distances(z, reference).mean()


def perceived(images: Tensor, scale: int) -> Tensor:
    """Return images (B, C, S, S) as perceptual terms compare them: reduced by `loss.perceptual_scale`."""
    return functional.avg_pool2d(images, scale) if scale > 1 else images


def check_perceived(size: int, scale: int) -> None:
    """Refuse a `loss.perceptual_scale` that images of `size` pixels do not allow.

    Raises:
        ConfigError: it does not divide them, or leaves too little.
    """
    if scale > 1 and (size % scale or size // scale < SMALLEST_PERCEIVED):
        raise ConfigError(
            f"loss.perceptual_scale={scale} does not divide images of {size} px into such of {SMALLEST_PERCEIVED} px "
            "or more"
        )
