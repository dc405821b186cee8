"""The record of Sphere Encoder 2: its recipe, its training and its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field

from spheregen.family.member import Member
from spheregen.family.objective import Frozen
from spheregen.family.recipe import Perceptual, Recipe, SamplingConfig
from spheregen.family.sphere_encoder.network import SphereTokenizer
from spheregen.family.sphere_encoder_2.config import SphereEncoder2Config
from spheregen.family.sphere_encoder_2.features import build_features
from spheregen.family.sphere_encoder_2.loss import SphereEncoder2Objective
from spheregen.family.sphere_encoder_2.network import AngleDecoder, NoEncoder, PretrainedEncoder, SphereEncoder2
from spheregen.family.sphere_encoder_2.terms import SphereEncoder2LossConfig
from spheregen.measure.cost import Cost, PartCost, part_cost
from spheregen.nn.uninitialised import weightless


class SphereEncoder2Sampling(SamplingConfig):
    """The way such a model is sampled: in one step, and guided by degrees."""

    steps: int = Field(1, ge=1)
    guidance: float = Field(0.0, ge=0, le=90)
    """Degrees by which each step turns away from the null class; 0 is no guidance, as published."""


class SphereEncoder2Recipe(Recipe):
    """System 4: a decoder that is told the angle of the noise, and learns up to pure noise."""

    kind: Literal["sphere-encoder-2"] = "sphere-encoder-2"
    model: SphereEncoder2Config
    loss: SphereEncoder2LossConfig = SphereEncoder2LossConfig()
    perceptual: Perceptual = "auto"
    sampling: SphereEncoder2Sampling = SphereEncoder2Sampling()

    @property
    def bound_to_length(self) -> tuple[str, ...]:
        loss = self.loss
        frechet = loss.frechet_encoder or loss.frechet_features or loss.frechet_judge
        more = {"loss.score": loss.score_matching > 0, "loss.frechet.start": bool(frechet and loss.frechet.start)}
        return (*super().bound_to_length, *(name for name, bound in more.items() if bound))


def loss_networks(recipe: SphereEncoder2Recipe, frozen: Frozen) -> tuple[Any, Any, Any]:
    """Return the perceptual distance, the feature network and the judge of a recipe; None where it needs none."""
    loss = recipe.loss
    return (
        frozen.perceptual(recipe.perceptual) if loss.needs_perceptual else None,
        frozen.network(partial(build_features, loss.features)) if loss.needs_features else None,
        frozen.network(partial(build_features, loss.judge)) if loss.frechet_judge else None,
    )


def _objective(recipe: SphereEncoder2Recipe, frozen: Frozen) -> SphereEncoder2Objective:
    config, networks = recipe.model, loss_networks(recipe, frozen)
    seen = config.pretrained_encoder
    encoder = None if seen is None else frozen.encoder(seen)
    torch.manual_seed(recipe.train.seed)
    if encoder is None:
        network = SphereEncoder2(config)
    else:
        config = dataclasses.replace(config, pretrained=encoder.config, has_encoder=True)
        network = SphereEncoder2(config, PretrainedEncoder(config, encoder))
    return SphereEncoder2Objective(network, recipe.loss, *networks)


def decode_cost(model: SphereEncoder2, encoder: PartCost | None) -> Cost:
    """Return the cost of a model with an encoder of this cost: T steps take T decodes and T-1 encodes.

    Guidance follows a second prediction, but not in the last decode.
    """
    config = model.config
    with weightless():
        latents = torch.empty(1, *model.latent_shape)
        labels = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
        decoder = part_cost(AngleDecoder(config), latents, labels, torch.zeros(1))

    def calls(steps: int, guided: bool, guidance_at: str) -> Mapping[str, int]:
        twice = 2 if guided else 1
        found = {"decoder": twice * (steps - 1) + 1}
        return found if encoder is None else {"encoder": twice * (steps - 1), **found}

    parts = {"decoder": decoder} if encoder is None else {"encoder": encoder, "decoder": decoder}
    return Cost(parts, calls, unguided=0.0)


def _cost(model: SphereEncoder2, cost_of: Callable[[Any], Cost]) -> Cost:
    if isinstance(model.encoder, NoEncoder):
        return decode_cost(model, None)
    with weightless():
        encoder = part_cost(SphereEncoder2(model.config).encoder, torch.empty(1, *model.image_shape))
    return decode_cost(model, encoder)


def sphere_facts(config: SphereEncoder2Config) -> list[tuple[str, str]]:
    """Return the rows of a model card on latent and noise."""
    where = "one sphere" if config.sphere == "global" else "a sphere for each"
    return [
        ("latent", f"{config.tokens} tokens of {config.channels} channels on {where}"),
        ("noise", f"rotation up to {config.max_angle:g} degrees; sampled at {config.told_angle:g}"),
    ]


def _facts(config: SphereEncoder2Config) -> Sequence[tuple[str, str]]:
    """Rows of the model card."""
    found = sphere_facts(config)
    if (seen := config.pretrained_encoder) is None:
        return [*found, ("encoder", "its own")]
    name = seen.source or str((seen.config or {}).get("model_type"))
    name = f"SphereGen's FeatureNet, stage {seen.stage}" if seen.kind == "feature_net" else name
    return [*found, ("encoder", f"{name}, frozen{'' if config.has_encoder else ', not in this folder'}")]


MEMBER = Member(
    kind="sphere-encoder-2",
    title="A spherical image generator of one or two steps (Sphere Encoder 2, arXiv 2610.02208)",
    tags=("image-generation", "sphere-encoder-2"),
    config=SphereEncoder2Config,
    network=SphereEncoder2,
    build=SphereEncoder2,
    as_tokenizer=SphereTokenizer,
    recipe=SphereEncoder2Recipe,
    objective=_objective,
    cost=_cost,
    facts=_facts,
)
