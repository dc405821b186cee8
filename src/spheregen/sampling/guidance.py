"""Classifier-free guidance, as a wrapper of a generator: sampling loops never see it.

Convention: out = uncond + s * (cond - uncond), so s = 1 is no guidance and s = 0 the null class. "both" guides the
decoder and the encoder by sqrt(s) each. Condition and null class go through the network as one batch.

Source: Yue et al. 2026 (arXiv 2602.15030), guidance at the decoder, the encoder, or both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.errors import ConfigError, did_you_mean
from spheregen.models.protocol import SphereGenerator

PLACES = ("pixel", "latent", "both")


@dataclass(frozen=True)
class Guided:
    """A generator under one condition, whose decode and encode are guided.

    `pixel_scale` acts on decoded images, clamped to [-1, 1]; `latent_scale` on raw latents.
    """

    model: SphereGenerator
    labels: Tensor | None
    pixel_scale: float = 1.0
    latent_scale: float = 1.0

    def decode(self, v: Tensor) -> Tensor:
        """Points on the sphere (B, N, d) to images in [-1, 1]."""
        return self._guide(self.model.decode, v, self.pixel_scale).clamp(-1, 1)

    def encode_raw(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] to latents (B, N, d) before the sphere."""
        return self._guide(self.model.encode_raw, images, self.latent_scale)

    def _guide(self, call: Callable[[Tensor, Tensor | None], Tensor], inputs: Tensor, scale: float) -> Tensor:
        if scale == 1 or self.labels is None:
            return call(inputs, self.labels)
        null = torch.full_like(self.labels, self.model.num_classes)
        both = call(torch.cat([inputs, inputs]), torch.cat([self.labels, null]))
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)


def guide(model: SphereGenerator, labels: Tensor | None, scale: float = 1.0, place: str = "both") -> Guided:
    """`model` under `labels`, guided by `scale` at `place` (pixel, latent or both).

    Raises:
        ConfigError: an unknown place, a negative scale, or a scale other than 1 without labels to guide towards.
    """
    if place not in PLACES:
        raise ConfigError(f"unknown guidance place {place!r}{did_you_mean(place, PLACES)}; use {', '.join(PLACES)}")
    if not scale >= 0:
        raise ConfigError(f"guidance is not negative: {scale:g}")
    if scale == 1:
        return Guided(model, labels)
    if labels is None:
        raise ConfigError("guidance steers towards a class: give labels, or guidance 1 for an unconditional sample")
    if place == "both":
        return Guided(model, labels, pixel_scale=math.sqrt(scale), latent_scale=math.sqrt(scale))
    return Guided(
        model, labels, pixel_scale=scale if place == "pixel" else 1, latent_scale=scale if place == "latent" else 1
    )
