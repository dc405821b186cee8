"""Guidance as a wrapper of a generator: sampling loops never see it.

A guidance is called with a generator and labels and returns the `Steered` generator that a loop runs. The one that the
papers use is `ClassifierFreeGuidance`; a researcher's own takes its place wherever a guidance scale is accepted.

Source: Yue et al. 2026 (arXiv 2602.15030), guidance at the decoder, the encoder, or both; Do et al. 2026 (arXiv
2605.15592), guidance of the clean latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spheregen.conditioning import null_labels
from spheregen.errors import ConfigError, did_you_mean
from spheregen.models.protocol import Labels, SphereGenerator, predicts_images

PLACES = ("pixel", "latent", "both")


class Steered(Protocol):
    """A generator under fixed labels: all that a sampling loop calls."""

    @property
    def sigma_max(self) -> float:
        """The largest noise magnitude of training: what schedules are fractions of."""

    def predict(self, v: Tensor) -> Tensor:
        """Points on the sphere (B, N, d) to predictions: images (B, C, S, S) in [-1, 1], or clean latents (B, N, d)."""

    def to_latent(self, prediction: Tensor) -> Tensor:
        """Predictions to latents (B, N, d) before the sphere."""


class Guidance(Protocol):
    """Makes a generator follow its labels."""

    def __call__(self, model: SphereGenerator, labels: Tensor | None) -> Steered:
        """The generator under these labels, (B,) or (B, K+1), None for the null class."""


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """out = uncond + s * (cond - uncond): s = 1 is no guidance, s = 0 the null class.

    `place` says what is combined: decoded images (`pixel`, clamped to [-1, 1]), raw latents (`latent`), or `both` with
    sqrt(s) each. A model that predicts latents is guided there alone, so `both` is `latent` for it. Condition and null
    class go through the network as one batch.

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
            ConfigError: a scale other than 1 without labels to guide towards, or a place that the model has not.
        """
        places = model.guidance_places if self.place == "both" else (self.place,)
        _check_places(model, places)
        if self.scale == 1:
            return Guided(model, model.condition(labels))
        if labels is None:
            raise ConfigError("guidance steers towards a class: give labels, or guidance 1 for an unconditional sample")
        both = model.condition(torch.cat([labels, null_labels(labels, model.num_classes)]))
        assert both is not None  # there are labels, so there is a condition
        condition = both.rows(torch.arange(labels.shape[0], device=labels.device))
        each = self.scale if len(places) == 1 else math.sqrt(self.scale)
        return Guided(
            model,
            condition,
            both,
            pixel_scale=each if "pixel" in places else 1,
            latent_scale=each if "latent" in places else 1,
        )


@dataclass(frozen=True)
class Guided:
    """What classifier-free guidance makes of a generator.

    Raises:
        ConfigError: a scale other than 1 at a place that the model has not.
    """

    model: SphereGenerator
    condition: Labels
    """Of the B samples."""
    both: Labels = None
    """Of the B samples under their labels, then under the null class."""
    pixel_scale: float = 1.0
    """Of predictions, where they are images."""
    latent_scale: float = 1.0
    """Of raw latents, or of predictions where they are latents."""

    def __post_init__(self) -> None:
        scales = {"pixel": self.pixel_scale, "latent": self.latent_scale}
        _check_places(self.model, [place for place, scale in scales.items() if scale != 1])

    @property
    def sigma_max(self) -> float:
        return self.model.sigma_max

    def predict(self, v: Tensor) -> Tensor:
        if predicts_images(self.model):
            return self._guide(self.model.predict, v, self.pixel_scale).clamp(-1, 1)
        return self._guide(self.model.predict, v, self.latent_scale)

    def to_latent(self, prediction: Tensor) -> Tensor:
        scale = self.latent_scale if predicts_images(self.model) else 1.0
        return self._guide(self.model.to_latent, prediction, scale)

    def _guide(self, call: Callable[[Tensor, Labels], Tensor], inputs: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return call(inputs, self.condition)
        conditional, unconditional = call(torch.cat([inputs, inputs]), self.both).chunk(2)
        return unconditional + scale * (conditional - unconditional)


def _check_places(model: SphereGenerator, asked: Iterable[str]) -> None:
    for place in asked:
        if place not in model.guidance_places:
            raise ConfigError(
                f"this model has no {place} guidance, it is guided at {' and '.join(model.guidance_places)}; set "
                f"guidance_at to {model.guidance_places[0]} or both"
            )


def guide(
    model: SphereGenerator, labels: Tensor | None, guidance: float | Guidance = 1.0, place: str = "both"
) -> Steered:
    """`model` under `labels`, guided by a scale at a place (pixel, latent or both), or by a guidance of yours."""
    if isinstance(guidance, int | float):
        guidance = ClassifierFreeGuidance(guidance, place)
    return guidance(model, labels)
