"""The training objective of a representation autoencoder: a decoder of frozen tokens, by pixels and by perception.

Latents are noised before they are decoded, so that the decoder forgives what a denoiser gets wrong.

Source: Zheng et al. 2025 (arXiv 2510.11690), the decoder's training. Legend: B samples, z clean latents (B, N, d), e
one Gaussian direction and t one noise level a sample, x images, y decodes of z + t*e.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError
from spheregen.losses.adversarial import CRITIC, AdversarialConfig
from spheregen.losses.perceptual import Features, PerceptualLoss
from spheregen.losses.reconstruction import to_unit
from spheregen.losses.terms import LossTerms, weighted_total
from spheregen.nn.critic import PatchCritic
from spheregen.noise import directions
from spheregen.sphere import upcast


@dataclass(frozen=True, kw_only=True)
class RepresentationLossConfig(AdversarialConfig):
    """Weights of the terms, and the noise. A term of weight 0 is not computed.

    Raises:
        ConfigError: a negative weight, no reconstruction, or another value outside of its range.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

    l1: float = 1.0
    """Of the mean absolute difference of pixels in [0, 1]."""
    perceptual: float = 1.0
    """Of the perceptual distance."""
    noise: float = 0.8
    """Deviation of the noise levels: t = |N(0, noise^2)| for each sample, as published; 0 decodes clean latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("l1", "perceptual", "noise"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"loss.{name} is a finite number and not negative: {getattr(self, name):g}")
        if self.l1 == self.perceptual == 0:
            raise ConfigError("without l1 and perceptual nothing ties decodes to images; give one of them a weight")

    def weights(self) -> dict[str, float]:
        """The weight of each term, by its name; that of the critic's own is 1."""
        return {"l1": self.l1, "perceptual": self.perceptual, "adversarial": self.adversarial, CRITIC: 1.0}

    @property
    def needs_perceptual(self) -> bool:
        """A term needs the perceptual network."""
        return self.perceptual > 0 or self.judges_features


@dataclass(frozen=True)
class RepresentationDraws:
    """The random numbers of a global batch, or of one process's rows of it; slice it for micro-batches."""

    level: Tensor
    """t, (B,)."""
    direction: Tensor | None
    """e, (B, N, d) standard Gaussian; None without noise."""
    progress: float
    """The share of the run that is done, which switches the adversarial terms on."""

    def __getitem__(self, part: slice) -> RepresentationDraws:
        direction = None if self.direction is None else self.direction[part]
        return dataclasses.replace(self, level=self.level[part], direction=direction)

    def each(self, change: Callable[[Tensor], Tensor]) -> RepresentationDraws:
        """The same with every tensor changed, as by `lambda t: t.to(device)`."""
        direction = None if self.direction is None else change(self.direction)
        return dataclasses.replace(self, level=change(self.level), direction=direction)


class Codec(Protocol):
    """What learns: between an encoder's tokens and latents, and from latents to images."""

    latent_shape: tuple[int, int]

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens of the encoder to normalised latents (B, N, d)."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, N, d) to images (B, C, S, S) in [-1, 1], not clamped."""


class RepresentationObjective:
    """The loss of a batch of images.

    Args:
        encoder: images (B, C, S, S) in [-1, 1] to tokens; frozen.
        codec: learns.
        loss: weights of the terms.
        perceptual: the perceptual distance; without one (None) its term is left out.
        critic: learns too, where there is an adversarial term.

    Raises:
        ConfigError: without a perceptual network nothing is left to learn from, or nothing for the critic to judge.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor],
        codec: Codec,
        loss: RepresentationLossConfig,
        perceptual: PerceptualLoss | None = None,
        critic: PatchCritic | None = None,
    ) -> None:
        if perceptual is None and not loss.l1:
            raise ConfigError(
                "without a perceptual network the l1 term alone ties decodes to images; give loss.l1 a weight or "
                "choose a perceptual provider"
            )
        self.encoder, self.codec, self.loss, self.perceptual = encoder, codec, loss, perceptual
        self._adversarial = loss.adversarial_terms(critic, perceptual=perceptual is not None)

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> RepresentationDraws:
        """The random numbers of a global batch, or of these rows of it, from a CPU generator."""
        rows = rows or slice(0, batch)
        level = self.loss.noise * torch.randn(batch, generator=generator).abs()
        direction = directions(batch, self.codec.latent_shape, generator, rows) if self.loss.noise else None
        return RepresentationDraws(level=level[rows], direction=direction, progress=progress)

    def __call__(self, images: Tensor, draws: RepresentationDraws) -> LossTerms:
        """The loss of images (B, C, S, S) in [-1, 1]."""
        with torch.no_grad():
            tokens = self.encoder(images)
        z = self.codec.encode(tokens)
        noisy = z
        if draws.direction is not None:
            noisy = z + draws.level.to(z.device, z.dtype).view(-1, 1, 1) * draws.direction.to(z.device, z.dtype)
        x, y = to_unit(images), to_unit(upcast(self.codec.decode(noisy)))

        terms: dict[str, Tensor] = {}
        if self.loss.l1:
            terms["l1"] = functional.l1_loss(y, x)
        of_images: Features = ()
        of_decodes: Features = ()
        if self.perceptual is not None and self.loss.needs_perceptual:
            with torch.no_grad():
                of_images = self.perceptual.features(x)
            of_decodes = self.perceptual.features(y)
            if self.loss.perceptual:
                terms["perceptual"] = self.perceptual.distance(of_decodes, of_images).mean()
        if self._adversarial is not None:
            terms |= self._adversarial(x, y, draws.progress, of_images, of_decodes)
        observed = {"latent": z.detach(), "data": x, "output": y.detach()}
        return weighted_total(terms, self.loss.weights(), observed=observed)
