"""The training objective of a latent denoiser: reconstruction and consistency of clean latents, each by L1 and cosine.

A step evaluates the denoiser twice, on the weakly and the strongly perturbed latents as one batch. What the weak half
predicts, without its gradient, is the target of the strong half, so there is no third evaluation and no pixel.

Source: Do et al. 2026 (arXiv 2605.15592), the training loss (method.md, section 2). Legend: B samples, z clean latents
(B, N, d), e one Gaussian noise a sample, G the denoiser, v_weak and v_strong the perturbed latents (v_noisy and v_NOISY
of the paper), sg the stop-gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.conditioning import Labels, make_condition
from spheregen.errors import ConfigError
from spheregen.family.objective import Objective
from spheregen.family.sphere_latent_encoder.network import LatentDenoiser, LatentGenerator
from spheregen.family.terms import LossConfig, LossTerms, latent_distance, weighted_total
from spheregen.noise import NoiseConfig, TrainingNoise, draw_training_noise
from spheregen.prior import PRIORS
from spheregen.protocol import Tokenizer
from spheregen.sphere import upcast

CALLS = 3  # predict from the weak latent, from the strong one, and again: each drops labels for itself


@dataclass(frozen=True, kw_only=True)
class LatentDenoiserLossConfig(LossConfig):
    """Weights of the terms, and label dropout. A term of weight 0 is not computed.

    Raises:
        ConfigError: a negative weight, no reconstruction, or another value outside of its range.
    """

    weighted = ("reconstruction", "reconstruction_cosine", "consistency", "consistency_cosine", "latent_consistency")
    shares = ("label_dropout",)

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
        super().__post_init__()
        if self.reconstruction == self.reconstruction_cosine == 0:
            raise ConfigError("without a reconstruction term nothing ties predictions to latents; give one a weight")

    @property
    def needs_strong(self) -> bool:
        """A term looks at the strongly perturbed latents."""
        return self.consistency > 0 or self.consistency_cosine > 0 or self.latent_consistency > 0


class LatentDenoiserObjective(Objective):
    """The denoiser and its loss on clean latents (method.md, section 2). It never sees a pixel.

    Args:
        model: the denoiser that learns.
        loss: weights of the terms.
        noise: laws of the training noise.
        tokenizer: of the latents, a frozen `nn.Module`; None for an estimate.

    Raises:
        ConfigError: denoiser and tokenizer do not fit together.
    """

    model: LatentDenoiser

    def __init__(
        self,
        model: LatentDenoiser,
        loss: LatentDenoiserLossConfig,
        noise: NoiseConfig,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.model, self.config, self.noise, self.tokenizer = model, loss, noise, tokenizer
        self.prior = PRIORS[model.config.prior]
        if tokenizer is not None:
            LatentGenerator(model, tokenizer)  # complains where they do not fit
            self.frozen = [cast(nn.Module, tokenizer)]

    def generator(self, model: nn.Module) -> LatentGenerator:
        assert self.tokenizer is not None
        return LatentGenerator(cast(LatentDenoiser, model), self.tokenizer)

    def draw(
        self, batch: int, generator: torch.Generator, rows: slice | None = None, *, progress: float = 0.0
    ) -> TrainingNoise:
        """Return the random numbers of a global batch, or of these rows of it, from a CPU generator."""
        config = self.model.config
        shape = config.tokens, config.channels
        return draw_training_noise(
            batch, self.noise, config.max_angle, shape, generator, rows, calls=CALLS, dropout=self.config.label_dropout
        )

    def loss(self, inputs: Tensor, labels: Labels, noise: TrainingNoise) -> LossTerms:
        """Return the loss of clean latents (B, N, d) with labels (B,), or None for an unconditional model."""
        model, weights = self.model, self.config.weights()
        classes = model.config.label_width
        condition = make_condition(labels if classes else None, classes, model.label_networks())
        of_weak, of_again = (condition.dropped(noise.dropped[:, call]) for call in (0, 2))
        z = upcast(inputs)
        v, e = self.prior.project(z), noise.noise.to(z.device, z.dtype)
        v_weak = self.prior.perturb(v, e, noise.weak)
        strong = None
        if self.config.needs_strong:
            both = condition.twice().dropped(noise.dropped[:, :2].T.flatten())
            v_strong = self.prior.perturb(v, e, noise.strong)
            weak, strong = upcast(model(torch.cat([v_weak, v_strong]), both)).chunk(2)
        else:
            weak = upcast(model(v_weak, of_weak))

        terms: dict[str, Tensor] = {}
        # method.md 2: 50 L1(G(v_weak), z) + (1 - cos) + 25 L1(G(v_strong), sg(G(v_weak))) + (1 - cos)
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
                again = upcast(model(self.prior.project(strong), of_again))
                terms["latent_consistency"] = latent_distance(again, z)
        return weighted_total(terms, weights, observed={"latent": z, "data": z, "output": weak.detach()})
