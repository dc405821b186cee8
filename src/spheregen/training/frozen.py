"""Where a run gets its frozen networks, and the objective that it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spheregen.errors import ConfigError
from spheregen.family.objective import Objective
from spheregen.family.recipe import Recipe
from spheregen.family.registry import blank_model, member_of, member_of_kind
from spheregen.family.representation.network import with_architecture
from spheregen.folders.card import ModelInfo
from spheregen.folders.model_folder import (
    LoadedModel,
    load_model,
    load_prior,
    model_fingerprint,
    read_architecture,
    read_inner_architecture,
)
from spheregen.folders.model_source import find_model
from spheregen.folders.summary import PRIOR
from spheregen.folders.tokenizers import blank_tokenizer, open_tokenizer
from spheregen.networks.encoders import build_encoder
from spheregen.networks.perceptual import available_provider, load_perceptual, random_perceptual
from spheregen.protocol import Tokenizer


class _Networks:
    """The frozen networks that an objective asks for: with their weights, or with random ones on the current device."""

    def __init__(self, tokenizer: Tokenizer | None = None, *, random: bool = False) -> None:
        self._tokenizer, self._random = tokenizer, random

    def perceptual(self, kind: str) -> Any:
        if not self._random:
            return load_perceptual(kind)
        return None if kind == "none" else random_perceptual(available_provider() if kind == "auto" else kind)

    def model(self, name: str, part: str = "") -> LoadedModel:
        folder = find_model(name) / part
        if not self._random:
            return load_model(folder)
        inner = read_inner_architecture(folder)
        model: Any = blank_model(read_architecture(folder), None if inner is None else blank_model(inner))
        loaded = LoadedModel(model, ModelInfo(), model_fingerprint(folder))
        model.fitted = load_prior(folder, loaded) if (folder / PRIOR).is_file() else None
        return loaded

    def tokenizer(self) -> Any:
        return self._tokenizer

    def encoder(self, config: Any) -> Any:
        if not self._random:
            return build_encoder(config, pretrained=True)
        return build_encoder(with_architecture(config), pretrained=False)

    def codec(self, name: str) -> Any:
        return blank_tokenizer(name) if self._random else open_tokenizer(name).tokenizer

    def network(self, build: Callable[[bool], Any]) -> Any:
        return build(not self._random)


def build_objective(recipe: Recipe, tokenizer: Tokenizer | None = None) -> Objective:
    """Build what a recipe trains, with weights initialised from the recipe's seed, on the CPU.

    Args:
        tokenizer: of the latents that the run is trained on, if it is trained on latents.

    Raises:
        ModelFileError: a frozen network is missing, broken or out of reach.
        ConfigError: the parts do not fit together.
    """
    build = member_of_kind(recipe.kind).objective
    assert build is not None
    return build(recipe, _Networks(tokenizer))


def estimate_objective(recipe: Recipe) -> Objective:
    """Build the same with random frozen networks, on the current device: for estimates of memory, speed and cost."""
    build = member_of_kind(recipe.kind).objective
    assert build is not None
    return build(recipe, _Networks(random=True))


def blank_of_recipe(recipe: Recipe, tokenizer: str | None = None) -> Any:
    """Return the model that a recipe trains with fresh weights on the current device, for estimates.

    Args:
        tokenizer: of a latent denoiser; None takes the one that the recipe was made for, if it names one.

    Raises:
        ConfigError: a tokenizer for another kind of model.
        ModelFileError: an inner network is missing or broken.
    """
    config = member_of_kind(recipe.kind).inner_config(
        recipe, lambda name, part="": read_architecture(find_model(name) / part)
    )
    inner = None if config is None else blank_model(config)
    return _blank(recipe.model, inner, tokenizer, getattr(recipe, "tokenizer", None))


def blank_of_folder(folder: Path, tokenizer: str | None = None) -> Any:
    """Return the model of a folder with fresh weights on the current device. Arguments as of `blank_of_recipe`."""
    config = read_architecture(folder)
    inner = member_of(config).inner
    if inner is None or inner.is_tokenizer:
        return _blank(config, None, tokenizer, str(folder / inner.folder) if inner else None)
    return _blank(config, blank_of_folder(folder / inner.folder), tokenizer, None)


def _blank(config: Any, inner: Any, asked: str | None, own: str | None) -> Any:
    wants = member_of(config).inner
    if wants is not None and wants.is_tokenizer:
        name = asked or own
        inner = None if name is None else blank_tokenizer(name)
    elif asked:
        raise ConfigError("--tokenizer belongs to latent denoisers; leave it out")
    return blank_model(config, inner)
