"""DINOv2, DINOv3 and CLIP by the package transformers: networks that judge images more as people do than Inception.

DINOv2: Stein et al. 2023 (arXiv 2306.04675), FD-DINOv2. CLIP: Jayasumana et al. 2024 (arXiv 2401.09603), CMMD. The
images are resized and normalised here; transformers' image processors, which need torchvision, take no part.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.evaluation.features.base import FeatureBatch, FeatureInfo
from spheregen.evaluation.features.network import NetworkFeatures
from spheregen.evaluation.features.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    antialiased,
    normalised,
)
from spheregen.hub import HubError, find_downloaded, import_hub, request
from spheregen.model_folder import weights_hash

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_PATIENCE = 10.0  # seconds for the Hub's first answer


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks of one kind that are used in one way."""

    title: str
    """In words."""
    distance: str
    """What the Frechet distance is called."""
    repo: str
    """The network that the literature uses, on the Hub."""
    kinds: Mapping[str, str]
    """Class in transformers of each `model_type` of config.json that will do."""
    mean: tuple[float, float, float]
    """Of the input in [0, 1]."""
    std: tuple[float, float, float]
    """Of the input in [0, 1]."""
    projected: bool = False
    """CLIP's way: the projected image embedding at unit norm, images resized to whole levels as Pillow does, at the
    network's own size. Else: the class token after the last norm, at 224 px, without rounding."""


FAMILIES: Mapping[str, Family] = {
    "dinov2": Family(
        title="DINOv2",
        distance="FD-DINOv2",
        repo="facebook/dinov2-large",
        kinds={"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"},
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "dinov3": Family(
        title="DINOv3",
        distance="FD-DINOv3",
        repo="facebook/dinov3-vitl16-pretrain-lvd1689m",
        kinds={"dinov3_vit": "DINOv3ViTModel"},
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "clip": Family(
        title="CLIP",
        distance="FD-CLIP",
        repo="openai/clip-vit-large-patch14-336",
        kinds={"clip": "CLIPVisionModelWithProjection", "clip_vision_model": "CLIPVisionModelWithProjection"},
        mean=CLIP_MEAN,
        std=CLIP_STD,
        projected=True,
    ),
}
_SIZE = 224  # pixels, of those that take any size


@dataclass(frozen=True)
class _Place:
    """Where a network lies."""

    name: str
    """A folder, or user/name on the Hub."""
    revision: str | None
    """On the Hub."""
    config: Path
    """Its config.json, here."""


class TransformerFeatures(NetworkFeatures):
    """The class token after the last norm (DINOv2, DINOv3), or CLIP's projected embedding at unit norm; (B, D).

    DINOv2 was trained at 518 px; transformers interpolates its position table to 224 px a little otherwise than the
    original code, so that its features differ slightly from those of dgm-eval.

    Args:
        net: the network of transformers.
        name: a key of `FAMILIES`.
        source: where it came from, for the title.
        device: where it runs.
    """

    def __init__(self, net: nn.Module, name: str, source: str, device: torch.device) -> None:
        family = FAMILIES[name]
        config: Any = net.config
        self._family = family
        self._size = int(config.image_size) if family.projected else _SIZE
        rounding = "8 bits" if family.projected else "float"
        info = FeatureInfo(
            name=name,
            title=f"{family.title} ({source}), {'image embedding' if family.projected else 'class token'}",
            distance=family.distance,
            dim=int(config.projection_dim if family.projected else config.hidden_size),
            preprocessing=f"resized to {self._size} px (bicubic, antialiased, {rounding}), [0, 1], "
            f"{'CLIP' if family.projected else 'ImageNet'} mean and deviation",
            weights=weights_hash(net.state_dict()),
            normalised=family.projected,
        )
        super().__init__(net, info, device)

    def see(self, images: Tensor) -> FeatureBatch:
        family = self._family
        pixels = antialiased(images, self._size, "bicubic", eight_bit=family.projected)
        output = self.net(pixel_values=normalised(pixels, family.mean, family.std))
        if family.projected:
            return FeatureBatch(functional.normalize(output.image_embeds.float(), dim=1))
        return FeatureBatch(output.last_hidden_state[:, 0].float())


def load_transformer(name: str, weights: Path | str | None, device: torch.device) -> TransformerFeatures:
    """A network of `FAMILIES` by transformers, in float32. No code of a repository is run, only safetensors are read.

    Args:
        name: dinov2, dinov3 or clip.
        weights: a folder with config.json and model.safetensors; or user/name or user/name@revision on the Hub, kept
            in its usual cache and taken from there without a network; or None for the network of the literature.
        device: where it runs.

    Raises:
        SphereGenError: transformers is not installed.
        ModelFileError: the folder or the repository is missing, out of reach or incomplete, or holds another network.
        ConfigError: the network does not take images of 224 px.
    """
    family = FAMILIES[name]
    source = str(weights) if weights is not None else family.repo
    transformers = _import(name)
    place = _find(source, name)
    kind = _kind(place.config, source)
    if kind not in family.kinds:
        known = " or ".join(family.kinds)
        raise ModelFileError(
            f"{source} is of model_type {kind!r}, but {name} takes {known}; give a network such as {family.repo}"
        )
    try:
        with _quiet(transformers):
            net, report = getattr(transformers, family.kinds[kind]).from_pretrained(
                place.name,
                revision=place.revision or "main",
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # transformers, safetensors and HTTP libraries have no common base
        raise ModelFileError(
            f"{source} cannot be loaded ({_reason(error)}); give a folder with config.json and model.safetensors"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelFileError(
            f"{source} lacks {len(missing)} tensors of {name}, such as {missing[0]}; give a complete network"
        )
    patch = net.config.patch_size
    if not family.projected and _SIZE % int(patch):
        raise ConfigError(f"{source} has patches of {patch} px, which do not divide {_SIZE} px; give another network")
    label = source if not Path(source).expanduser().exists() else Path(source).expanduser().resolve().name
    return TransformerFeatures(net, name, label, device)


def _import(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages, about each other
            return importlib.import_module("transformers")
    except ImportError as error:
        raise SphereGenError(
            f'the feature network {name} needs the package transformers: pip install "spheregen[encoders]"'
        ) from error


def _find(source: str, name: str) -> _Place:
    """A folder, or a repository that the Hub has or had.

    Raises:
        ModelFileError: there is neither, or the Hub cannot be reached and the repository was never fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _Place(str(folder), None, folder / "config.json")
    if folder.is_file():
        raise ModelFileError(f"{folder} is a file; give the folder that holds config.json and model.safetensors")
    repo, _, given = source.partition("@")
    revision = given or None
    if not _REPO.fullmatch(repo):
        raise ModelFileError(f"there is no folder {source} with weights of {name}; give a folder, or user/name")
    hub = import_hub(repo, ModelFileError)
    try:
        # First a question that is not repeated for half a minute where there is no network.
        request(lambda: hub.HfApi().model_info(repo, revision=revision, timeout=_PATIENCE), "model")
        config = request(lambda: hub.hf_hub_download(repo, "config.json", revision=revision), "model")
    except HubError as error:
        before = None if error.permanent else find_downloaded(hub, repo, "model", revision)
        if before is None:
            raise ModelFileError(f"{repo} for {name}: {error}; or give a folder as {name}=/path/to/folder") from error
        return _Place(str(before), None, before / "config.json")
    return _Place(repo, revision, Path(config))


def _kind(config: Path, source: str) -> str:
    """The `model_type` of config.json.

    Raises:
        ModelFileError: it is missing or names none.
    """
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["model_type"])
    except FileNotFoundError as error:
        raise ModelFileError(f"{source} has no config.json; give a folder that transformers wrote") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"config.json of {source} names no model_type ({_reason(error)}); fetch it again"
        ) from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no table of the tensors that CLIP's text part leaves over."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _reason(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0].strip()
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
