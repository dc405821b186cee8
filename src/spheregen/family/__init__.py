"""The members of the family, each in a folder of its own; `registry` lists them once.

Names below are imported when they are first used: the networks and losses need torch alone, the records pydantic too.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "AutoencoderConfig": "sphere_encoder.network",
    "AutoencoderLossConfig": "sphere_encoder.loss",
    "AutoencoderObjective": "sphere_encoder.loss",
    "ConvolutionalAutoencoder": "convolutional.network",
    "ConvolutionalConfig": "convolutional.network",
    "FlowRefiner": "sphere_flow.network",
    "FlowRefinerConfig": "sphere_flow.network",
    "ImageAutoencoder": "sphere_encoder.network",
    "LatentDenoiser": "sphere_latent_encoder.network",
    "LatentDenoiserConfig": "sphere_latent_encoder.network",
    "LatentGenerator": "sphere_latent_encoder.network",
    "LossTerms": "terms",
    "Member": "member",
    "Objective": "objective",
    "Recipe": "recipe",
    "RefinedGenerator": "sphere_flow.network",
    "RepresentationAutoencoder": "representation.network",
    "RepresentationConfig": "representation.network",
    "SphereAutoencoder": "sphere_encoder.network",
    "SphereEncoder2": "sphere_encoder_2.network",
    "SphereEncoder2Config": "sphere_encoder_2.config",
    "SphereEncoder2LossConfig": "sphere_encoder_2.terms",
    "SphereEncoder2Objective": "sphere_encoder_2.loss",
    "members": "registry",
    "register": "registry",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
