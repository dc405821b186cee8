"""The training objective of a latent denoiser: reconstruction and consistency of clean latents, each by L1 and cosine.

A step evaluates the denoiser twice, on the weakly and the strongly perturbed latents as one batch. What the weak half
predicts, without its gradient, is the target of the strong half, so there is no third evaluation and no pixel.

Source: Do et al. 2026 (arXiv 2605.15592), the training loss. Legend: B samples, z clean latents (B, N, d), e one
Gaussian direction a sample, G the denoiser, v_weak and v_strong the perturbed latents (v_noisy and v_NOISY of the
paper), sg the stop-gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.conditioning import drop_labels
from spheregen.errors import ConfigError
from spheregen.losses.reconstruction import latent_distance
from spheregen.losses.terms import LossTerms, weighted_total
from spheregen.models.latent_denoiser import LatentDenoiser
from spheregen.noise import NoiseConfig, Radii, directions, draw_radii, perturb
from spheregen.prior import PRIORS
from spheregen.sphere import angle_to_sigma, upcast


@dataclass(frozen=True, kw_only=True)
class LatentDenoiserLossConfig:
    """Weights of the terms, and label dropout. A term of weight 0 is not computed.

    Raises:
        ConfigError: a negative weight, no reconstruction, or another value outside of its range.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

    reconstruction: float = 50.0
    """Of L1(G(v_weak), z), a mean over all numbers."""
    reconstruction_cosine: float = 1.0
    """Of 1 - cos(G(v_weak), z)."""
    consistency: float = 25.0
    """Of L1(G(v_strong), sg(G(v_weak)))."""
    consistency_cosine: float = 1.0
    """Of 1 - cos(G(v_strong), sg(G(v_weak)))."""
    latent_consistency: float = 0.0
    """Of 1 - cos(G(spherify(G(v_strong))), sg(z)): a third evaluation, half as much work again. The paper found such a
    term to hurt, without giving its form."""
    label_dropout: float = 0.1
    """Probability that a label becomes the null class, afresh for each sample in each evaluation."""

    def __post_init__(self) -> None:
        for name, weight in self.weights().items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"loss.{name} is a weight, a finite number and not negative: {weight:g}")
        if self.reconstruction == self.reconstruction_cosine == 0:
            raise ConfigError("without a reconstruction term nothing ties predictions to latents; give one a weight")
        if not 0 <= self.label_dropout <= 1:
            raise ConfigError(f"loss.label_dropout is a probability, not {self.label_dropout:g}")

    def weights(self) -> dict[str, float]:
        """The weight of each term, by its name."""
        return {
            "reconstruction": self.reconstruction,
            "reconstruction_cosine": self.reconstruction_cosine,
            "consistency": self.consistency,
            "consistency_cosine": self.consistency_cosine,
            "latent_consistency": self.latent_consistency,
        }

    @property
    def needs_strong(self) -> bool:
        """Whether any term looks at the strongly perturbed latents."""
        return self.consistency > 0 or self.consistency_cosine > 0 or self.latent_consistency > 0

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser in a step, each of them with gradients."""
        return 1 + self.needs_strong + (self.latent_consistency > 0)


@dataclass(frozen=True)
class LatentDenoiserDraws:
    """The random numbers of a global batch, or of one process's rows of it; slice it for micro-batches."""

    radii: Radii
    direction: Tensor
    """e, (B, N, d) standard Gaussian."""
    dropped: Tensor
    """(3, B) bool: labels to drop when predicting from the weak, from the strong latent, and again."""

    def __getitem__(self, part: slice) -> LatentDenoiserDraws:
        return LatentDenoiserDraws(
            radii=self.radii[part], direction=self.direction[part], dropped=self.dropped[:, part]
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> LatentDenoiserDraws:
        """The same with every tensor changed, as by `lambda t: t.to(device)`."""
        return LatentDenoiserDraws(
            radii=Radii(strong=change(self.radii.strong), weak=change(self.radii.weak)),
            direction=change(self.direction),
            dropped=change(self.dropped),
        )


class LatentDenoiserObjective:
    """The loss of a batch of clean latents.

    Args:
        model: the denoiser that learns.
        loss: weights of the terms.
        noise: laws of the training noise.
    """

    def __init__(self, model: LatentDenoiser, loss: LatentDenoiserLossConfig, noise: NoiseConfig) -> None:
        self.model, self.loss, self.noise = model, loss, noise
        self.sigma_max = angle_to_sigma(model.config.max_angle)
        self.prior = PRIORS[model.config.prior]

    def draw(self, batch: int, generator: torch.Generator, rows: slice | None = None) -> LatentDenoiserDraws:
        """The random numbers of a global batch, or of these rows of it, from a CPU generator."""
        rows = rows or slice(0, batch)
        radii = draw_radii(batch, self.noise, self.model.config.max_angle, generator=generator)
        dropped = torch.rand((3, batch), generator=generator) < self.loss.label_dropout
        config = self.model.config
        direction = directions(batch, (config.tokens, config.channels), generator, rows)
        return LatentDenoiserDraws(radii=radii[rows], direction=direction, dropped=dropped[:, rows])

    def __call__(self, latents: Tensor, labels: Tensor | None, draws: LatentDenoiserDraws) -> LossTerms:
        """The loss of clean latents (B, N, d) with labels (B,), or None for an unconditional model."""
        model, weights = self.model, self.loss.weights()
        classes = model.config.num_classes
        weak_labels, strong_labels, again_labels = (
            drop_labels(labels if classes else None, drop.to(latents.device), classes) for drop in draws.dropped
        )
        z = upcast(latents)
        v = self.prior.project(z)
        pair = perturb(v, draws.direction.to(z.device, z.dtype), draws.radii, self.sigma_max, prior=self.prior)
        strong = None
        if self.loss.needs_strong:
            both = None if weak_labels is None or strong_labels is None else torch.cat([weak_labels, strong_labels])
            weak, strong = upcast(model(torch.cat([pair.weak, pair.strong]), both)).chunk(2)
        else:
            weak = upcast(model(pair.weak, weak_labels))

        terms: dict[str, Tensor] = {}
        if weights["reconstruction"]:
            terms["reconstruction"] = functional.l1_loss(weak, z)
        if weights["reconstruction_cosine"]:
            terms["reconstruction_cosine"] = latent_distance(weak, z)
        if strong is not None:
            target = weak.detach()
            if weights["consistency"]:
                terms["consistency"] = functional.l1_loss(strong, target)
            if weights["consistency_cosine"]:
                terms["consistency_cosine"] = latent_distance(strong, target)
            if weights["latent_consistency"]:
                again = upcast(model(self.prior.project(strong), again_labels))
                terms["latent_consistency"] = latent_distance(again, z)
        return weighted_total(terms, weights, observed={"latent": z, "data": z, "output": weak.detach()})
