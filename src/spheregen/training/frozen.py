"""Where a run gets its frozen networks, and the objective that it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spheregen.errors import ConfigError
from spheregen.family.objective import Objective
from spheregen.family.recipe import Recipe
from spheregen.family.registry import blank_model, member_of, member_of_kind
from spheregen.family.representation.network import with_architecture
from spheregen.folders.card import ModelInfo
from spheregen.folders.model_folder import LoadedModel, load_model, read_architecture, read_inner_architecture
from spheregen.folders.model_source import find_model
from spheregen.folders.tokenizers import blank_tokenizer
from spheregen.networks.encoders import build_encoder
from spheregen.networks.perceptual import available_provider, load_perceptual, random_perceptual
from spheregen.protocol import Tokenizer


class Weights:
    """Frozen networks with their weights.

    Args:
        tokenizer: of the latents that the run is trained on, if it is trained on latents.
    """

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer

    def perceptual(self, kind: str) -> Any:
        return load_perceptual(kind)

    def model(self, name: str, part: str = "") -> LoadedModel:
        return load_model(find_model(name) / part)

    def tokenizer(self) -> Any:
        return self._tokenizer

    def encoder(self, config: Any) -> Any:
        return build_encoder(config, pretrained=True)


class RandomWeights:
    """The same networks with random weights, on the current device; no weights are read."""

    def perceptual(self, kind: str) -> Any:
        if kind == "none":
            return None
        return random_perceptual(available_provider() if kind == "auto" else kind)

    def model(self, name: str, part: str = "") -> LoadedModel:
        folder = find_model(name) / part
        inner = read_inner_architecture(folder)
        model: Any = blank_model(read_architecture(folder), None if inner is None else blank_model(inner))
        return LoadedModel(model, ModelInfo())

    def tokenizer(self) -> Any:
        return None

    def encoder(self, config: Any) -> Any:
        return build_encoder(with_architecture(config), pretrained=False)


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
    return build(recipe, Weights(tokenizer))


def estimate_objective(recipe: Recipe) -> Objective:
    """Build the same with random frozen networks, on the current device: for estimates of memory, speed and cost."""
    build = member_of_kind(recipe.kind).objective
    assert build is not None
    return build(recipe, RandomWeights())


def inner_architecture(recipe: Recipe) -> Any:
    """Return the architecture of the generator in front of a recipe's refiner; None for other kinds of recipes.

    Raises:
        ModelFileError: it is frozen, and missing or broken.
    """
    return member_of_kind(recipe.kind).inner_config(recipe, _read)


def blank_of_recipe(recipe: Recipe, tokenizer: str | None = None) -> Any:
    """Return the model that a recipe trains with fresh weights on the current device, for estimates.

    Args:
        tokenizer: of a latent denoiser; None takes the one that the recipe was made for, if it names one.

    Raises:
        ConfigError: a tokenizer for another kind of model.
        ModelFileError: an inner network is missing or broken.
    """
    config = inner_architecture(recipe)
    inner = None if config is None else blank_model(config)
    return _blank(recipe.model, inner, tokenizer or getattr(recipe, "tokenizer", None), asked=tokenizer is not None)


def blank_of_folder(folder: Path, tokenizer: str | None = None) -> Any:
    """Return the model of a folder with fresh weights on the current device. Arguments as of `blank_of_recipe`."""
    config = read_architecture(folder)
    inner = member_of(config).inner
    if inner is None:
        return _blank(config, None, tokenizer, asked=tokenizer is not None)
    inside = folder / inner.folder
    if inner.is_tokenizer:
        return _blank(config, None, tokenizer or str(inside), asked=tokenizer is not None)
    return _blank(config, blank_of_folder(inside), tokenizer, asked=tokenizer is not None)


def _blank(config: Any, inner: Any, tokenizer: str | None, *, asked: bool) -> Any:
    wants = member_of(config).inner
    if wants is not None and wants.is_tokenizer:
        inner = None if tokenizer is None else blank_tokenizer(tokenizer)
    elif asked:
        raise ConfigError("--tokenizer belongs to latent denoisers; leave it out")
    return blank_model(config, inner)


def check_base(recipe: Recipe, architecture: Any) -> None:
    """Refuse a model to fine-tune that is of another kind than the recipe, by its architecture alone.

    Raises:
        ConfigError: it is.
    """
    if type(architecture) is not type(recipe.model):
        raise ConfigError(
            f"the model to start from is of another kind than the recipe {recipe.name} ({recipe.kind}); give one of "
            "this kind, or train without --init"
        )


def _read(name: str, part: str = "") -> Any:
    return read_architecture(Path(find_model(name)) / part)
