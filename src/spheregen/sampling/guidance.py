"""Guidance as a wrapper of a generator: sampling loops never see it.

A guidance is called with a generator and a condition and returns the `GuidedModel` that a loop runs. The one that the
papers use is `ClassifierFreeGuidance`; a researcher's own takes its place wherever a guidance scale is accepted.

Source: Yue et al. 2026 (arXiv 2602.15030), guidance at the decoder, the encoder, or both (method.md, section 1.3); Do
et al. 2026 (arXiv 2605.15592), guidance of the clean latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spheregen.conditioning import Condition, Labels
from spheregen.errors import ConfigError, did_you_mean
from spheregen.prior import Angle, Prior
from spheregen.protocol import Context, SphereGenerator

PLACES = ("pixel", "latent", "both")


class GuidedModel(Protocol):
    """A generator under a condition: all that a sampling loop calls."""

    @property
    def prior(self) -> Prior:
        """The latent space."""

    def predict(self, v: Tensor, angle: Angle) -> tuple[Tensor, Context | None]:
        """Return predictions, images (B, C, S, S) in [-1, 1] or clean latents (B, N, d), and what a refiner is told.

        Args:
            v: points (B, N, d).
            angle: radians: how far noise moved them.
        """

    def to_latent(self, prediction: Tensor) -> Tensor:
        """Return predictions as latents (B, N, d) before the sphere."""


class Guidance(Protocol):
    """Makes a generator follow its condition."""

    def __call__(self, model: SphereGenerator, condition: Condition) -> GuidedModel:
        """Return the generator under this condition."""


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

    def __call__(self, model: SphereGenerator, condition: Condition) -> Guided:
        """Return `model` under `condition`.

        Raises:
            ConfigError: a scale other than 1 without labels to guide towards, or a place that the model has not.
        """
        places = model.guidance_places if self.place == "both" else (self.place,)
        _check_places(model, places)
        if self.scale != 1 and condition.index is None:
            raise ConfigError("guidance steers towards a class: give labels, or guidance 1 for an unconditional sample")
        each = self.scale if len(places) == 1 else math.sqrt(self.scale)
        return Guided(
            model,
            condition,
            pixel_scale=each if "pixel" in places else 1,
            latent_scale=each if "latent" in places else 1,
        )


class Guided:
    """A generator under classifier-free guidance.

    Args:
        model: the generator.
        condition: of the B samples.
        pixel_scale: of predictions, where they are images.
        latent_scale: of raw latents, or of predictions where they are latents.

    Raises:
        ConfigError: a scale other than 1 at a place that the model has not.
    """

    def __init__(
        self, model: SphereGenerator, condition: Condition, pixel_scale: float = 1.0, latent_scale: float = 1.0
    ) -> None:
        scales = {"pixel": pixel_scale, "latent": latent_scale}
        _check_places(model, [place for place, scale in scales.items() if scale != 1])
        self.model, self.prior, self.condition = model, model.prior, condition
        self.both = condition.with_null()
        """Of 2 B samples: under their labels, then under the null class."""
        self.pixel_scale, self.latent_scale = pixel_scale, latent_scale

    def predict(self, v: Tensor, angle: Angle) -> tuple[Tensor, Context | None]:
        model, images = self.model, self.model.predicts_images
        scale = self.pixel_scale if images else self.latent_scale
        run = model.predict_with_context if model.refiner is not None else lambda *of: (model.predict(*of), None)
        if scale == 1:
            return run(v, self.condition, angle)
        twice = torch.cat([angle, angle]) if isinstance(angle, Tensor) and angle.ndim else angle
        pair, context = run(torch.cat([v, v]), self.both, twice)
        prediction = _guide(pair, scale).clamp(-1, 1) if images else _guide(pair, scale)
        return prediction, None if context is None else context[slice(0, len(v))]

    def to_latent(self, prediction: Tensor) -> Tensor:
        scale = self.latent_scale if self.model.predicts_images else 1.0
        if scale == 1:
            return self.model.to_latent(prediction, self.condition)
        return _guide(self.model.to_latent(torch.cat([prediction, prediction]), self.both), scale)


def _guide(pair: Tensor, scale: float) -> Tensor:
    conditional, unconditional = pair.chunk(2)
    return unconditional + scale * (conditional - unconditional)  # method.md 1.3


def _check_places(model: SphereGenerator, asked: Iterable[str]) -> None:
    for place in asked:
        if place not in model.guidance_places:
            raise ConfigError(
                f"this model has no {place} guidance, it is guided at {' and '.join(model.guidance_places)}; set "
                f"guidance_at to {model.guidance_places[0]} or both"
            )


def guide(model: SphereGenerator, labels: Labels, guidance: float | Guidance = 1.0, place: str = "both") -> GuidedModel:
    """Return `model` under labels, guided by a scale at a place (pixel, latent or both), or by a guidance of yours."""
    if isinstance(guidance, int | float):
        guidance = ClassifierFreeGuidance(guidance, place)
    return guidance(model, model.condition(labels))
