"""The package's own small network: figures within seconds, offline, for small images. They are not FID.

FeatureNet was trained on CIFAR-10 at 32 px and ships with the package. All four stages count alike: the last one alone,
which was trained to tell things apart, hardly sees blur and noise (precision even rises with noise, see
benchmarks/README.md).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spheregen.evaluation.features.base import FeatureBatch, FeatureInfo
from spheregen.evaluation.features.network import NetworkFeatures
from spheregen.evaluation.features.preprocessing import antialiased
from spheregen.model_folder import weights_hash
from spheregen.nn.backbones.feature_net import WIDTHS, FeatureNet, load_feature_net

SIZE = 32  # pixels, what the network was trained on
SCALES = (0.1093, 0.1436, 0.2214, 0.5472)
"""What each stage is divided by: then its total variance over CIFAR-10's training images is 80, a quarter of all, and a
feature has variance 1 on average."""


class OwnFeatures(NetworkFeatures):
    """The four stages of FeatureNet, averaged over space and scaled, (B, 320), and logits of CIFAR-10's classes."""

    net: FeatureNet

    def __init__(self, net: FeatureNet, device: torch.device) -> None:
        info = FeatureInfo(
            name="own",
            title="SphereGen's own small network (FeatureNet, CIFAR-10, 32 px); not FID, comparable with itself alone",
            distance="FD-own",
            dim=sum(WIDTHS),
            preprocessing=f"resized to {SIZE} px (bilinear, antialiased, float; {SIZE} px stay as they are), [0, 1], "
            f"CIFAR-10 mean and deviation; four stages averaged over space, over {', '.join(map(str, SCALES))}",
            weights=weights_hash(net.state_dict()),
            classes=net.classifier.out_features,
        )
        super().__init__(net, info, device)

    def see(self, images: Tensor) -> FeatureBatch:
        stages = self.net.features(antialiased(images, SIZE, "bilinear") / 255)
        pooled = [stage.mean(dim=(2, 3)) for stage in stages]
        features = torch.cat([each / scale for each, scale in zip(pooled, SCALES, strict=True)], dim=1)
        return FeatureBatch(features, self.net.classifier(pooled[-1]))


def load_own(weights: Path | str | None, device: torch.device) -> OwnFeatures:
    """The network that ships with the package, or that of another file of its kind.

    Raises:
        ModelFileError: the file is missing, broken or holds another network.
    """
    return OwnFeatures(load_feature_net(None if weights is None else Path(weights).expanduser()), device)
