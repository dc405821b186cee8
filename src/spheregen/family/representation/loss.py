"""The training objective of a representation autoencoder: a decoder of frozen tokens, by pixels and by perception.

Latents are noised before they are decoded, so that the decoder forgives what a denoiser gets wrong.

Source: Zheng et al. 2025 (arXiv 2510.11690), the decoder's training. Legend: B samples, z clean latents (B, N, d), e
one Gaussian noise and t one noise level a sample, x images, y decodes of z + t*e.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.conditioning import Labels
from spheregen.errors import ConfigError
from spheregen.family.adversarial import AdversarialConfig
from spheregen.family.objective import Batches, Gather, Objective
from spheregen.family.representation.network import RepresentationAutoencoder, TokenCodec
from spheregen.family.terms import LossTerms, to_unit, weighted_total
from spheregen.measure.metrics import Moments
from spheregen.networks.encoders import FrozenEncoder
from spheregen.networks.normaliser import Normaliser, measure
from spheregen.networks.perceptual import Features, PerceptualLoss
from spheregen.nn.critic import PatchCritic
from spheregen.noise import BatchNoise, gaussian
from spheregen.sphere import per_sample, upcast
from spheregen.tensors import weights_hash


@dataclass(frozen=True, kw_only=True)
class RepresentationLossConfig(AdversarialConfig):
    """Weights of the terms, and the noise. A term of weight 0 is not computed.

    Raises:
        ConfigError: a negative weight, no reconstruction, or another value outside of its range.
    """

    weighted = ("l1", "perceptual", "adversarial")

    l1: float = 1.0
    """Of the mean absolute difference of pixels in [0, 1]."""
    perceptual: float = 1.0
    """Of the perceptual distance."""
    noise: float = 0.8
    """Deviation of the noise levels: t = |N(0, noise^2)| for each sample, as published; 0 decodes clean latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise < float("inf"):
            raise ConfigError(f"loss.noise is a deviation, a finite number and not negative: {self.noise:g}")
        if self.l1 == self.perceptual == 0:
            raise ConfigError("without l1 and perceptual nothing ties decodes to images; give one of them a weight")

    @property
    def needs_perceptual(self) -> bool:
        """A term needs the perceptual network."""
        return self.perceptual > 0 or self.judges_features


@dataclass(frozen=True, kw_only=True)
class RepresentationNoise(BatchNoise):
    """The random numbers of a global batch, or of one process's rows of it; slice it for micro-batches."""

    level: Tensor
    """t, (B,)."""
    noise: Tensor | None
    """e, (B, N, d) standard Gaussian; None without noise."""
    progress: float
    """The share of the run that is done, which switches the adversarial terms on."""


class Learned(nn.Module):
    """All that learns of a representation autoencoder, and the critic, if there is one."""

    def __init__(self, codec: TokenCodec, critic: PatchCritic | None = None) -> None:
        super().__init__()
        self.codec, self.critic = codec, critic


class RepresentationObjective(Objective):
    """A codec of a frozen encoder's tokens and its loss. The encoder stays out of EMA and checkpoints.

    Args:
        encoder: images (B, C, S, S) in [-1, 1] to tokens; frozen.
        model: learns, the critic in it too, where there is an adversarial term.
        loss: weights of the terms.
        perceptual: the perceptual distance; without one (None) its term is left out.

    Raises:
        ConfigError: without a perceptual network nothing is left to learn from, or nothing for the critic to judge.
    """

    model: Learned

    def __init__(
        self,
        encoder: FrozenEncoder,
        model: Learned,
        loss: RepresentationLossConfig,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        self.encoder, self.model, self.config = encoder, model, loss
        self.use_perceptual(perceptual, "l1", loss.l1)
        self.frozen = [encoder, *self.frozen]
        weights = encoder.state_dict()
        if not any(tensor.is_meta for tensor in weights.values()):  # as in estimates
            self.facts = {**self.facts, "encoder": weights_hash(weights)}
        projection = model.codec.projection
        self._fresh = None if projection is None else projection.weight.detach().clone()

    def generator(self, model: nn.Module) -> RepresentationAutoencoder:
        codec = cast(Learned, model).codec
        mode, learning = codec.training, [parameter for parameter in codec.parameters() if parameter.requires_grad]
        found = RepresentationAutoencoder(self.encoder, codec)  # which freezes it
        codec.train(mode)
        for parameter in learning:
            parameter.requires_grad_(True)
        return found

    def prepare(self, batches: Batches, gather: Gather) -> None:
        """Measure the statistics of the encoder's tokens. A fresh projection starts at their principal components."""
        codec = self.model.codec
        if codec.projection is None:
            codec.set_statistics(measure(self._tokens(batches), gather=gather))
            return
        own = Moments()
        for tokens in self._tokens(batches):
            own.update(tokens.flatten(0, 1))
        total = Moments()
        for part in gather(own):
            total.merge(part)
        covariance = total.gaussian.covariance
        measured = Normaliser.of_variance(total.gaussian.mean[None], covariance.diagonal()[None])
        codec.set_statistics(measured, covariance / (measured.std.T * measured.std).to(covariance))
        if self._fresh is not None and torch.equal(codec.projection.weight.cpu(), self._fresh):
            codec.projection.start()  # not one of a model to fine-tune

    @torch.no_grad()
    def _tokens(self, batches: Batches) -> Iterator[Tensor]:
        for images, _ in batches:
            yield self.encoder(images)

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> RepresentationNoise:
        """Return the random numbers of a global batch, or of these rows of it, from a CPU generator."""
        rows = rows or slice(0, batch)
        level = self.config.noise * torch.randn(batch, generator=generator).abs()
        noise = gaussian(batch, self.model.codec.latent_shape, generator, rows) if self.config.noise else None
        return RepresentationNoise(level=level[rows], noise=noise, progress=progress)

    def loss(self, inputs: Tensor, labels: Labels, noise: RepresentationNoise) -> LossTerms:
        """Return the loss of images (B, C, S, S) in [-1, 1]."""
        with torch.no_grad():
            tokens = self.encoder(inputs)
        noisy = z = self.model.codec.encode(tokens)
        if noise.noise is not None:
            noisy = z + per_sample(noise.level.to(z.device, z.dtype), z) * noise.noise.to(z.device, z.dtype)
        x, y = to_unit(inputs), to_unit(upcast(self.model.codec.decode(noisy)))

        terms: dict[str, Tensor] = {}
        if self.config.l1:
            terms["l1"] = functional.l1_loss(y, x)
        of_images: Features = ()
        of_decodes: Features = ()
        if self.perceptual is not None and self.config.needs_perceptual:
            with torch.no_grad():
                of_images = self.perceptual.features(x)
            of_decodes = self.perceptual.features(y)
            if self.config.perceptual:
                terms["perceptual"] = self.perceptual.distance(of_decodes, of_images).mean()
        if self.model.critic is not None:
            terms |= self.config.adversarial_terms(self.model.critic, x, y, noise.progress, of_images, of_decodes)
        observed = {"latent": z.detach(), "data": x, "output": y.detach()}
        return weighted_total(terms, self.config.weights(), observed=observed)
