"""From pixels to tokens and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.nn import alone
from spheregen.nn.linear import Init, initialise, linear, tag_layer

CONV_HEAD_CHANNELS = 32


class Patches(nn.Conv2d):
    """A convolution of kernel and stride `patch` without bias, as the product of patches and kernels that it is.

    Images (B, C, S, S) to tokens (B, N, W), row-major.
    """

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__(channels, width, patch, stride=patch, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        patches = functional.pixel_unshuffle(images, self.kernel_size[0]).flatten(2).transpose(1, 2)
        # of a transposed view a linear adds up in an order that depends on whether its weights want gradients
        return alone.linear(patches.contiguous(), self.weight.flatten(1), None)


class PatchEmbedding(nn.Module):
    """Images (B, C, S, S) to tokens (B, N, W), row-major: patches, then a linear with bias."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patches = Patches(channels, patch, width)
        initialise(self.patches.weight, "xavier", fan_in=channels * patch * patch)
        tag_layer(self.patches)
        self.mix = linear(width, width)

    def forward(self, images: Tensor) -> Tensor:
        return self.mix(self.patches(images))  # type: ignore[no-any-return]


class LinearPixelHead(nn.Module):
    """Tokens to pixels by one linear W -> C*P*P (channel slowest, then row, then column), then a 3x3 convolution.

    (B, N, W) to (B, C, S, S), before the output activation. `smooth=False` leaves the convolution out.
    """

    def __init__(
        self, width: int, patch: int, channels: int, grid: int, *, init: Init = "zero", smooth: bool = True
    ) -> None:
        super().__init__()
        self.patch, self.grid = patch, grid
        self.linear = linear(width, channels * patch * patch, init=init)
        self.smooth = _small_conv(channels, channels) if smooth else None

    def forward(self, tokens: Tensor) -> Tensor:
        maps = _as_maps(self.linear(tokens), self.grid)
        images = functional.pixel_shuffle(maps, self.patch)
        return images if self.smooth is None else _convolved(images, self.smooth)


class ConvPixelHead(nn.Module):
    """Tokens to pixels by a linear W -> 32, a 3x3 convolution, SiLU and a transposed convolution 32 -> C with kernel
    P+2, stride P. (B, N, W) to (B, C, S, S), before the output activation."""

    def __init__(self, width: int, patch: int, channels: int, grid: int, *, init: Init = "zero") -> None:
        super().__init__()
        self.grid = grid
        self.linear = linear(width, CONV_HEAD_CHANNELS, init=init)
        self.smooth = _small_conv(CONV_HEAD_CHANNELS, CONV_HEAD_CHANNELS)
        self.up = nn.ConvTranspose2d(CONV_HEAD_CHANNELS, channels, patch + 2, stride=patch, padding=1)
        _start_small(self.up)

    def forward(self, tokens: Tensor) -> Tensor:
        maps = _as_maps(self.linear(tokens), self.grid)
        return self.up(alone.silu(self.smooth(maps)))  # type: ignore[no-any-return]


def _convolved(images: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return a convolution of images (B, C, S, S) that keeps their shape.

    Many small ones are a product with what it makes of each of their numbers alone, which a CPU learns from in a tenth
    of the time.
    """
    numbers = images[0].numel()
    if images.device.type != "cpu" or not torch.is_grad_enabled() or len(images) < 4 * numbers or conv.bias is None:
        return conv(images)  # type: ignore[no-any-return]
    single = torch.eye(numbers, dtype=images.dtype).unflatten(1, images.shape[1:])
    made = conv._conv_forward(single, conv.weight, None).flatten(1)
    product: Tensor = images.flatten(1) @ made
    return product.view_as(images) + conv.bias[:, None, None]


def _as_maps(tokens: Tensor, grid: int) -> Tensor:
    """Return tokens (B, N, W) as maps (B, W, grid, grid), in the same layout of memory for one image as for many."""
    maps: Tensor = tokens.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    return maps


def _small_conv(inputs: int, outputs: int) -> nn.Conv2d:
    conv = alone.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect")
    _start_small(conv)
    return conv


def _start_small(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Xavier with gain 0.01 and zero bias: images start near mid-grey."""
    nn.init.xavier_uniform_(conv.weight, gain=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    tag_layer(conv)
