"""What all extractors of ours share: a frozen network that sees checked images in full float32."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from spheregen.evaluation.features.base import FeatureBatch, FeatureInfo
from spheregen.evaluation.features.preprocessing import as_colour, check_images


class NetworkFeatures(abc.ABC):
    """A frozen network and its preprocessing, a `FeatureExtractor`.

    Args:
        net: the network; it is put into evaluation mode, moved and takes no gradient from now on.
        info: what it is.
        device: where it runs.
    """

    device: torch.device
    channels_innermost = False
    """Whether the network is faster on a CPU with the channels innermost in memory, as large convolutions are."""

    def __init__(self, net: nn.Module, info: FeatureInfo, device: torch.device) -> None:
        self.net = net.eval()
        for parameter in net.parameters():  # modules of TorchScript have no `requires_grad_`
            parameter.requires_grad_(False)
        self.info = info
        self.to(device)

    def __call__(self, images: Tensor) -> FeatureBatch:
        """Features of uint8 images (B, C, H, W), C = 1 (grey, repeated) or 3, on any device.

        Raises:
            ConfigError: images of another type, shape or number of channels.
        """
        check_images(images)
        with torch.no_grad(), full_float32(self.device):
            return self.see(as_colour(images.to(self.device)))

    def to(self, device: torch.device) -> Self:
        """Move the network."""
        self.device = device
        self.net.to(device)
        if self.channels_innermost:
            self.net.to(memory_format=self._layout())  # type: ignore[call-overload]
        return self

    def arranged(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in the memory layout of the network's weights."""
        return x.contiguous(memory_format=self._layout()) if self.channels_innermost else x

    @abc.abstractmethod
    def see(self, images: Tensor) -> FeatureBatch:
        """Features of uint8 images (B, 3, H, W) on the network's device."""

    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.device.type == "cpu" else torch.contiguous_format


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """No TF32, no autocast and no choice of algorithms by their speed: the same batch gives the same bits."""
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
