"""The classifiers whose features are compared (our own, ConvNeXt), and networks of the user's own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from spheregen.errors import ConfigError, SphereGenError
from spheregen.measure.features.extractor import (
    FeatureBatch,
    FeatureExtractor,
    FeatureInfo,
    NetworkFeatures,
    full_float32,
)
from spheregen.measure.features.preprocessing import antialiased, normalised
from spheregen.networks.backbones.convnext import ConvNeXt, load_convnext_small
from spheregen.networks.backbones.feature_net import WIDTHS, load_feature_net
from spheregen.networks.frozen import IMAGENET_MEAN, IMAGENET_STD
from spheregen.networks.perceptual import CONVNEXT_SMALL
from spheregen.networks.weights import locate_file
from spheregen.tensors import weights_hash

OWN_SIZE, CONVNEXT_SIZE = 32, 224  # pixels
OWN_SCALES = (0.1093, 0.1436, 0.2214, 0.5472)
"""What each stage of our own network is divided by: then its total variance over CIFAR-10's training images is 80, a
quarter of all, and a feature has variance 1 on average."""
_PROBES = (32, 64, 128, 256, 512)  # sides in pixels; some networks take no small images


def load_own(weights: Path | str | None, device: torch.device) -> FeatureExtractor:
    """Load FeatureNet, which ships with the package: figures within seconds, for small images. They are not FID.

    Features: the four stages averaged over space and scaled, (B, 320); logits of CIFAR-10's classes. All stages count
    alike: the last one alone, which was trained to tell things apart, hardly sees blur and noise (precision even rises
    with noise, see benchmarks/README.md).

    Raises:
        ModelFileError: the file is missing, broken or holds another network.
    """
    net = load_feature_net(None if weights is None else Path(weights).expanduser())

    def extract(images: Tensor) -> FeatureBatch:
        stages = net.features(antialiased(images, OWN_SIZE, "bilinear") / 255)
        pooled = [stage.mean(dim=(2, 3)) for stage in stages]
        features = torch.cat([each / scale for each, scale in zip(pooled, OWN_SCALES, strict=True)], dim=1)
        return FeatureBatch(features, net.classifier(pooled[-1]))

    info = FeatureInfo(
        name="own",
        title="SphereGen's own small network (FeatureNet, CIFAR-10, 32 px); not FID, comparable with itself alone",
        distance="FD-own",
        dim=sum(WIDTHS),
        preprocessing=f"resized to {OWN_SIZE} px (bilinear, antialiased, float; {OWN_SIZE} px stay as they are), "
        "[0, 1], CIFAR-10 mean and deviation; four stages averaged over space, over "
        f"{', '.join(map(str, OWN_SCALES))}",
        weights=weights_hash(net.state_dict()),
        classes=net.classifier.out_features,
    )
    return NetworkFeatures(net, info, extract, device)


def load_convnext(weights: Path | str | None, device: torch.device) -> FeatureExtractor:
    """Load ConvNeXt-Small with torchvision's weights: a file, a folder that holds it, or None to find or fetch it.

    Raises:
        ModelFileError: the file is missing, broken, of another kind, or cannot be fetched.
    """
    user, other_way = "the feature network convnext", "choose another network, such as own"
    path = locate_file(weights, [CONVNEXT_SMALL], user=user, other_way=other_way)
    return convnext_features(load_convnext_small(path), device)


def convnext_features(net: ConvNeXt, device: torch.device) -> FeatureExtractor:
    """Return what ConvNeXt's classifier sees: the averaged last stage after its norm, (B, 768); logits (B, 1000).

    A model that was trained with the published perceptual loss has seen this network, so its distance flatters it.
    """

    def extract(images: Tensor) -> FeatureBatch:
        x = normalised(antialiased(images, CONVNEXT_SIZE, "bilinear"), IMAGENET_MEAN, IMAGENET_STD)
        x = x.contiguous(memory_format=torch.channels_last if x.device.type == "cpu" else torch.contiguous_format)
        for down, stage in zip(net.downs, net.stages, strict=True):
            x = stage(down(x))
        features = net.norm(x.mean(dim=(2, 3)))
        return FeatureBatch(features, net.classifier(features))

    info = FeatureInfo(
        name="convnext",
        title="ConvNeXt-Small (ImageNet-1k), pooled features",
        distance="FD-ConvNeXt",
        dim=net.classifier.in_features,
        preprocessing=f"resized to {CONVNEXT_SIZE} px (bilinear, antialiased, float), [0, 1], "
        "ImageNet mean and deviation",
        weights=weights_hash(net.state_dict()),
        classes=net.classifier.out_features,
    )
    return NetworkFeatures(net, info, extract, device, channels_last=True)


def load_custom(name: str, device: torch.device) -> FeatureExtractor:
    """Import `module`, with the current directory among the places to look, and call its `factory` without arguments.

    Args:
        name: `module:factory`. The factory returns a `FeatureExtractor`, or a module or another callable that takes
            uint8 images (B, 3, H, W) on the device and returns features (B, D).
        device: where it shall run.

    Raises:
        ConfigError: there is no such module or factory, it fails, or it returns something else.
    """
    module, _, factory = name.partition(":")
    here = str(Path.cwd())
    importlib.invalidate_caches()  # the file may have been written a moment ago
    sys.path.insert(0, here)
    try:
        made = getattr(importlib.import_module(module), factory)()
        if isinstance(getattr(made, "info", None), FeatureInfo):
            return cast(FeatureExtractor, made).to(device)
        net = made.eval().to(device) if isinstance(made, nn.Module) else nn.Module()
        dim = _probe(made, device)
    except SphereGenError:
        raise
    except Exception as error:  # anything, it is the user's code
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(
            f"{name} gives no feature network ({reason}); write module:factory, a module that can be imported from "
            "here and a function without arguments that returns a FeatureExtractor, or a callable that takes uint8 "
            "images (B, 3, H, W) and returns floating-point features (B, D)"
        ) from error
    finally:
        sys.path.remove(here)
    info = FeatureInfo(
        name=name,
        title=f"a network of the user's own ({name})",
        distance=f"FD-{name}",
        dim=dim,
        preprocessing="its own, of 8-bit images",
        weights=weights_hash(net.state_dict()) if net is made else "unknown",
    )
    return NetworkFeatures(net, info, lambda images: FeatureBatch(made(images).float()), device)


def _probe(network: Any, device: torch.device) -> int:
    """Return D, by trying two images of one size after the other until one is taken."""
    failures: list[Exception] = []
    for side in _PROBES:
        images = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad(), full_float32(device):
                found = network(images.to(torch.uint8).to(device))
        except Exception as error:
            failures.append(error)
            continue
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2 or not found.is_floating_point():
            shape = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"it returned {shape} for two images")
        return found.shape[1]
    raise failures[0]
