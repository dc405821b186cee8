"""The training objective of the Sphere Encoder: reconstruction, consistency, latent consistency; uniformity on request.

Source: Yue et al. 2026 (arXiv 2602.15030), the training losses. Legend: B samples, e one Gaussian direction a sample,
x_weak and x_strong the decodes of the weakly and the strongly perturbed latent (x_noisy and x_NOISY of the paper),
sg the stop-gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spheregen.conditioning import drop_labels
from spheregen.errors import ConfigError, check_choices
from spheregen.losses.perceptual import PerceptualLoss
from spheregen.losses.reconstruction import latent_distance, pixel_distance, to_unit
from spheregen.losses.terms import LossTerms, weighted_total
from spheregen.losses.uniformity import (
    LARGEST_EXPONENT,
    hyperspherical_energy,
    projection_directions,
    sliced_wasserstein,
)
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.noise import NoiseConfig, NoisePair, Radii, directions, draw_radii, perturb
from spheregen.sphere import upcast


@dataclass(frozen=True, kw_only=True)
class AutoencoderLossConfig:
    """Weights w1 to w5 of the five terms and of a sixth, optional one, and label dropout. A term of weight 0 is not
    computed.

    Raises:
        ConfigError: a negative weight, no reconstruction, or another value outside of its range.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

    pixel_reconstruction: float = 1.0
    """w1 of smoothL1(x_weak, x)."""
    perceptual_reconstruction: float = 1.0
    """w2 of perceptual(x_weak, x)."""
    pixel_consistency: float = 0.5
    """w3 of smoothL1(x_strong, sg(x_weak))."""
    perceptual_consistency: float = 0.5
    """w4 of perceptual(x_strong, sg(x_weak))."""
    latent_consistency: float = 0.1
    """w5 of 1 - cos(E(x_strong), sg(z))."""
    uniformity: float = 0.0
    """Weight of an explicit term that spreads the clean latents z; 0 as published. It compares the images of one pass
    in one process, so its value depends on the micro-batch."""
    uniformity_kind: Literal["sliced_wasserstein", "energy"] = "sliced_wasserstein"
    """Sliced Wasserstein distance to N(0, I), or pairwise hyperspherical energy."""
    uniformity_projections: int = 128
    """Directions of the sliced Wasserstein distance, drawn anew in each step."""
    uniformity_exponent: float = 1.0
    """s of the energy |x - y|^-s, 0 to 2; 0 is -log |x - y|."""
    label_dropout: float = 0.1
    """Probability that a label becomes the null class, afresh for each sample in each of the four network calls."""

    def __post_init__(self) -> None:
        check_choices(self, "loss.")
        for name, weight in self.weights().items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"loss.{name} is a weight, a finite number and not negative: {weight:g}")
        if self.pixel_reconstruction == self.perceptual_reconstruction == 0:
            raise ConfigError("without a reconstruction term nothing ties images to latents; give one of them a weight")
        if not 0 <= self.label_dropout <= 1:
            raise ConfigError(f"loss.label_dropout is a probability, not {self.label_dropout:g}")
        if self.uniformity_projections < 1:
            raise ConfigError(f"loss.uniformity_projections is at least 1, not {self.uniformity_projections}")
        if not 0 <= self.uniformity_exponent <= LARGEST_EXPONENT:
            raise ConfigError(
                f"loss.uniformity_exponent lies between 0 and {LARGEST_EXPONENT:g}, not {self.uniformity_exponent:g}"
            )

    def weights(self) -> dict[str, float]:
        """The weight of each term, by its name."""
        return {
            "pixel_reconstruction": self.pixel_reconstruction,
            "perceptual_reconstruction": self.perceptual_reconstruction,
            "pixel_consistency": self.pixel_consistency,
            "perceptual_consistency": self.perceptual_consistency,
            "latent_consistency": self.latent_consistency,
            "uniformity": self.uniformity,
        }

    @property
    def needs_perceptual(self) -> bool:
        return self.perceptual_reconstruction > 0 or self.perceptual_consistency > 0

    @property
    def needs_projections(self) -> bool:
        return self.uniformity > 0 and self.uniformity_kind == "sliced_wasserstein"


@dataclass(frozen=True)
class AutoencoderDraws:
    """The random numbers of a global batch, or of one process's rows of it; slice it for micro-batches."""

    radii: Radii
    direction: Tensor
    """e, (B, N, d) standard Gaussian."""
    dropped: Tensor
    """(4, B) bool: labels to drop when encoding, decoding weak, decoding strong, encoding again."""
    projections: Tensor | None = None
    """(K, N*d) unit vectors of the sliced Wasserstein distance, the same for all parts of a batch; None without it."""

    def __getitem__(self, part: slice) -> AutoencoderDraws:
        return AutoencoderDraws(
            radii=self.radii[part],
            direction=self.direction[part],
            dropped=self.dropped[:, part],
            projections=self.projections,
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> AutoencoderDraws:
        """The same with every tensor changed, as by `lambda t: t.to(device)`."""
        return AutoencoderDraws(
            radii=Radii(strong=change(self.radii.strong), weak=change(self.radii.weak)),
            direction=change(self.direction),
            dropped=change(self.dropped),
            projections=None if self.projections is None else change(self.projections),
        )


@dataclass(frozen=True)
class Passes:
    """What the networks made of a batch, with gradients."""

    latent: Tensor
    """z, (B, N, d) before the sphere."""
    points: NoisePair
    """The perturbed latents."""
    decoded: Tensor
    """(2 B, C, S, S) in [-1, 1] or free: the decodes of the weak points, then of the strong ones."""
    tokens: Tensor | None
    """(2 B, N, W) the decoder's last tokens, where they were asked for."""


class AutoencoderObjective:
    """The loss of a batch of images.

    Args:
        model: the autoencoder that learns.
        loss: weights of the terms.
        noise: laws of the training noise.
        perceptual: the perceptual distance; without one (None) its two terms are left out.
    """

    def __init__(
        self,
        model: SphereAutoencoder,
        loss: AutoencoderLossConfig,
        noise: NoiseConfig,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        if perceptual is None and not loss.pixel_reconstruction:
            raise ConfigError(
                "without a perceptual network the pixel term alone ties images to latents; give "
                "loss.pixel_reconstruction a weight or choose a perceptual provider"
            )
        self.model, self.loss, self.noise, self.perceptual = model, loss, noise, perceptual

    def draw(self, batch: int, generator: torch.Generator, rows: slice | None = None) -> AutoencoderDraws:
        """The random numbers of a global batch, or of these rows of it, from a CPU generator.

        Radii are stratified over the global batch, see also `spheregen.noise.directions`.
        """
        rows = rows or slice(0, batch)
        radii = draw_radii(batch, self.noise, self.model.config.max_angle, generator=generator)
        dropped = torch.rand((4, batch), generator=generator) < self.loss.label_dropout
        direction = directions(batch, self.model.latent_shape, generator, rows)
        projections = None  # drawn last and only where they are used, so that no other draw depends on them
        if self.loss.needs_projections:
            projections = projection_directions(
                self.loss.uniformity_projections, math.prod(self.model.latent_shape), generator=generator
            )
        return AutoencoderDraws(
            radii=radii[rows], direction=direction, dropped=dropped[:, rows], projections=projections
        )

    def __call__(self, images: Tensor, labels: Tensor | None, draws: AutoencoderDraws) -> LossTerms:
        """The loss of images (B, C, S, S) in [-1, 1] with labels (B,), or None for an unconditional model."""
        return self.terms(self.passes(images, labels, draws), images, labels, draws)

    def passes(self, images: Tensor, labels: Tensor | None, draws: AutoencoderDraws, *, tokens: bool = False) -> Passes:
        """Encode, perturb, decode twice. Arguments as above.

        Args:
            tokens: keep the decoder's last tokens.
        """
        model = self.model
        encode_labels, weak_labels, strong_labels, _ = self._labels(images, labels, draws)
        z = upcast(model.encoder(images, encode_labels))  # under autocast too, angles are formed in float32
        v = model.prior.project(z)
        pair = perturb(v, draws.direction.to(z.device, z.dtype), draws.radii, model.sigma_max, prior=model.prior)
        decode_labels = (
            None if weak_labels is None or strong_labels is None else torch.cat([weak_labels, strong_labels])
        )
        made = model.decoder(torch.cat([pair.weak, pair.strong]), decode_labels, tokens=tokens)
        decoded, last = made if tokens else (made, None)
        return Passes(latent=z, points=pair, decoded=decoded, tokens=last)

    def _labels(self, images: Tensor, labels: Tensor | None, draws: AutoencoderDraws) -> list[Tensor | None]:
        """The labels of the four network calls."""
        classes = self.model.num_classes
        return [drop_labels(labels if classes else None, drop.to(images.device), classes) for drop in draws.dropped]

    def terms(self, passes: Passes, images: Tensor, labels: Tensor | None, draws: AutoencoderDraws) -> LossTerms:
        """The loss of what `passes` made of the same arguments."""
        weights, z, decoded = self.loss.weights(), passes.latent, passes.decoded
        weak, strong = to_unit(decoded).chunk(2)
        x = to_unit(images)

        terms: dict[str, Tensor] = {}
        if weights["pixel_reconstruction"]:
            terms["pixel_reconstruction"] = pixel_distance(weak, x)
        if weights["pixel_consistency"]:
            terms["pixel_consistency"] = pixel_distance(strong, weak.detach())
        if self.perceptual is not None and self.loss.needs_perceptual:
            with torch.set_grad_enabled(weights["perceptual_reconstruction"] > 0):
                weak_features = self.perceptual.features(weak)  # once for both terms
            if weights["perceptual_reconstruction"]:
                with torch.no_grad():
                    image_features = self.perceptual.features(x)
                terms["perceptual_reconstruction"] = self.perceptual.distance(weak_features, image_features).mean()
            if weights["perceptual_consistency"]:
                target = tuple(feature.detach() for feature in weak_features)
                terms["perceptual_consistency"] = self.perceptual.distance(
                    self.perceptual.features(strong), target
                ).mean()
        if weights["latent_consistency"]:
            again = self.model.encoder(decoded.chunk(2)[1], self._labels(images, labels, draws)[3])
            terms["latent_consistency"] = latent_distance(again, z.detach())
        if weights["uniformity"]:
            terms["uniformity"] = self._uniformity(z, draws.projections)
        return weighted_total(terms, weights, observed={"latent": z.detach(), "data": x, "output": weak.detach()})

    def _uniformity(self, z: Tensor, projections: Tensor | None) -> Tensor:
        """How far clean latents (B, N, d) are from evenly spread. Draws without projections have them drawn here."""
        loss = self.loss
        if loss.uniformity_kind == "energy":
            return hyperspherical_energy(z, loss.uniformity_exponent)
        return sliced_wasserstein(z, projections, projections=loss.uniformity_projections, prior=self.model.prior)
