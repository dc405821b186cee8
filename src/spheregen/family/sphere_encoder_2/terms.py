"""The terms of Sphere Encoder 2's loss and their weights, and the random numbers that a batch has for them.

Sources: as in `loss`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.family.sphere_encoder_2.features import FeatureConfig
from spheregen.family.sphere_encoder_2.frechet import FrechetConfig
from spheregen.family.sphere_encoder_2.score import ScoreConfig
from spheregen.family.terms import LossConfig
from spheregen.noise import BatchNoise

BAND_SHARE = 4.0
"""The soft regime's band is divided by this."""


@dataclass(frozen=True, kw_only=True)
class SphereEncoder2LossConfig(LossConfig):
    """Weights of the terms, the regimes, and what the terms are made of. A term of weight 0 is not computed.

    Raises:
        ConfigError: a value outside of its range, or nothing that ties decodes to images.
    """

    weighted = (
        "distance",
        "perceptual",
        "latent_consistency",
        "score_matching",
        "frechet_encoder",
        "frechet_features",
        "frechet_judge",
    )
    shares = ("label_dropout", "path_drop", "flip")

    distance: float = 1.0
    """Of the distance of pixels in [0, 1] to the image, at low angles."""
    distance_kind: Literal["smooth_l1", "l2"] = "smooth_l1"
    """Half the squared error for differences below 1, as published, or all of it."""
    perceptual: float = 1.0
    """Of the perceptual distance to the image at low angles, with a classifier's at all angles."""
    perceptual_scale: int = 1
    """Images are reduced by this factor before the maps of that term are compared: at 2 they cost a quarter."""
    latent_consistency: float = 0.1
    """Of 1 - cos(f(E(x')), sg(f(z))) at high angles."""
    score_matching: float = 0.0
    """Of distribution matching at high angles; 1 in the recipes."""
    frechet_encoder: float = 0.0
    """Of the Frechet distance of latents f(E(x'))."""
    frechet_features: float = 0.0
    """Of that of the last map of the feature network."""
    frechet_judge: float = 0.0
    """Of that of a judge's features to those of the data."""
    regime: Literal["soft", "hard"] = "soft"
    """w_low = sigmoid(-(a - threshold) / (band / 4)), or 1 up to the threshold and 0 above."""
    threshold: float = 70.0
    """Degrees."""
    band: float = 5.0
    """Degrees."""
    label_dropout: float = 0.1
    """Probability that a label becomes the null class."""
    path_drop: float = 0.1
    """Share of samples that each branch of a transformer block leaves out: stochastic depth. The samples are drawn over
    the global batch."""
    flip: float = 0.5
    """Probability that both images are mirrored before the classifier compares them."""
    shift: float = 0.0625
    """The largest move before that, as a share of the side."""
    scale: tuple[float, float] = (0.85, 1.0)
    """The least and the largest scale before that."""
    feature_shift: float = 0.015625
    """The share of the side by which images are moved at most before their features are compared. Published for
    features that are 4 of 256 pixels apart; such small moves leave patterns of wider distances unseen."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """Of distribution matching."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Its denoisers."""
    frechet: FrechetConfig = field(default_factory=FrechetConfig)
    """Of all Frechet terms."""
    judge: FeatureConfig = field(default_factory=lambda: FeatureConfig(layers=(3,)))
    """The judge: the mean of the last of its layers is compared."""
    judge_seed: int = 0
    """Decoded images from which the judge's history begins, as `frechet.keeps_generated` keeps one: the term is 0 until
    so many were seen; 50000 as published."""
    judge_reference: str | None = None
    """An .npz file with `mu` and `sigma` of the judge's features; None: they are measured on the first images of the
    data before the first step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance == self.perceptual == 0:
            raise ConfigError("without distance and perceptual nothing ties decodes to images; give one a weight")
        if not 0 < self.threshold < 90 or not 0 < self.band < 90:
            raise ConfigError("loss.threshold and loss.band are degrees between 0 and 90")
        if not 0 <= self.shift < 0.5 or not 0 < self.scale[0] <= self.scale[1] <= 2:
            raise ConfigError("loss.shift is a share below 0.5, and loss.scale from above 0 to 2, the lesser one first")
        if not 0 <= self.feature_shift < 0.5:
            raise ConfigError(f"loss.feature_shift is a share below 0.5, not {self.feature_shift:g}")
        if self.judge_seed < 0 or (self.judge_seed and not self.frechet.keeps_generated):
            raise ConfigError("loss.judge_seed is not negative, and begins a history: set loss.frechet.keeps_generated")
        if self.perceptual_scale < 1:
            raise ConfigError(f"loss.perceptual_scale is at least 1, not {self.perceptual_scale}")
        if self.path_drop == 1:
            raise ConfigError("loss.path_drop is a share below 1")

    @property
    def needs_perceptual(self) -> bool:
        """A term needs the perceptual network."""
        return self.perceptual > 0

    @property
    def needs_features(self) -> bool:
        """A term needs the feature network."""
        return self.score_matching > 0 or self.frechet_features > 0

    @property
    def encodes_again(self) -> bool:
        """A term needs the codes of the decodes."""
        return self.latent_consistency > 0 or self.frechet_encoder > 0

    def low(self, angles: Tensor) -> Tensor:
        """Return w_low (B,) of angles in radians."""
        degrees = torch.rad2deg(angles)
        if self.regime == "hard":
            return (degrees <= self.threshold).to(degrees.dtype)
        return torch.sigmoid(-(degrees - self.threshold) / (self.band / BAND_SHARE))


@dataclass(frozen=True, kw_only=True)
class SphereNoise(BatchNoise):
    """The random numbers of a global batch, or of one process's rows of it; slice it for micro-batches."""

    angle: Tensor
    """a, (B,) radians."""
    noise: Tensor
    """e, (B, N, d) standard Gaussian."""
    dropped: Tensor
    """(B,) bool: labels that the decoder does not see."""
    low: Tensor
    """(B,) w_low times G over its sum: a plain mean with it is the weighted mean over the global batch."""
    high: Tensor
    """(B,) the same of w_high."""
    share: Tensor
    """(B,) the same for distribution matching, whose sum has another eps."""
    weight: Tensor
    """(B,) w_high itself."""
    kept: Tensor | None = None
    """(B, decoder blocks, 2) factors of stochastic depth."""
    kept_encoder: Tensor | None = None
    """(B, 2, encoder blocks, 2) the same of an encoder that learns, for both its calls."""
    affine: Tensor | None = None
    """(B, 4) see `features.affine`."""
    moves: Tensor | None = None
    """(B, 2, 3): rows, columns and 0 or 1 (mirrored) by which images and decodes are moved before their features."""
    normal: Tensor | None = None
    """(B, J, 3) standard normal numbers of the noise levels, of decoder, real and fake denoiser."""
    kept_score: Tensor | None = None
    """(B, J, 4, blocks, 2) factors of stochastic depth: real and fake for the decoder, then for themselves."""
    seeds: Tensor | None = None
    """(B,) int64 seeds of the noise on features."""
    samples: int
    """G."""
    progress: float = 0.0
    """The share of the run that is done."""
