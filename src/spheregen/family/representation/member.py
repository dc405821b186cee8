"""The records of the representation autoencoders: trained here, and the published RAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch

from spheregen.family.member import Member
from spheregen.family.objective import Frozen
from spheregen.family.recipe import Perceptual, Recipe
from spheregen.family.representation.codec import TokenCodec
from spheregen.family.representation.loss import Learned, RepresentationLossConfig, RepresentationObjective
from spheregen.family.representation.network import RepresentationAutoencoder, RepresentationConfig
from spheregen.family.representation.published import PublishedRAE, PublishedRAEConfig
from spheregen.measure.cost import Cost, tokenizer_cost
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
    critic = recipe.loss.new_critic(config.image_channels, config.image_size, getattr(perceptual, "widths", ()))
    return RepresentationObjective(encoder, Learned(codec, critic), recipe.loss, perceptual)


def _cost(tokenizer: Any, cost_of: Callable[[Any], Cost]) -> Cost:
    return tokenizer_cost(tokenizer)


def _encoder(config: EncoderConfig) -> str:
    if config.kind == "feature_net":
        return f"SphereGen's FeatureNet, stage {config.stage}, frozen"
    return f"{config.source or (config.config or {}).get('model_type')}, frozen"


def _latent(tokens: int, channels: int) -> str:
    return f"{tokens} tokens of {channels} channels, each of mean 0 and variance 1"


_TITLE = "An image tokenizer: a frozen encoder and a decoder for its tokens (RAE, arXiv 2510.11690)"
_TAGS = ("image-tokenizer", "representation-autoencoder")
_USAGE = (
    "from spheregen.folders.tokenizers import open_tokenizer\n\n"
    'tokenizer = open_tokenizer("path/to/this/folder").tokenizer\n'
    "latents = tokenizer.encode(images)  # (B, C, S, S) in [-1, 1]\n"
    "images = tokenizer.decode(latents)"
)

MEMBER = Member(
    kind="representation",
    title=_TITLE,
    tags=_TAGS,
    config=RepresentationConfig,
    network=RepresentationAutoencoder,
    build=RepresentationAutoencoder.from_config,
    generates=False,
    as_tokenizer=lambda network: network,
    recipe=RepresentationRecipe,
    objective=_objective,
    cost=_cost,
    facts=lambda config: [
        ("latent", _latent(config.tokens, config.channels)),
        ("encoder", _encoder(config.encoder)),
    ],
    usage=_USAGE,
)

PUBLISHED = Member(
    kind="published-rae",
    title=_TITLE,
    tags=_TAGS,
    config=PublishedRAEConfig,
    network=PublishedRAE,
    build=PublishedRAE.from_config,
    generates=False,
    as_tokenizer=lambda network: network,
    image_shape=lambda config: (config.decoder.image_channels, config.decoder.image_size, config.decoder.image_size),
    latent_shape=lambda config: (config.decoder.tokens, config.decoder.channels_in),
    cost=_cost,
    facts=lambda config: [
        ("latent", _latent(config.decoder.tokens, config.decoder.channels_in)),
        ("encoder", _encoder(config.encoder)),
    ],
    usage=_USAGE,
)
