"""The record of the Sphere Encoder: its recipe, its training and its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from spheregen.family.member import Member
from spheregen.family.objective import Frozen
from spheregen.family.recipe import Perceptual, Recipe
from spheregen.family.sphere_encoder.loss import AutoencoderLossConfig, AutoencoderObjective
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.family.sphere_encoder.tokenizer import SphereTokenizer
from spheregen.measure.cost import Cost, part_cost
from spheregen.noise import NoiseConfig


class AutoencoderRecipe(Recipe):
    """System 1: a Sphere Encoder."""

    kind: Literal["autoencoder"] = "autoencoder"
    model: AutoencoderConfig
    noise: NoiseConfig = NoiseConfig()
    loss: AutoencoderLossConfig = AutoencoderLossConfig()
    perceptual: Perceptual = "auto"


def _objective(recipe: AutoencoderRecipe, frozen: Frozen) -> AutoencoderObjective:
    perceptual = frozen.perceptual(recipe.perceptual) if recipe.loss.needs_perceptual else None
    torch.manual_seed(recipe.train.seed)
    return AutoencoderObjective(SphereAutoencoder(recipe.model), recipe.loss, recipe.noise, perceptual)


def _cost(model: SphereAutoencoder, cost_of: Callable[[Any], Cost]) -> Cost:
    """T steps take T decodes and T-1 encodes (method.md, section 1.3)."""
    config = model.config
    with torch.device("meta"):
        model = SphereAutoencoder(config)
        images = torch.empty(1, *model.image_shape)
        latents = torch.empty(1, *model.latent_shape)
        labels = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
    parts = {
        "encoder": part_cost(model.encoder, images, labels),
        "decoder": part_cost(model.decoder, latents, labels),
    }

    def calls(steps: int, guided: bool, guidance_at: str) -> Mapping[str, int]:
        encodes = (steps - 1) * (2 if guided and guidance_at != "pixel" else 1)
        return {"encoder": encodes, "decoder": steps * (2 if guided and guidance_at != "latent" else 1)}

    return Cost(parts, calls)


def latent_facts(config: Any) -> Sequence[tuple[str, str]]:
    """Return the rows of a model card on the latent and the noise."""
    place = " on one sphere" if config.prior == "sphere" else f", prior {config.prior}"
    return [
        ("latent", f"{config.tokens} tokens of {config.channels} channels{place}"),
        ("noise", f"up to {config.max_angle:g} degrees"),
    ]


MEMBER = Member(
    kind="autoencoder",
    title="A spherical image generator (Sphere Encoder, arXiv 2602.15030)",
    tags=("image-generation", "sphere-encoder"),
    config=AutoencoderConfig,
    network=SphereAutoencoder,
    build=SphereAutoencoder,
    as_tokenizer=SphereTokenizer,
    recipe=AutoencoderRecipe,
    objective=_objective,
    cost=_cost,
    facts=latent_facts,
)
