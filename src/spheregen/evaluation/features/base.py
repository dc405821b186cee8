"""The one face of all feature networks: 8-bit images in, features and perhaps class logits out.

Legend: B images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureBatch:
    """What a network sees in B images."""

    features: Tensor
    """(B, D) float32."""
    logits: Tensor | None = None
    """(B, K) float32 scores of classes before the softmax, from networks that classify."""


@dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """What a figure must say of the network that it rests on."""

    name: str
    """`own`, `inception`, `dinov2` ..., or `module:factory`."""
    title: str
    """In words, such as "Inception-v3 of 2015-12-05 (StyleGAN3's TorchScript)"."""
    distance: str
    """What the Frechet distance of these features is called: `FID` for Inception alone, else `FD-...`."""
    dim: int
    """D."""
    preprocessing: str
    """Exactly how 8-bit images become the network's input: size, filter, range, normalisation."""
    weights: str
    """First 16 hexadecimal digits of the SHA-256 of the weights: figures of other weights are other figures."""
    classes: int = 0
    """K, where there are logits."""
    normalised: bool = False
    """Whether features have unit norm (CLIP's, for CMMD)."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the metadata of files."""
        return dataclasses.asdict(self)


class FeatureExtractor(Protocol):
    """A frozen network with its preprocessing. It is deterministic: the same batch gives the same bits."""

    @property
    def info(self) -> FeatureInfo:
        """What it is."""

    def __call__(self, images: Tensor) -> FeatureBatch:
        """Features of uint8 images (B, C, H, W), C = 1 (grey, repeated) or 3, on any device.

        Raises:
            ConfigError: images of another type, shape or number of channels.
        """

    def to(self, device: torch.device) -> Self:
        """Move the network."""
