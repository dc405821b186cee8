"""ConvNeXt-Small, the ImageNet classifier whose logits the published perceptual loss compares.

A model that was trained with that loss has seen this network, so its distance flatters such models.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spheregen.evaluation.features.base import FeatureBatch, FeatureInfo
from spheregen.evaluation.features.network import NetworkFeatures
from spheregen.evaluation.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD, antialiased, normalised
from spheregen.losses.perceptual_weights import CONVNEXT_SMALL
from spheregen.model_folder import weights_hash
from spheregen.nn.backbones.convnext import ConvNeXt, load_convnext_small
from spheregen.weights import locate_file

SIZE = 224  # pixels


class ConvNeXtFeatures(NetworkFeatures):
    """What ConvNeXt's classifier sees: the averaged last stage after its norm, (B, 768); and the logits, (B, 1000)."""

    net: ConvNeXt
    channels_innermost = True

    def __init__(self, net: ConvNeXt, device: torch.device) -> None:
        info = FeatureInfo(
            name="convnext",
            title="ConvNeXt-Small (ImageNet-1k), pooled features",
            distance="FD-ConvNeXt",
            dim=net.classifier.in_features,
            preprocessing=f"resized to {SIZE} px (bilinear, antialiased, float), [0, 1], ImageNet mean and deviation",
            weights=weights_hash(net.state_dict()),
            classes=net.classifier.out_features,
        )
        super().__init__(net, info, device)

    def see(self, images: Tensor) -> FeatureBatch:
        x = self.arranged(normalised(antialiased(images, SIZE, "bilinear"), IMAGENET_MEAN, IMAGENET_STD))
        for down, stage in zip(self.net.downs, self.net.stages, strict=True):
            x = stage(down(x))
        features = self.net.norm(x.mean(dim=(2, 3)))
        return FeatureBatch(features, self.net.classifier(features))


def load_convnext(weights: Path | str | None, device: torch.device) -> ConvNeXtFeatures:
    """The network with torchvision's weights: a file, a folder that holds it, or None to find or fetch it.

    Raises:
        ModelFileError: the file is missing, broken, of another kind, or cannot be fetched.
    """
    path = locate_file(
        weights,
        [CONVNEXT_SMALL],
        user="the feature network convnext",
        other_way="choose another network, such as own",
    )
    return ConvNeXtFeatures(load_convnext_small(path), device)
