"""Feature networks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from spheregen.errors import ConfigError, did_you_mean
from spheregen.evaluation.features.base import FeatureExtractor

EXTRACTORS: Mapping[str, str] = MappingProxyType(
    {
        "own": "SphereGen's own small network at 32 px; ships with the package, its distance is not FID",
        "inception": "Inception-v3 of 2015-12-05, the network of FID and the Inception Score (95 MB)",
        "dinov2": "DINOv2 ViT-L/14, FD-DINOv2 (1.2 GB; needs the extra encoders)",
        "dinov3": "DINOv3 ViT-L/16, FD-DINOv3 (1.2 GB, licence on the Hub; needs the extra encoders)",
        "clip": "CLIP ViT-L/14 at 336 px, for CMMD (1.7 GB; needs the extra encoders)",
        "convnext": "ConvNeXt-Small of ImageNet (200 MB)",
    }
)
"""Name of each network -> what it is, in a line. Besides them, `module:factory` is a network of the user's own."""


def load_extractor(
    name: str, *, weights: Path | str | None = None, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """A feature network, ready to see images.

    Args:
        name: one of `EXTRACTORS`, or `module:factory` for a network of your own; `inception=/path/to/file` names the
            weights too, and so for the others.
        weights: a file or a folder that holds it (inception, convnext, own: the file), a folder of transformers or
            user/name[@revision] on the Hub (dinov2, dinov3, clip). None: the network that the literature uses, found
            here or else fetched.
        device: where it runs.

    Raises:
        ConfigError: there is no such network, or a network of your own fails.
        ModelFileError: weights are missing, broken, of another kind, or cannot be fetched.
        SphereGenError: a package is missing.
    """
    name, equals, path = name.partition("=")
    if equals:
        if weights is not None:
            raise ConfigError(f"{name}={path} names weights and {weights} are others; give one of them")
        if not path:
            raise ConfigError(f"{name}= names no weights; write {name}=/path/to/file, or {name} alone")
        weights = path
    device = torch.device(device)
    if name in EXTRACTORS:
        return _loader(name)(weights, device)
    if ":" in name:
        if weights is not None:
            raise ConfigError(f"{name} is a network of your own and takes no weights; let its factory load them")
        from spheregen.evaluation.features.custom import load_custom

        return load_custom(name, device)
    known = ", ".join(EXTRACTORS)
    hint = did_you_mean(name, EXTRACTORS)
    raise ConfigError(f"there is no feature network {name!r}{hint}; use one of {known}, or module:factory of your own")


def _loader(name: str) -> Callable[[Path | str | None, torch.device], FeatureExtractor]:
    """What loads a network of `EXTRACTORS`; each module is imported when it is asked for."""
    if name == "own":
        from spheregen.evaluation.features.own import load_own

        return load_own
    if name == "inception":
        from spheregen.evaluation.features.inception import load_inception

        return load_inception
    if name == "convnext":
        from spheregen.evaluation.features.convnext import load_convnext

        return load_convnext
    from spheregen.evaluation.features.transformers import load_transformer

    return lambda weights, device: load_transformer(name, weights, device)
