"""The convolutional part of VGG16 (Simonyan and Zisserman 2015, arXiv 1409.1556), configuration D.

Five stages of 2, 2, 3, 3, 3 convolutions 3x3 with ReLU, 2x2 max pooling between the stages. It has the tensor
names of torchvision's ImageNet file `vgg16-397923af.pth`, `features.N.weight` and `features.N.bias`; N counts the
convolutions, ReLUs and poolings.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from spheregen.errors import ConfigError
from spheregen.networks.backbones.state import load_published

STAGE_WIDTHS = (64, 128, 256, 512, 512)
STAGE_DEPTHS = (2, 2, 3, 3, 3)
MIN_SIZE = 16


class Vgg16Features(nn.Module):
    """The last ReLU outputs of the five stages; 14 714 688 parameters.

    For normalised images (B, 3, H, W), H and W at least 16, it returns maps of 64, 128, 256, 512, 512 channels at
    1, 1/2, 1/4, 1/8, 1/16 of the side: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (inputs, outputs), depth in zip(pairwise((3, *STAGE_WIDTHS)), STAGE_DEPTHS, strict=True):
            for each in (inputs, *[outputs] * (depth - 1)):
                layers += [nn.Conv2d(each, outputs, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])  # nothing is read behind the last pooling

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return five maps, from fine to coarse.

        Raises:
            ConfigError: the images are not (B, 3, H, W) or smaller than 16 px.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MIN_SIZE:
            raise ConfigError(
                f"VGG16 takes images of shape (B, 3, H, W) with H and W at least {MIN_SIZE}, "
                f"not {tuple(images.shape)}; use larger images or perceptual 'none'"
            )
        x, found = images, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return (*found, x)


def load_vgg16(source: Path | Mapping[str, torch.Tensor]) -> Vgg16Features:
    """Return VGG16's features with torchvision's weights; the file's classifier is ignored. See `load_published`."""
    return load_published(Vgg16Features, source, ignored=r"^classifier\.")
