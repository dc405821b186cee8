"""Tokenizers by name, and their folders.

A tokenizer is named by a folder (of a model of ours, of an autoencoder of diffusers, or of the published RAE files), by
the name of a bundled model, or by a Hub id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spheregen.data.latent_cache import is_latent_cache
from spheregen.errors import ConfigError, ModelFileError
from spheregen.files import write_json
from spheregen.model_folder import CONFIG, TOKENIZER, ModelInfo, load_network, save_model, weights_hash
from spheregen.model_source import bundled_models, find_model
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.models.latent_denoiser import LatentDenoiser
from spheregen.models.protocol import Tokenizer
from spheregen.tokenizers.diffusers_models import DiffusersTokenizer, open_diffusers
from spheregen.tokenizers.published_rae import MODEL, read_published_rae
from spheregen.tokenizers.sphere import SphereTokenizer

RECORD = "fingerprint.json"
"""In a folder of `save_tokenizer`, written last."""


@dataclass(frozen=True)
class OpenedTokenizer:
    """A tokenizer with what tells it from others."""

    tokenizer: Tokenizer
    """A frozen `nn.Module`."""
    name: str
    """As it was asked for."""
    fingerprint: str
    """Of its weights and of the shapes of its images and latents."""


def open_tokenizer(
    name: str | Path,
    *,
    image_size: int | None = None,
    pack: int | None = None,
    device: torch.device | None = None,
) -> OpenedTokenizer:
    """Load a tokenizer by its folder, bundled name or Hub id.

    Args:
        name: the folder of an autoencoder, a representation autoencoder or a latent denoiser of ours (whose own
            tokenizer it then is), of `save_tokenizer`, of the published RAE files, or of an autoencoder of diffusers
            (`folder:vae` for a sub-folder of a pipeline); or the name of a bundled model; or user/name on the Hub.
        image_size: S in pixels, for an autoencoder of diffusers that takes any.
        pack: latent pixels of such an autoencoder along a token's side, 1 by default.
        device: where it shall compute; None: the CPU.

    Raises:
        ModelFileError: there is none, or it is broken, or no tokenizer.
        ConfigError: image size or packing are missing, or mean nothing to it.
        SphereGenError: a package that it needs is not installed.
    """
    tokenizer = _open(str(name), image_size, pack)
    fingerprint = tokenizer_fingerprint(tokenizer)
    assert isinstance(tokenizer, nn.Module)
    if device is not None:
        tokenizer.to(device)
    return OpenedTokenizer(tokenizer, str(name), fingerprint)


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Hexadecimal digits that tell tokenizers apart: of their weights, types and shapes."""
    assert isinstance(tokenizer, nn.Module)
    about = f"{type(tokenizer).__name__} {tokenizer.image_shape} {tokenizer.latent_shape}"
    return hashlib.sha256(f"{about} {weights_hash(tokenizer.state_dict())}".encode()).hexdigest()[:16]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer as a folder that `open_tokenizer` reads and that needs nothing else.

    Nothing is written where the folder holds it already: checkpoints of a denoiser come again and again.

    Raises:
        SphereGenError: the folder cannot be written to.
    """
    fingerprint = tokenizer_fingerprint(tokenizer)
    if _recorded(folder) == fingerprint:
        return
    with contextlib.suppress(FileNotFoundError):
        (folder / RECORD).unlink()  # until it is whole again, the folder holds neither the old nor the new
    if isinstance(tokenizer, DiffusersTokenizer):
        tokenizer.save(folder)
    else:
        network = tokenizer.model if isinstance(tokenizer, SphereTokenizer) else tokenizer
        assert isinstance(network, nn.Module)
        save_model(folder, network, ModelInfo(), title="tokenizer")
    write_json(folder / RECORD, {"fingerprint": fingerprint})


def _recorded(folder: Path) -> str | None:
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return str(values["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open(name: str, image_size: int | None, pack: int | None) -> Tokenizer:
    path, _, subfolder = (name, "", "") if Path(name).exists() else name.partition(":")
    folder = Path(path)
    if path and is_latent_cache(folder):
        raise ModelFileError(f"{name} is a latent cache, no tokenizer; the one that made it is {folder / TOKENIZER}")
    if path and folder.is_dir():
        if subfolder or _class_names(folder).get("_class_name"):
            return open_diffusers(folder, image_size, pack, subfolder or None)
        if (folder / MODEL).is_file() and not (folder / CONFIG).is_file():
            _refuse_sizes(name, image_size, pack)
            return read_published_rae(folder)
        _refuse_sizes(name, image_size, pack)
        return _own(folder)
    if path in bundled_models():
        _refuse_sizes(name, image_size, pack)
        return _own(find_model(path))
    if "/" in path and not folder.is_absolute():
        if image_size is None and pack is None and not subfolder:
            with contextlib.suppress(ModelFileError):  # not one of ours, or out of reach, which the next line tells
                return _own(find_model(path))
        return open_diffusers(path, image_size, pack, subfolder or None)
    raise ModelFileError(
        f"no tokenizer {name!r}: give the folder of an autoencoder, of a representation autoencoder (recipes rae-*), "
        "of the published RAE files or of an autoencoder of diffusers, or a Hub id user/name"
    )


def _own(folder: Path) -> Tokenizer:
    network = load_network(folder).network
    if isinstance(network, LatentDenoiser):
        return _open(str(folder / TOKENIZER), None, None)
    if isinstance(network, SphereAutoencoder):
        try:
            return SphereTokenizer(network)
        except ConfigError as error:
            raise ModelFileError(f"{folder}: {error}") from error
    assert isinstance(network, Tokenizer)
    return network


def _refuse_sizes(name: str, image_size: int | None, pack: int | None) -> None:
    if image_size is not None or pack is not None:
        raise ConfigError(f"{name} has an image size and tokens of its own; leave image size and packing out")


def _class_names(folder: Path) -> Mapping[str, Any]:
    """The configuration of a folder; empty where there is none that can be read, which its reader will tell."""
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
