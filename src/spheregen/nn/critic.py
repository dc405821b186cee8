"""A small convolutional critic that tells real patches of images from decoded ones.

Sources: Isola et al. 2017 (arXiv 1611.07004), a verdict for each patch; Sauer et al. 2021 (arXiv 2111.01007), verdicts
on the features of a frozen network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.func import functional_call

from spheregen.nn.linear import tag_layer
from spheregen.sphere import upcast

SMALLEST = 8
"""Pixels along a side of the smallest images."""
_SLOPE = 0.2
_MOST_STAGES, _MOST_WIDTHS = 4, 8


class PatchCritic(nn.Module):
    """Images (B, C, S, S) in [0, 1], S at least 8, to a verdict on each patch, larger for real ones.

    One to four strided convolutions bring 8 px to 4x4 verdicts, 32 px to 4x4, 256 px to 16x16. There are no statistics
    of a batch, so verdicts are those of each image alone.

    A critic of pixels finds traces that nobody sees, and wins by them. One that judges a frozen network's features as
    well finds what is wrong with shapes and textures: a head for each map gives verdicts of its own.

    Args:
        channels: C.
        size: S.
        width: channels behind the first convolution; they double with each further one, up to eight times as many. The
            heads have twice `width`.
        features: channels of each feature map (B, F, S/2^i, S/2^i), i = 0, 1, ...; maps are of norm 1 over channels.
    """

    gathered_methods: tuple[str, ...] = ()

    def __init__(self, channels: int, size: int, width: int = 64, features: Sequence[int] = ()) -> None:
        super().__init__()
        stages = max(1, min(_MOST_STAGES, int(math.log2(size / 4))))
        widths = [width * min(_MOST_WIDTHS, 2**stage) for stage in range(stages)]
        layers: list[nn.Module] = []
        for inputs, outputs in zip([channels, *widths], widths, strict=False):
            layers += [_conv(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        layers += [_conv(widths[-1], widths[-1], 3, padding=1), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, _conv(widths[-1], 1, 3, padding=1))
        self.heads = nn.ModuleList(_head(inputs, 2 * width, stage) for stage, inputs in enumerate(features))

    def forward(self, images: Tensor, features: Sequence[Tensor] = (), *, learn: bool = True) -> tuple[Tensor, ...]:
        """Verdicts (B, 1, h, w) in float32 or wider, on the pixels and on each map of `features`.

        Features beyond those that it has a head for are ignored. Gradients reach images and features, and the weights
        only if they shall `learn`.
        """
        judged = [_judge(self.layers, 2 * images - 1, learn)]
        for head, feature in zip(self.heads, features[: len(self.heads)], strict=True):
            judged.append(_judge(head, feature, learn))
        return tuple(judged)


def _head(inputs: int, width: int, stage: int) -> nn.Sequential:
    """Verdicts on the features of a stage: strided convolutions down to a quarter of the image's side or less."""
    first = _conv(inputs, width, 4, stride=2, padding=1) if stage == 0 else _conv(inputs, width, 1)
    second = _conv(width, width, 3, stride=2 if stage < 2 else 1, padding=1)
    return nn.Sequential(first, nn.LeakyReLU(_SLOPE), second, nn.LeakyReLU(_SLOPE), _conv(width, 1, 1))


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding)
    tag_layer(layer)
    return layer


def _judge(layers: nn.Module, x: Tensor, learn: bool) -> Tensor:
    if learn:
        return upcast(layers(x))
    fixed = {name: parameter.detach() for name, parameter in layers.named_parameters()}
    return upcast(functional_call(layers, fixed, (x,)))
