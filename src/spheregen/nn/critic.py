"""A small convolutional critic that tells real patches of images from decoded ones.

Sources: Isola et al. 2017 (arXiv 1611.07004), a verdict for each patch; Karras et al. 2024 (arXiv 2312.02696), weights
of a fixed length, here that of each filter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from spheregen.nn.linear import initialise
from spheregen.nn.tags import tag_layer
from spheregen.sphere import upcast

SMALLEST = 8
"""Pixels along a side of the smallest images."""
_SLOPE = 0.2
_GAIN = math.sqrt(2 / (1 + _SLOPE**2))
"""Of a leaky ReLU with that slope: it keeps the mean square of what passes a filter of length 1."""
_MOST_STAGES, _MOST_WIDTHS = 4, 8


class PatchCritic(nn.Module):
    """Images (B, C, S, S) in [0, 1], S at least 8, to a verdict (B, 1, h, h) on each patch, larger for real ones.

    One to four strided convolutions bring 8 px to 4x4 verdicts, 32 px to 4x4, 256 px to 16x16. Each filter is divided
    by its length, so verdicts cannot grow steep without bound. That needs neither statistics of a batch nor a state, so
    verdicts are those of each image alone.

    Args:
        channels: C.
        size: S.
        width: channels behind the first convolution; they double with each further one, up to eight times as many.
    """

    def __init__(self, channels: int, size: int, width: int = 64) -> None:
        super().__init__()
        stages = max(1, min(_MOST_STAGES, int(math.log2(size / 4))))
        widths = [width * min(_MOST_WIDTHS, 2**stage) for stage in range(stages)]
        layers: list[nn.Module] = []
        for inputs, outputs in zip([channels, *widths], widths, strict=False):
            layers += [_UnitConv(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        layers += [_UnitConv(widths[-1], widths[-1], 3, padding=1), nn.LeakyReLU(_SLOPE)]
        last = nn.Conv2d(widths[-1], 1, 3, padding=1)  # of any length: it alone sets the scale of verdicts
        nn.init.normal_(last.weight, std=last.weight[0].numel() ** -0.5)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        tag_layer(last)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, images: Tensor, *, learn: bool = True) -> Tensor:
        """Verdicts in float32 or wider; gradients reach the images, and the weights only if they shall `learn`."""
        x = 2 * images - 1
        if learn:
            return upcast(self.layers(x))
        fixed = {name: parameter.detach() for name, parameter in self.layers.named_parameters()}
        return upcast(functional_call(self.layers, fixed, (x,)))


class _UnitConv(nn.Conv2d):
    """A convolution whose filters have one length, whatever the length of its weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding)
        initialise(self.weight, "scaled", fan_in=self.weight[0].numel())
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]
        tag_layer(self)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = self.weight * (_GAIN / lengths.clamp_min(1e-12))
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)
