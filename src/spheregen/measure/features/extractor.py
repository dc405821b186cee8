"""The one face of all feature extractors: 8-bit images in, features and perhaps class logits out.

Legend: B images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from spheregen.measure.features.preprocessing import as_colour, check_images

FEATURE_BATCH = 64
"""Images that go through an extractor together: a property of the figures, since last bits may depend on the batch."""


@dataclass(frozen=True)
class FeatureBatch:
    """What an extractor makes of B images."""

    features: Tensor
    """(B, D) float32."""
    logits: Tensor | None = None
    """(B, K) float32 scores of classes before the softmax, from networks that classify."""


@dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """What a figure must say of the extractor that it rests on."""

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
    accuracy: float | None = None
    """Of a classifier, whose logits are of the data's own classes: the share of held-out images whose class it sees."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON and the metadata of files."""
        return dataclasses.asdict(self)


class FeatureExtractor(Protocol):
    """A frozen network with its preprocessing. It is deterministic: the same batch gives the same bits."""

    @property
    def info(self) -> FeatureInfo:
        """What it is."""

    def __call__(self, images: Tensor) -> FeatureBatch:
        """Return the features of uint8 images (B, C, H, W), C = 1 (grey, repeated) or 3, on any device.

        Raises:
            ConfigError: images of another type, shape or number of channels.
        """

    def to(self, device: torch.device) -> Self:
        """Move the network."""


class NetworkFeatures:
    """A `FeatureExtractor` of a network: checked images, full float32, no gradient.

    Args:
        net: the network; it is put into evaluation mode, moved and takes no gradient from now on.
        extract: features of uint8 images (B, 3, H, W) on the network's device.
        channels_last: the network is faster on a CPU with the channels innermost in memory.
    """

    device: torch.device

    def __init__(
        self,
        net: nn.Module,
        info: FeatureInfo,
        extract: Callable[[Tensor], FeatureBatch],
        device: torch.device,
        *,
        channels_last: bool = False,
    ) -> None:
        self.net, self.info, self._extract, self._channels_last = net.eval(), info, extract, channels_last
        for parameter in net.parameters():  # modules of TorchScript have no `requires_grad_`
            parameter.requires_grad_(False)
        self.to(device)

    def __call__(self, images: Tensor) -> FeatureBatch:
        check_images(images)
        with torch.no_grad(), full_float32(self.device):
            return self._extract(as_colour(images.to(self.device)))

    def to(self, device: torch.device) -> Self:
        """Move the network."""
        self.device = device
        self.net.to(device)
        if self._channels_last:
            layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
            self.net.to(memory_format=layout)  # type: ignore[call-overload]
        return self


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Switch off TF32, autocast and the choice of algorithms by speed: the same batch gives the same bits."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    before = (cudnn.conv.fp32_precision, matmul.fp32_precision, cudnn.benchmark, cudnn.deterministic)
    try:
        cudnn.conv.fp32_precision = matmul.fp32_precision = "ieee"
        cudnn.benchmark, cudnn.deterministic = False, True
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        cudnn.conv.fp32_precision, matmul.fp32_precision, cudnn.benchmark, cudnn.deterministic = before
