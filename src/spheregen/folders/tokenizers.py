"""Tokenizers by name: a folder, a bundled model, a Hub id, or an architecture of a published one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from spheregen.data.latent_cache import is_latent_cache
from spheregen.errors import ConfigError, ModelFileError, did_you_mean
from spheregen.family.registry import blank_model, member_of
from spheregen.family.representation.published import MODEL, PUBLISHED, read_published_rae
from spheregen.family.sphere_latent_encoder.member import TOKENIZER
from spheregen.folders.model_folder import (
    is_diffusers,
    load_tokenizer,
    read_architecture,
    save_tokenizer,
    tokenizer_fingerprint,
)
from spheregen.folders.model_source import find_model
from spheregen.folders.summary import CONFIG, bundled_models
from spheregen.networks.diffusers_models import open_diffusers
from spheregen.nn.uninitialised import weightless
from spheregen.protocol import Tokenizer

__all__ = ["TOKENIZER", "OpenedTokenizer", "blank_tokenizer", "open_tokenizer", "save_tokenizer"]


@dataclass(frozen=True)
class OpenedTokenizer:
    """A tokenizer with what tells it from others."""

    tokenizer: Tokenizer  # a frozen `nn.Module`
    name: str  # as it was asked for
    fingerprint: str  # of its weights and of the shapes of its images and latents


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
    """
    tokenizer = _open(str(name), image_size, pack)
    fingerprint = tokenizer_fingerprint(tokenizer)
    assert isinstance(tokenizer, nn.Module)
    if device is not None:
        tokenizer.to(device)
    return OpenedTokenizer(tokenizer, str(name), fingerprint)


def _open(name: str, image_size: int | None, pack: int | None) -> Tokenizer:
    path, _, subfolder = (name, "", "") if Path(name).exists() else name.partition(":")
    folder = Path(path)
    if path and is_latent_cache(folder):
        raise ModelFileError(f"{name} is a latent cache, no tokenizer; the one that made it is {folder / TOKENIZER}")
    if path and folder.is_dir() and (subfolder or is_diffusers(folder)):
        return open_diffusers(folder, image_size, pack, subfolder or None)
    if path in bundled_models():
        folder = find_model(path)
    if path and folder.is_dir():
        if (folder / MODEL).is_file() and not (folder / CONFIG).is_file():
            if image_size is not None or pack is not None:
                raise ConfigError(f"{name} has an image size and tokens of its own; leave image size and packing out")
            return read_published_rae(folder)
        return load_tokenizer(folder, image_size, pack)
    if "/" in path and not folder.is_absolute():
        if image_size is None and pack is None and not subfolder:
            with contextlib.suppress(ModelFileError):  # not one of ours, or out of reach, which the next line tells
                return load_tokenizer(find_model(path))
        return open_diffusers(path, image_size, pack, subfolder or None)
    raise ModelFileError(
        f"no tokenizer {name!r}: give the folder of an autoencoder, of a representation autoencoder (recipes rae-*), "
        "of the published RAE files or of an autoencoder of diffusers, or a Hub id user/name"
    )


def blank_tokenizer(name: str | Path) -> Tokenizer:
    """Return a tokenizer on the meta device: its shapes and its operations, no weights.

    It is named in `PUBLISHED`, or as for `open_tokenizer`; of our own folders the configuration alone is read.
    """
    config: Any = PUBLISHED.get(str(name))
    path = find_model(str(name)) if str(name) in bundled_models() else Path(name)
    if config is None and (path / CONFIG).is_file() and not is_diffusers(path):
        with contextlib.suppress(ModelFileError):
            config = read_architecture(path)
    as_tokenizer = None if config is None else member_of(config).as_tokenizer
    if as_tokenizer is not None:
        with weightless():
            return cast(Tokenizer, as_tokenizer(blank_model(config)))
    try:
        return open_tokenizer(name).tokenizer
    except ModelFileError as error:
        raise ModelFileError(f"{error}{did_you_mean(str(name), PUBLISHED)}") from error
