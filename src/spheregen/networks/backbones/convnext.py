"""ConvNeXt, the ImageNet classifier (Liu et al. 2022, arXiv 2201.03545).

A 4x4 stem, four stages of residual blocks with 2x2 down-sampling between them, average pooling and a linear layer.
It loads torchvision's file `convnext_small-0c510722.pth`. Dropped paths play no part in evaluation and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from spheregen.networks.backbones.state import load_published

SMALL_DEPTHS = (3, 3, 27, 3)
SMALL_WIDTHS = (96, 192, 384, 768)


class Float32LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, computed in float32 whatever the dtype of its input."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float())


class ConvNeXtBlock(nn.Module):
    """x + scale * MLP(LayerNorm(depthwise 7x7(x))); (B, W, H, W') -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = Float32LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        y = self.project(functional.gelu(self.expand(y)))
        out: torch.Tensor = x + self.scale * y.movedim(-1, 1)
        return out


class Downsample(nn.Module):
    """LayerNorm over channels and a convolution with kernel = stride = `factor`, in the order the place asks for."""

    def __init__(self, inputs: int, outputs: int, factor: int, *, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.conv = nn.Conv2d(inputs, outputs, factor, stride=factor)
        self.norm = Float32LayerNorm(inputs if norm_first else outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.norm_first else self.conv(x)
        down: torch.Tensor = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return self.conv(down) if self.norm_first else down


class ConvNeXt(nn.Module):
    """Logits (B, classes) of normalised images (B, 3, H, W), H and W at least 32; the default is ConvNeXt-Small."""

    def __init__(
        self, depths: Sequence[int] = SMALL_DEPTHS, widths: Sequence[int] = SMALL_WIDTHS, classes: int = 1000
    ) -> None:
        super().__init__()
        self.downs = nn.ModuleList()
        self.stages = nn.ModuleList()
        inputs = 3
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            stem = number == 0
            self.downs.append(Downsample(inputs, width, 4 if stem else 2, norm_first=not stem))
            self.stages.append(nn.Sequential(*[ConvNeXtBlock(width) for _ in range(depth)]))
            inputs = width
        self.norm = Float32LayerNorm(inputs)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = stage(down(x))
        logits: torch.Tensor = self.classifier(self.norm(x.float().mean(dim=(2, 3))))
        return logits


def torchvision_names(depths: Sequence[int] = SMALL_DEPTHS) -> dict[str, str]:
    """Return torchvision's name of each tensor of `ConvNeXt`, by its name here."""
    both = ("weight", "bias")
    modules = {"norm": "classifier.0", "classifier": "classifier.2"}
    names = {}
    for number, depth in enumerate(depths):
        # features.0 is the stem (convolution, norm); then a stage and a down-sampling (norm, convolution) take turns.
        place = 2 * number
        conv, norm = (0, 1) if number == 0 else (1, 0)
        modules[f"downs.{number}.conv"] = f"features.{place}.{conv}"
        modules[f"downs.{number}.norm"] = f"features.{place}.{norm}"
        for index in range(depth):
            block = f"features.{place + 1}.{index}"
            for part, theirs in (("depthwise", 0), ("norm", 2), ("expand", 3), ("project", 5)):
                modules[f"stages.{number}.{index}.{part}"] = f"{block}.block.{theirs}"
            names[f"stages.{number}.{index}.scale"] = f"{block}.layer_scale"
    names.update({f"{mine}.{kind}": f"{theirs}.{kind}" for mine, theirs in modules.items() for kind in both})
    return names


def load_convnext_small(source: Path | Mapping[str, torch.Tensor]) -> ConvNeXt:
    """Return ConvNeXt-Small with torchvision's weights. See `load_published`."""
    return load_published(ConvNeXt, source, torchvision_names)
