"""FeatureNet: a small convolutional classifier of 32 px images whose intermediate features make a perceptual metric.

It ships with the package (assets/feature_net.safetensors, float16, about 1 MB), so that the perceptual terms of the
sphere encoder's loss work without a download. `scripts/train_feature_net.py` trains it on CIFAR-10.

Shapes: images (B, 3, H, W) in [0, 1]; features (B, 16, H, W), (B, 48, H/2, W/2), (B, 96, H/4, W/4), (B, 160, H/8, W/8).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from spheregen.errors import ConfigError
from spheregen.networks.backbones.state import load_renamed, read_torch_state

ASSET = Path(__file__).resolve().parents[2] / "assets" / "feature_net.safetensors"
WIDTHS = (16, 48, 96, 160)
MIN_SIZE = 8  # one position is left at the last stage

# Channel means and deviations of the CIFAR-10 training split.
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)


class ConvUnit(nn.Module):
    """3x3 convolution and SiLU; (B, I, H, W) -> (B, O, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.silu(self.conv(x))


class Stage(nn.Module):
    """Two convolutions at one resolution, a skip around the second; (B, I, H, W) -> (B, O, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.widen, self.refine = ConvUnit(inputs, outputs), ConvUnit(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.widen(x)
        out: torch.Tensor = x + self.refine(x)
        return out


class FeatureNet(nn.Module):
    """Four stages at full, half, quarter and eighth resolution, then a linear classifier of the averaged features.

    Average pooling and SiLU rather than strides, maxima and kinks: the features change smoothly with the image, so
    their gradient is fit to train a generator, and a shift by a pixel does not alias.
    0.52 M parameters and 23.6 M multiply-adds for a 32 px image.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.stages = nn.ModuleList(Stage(i, o) for i, o in zip(inputs, WIDTHS, strict=True))
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def features(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of the four stages for images (B, 3, H, W) in [0, 1], H and W at least 8.

        Raises:
            ConfigError: the images have another number of channels or are smaller.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MIN_SIZE:
            raise ConfigError(
                f"FeatureNet takes images of shape (B, 3, H, W) with H and W at least {MIN_SIZE}, "
                f"not {tuple(images.shape)}; use larger images or perceptual 'none'"
            )
        # With the channels innermost the convolutions are up to twice as fast on a CPU; the values are the same.
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        found = []
        for depth, stage in enumerate(self.stages):
            x = stage(x if depth == 0 else functional.avg_pool2d(x, 2))
            found.append(x)
        return tuple(found)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return class logits (B, classes) for images (B, 3, H, W) in [0, 1]."""
        logits: torch.Tensor = self.classifier(self.features(images)[-1].mean(dim=(2, 3)))
        return logits


def load_feature_net(path: Path | str | None = None) -> FeatureNet:
    """Return the trained network, in float32 and evaluation mode, from `path` or the file that ships with the package.

    Raises:
        ModelFileError: the file is missing, broken or holds another network.
    """
    file, net = ASSET if path is None else Path(path), FeatureNet()
    state = {name: tensor.float() for name, tensor in read_torch_state(file).items()}
    load_renamed(net, state, {name: name for name in net.state_dict()}, str(file))
    return net.eval()
