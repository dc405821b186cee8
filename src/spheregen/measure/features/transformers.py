"""DINOv2, DINOv3 and CLIP by the package transformers: networks that tell images apart more as people do.

DINOv2: Stein et al. 2023 (arXiv 2306.04675), FD-DINOv2. CLIP: Jayasumana et al. 2024 (arXiv 2401.09603), CMMD. The
images are resized and normalised here; transformers' image processors, which need torchvision, take no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ModelFileError
from spheregen.external import import_package, load_network, locate, quiet, read_json, reason
from spheregen.measure.features.extractor import FeatureBatch, FeatureExtractor, FeatureInfo, NetworkFeatures
from spheregen.measure.features.preprocessing import CLIP_MEAN, CLIP_STD, antialiased, normalised
from spheregen.networks.frozen import IMAGENET_MEAN, IMAGENET_STD
from spheregen.tensors import weights_hash


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks of one kind that are used in one way."""

    title: str
    repo: str
    """The network that the literature uses, on the Hub."""
    kinds: Mapping[str, str]
    """Class in transformers of each `model_type` of config.json that will do."""
    projected: bool = False
    """CLIP's way: the projected image embedding at unit norm, images resized to whole levels as Pillow does, at the
    network's own size. Else: the class token after the last norm, at 224 px, without rounding."""


FAMILIES: Mapping[str, Family] = {
    "dinov2": Family(
        title="DINOv2",
        repo="facebook/dinov2-large",
        kinds={"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"},
    ),
    "dinov3": Family(
        title="DINOv3", repo="facebook/dinov3-vitl16-pretrain-lvd1689m", kinds={"dinov3_vit": "DINOv3ViTModel"}
    ),
    "clip": Family(
        title="CLIP",
        repo="openai/clip-vit-large-patch14-336",
        kinds=dict.fromkeys(("clip", "clip_vision_model"), "CLIPVisionModelWithProjection"),
        projected=True,
    ),
}
_SIZE = 224  # pixels, of those that take any size


def load_transformer(name: str, weights: Path | str | None, device: torch.device) -> FeatureExtractor:
    """Load a network of `FAMILIES` in float32. No code of a repository is run, only safetensors are read.

    Features (B, D): the class token after the last norm (DINOv2, DINOv3), or CLIP's projected embedding at unit norm.
    DINOv2 was trained at 518 px; transformers interpolates its position table to 224 px a little otherwise than the
    original code, so that its features differ slightly from those of dgm-eval.

    Args:
        name: dinov2, dinov3 or clip.
        weights: a folder with config.json and model.safetensors; or user/name or user/name@revision on the Hub, kept
            in its usual cache and taken from there without a network; or None for the network of the literature.
        device: where it runs.

    Raises:
        SphereGenError: transformers is not installed.
        ModelFileError: the folder or the repository is missing, out of reach or incomplete, or holds another network.
    """
    family = FAMILIES[name]
    source = str(weights) if weights is not None else family.repo
    transformers = import_package("transformers", "encoders", f"the feature network {name}")
    place = locate(source, f"the feature network {name}", folder=f"{name}=/path/to/folder")
    kind = str(read_json(place.config, source).get("model_type"))
    try:
        if kind not in family.kinds:
            raise ValueError(f"its model_type is {kind!r}, but {name} takes {' or '.join(family.kinds)}")
        with quiet(transformers):
            net = load_network(getattr(transformers, family.kinds[kind]), place)
        if not family.projected and _SIZE % int(net.config.patch_size):
            raise ValueError(f"its patches of {net.config.patch_size} px do not divide {_SIZE} px")
    except Exception as error:  # transformers, safetensors and HTTP libraries have no common base
        raise ModelFileError(
            f"{source} cannot be loaded as {name} ({reason(error)}); give a folder with config.json and "
            f"model.safetensors, or a network such as {family.repo}"
        ) from error
    label = source if not Path(source).expanduser().exists() else Path(source).expanduser().resolve().name
    size = int(net.config.image_size) if family.projected else _SIZE
    mean, std = (CLIP_MEAN, CLIP_STD) if family.projected else (IMAGENET_MEAN, IMAGENET_STD)

    def extract(images: Tensor) -> FeatureBatch:
        pixels = antialiased(images, size, "bicubic", eight_bit=family.projected)
        output = net(pixel_values=normalised(pixels, mean, std))
        if family.projected:
            return FeatureBatch(functional.normalize(output.image_embeds.float(), dim=1))
        return FeatureBatch(output.last_hidden_state[:, 0].float())

    info = FeatureInfo(
        name=name,
        title=f"{family.title} ({label}), {'image embedding' if family.projected else 'class token'}",
        distance=f"FD-{family.title}",
        dim=int(net.config.projection_dim if family.projected else net.config.hidden_size),
        preprocessing=f"resized to {size} px (bicubic, antialiased, {'8 bits' if family.projected else 'float'}), "
        f"[0, 1], {'CLIP' if family.projected else 'ImageNet'} mean and deviation",
        weights=weights_hash(net.state_dict()),
        normalised=family.projected,
    )
    return NetworkFeatures(net, info, extract, device)
