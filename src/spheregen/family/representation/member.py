"""The records of the representation autoencoders: trained here, and the published RAE."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch

from spheregen.family.member import Member
from spheregen.family.objective import Frozen
from spheregen.family.recipe import Perceptual, Recipe
from spheregen.family.representation.loss import Learned, RepresentationLossConfig, RepresentationObjective
from spheregen.family.representation.network import RepresentationAutoencoder, RepresentationConfig, TokenCodec
from spheregen.family.representation.published import PublishedRAE, PublishedRAEConfig
from spheregen.measure.cost import tokenizer_cost
from spheregen.networks.encoders import EncoderConfig


class RepresentationRecipe(Recipe):
    """A tokenizer for system 2: a decoder of a frozen encoder's tokens, trained on images."""

    kind: Literal["representation"] = "representation"
    model: RepresentationConfig
    loss: RepresentationLossConfig = RepresentationLossConfig()
    perceptual: Perceptual = "auto"


def _objective(recipe: RepresentationRecipe, frozen: Frozen) -> RepresentationObjective:
    perceptual = frozen.perceptual(recipe.perceptual) if recipe.loss.needs_perceptual else None
    encoder = frozen.encoder(recipe.model.encoder)
    torch.manual_seed(recipe.train.seed)
    config = dataclasses.replace(recipe.model, encoder=encoder.config)
    codec = TokenCodec(config)
    critic = recipe.loss.new_critic(config.image_channels, config.image_size, perceptual)
    return RepresentationObjective(encoder, Learned(codec, critic), recipe.loss, perceptual)


def _latent(tokens: int, channels: int, encoder: EncoderConfig) -> list[tuple[str, str]]:
    """Rows of the model card."""
    seen = f"{encoder.source or (encoder.config or {}).get('model_type')}, frozen"
    if encoder.kind == "feature_net":
        seen = f"SphereGen's FeatureNet, stage {encoder.stage}, frozen"
    return [("latent", f"{tokens} tokens of {channels} channels, each of mean 0 and variance 1"), ("encoder", seen)]


def _member(**about: Any) -> Member:
    return Member(
        title="An image tokenizer: a frozen encoder and a decoder for its tokens (RAE, arXiv 2510.11690)",
        tags=("image-tokenizer", "representation-autoencoder"),
        generates=False,
        as_tokenizer=lambda network: network,
        cost=lambda tokenizer, cost_of: tokenizer_cost(tokenizer),
        usage=(
            "from spheregen.folders.tokenizers import open_tokenizer\n\n"
            'tokenizer = open_tokenizer("path/to/this/folder").tokenizer\n'
            "latents = tokenizer.encode(images)  # (B, C, S, S) in [-1, 1]\n"
            "images = tokenizer.decode(latents)"
        ),
        **about,
    )


MEMBER = _member(
    kind="representation",
    config=RepresentationConfig,
    network=RepresentationAutoencoder,
    build=RepresentationAutoencoder.from_config,
    recipe=RepresentationRecipe,
    objective=_objective,
    facts=lambda config: _latent(config.tokens, config.channels, config.encoder),
)

PUBLISHED = _member(
    kind="published-rae",
    config=PublishedRAEConfig,
    network=PublishedRAE,
    build=PublishedRAE.from_config,
    image_shape=lambda config: (config.decoder.image_channels, config.decoder.image_size, config.decoder.image_size),
    latent_shape=lambda config: (config.decoder.tokens, config.decoder.channels_in),
    facts=lambda config: _latent(config.decoder.tokens, config.decoder.channels_in, config.encoder),
)
