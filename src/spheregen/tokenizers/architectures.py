"""Tokenizers without their weights, for what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from spheregen.errors import ModelFileError, did_you_mean
from spheregen.model_folder import CONFIG, MODEL_CLASSES, read_architecture
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.models.protocol import Tokenizer
from spheregen.tokenizers.encoders import EncoderConfig
from spheregen.tokenizers.mae import MAEDecoderConfig
from spheregen.tokenizers.opening import open_tokenizer
from spheregen.tokenizers.published_rae import PublishedRAE, PublishedRAEConfig
from spheregen.tokenizers.sphere import SphereTokenizer

_DINOV2_BASE = {
    "model_type": "dinov2_with_registers",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 14,
    "image_size": 518,
    "num_register_tokens": 4,
}

PUBLISHED: Mapping[str, PublishedRAEConfig] = MappingProxyType(
    {
        "rae-dinov2-base": PublishedRAEConfig(
            encoder=EncoderConfig(kind="transformers", config=_DINOV2_BASE, input_size=224),
            decoder=MAEDecoderConfig(channels_in=768, hidden=1152, mlp=4096, layers=28, heads=16, patch=16, grid=16),
            statistics="position",
        )
    }
)
"""Published tokenizers by name. Their weights do not come with the package."""


def blank_tokenizer(name: str | Path) -> Tokenizer:
    """A tokenizer on the meta device: its shapes and its operations, no weights.

    Args:
        name: in `PUBLISHED`, or whatever `open_tokenizer` opens; of our own folders the configuration alone is read.

    Raises:
        ModelFileError: there is none of that name, or it is no tokenizer.
        SphereGenError: a package that it needs is not installed.
    """
    if str(name) in PUBLISHED:
        with torch.device("meta"):
            return PublishedRAE.from_config(PUBLISHED[str(name)])
    path = Path(name)
    if path.is_dir() and (path / CONFIG).is_file():
        try:
            config: Any = read_architecture(path)
        except ModelFileError:
            config = None  # an autoencoder of diffusers
        for build, config_class in MODEL_CLASSES.values():
            if config is not None and type(config) is config_class:
                with torch.device("meta"):
                    network: Any = build(config)
                    network = SphereTokenizer(network) if isinstance(network, SphereAutoencoder) else network
                if isinstance(network, Tokenizer):
                    return network
    try:
        tokenizer = open_tokenizer(name).tokenizer
    except ModelFileError as error:
        raise ModelFileError(f"{error}{did_you_mean(str(name), PUBLISHED)}") from error
    return tokenizer
