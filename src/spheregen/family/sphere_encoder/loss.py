"""The training objective of the Sphere Encoder: reconstruction, consistency, latent consistency; more on request.

The optional terms are uniformity of the latents and the verdict of a critic.

Source: Yue et al. 2026 (arXiv 2602.15030), the training losses (method.md, section 1.2). Legend: B samples, e one
Gaussian noise a sample, x_weak and x_strong the decodes of the weakly and the strongly perturbed latent (x_noisy and
x_NOISY of the paper), sg the stop-gradient.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from spheregen.conditioning import Condition, Labels
from spheregen.errors import ConfigError
from spheregen.family.adversarial import AdversarialConfig
from spheregen.family.objective import Batches, Gather, Objective
from spheregen.family.sphere_encoder.network import ImageAutoencoder
from spheregen.family.terms import (
    LossTerms,
    check_perceived,
    latent_distance,
    perceived,
    pixel_distance,
    to_unit,
    weighted_total,
)
from spheregen.family.uniformity import (
    LARGEST_EXPONENT,
    hyperspherical_energy,
    projection_directions,
    sliced_wasserstein,
)
from spheregen.networks.perceptual import Features, PerceptualLoss
from spheregen.nn.critic import PatchCritic
from spheregen.nn.norm import recalibrate
from spheregen.noise import NoiseConfig, TrainingNoise, draw_training_noise
from spheregen.sphere import upcast

CALLS = 4  # encode, decode weak, decode strong, encode again: each drops labels for itself


@dataclass(frozen=True, kw_only=True)
class AutoencoderLossConfig(AdversarialConfig):
    """Weights w1 to w5 of the five terms and of two optional ones, and label dropout. A term of weight 0 is not
    computed.

    Raises:
        ConfigError: a negative weight, no reconstruction, or another value outside of its range.
    """

    weighted = (
        "pixel_reconstruction",
        "perceptual_reconstruction",
        "pixel_consistency",
        "perceptual_consistency",
        "latent_consistency",
        "uniformity",
        "adversarial",
    )
    shares = ("critic_lead", "label_dropout")

    pixel_reconstruction: float = 1.0
    """w1 of smoothL1(x_weak, x)."""
    perceptual_reconstruction: float = 1.0
    """w2 of perceptual(x_weak, x)."""
    pixel_consistency: float = 0.5
    """w3 of smoothL1(x_strong, sg(x_weak))."""
    perceptual_consistency: float = 0.5
    """w4 of perceptual(x_strong, sg(x_weak))."""
    perceptual_scale: int = 1
    """Images are reduced by this factor before they are compared perceptually: at 2 it costs a quarter, and a network
    of small photos sees whole things."""
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
        super().__post_init__()
        if self.pixel_reconstruction == self.perceptual_reconstruction == 0:
            raise ConfigError("without a reconstruction term nothing ties images to latents; give one of them a weight")
        if self.perceptual_scale < 1:
            raise ConfigError(f"loss.perceptual_scale is at least 1, not {self.perceptual_scale}")
        if self.uniformity_projections < 1:
            raise ConfigError(f"loss.uniformity_projections is at least 1, not {self.uniformity_projections}")
        if not 0 <= self.uniformity_exponent <= LARGEST_EXPONENT:
            raise ConfigError(
                f"loss.uniformity_exponent lies between 0 and {LARGEST_EXPONENT:g}, not {self.uniformity_exponent:g}"
            )

    @property
    def compares_features(self) -> bool:
        """A distance of perceptual features is one of the terms."""
        return self.perceptual_reconstruction > 0 or self.perceptual_consistency > 0

    @property
    def needs_perceptual(self) -> bool:
        """A term needs the perceptual network."""
        return self.compares_features or self.judges_features

    @property
    def needs_projections(self) -> bool:
        return self.uniformity > 0 and self.uniformity_kind == "sliced_wasserstein"


@dataclass(frozen=True)
class Passes:
    """The outputs of the networks for a batch, with gradients."""

    condition: Condition
    """Of the batch, no label dropped."""
    latent: Tensor
    """z, (B, N, d) before the sphere."""
    weak: Tensor
    """v_weak, (B, N, d)."""
    strong: Tensor
    """v_strong, (B, N, d)."""
    decoded: Tensor
    """(2 B, C, S, S) in [-1, 1] or free: the decodes of the weak points, then of the strong ones."""
    tokens: Tensor | None
    """(2 B, N, W) the decoder's last tokens, where they were asked for."""


class Learned(nn.Module):
    """All that learns where there is an adversarial term: the autoencoder and its critic."""

    def __init__(self, autoencoder: ImageAutoencoder, critic: PatchCritic) -> None:
        super().__init__()
        self.autoencoder, self.critic = autoencoder, critic


class AutoencoderObjective(Objective):
    """An encoder and a decoder of images, such as the Sphere Encoder, and their loss (method.md, section 1.2).

    Args:
        autoencoder: learns; of whatever networks its encoder and its decoder are.
        loss: weights of the terms.
        noise: laws of the training noise.
        perceptual: the perceptual distance; without one (None) its two terms are left out.

    Raises:
        ConfigError: without a perceptual network nothing ties images to latents, or the critic has nothing to judge.
    """

    def __init__(
        self,
        autoencoder: ImageAutoencoder,
        loss: AutoencoderLossConfig,
        noise: NoiseConfig,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        self.autoencoder, self.config, self.noise = autoencoder, loss, noise
        self.use_perceptual(perceptual, "pixel_reconstruction", loss.pixel_reconstruction)
        channels, size, _ = autoencoder.image_shape
        check_perceived(size, loss.perceptual_scale)
        self.critic = loss.new_critic(channels, size, perceptual)
        self.model = autoencoder if self.critic is None else Learned(autoencoder, self.critic)

    def generator(self, model: nn.Module) -> ImageAutoencoder:
        return cast(ImageAutoencoder, model) if self.critic is None else cast(Learned, model).autoencoder

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> TrainingNoise:
        """Return the random numbers of a global batch, or of these rows of it, from a CPU generator."""
        model, config = self.autoencoder, self.config
        shape, dropout = model.latent_shape, config.label_dropout
        found = draw_training_noise(
            batch, self.noise, model.alpha_max, shape, generator, rows, calls=CALLS, dropout=dropout
        )
        found = dataclasses.replace(found, progress=progress)
        if not config.needs_projections:  # drawn last, so that no other draw depends on them
            return found
        directions = projection_directions(config.uniformity_projections, math.prod(shape), generator=generator)
        return dataclasses.replace(found, projections=directions)

    def loss(self, inputs: Tensor, labels: Labels, noise: TrainingNoise) -> LossTerms:
        """Return the loss of images (B, C, S, S) in [-1, 1] with labels (B,), or None for an unconditional model."""
        return self.terms(self.passes(inputs, labels, noise), inputs, noise)

    def calibrate(self, model: Any, batches: Batches, gather: Gather) -> None:
        """Measure anew the statistics of the data in the encoder's batch norm, if it has one."""
        model = self.generator(model)

        def encode(batch: tuple[Tensor, Tensor | None]) -> None:
            images, labels = batch
            model.encode_raw(images, labels if model.label_width else None)

        recalibrate(model, encode, batches, gather=gather)

    def passes(self, images: Tensor, labels: Labels, noise: TrainingNoise, *, tokens: bool = False) -> Passes:
        """Encode, perturb and decode a batch; arguments as above.

        Args:
            tokens: keep the decoder's last tokens.
        """
        model = self.autoencoder
        condition = model.condition(labels if model.label_width else None)
        z = upcast(model.encoder(images, condition.dropped(noise.dropped[:, 0])))  # under autocast too
        v, e = model.prior.project(z), noise.noise.to(z.device, z.dtype)
        weak, strong = (model.prior.perturb(v, e, angle) for angle in (noise.weak, noise.strong))
        twice = condition.twice().dropped(noise.dropped[:, 1:3].T.flatten())
        points, last = torch.cat([weak, strong]), None
        if tokens:
            decoded, last = model.decoder(points, twice, tokens=True)
        else:
            decoded = model.decoder(points, twice)
        return Passes(condition=condition, latent=z, weak=weak, strong=strong, decoded=decoded, tokens=last)

    def _features(self, images: Tensor) -> Features:
        """Return what is compared perceptually of images (B, C, S, S) in [0, 1]."""
        assert self.perceptual is not None
        return self.perceptual.features(perceived(images, self.config.perceptual_scale))

    def terms(self, passes: Passes, images: Tensor, noise: TrainingNoise) -> LossTerms:
        """Return the loss of what `passes` made of the same images and noise."""
        weights, z, decoded = self.config.weights(), passes.latent, passes.decoded
        weak, strong = to_unit(decoded).chunk(2)
        x = to_unit(images)

        terms: dict[str, Tensor] = {}
        # method.md 1.2: w1 and w2 tie decodes to images, w3 and w4 strong decodes to weak ones, w5 latents to latents
        if weights["pixel_reconstruction"]:
            terms["pixel_reconstruction"] = pixel_distance(weak, x)
        if weights["pixel_consistency"]:
            terms["pixel_consistency"] = pixel_distance(strong, weak.detach())
        image_features: Features = ()
        strong_features: Features = ()
        if self.perceptual is not None and (weights["perceptual_reconstruction"] or self.config.judges_features):
            with torch.no_grad():
                image_features = self._features(x)
        if self.perceptual is not None and (weights["perceptual_consistency"] or self.config.judges_features):
            strong_features = self._features(strong)
        if self.perceptual is not None and self.config.compares_features:
            with torch.set_grad_enabled(weights["perceptual_reconstruction"] > 0):
                weak_features = self._features(weak)  # once for both terms
            if weights["perceptual_reconstruction"]:
                terms["perceptual_reconstruction"] = self.perceptual.distance(weak_features, image_features).mean()
            if weights["perceptual_consistency"]:
                target = tuple(feature.detach() for feature in weak_features)
                terms["perceptual_consistency"] = self.perceptual.distance(strong_features, target).mean()
        if self.critic is not None:  # strong decodes are the nearest to those of random points
            terms |= self.config.adversarial_terms(
                self.critic, x, strong, noise.progress, image_features, strong_features
            )
        if weights["latent_consistency"]:
            again = self.autoencoder.encoder(decoded.chunk(2)[1], passes.condition.dropped(noise.dropped[:, 3]))
            terms["latent_consistency"] = latent_distance(again, z.detach())
        if weights["uniformity"]:
            if self.config.uniformity_kind == "energy":
                terms["uniformity"] = hyperspherical_energy(z, self.config.uniformity_exponent)
            else:
                assert noise.projections is not None
                terms["uniformity"] = sliced_wasserstein(z, noise.projections, prior=self.autoencoder.prior)
        return weighted_total(terms, weights, observed={"latent": z.detach(), "data": x, "output": weak.detach()})
