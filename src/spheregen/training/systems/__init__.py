"""The systems that a recipe can train, by its kind."""

from __future__ import annotations

from typing import Any

from spheregen.errors import ConfigError
from spheregen.models.autoencoder import AutoencoderConfig
from spheregen.models.flow_refiner import FlowRefinerConfig
from spheregen.models.latent_denoiser import LatentDenoiserConfig
from spheregen.tokenizers.representation import RepresentationConfig
from spheregen.training.feeding import CachedLatents, TrainingData
from spheregen.training.recipe import (
    AutoencoderRecipe,
    LatentDenoiserRecipe,
    Recipe,
    RepresentationRecipe,
    SphereFlowRecipe,
)
from spheregen.training.systems.autoencoder import AutoencoderSystem
from spheregen.training.systems.base import Draws, System
from spheregen.training.systems.latent_denoiser import LatentDenoiserSystem
from spheregen.training.systems.representation import RepresentationSystem
from spheregen.training.systems.sphere_flow import SphereFlowSystem, check_teacher
from spheregen.training.transfer import (
    check_denoiser_fits,
    check_fits,
    check_refiner_fits,
    check_representation_fits,
)

__all__ = ["Draws", "System", "build_system", "check_base", "stand_in_system"]


def build_system(recipe: Recipe, data: TrainingData | None = None) -> System:
    """The system that a recipe trains, with weights initialised from the recipe's seed, on the CPU.

    Args:
        data: what the run is trained on, which knows the tokenizer of its latents; needed by latent denoisers alone.
    """
    if isinstance(recipe, LatentDenoiserRecipe):
        return LatentDenoiserSystem.build(recipe, data if isinstance(data, CachedLatents) else None)
    if isinstance(recipe, AutoencoderRecipe):
        return AutoencoderSystem.build(recipe)
    if isinstance(recipe, RepresentationRecipe):
        return RepresentationSystem.build(recipe)
    if isinstance(recipe, SphereFlowRecipe):
        return SphereFlowSystem.build(recipe)
    raise TypeError(f"no system trains a {type(recipe).__name__}")


def stand_in_system(recipe: Recipe) -> System:
    """The same with random frozen networks, on the current device: for estimates of memory and speed.

    No weights are read.
    """
    if isinstance(recipe, LatentDenoiserRecipe):
        return LatentDenoiserSystem(recipe, None)
    if isinstance(recipe, AutoencoderRecipe):
        return AutoencoderSystem.stand_in(recipe)
    if isinstance(recipe, RepresentationRecipe):
        return RepresentationSystem.stand_in(recipe)
    if isinstance(recipe, SphereFlowRecipe):
        return SphereFlowSystem.stand_in(recipe)
    raise TypeError(f"no system trains a {type(recipe).__name__}")


def check_base(recipe: Recipe, architecture: Any) -> None:
    """Refuse a model to fine-tune of which nothing can fit, by its architecture alone.

    Raises:
        ConfigError: it is of another kind than the recipe's, or of other widths.
    """
    if isinstance(recipe, SphereFlowRecipe) and recipe.teacher is not None and recipe.init == recipe.teacher.model:
        check_teacher(recipe.init, architecture)  # from which it starts unasked
    if type(architecture) is not type(recipe.model):
        raise ConfigError(
            f"the model to start from is of another kind than the recipe {recipe.name} ({recipe.kind}); give one of "
            "this kind, or train without --init"
        )
    if isinstance(architecture, LatentDenoiserConfig):
        check_denoiser_fits(recipe.model, architecture)
    elif isinstance(architecture, AutoencoderConfig):
        check_fits(recipe.model, architecture)
    elif isinstance(architecture, RepresentationConfig):
        check_representation_fits(recipe.model, architecture)
    elif isinstance(architecture, FlowRefinerConfig):
        check_refiner_fits(recipe.model, architecture)
