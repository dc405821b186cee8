"""The record of the Sphere Encoder: its recipe, its training and its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from spheregen.family.member import Member
from spheregen.family.objective import Frozen
from spheregen.family.recipe import Perceptual, Recipe
from spheregen.family.sphere_encoder.loss import AutoencoderLossConfig, AutoencoderObjective
from spheregen.family.sphere_encoder.network import (
    AutoencoderConfig,
    ImageAutoencoder,
    SphereAutoencoder,
    SphereTokenizer,
)
from spheregen.measure.cost import Cost, part_cost
from spheregen.nn.uninitialised import weightless
from spheregen.noise import NoiseConfig


class ImageAutoencoderRecipe(Recipe):
    """A recipe of whatever the loss of the Sphere Encoder trains; a member derives its own, with `kind` and `model`."""

    noise: NoiseConfig = NoiseConfig()
    loss: AutoencoderLossConfig = AutoencoderLossConfig()
    perceptual: Perceptual = "auto"


class AutoencoderRecipe(ImageAutoencoderRecipe):
    """System 1: a Sphere Encoder."""

    kind: Literal["autoencoder"] = "autoencoder"
    model: AutoencoderConfig


def _cost(model: ImageAutoencoder, cost_of: Callable[[Any], Cost]) -> Cost:
    """T steps take T decodes and T-1 encodes (method.md, section 1.3)."""
    with weightless():
        blank: Any = type(model)(model.config)  # type: ignore[call-arg]
        images, latents = torch.empty(1, *model.image_shape), torch.empty(1, *model.latent_shape)
        labels = torch.zeros(1, dtype=torch.int64) if model.num_classes else None
    parts = {
        "encoder": part_cost(blank.encoder, images, labels),
        "decoder": part_cost(blank.decoder, latents, labels),
    }

    def calls(steps: int, guided: bool, guidance_at: str) -> Mapping[str, int]:
        encodes = (steps - 1) * (2 if guided and guidance_at != "pixel" else 1)
        return {"encoder": encodes, "decoder": steps * (2 if guided and guidance_at != "latent" else 1)}

    return Cost(parts, calls)


def latent_facts(config: Any) -> Sequence[tuple[str, str]]:
    """Return the rows of a model card on the latent and the noise."""
    place = " on one sphere" if config.prior == "sphere" else f", prior {config.prior}"
    return [
        ("latent", f"{config.tokens} token{'s' * (config.tokens > 1)} of {config.channels} channels{place}"),
        ("noise", f"up to {config.max_angle:g} degrees"),
    ]


def autoencoder_member(network: Callable[[Any], ImageAutoencoder], **about: Any) -> Member:
    """Return the record of a member that the loss of the Sphere Encoder trains.

    Args:
        network: its class, which makes it from a configuration.
        about: `kind`, `title`, `tags`, `config`, and `recipe`, a class derived from `ImageAutoencoderRecipe`.
    """

    def objective(recipe: ImageAutoencoderRecipe, frozen: Frozen) -> AutoencoderObjective:
        perceptual = frozen.perceptual(recipe.perceptual) if recipe.loss.needs_perceptual else None
        torch.manual_seed(recipe.train.seed)
        return AutoencoderObjective(network(recipe.model), recipe.loss, recipe.noise, perceptual)

    shared = {"as_tokenizer": SphereTokenizer, "objective": objective, "cost": _cost, "facts": latent_facts}
    return Member(network=network, build=network, **shared, **about)  # type: ignore[arg-type]


MEMBER = autoencoder_member(
    SphereAutoencoder,
    kind="autoencoder",
    title="A spherical image generator (Sphere Encoder, arXiv 2602.15030)",
    tags=("image-generation", "sphere-encoder"),
    config=AutoencoderConfig,
    recipe=AutoencoderRecipe,
)
