"""The record of the Sphere Latent Encoder: its recipe, its training and its cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spheregen.family.member import Inner, Member
from spheregen.family.objective import Frozen
from spheregen.family.recipe import Recipe
from spheregen.family.sphere_encoder.member import latent_facts
from spheregen.family.sphere_latent_encoder.loss import LatentDenoiserLossConfig, LatentDenoiserObjective
from spheregen.family.sphere_latent_encoder.network import LatentDenoiser, LatentDenoiserConfig, LatentGenerator
from spheregen.measure.cost import Cost, part_cost, tokenizer_cost
from spheregen.nn.uninitialised import weightless
from spheregen.noise import NoiseConfig

TOKENIZER = "tokenizer"
"""In a model folder or a latent cache: the folder of the tokenizer."""


class LatentDenoiserRecipe(Recipe):
    """System 2: a denoiser on the sphere of a frozen tokenizer. Its data are a latent cache of `spheregen encode`."""

    kind: Literal["latent-denoiser"] = "latent-denoiser"
    tokenizer: str | None = None
    """The tokenizer that the recipe was made for: its folder, or the name of a published one, whose cost `spheregen
    info` counts. Training takes the tokenizer that is in the cache."""
    model: LatentDenoiserConfig
    noise: NoiseConfig = NoiseConfig(law="logit_normal", hard_probability=0.2)
    loss: LatentDenoiserLossConfig = LatentDenoiserLossConfig()

    free_to_change = Recipe.free_to_change | {"tokenizer"}  # training takes the cache's


def _objective(recipe: LatentDenoiserRecipe, frozen: Frozen) -> LatentDenoiserObjective:
    tokenizer = frozen.tokenizer()
    torch.manual_seed(recipe.train.seed)
    return LatentDenoiserObjective(LatentDenoiser(recipe.model), recipe.loss, recipe.noise, tokenizer)


class UnknownTokenizer(nn.Module):
    """Stand for a tokenizer that is not known: it decodes to grey, and costs nothing.

    Args:
        config: of the denoiser.
    """

    def __init__(self, config: LatentDenoiserConfig) -> None:
        super().__init__()
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.latent_shape = (config.tokens, config.channels)
        self.dtype = torch.float32

    def encode(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), *self.latent_shape)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.new_zeros(len(latents), *self.image_shape)


def _cost(model: LatentGenerator, cost_of: Callable[[Any], Cost]) -> Cost:
    """T steps take T calls of the denoiser and one decode (method.md 2); an unknown tokenizer is left out."""
    config = model.config
    with weightless():
        network = LatentDenoiser(config)
        latents = torch.empty(1, config.tokens, config.channels)
        labels = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
    parts, decodes = {"denoiser": part_cost(network, latents, labels)}, dict[str, int]()
    if not isinstance(model.codec, UnknownTokenizer):
        parts |= {f"tokenizer_{name}": part for name, part in tokenizer_cost(model.tokenizer).parts.items()}
        decodes = {"tokenizer_decoder": 1}
    return Cost(parts, lambda steps, guided, _: {"denoiser": steps * (2 if guided else 1), **decodes})


MEMBER = Member(
    kind="latent-denoiser",
    title="A spherical latent denoiser with its tokenizer (Sphere Latent Encoder, arXiv 2605.15592)",
    tags=("image-generation", "sphere-latent-encoder"),
    config=LatentDenoiserConfig,
    network=LatentDenoiser,
    build=LatentDenoiser,
    inner=Inner(TOKENIZER, "codec", is_tokenizer=True),
    attribute="denoiser",
    assemble=LatentGenerator,
    recipe=LatentDenoiserRecipe,
    objective=_objective,
    inputs="latents",
    inner_stub=UnknownTokenizer,
    cost=_cost,
    facts=latent_facts,
)
