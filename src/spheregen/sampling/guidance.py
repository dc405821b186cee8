"""Guidance as a wrapper of a generator: sampling loops never see it.

A guidance is called with a generator and labels and returns the `Steered` generator that a loop runs. The one that the
papers use is `ClassifierFreeGuidance`; a researcher's own takes its place wherever a guidance scale is accepted.

Source: Yue et al. 2026 (arXiv 2602.15030), guidance at the decoder, the encoder, or both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spheregen.conditioning import null_labels
from spheregen.errors import ConfigError, did_you_mean
from spheregen.models.protocol import Labels, SphereGenerator

PLACES = ("pixel", "latent", "both")


class Steered(Protocol):
    """A generator under fixed labels: all that a sampling loop calls."""

    @property
    def sigma_max(self) -> float:
        """The largest noise magnitude of training: what schedules are fractions of."""

    def decode(self, v: Tensor) -> Tensor:
        """Points on the sphere (B, N, d) to images (B, C, S, S) in [-1, 1]."""

    def encode_raw(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] to latents (B, N, d) before the sphere."""


class Guidance(Protocol):
    """Makes a generator follow its labels."""

    def __call__(self, model: SphereGenerator, labels: Tensor | None) -> Steered:
        """The generator under these labels, (B,) or (B, K+1), None for the null class."""


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """out = uncond + s * (cond - uncond): s = 1 is no guidance, s = 0 the null class.

    `place` says what is combined: decoded images (`pixel`, clamped to [-1, 1]), raw latents (`latent`), or `both` with
    sqrt(s) each. Condition and null class go through the network as one batch.

    Raises:
        ConfigError: an unknown place, or a scale that is negative or not finite.
    """

    scale: float = 1.0
    place: str = "both"

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            hint = did_you_mean(self.place, PLACES)
            raise ConfigError(f"unknown guidance place {self.place!r}{hint}; use {', '.join(PLACES)}")
        if not 0 <= self.scale < math.inf:
            raise ConfigError(f"guidance is not negative, and finite: {self.scale:g}")

    def __call__(self, model: SphereGenerator, labels: Tensor | None) -> Guided:
        """`model` under `labels`.

        Raises:
            ConfigError: a scale other than 1 without labels to guide towards.
        """
        if self.scale == 1:
            return Guided(model, model.condition(labels))
        if labels is None:
            raise ConfigError("guidance steers towards a class: give labels, or guidance 1 for an unconditional sample")
        both = model.condition(torch.cat([labels, null_labels(labels, model.num_classes)]))
        assert both is not None  # there are labels, so there is a condition
        condition = both.rows(torch.arange(labels.shape[0], device=labels.device))
        each = math.sqrt(self.scale) if self.place == "both" else self.scale
        return Guided(
            model,
            condition,
            both,
            pixel_scale=1 if self.place == "latent" else each,
            latent_scale=1 if self.place == "pixel" else each,
        )


@dataclass(frozen=True)
class Guided:
    """What classifier-free guidance makes of a generator."""

    model: SphereGenerator
    condition: Labels
    """Of the B samples."""
    both: Labels = None
    """Of the B samples under their labels, then under the null class."""
    pixel_scale: float = 1.0
    latent_scale: float = 1.0

    @property
    def sigma_max(self) -> float:
        return self.model.sigma_max

    def decode(self, v: Tensor) -> Tensor:
        return self._guide(self.model.decode, v, self.pixel_scale).clamp(-1, 1)

    def encode_raw(self, images: Tensor) -> Tensor:
        return self._guide(self.model.encode_raw, images, self.latent_scale)

    def _guide(self, call: Callable[[Tensor, Labels], Tensor], inputs: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return call(inputs, self.condition)
        conditional, unconditional = call(torch.cat([inputs, inputs]), self.both).chunk(2)
        return unconditional + scale * (conditional - unconditional)


def guide(
    model: SphereGenerator, labels: Tensor | None, guidance: float | Guidance = 1.0, place: str = "both"
) -> Steered:
    """`model` under `labels`, guided by a scale at a place (pixel, latent or both), or by a guidance of yours."""
    if isinstance(guidance, int | float):
        guidance = ClassifierFreeGuidance(guidance, place)
    return guidance(model, labels)
