"""The training objective of the Sphere Encoder: reconstruction, consistency and latent consistency.

Source: Yue et al. 2026 (arXiv 2602.15030), the training losses. Legend: B samples, e one Gaussian direction a sample,
x_weak and x_strong the decodes of the weakly and the strongly perturbed latent (x_noisy and x_NOISY of the paper),
sg the stop-gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.conditioning import drop_labels
from spheregen.errors import ConfigError
from spheregen.losses.perceptual import PerceptualLoss
from spheregen.losses.reconstruction import latent_distance, pixel_distance, to_unit
from spheregen.losses.terms import LossTerms, weighted_total
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.noise import NoiseConfig, Radii, draw_radii, perturb
from spheregen.sphere import spherify, upcast


@dataclass(frozen=True, kw_only=True)
class AutoencoderLossConfig:
    """Weights w1 to w5 of the five terms, and label dropout. A term of weight 0 is not computed.

    Raises:
        ConfigError: a negative weight, no reconstruction, or a probability outside [0, 1].
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
    label_dropout: float = 0.1
    """Probability that a label becomes the null class, afresh for each sample in each of the four network calls."""

    def __post_init__(self) -> None:
        for name, weight in self.weights().items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"loss.{name} is a weight, a finite number and not negative: {weight:g}")
        if self.pixel_reconstruction == self.perceptual_reconstruction == 0:
            raise ConfigError("without a reconstruction term nothing ties images to latents; give one of them a weight")
        if not 0 <= self.label_dropout <= 1:
            raise ConfigError(f"loss.label_dropout is a probability, not {self.label_dropout:g}")

    def weights(self) -> dict[str, float]:
        """The weight of each term, by its name."""
        return {
            "pixel_reconstruction": self.pixel_reconstruction,
            "perceptual_reconstruction": self.perceptual_reconstruction,
            "pixel_consistency": self.pixel_consistency,
            "perceptual_consistency": self.perceptual_consistency,
            "latent_consistency": self.latent_consistency,
        }

    @property
    def needs_perceptual(self) -> bool:
        return self.perceptual_reconstruction > 0 or self.perceptual_consistency > 0


@dataclass(frozen=True)
class AutoencoderDraws:
    """The random numbers of a global batch, or of one process's rows of it; slice it for micro-batches."""

    radii: Radii
    direction: Tensor
    """e, (B, N, d) standard Gaussian."""
    dropped: Tensor
    """(4, B) bool: labels to drop when encoding, decoding weak, decoding strong, encoding again."""

    def __getitem__(self, part: slice) -> AutoencoderDraws:
        return AutoencoderDraws(radii=self.radii[part], direction=self.direction[part], dropped=self.dropped[:, part])

    def each(self, change: Callable[[Tensor], Tensor]) -> AutoencoderDraws:
        """The same with every tensor changed, as by `lambda t: t.to(device)`."""
        return AutoencoderDraws(
            radii=Radii(strong=change(self.radii.strong), weak=change(self.radii.weak)),
            direction=change(self.direction),
            dropped=change(self.dropped),
        )


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

        Radii are stratified over the global batch. Each direction has a seed of its own, so that a process draws only
        the large tensors that it needs, and they are the same whatever the number of processes.
        """
        rows = rows or slice(0, batch)
        radii = draw_radii(batch, self.noise, self.model.config.max_angle, generator=generator)
        dropped = torch.rand((4, batch), generator=generator) < self.loss.label_dropout
        seeds = torch.randint(2**62, (batch,), generator=generator)[rows].tolist()
        direction = torch.empty(len(seeds), *self.model.latent_shape)
        own = torch.Generator()
        for row, seed in zip(direction, seeds, strict=True):
            row.normal_(generator=own.manual_seed(seed))
        return AutoencoderDraws(radii=radii[rows], direction=direction, dropped=dropped[:, rows])

    def __call__(self, images: Tensor, labels: Tensor | None, draws: AutoencoderDraws) -> LossTerms:
        """The loss of images (B, C, S, S) in [-1, 1] with labels (B,), or None for an unconditional model."""
        model, weights = self.model, self.loss.weights()
        labels = labels if model.num_classes else None
        encode_labels, weak_labels, strong_labels, again_labels = (
            drop_labels(labels, drop.to(images.device), model.num_classes) for drop in draws.dropped
        )
        z = upcast(model.encoder(images, encode_labels))  # under autocast too, angles are formed in float32
        pair = perturb(spherify(z), draws.direction.to(z.device, z.dtype), draws.radii, model.sigma_max)
        decode_labels = (
            None if weak_labels is None or strong_labels is None else torch.cat([weak_labels, strong_labels])
        )
        decoded = model.decoder(torch.cat([pair.weak, pair.strong]), decode_labels)
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
            again = model.encoder(decoded.chunk(2)[1], again_labels)
            terms["latent_consistency"] = latent_distance(again, z.detach())
        return weighted_total(terms, weights, observed={"latent": z.detach(), "image": x, "decoded": weak.detach()})
