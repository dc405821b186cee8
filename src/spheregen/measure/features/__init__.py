"""Feature extractors by name: the networks whose features the metrics compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from spheregen.errors import ConfigError, did_you_mean
from spheregen.measure.features.classifier import load_classifier
from spheregen.measure.features.extractor import FEATURE_BATCH, FeatureBatch, FeatureExtractor, FeatureInfo
from spheregen.measure.features.inception import load_inception
from spheregen.measure.features.networks import load_convnext, load_custom, load_own
from spheregen.measure.features.transformers import load_transformer

__all__ = [
    "EXTRACTORS",
    "FEATURE_BATCH",
    "FeatureBatch",
    "FeatureExtractor",
    "FeatureInfo",
    "load_extractor",
    "load_extractors",
]

EXTRACTORS: Mapping[str, str] = MappingProxyType(
    {
        "own": "SphereGen's own small network at 32 px; ships with the package, its distance is not FID",
        "inception": "Inception-v3 of 2015-12-05, the network of FID and the Inception Score (95 MB)",
        "dinov2": "DINOv2 ViT-L/14, FD-DINOv2 (1.2 GB; needs the extra encoders)",
        "dinov3": "DINOv3 ViT-L/16, FD-DINOv3 (1.2 GB, licence on the Hub; needs the extra encoders)",
        "clip": "CLIP ViT-L/14 at 336 px, for CMMD (1.7 GB; needs the extra encoders)",
        "convnext": "ConvNeXt-Small of ImageNet (200 MB)",
        "classifier": "a small classifier that learns the classes of --data in about a minute",
    }
)
"""Name of each network -> what it is, in a line. Besides them, `module:factory` is a network of the user's own."""
_LOADERS = {"own": load_own, "inception": load_inception, "convnext": load_convnext}


def load_extractor(
    name: str, *, weights: Path | str | None = None, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """Load a feature extractor.

    Args:
        name: one of `EXTRACTORS`, or `module:factory` for a network of your own; `inception=/path/to/file` names the
            weights too, and so for the others.
        weights: a file or a folder that holds it (inception, convnext, own: the file), a folder of transformers or
            user/name[@revision] on the Hub (dinov2, dinov3, clip). None: what the literature uses, found or fetched.

    Raises:
        ConfigError: there is no such network, or a network of your own fails.
        ModelFileError: weights are missing, broken, of another kind, or cannot be fetched.
        SphereGenError: a package is missing.
    """
    name, equals, path = name.partition("=")
    if equals and (weights is not None or not path):
        raise ConfigError(f"{name}={path} names no weights, or {weights} are others; write {name}=/path/to/file")
    weights = path if equals else weights
    device = torch.device(device)
    if name in _LOADERS:
        return _LOADERS[name](weights, device)
    if name == "classifier":
        if weights is None:
            raise ConfigError("the network classifier learns from real images, and none are given here; choose another")
        return load_classifier(weights, device)
    if name in EXTRACTORS:
        return load_transformer(name, weights, device)
    if ":" in name:
        if weights is not None:
            raise ConfigError(f"{name} is a network of your own and takes no weights; let its factory load them")
        return load_custom(name, device)
    known, hint = ", ".join(EXTRACTORS), did_you_mean(name, EXTRACTORS)
    raise ConfigError(f"there is no feature network {name!r}{hint}; use one of {known}, or module:factory of your own")


def load_extractors(names: Iterable[str], device: torch.device | str = "cpu") -> dict[str, FeatureExtractor]:
    """Load feature extractors, see `load_extractor`; by their names.

    Raises:
        ConfigError: an unknown network, or one that is named twice.
    """
    found: dict[str, FeatureExtractor] = {}
    for name in names:
        extractor = load_extractor(name, device=device)
        if extractor.info.name in found:
            raise ConfigError(f"the feature network {extractor.info.name} is named twice; name each once")
        found[extractor.info.name] = extractor
    return found
