"""Sphere Encoder 2 behind the encoder of a tokenizer: a member of its own, whose folder holds the tokenizer.

The tokenizer's normalised latents stand for those of a frozen encoder; its decoder is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from spheregen.conditioning import Labels
from spheregen.errors import ConfigError
from spheregen.family.member import Inner, Member
from spheregen.family.objective import Frozen
from spheregen.family.sphere_encoder_2.config import SphereEncoder2Config
from spheregen.family.sphere_encoder_2.loss import SphereEncoder2Objective
from spheregen.family.sphere_encoder_2.member import (
    SphereEncoder2Recipe,
    decode_cost,
    loss_networks,
    sphere_facts,
)
from spheregen.family.sphere_encoder_2.network import AngleDecoder, SphereEncoder2
from spheregen.family.sphere_latent_encoder.member import TOKENIZER, UnknownTokenizer
from spheregen.measure.cost import Cost, tokenizer_cost
from spheregen.protocol import Tokenizer


@dataclass(frozen=True, kw_only=True)
class CodedSphereEncoder2Config(SphereEncoder2Config):
    """The architecture of a decoder of a tokenizer's latents; those of an encoder of its own are not read.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    transformer_fields = ("decoder",)  # type: ignore[assignment]

    latent_tokens: int
    """Tokens N of the tokenizer's latents, a square number."""
    latent_channels: int
    """Channels d of one."""

    def _check_encoder(self) -> None:
        if self.latent_tokens < 1 or math.isqrt(self.latent_tokens) ** 2 != self.latent_tokens:
            raise ConfigError(f"latent_tokens is a square number (16, 64, 256 ...), not {self.latent_tokens}")
        if self.pretrained or self.compression is not None or self.trained_blocks or self.trained_norms:
            raise ConfigError("the encoder is that of the tokenizer and frozen; leave pretrained and compression out")
        if self.image_size % self.grid or (self.patch_size or self.patch) != self.patch:
            raise ConfigError(
                f"the tokenizer's {self.grid}x{self.grid} tokens do not divide an image of {self.image_size} px into "
                "patches; leave patch_size out"
            )

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return math.isqrt(self.latent_tokens)

    @property
    def patch(self) -> int:
        """Patch size P in pixels."""
        return self.image_size // self.grid


class CodedDecoder(AngleDecoder):
    """The decoder of a tokenizer's latents."""

    def __init__(self, config: CodedSphereEncoder2Config) -> None:
        super().__init__(config)
        self.config = config


class TokenizerEncoder(nn.Module):
    """Images (B, C, S, S) in [-1, 1] to the normalised latents (B, N, d) of a frozen tokenizer.

    Gradients reach the images.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer: nn.Module = cast(nn.Module, tokenizer)

    def forward(self, images: Tensor, labels: Labels = None, *, kept: Tensor | None = None) -> Tensor:
        return cast(Tokenizer, self.tokenizer).encode(images)


class CodedSphereEncoder2(SphereEncoder2):
    """A decoder and the tokenizer behind whose encoder it stands.

    Raises:
        ConfigError: their latents or images differ.
    """

    def __init__(self, decoder: CodedDecoder, tokenizer: Tokenizer) -> None:
        config = decoder.config
        found = tuple(tokenizer.latent_shape), tuple(tokenizer.image_shape)
        wanted = (
            (config.tokens, config.channels),
            (config.image_channels, config.image_size, config.image_size),
        )
        if found != wanted:
            raise ConfigError(
                f"the decoder was made for latents and images of shape {wanted}, but the tokenizer's are {found}; take "
                "the tokenizer that it was trained with, or set image_size, latent_tokens and latent_channels"
            )
        cast(nn.Module, tokenizer).requires_grad_(False)
        super().__init__(config, TokenizerEncoder(tokenizer), decoder)

    @property
    def codec(self) -> nn.Module:
        """The tokenizer."""
        return self.encoder.tokenizer  # type: ignore[no-any-return]


class CodedObjective(SphereEncoder2Objective):
    """The objective behind a tokenizer, which is frozen and stays out of EMA and checkpoints."""

    def generator(self, model: nn.Module) -> SphereEncoder2:
        decoder = cast(CodedDecoder, cast(Any, model).decoder)
        return CodedSphereEncoder2(decoder, cast(Tokenizer, self.network.encoder.tokenizer))


class CodedRecipe(SphereEncoder2Recipe):
    """System 4 behind the encoder of a tokenizer."""

    kind: Literal["sphere-encoder-2-coded"] = "sphere-encoder-2-coded"  # type: ignore[assignment]
    tokenizer: str = Field(min_length=1)
    """The tokenizer: a folder, a bundled model or one of the Hub, see `spheregen encode`."""
    model: CodedSphereEncoder2Config

    free_to_change = SphereEncoder2Recipe.free_to_change | {"tokenizer"}  # its weights decide


def _objective(recipe: CodedRecipe, frozen: Frozen) -> CodedObjective:
    networks = loss_networks(recipe, frozen)
    tokenizer = frozen.codec(recipe.tokenizer)
    torch.manual_seed(recipe.train.seed)
    network = CodedSphereEncoder2(CodedDecoder(recipe.model), tokenizer)
    return CodedObjective(network, recipe.loss, *networks)


def _cost(model: CodedSphereEncoder2, cost_of: Callable[[Any], Cost]) -> Cost:
    encoder = None if isinstance(model.codec, UnknownTokenizer) else tokenizer_cost(cast(Tokenizer, model.codec))
    return decode_cost(model, None if encoder is None else encoder.parts["encoder"])


def _assemble(decoder: CodedDecoder, tokenizer: Any) -> CodedSphereEncoder2:
    return CodedSphereEncoder2(decoder, tokenizer)


MEMBER = Member(
    kind="sphere-encoder-2-coded",
    title="A spherical image generator behind a tokenizer's encoder (Sphere Encoder 2, arXiv 2610.02208)",
    tags=("image-generation", "sphere-encoder-2"),
    config=CodedSphereEncoder2Config,
    network=CodedDecoder,
    build=CodedDecoder,
    inner=Inner(TOKENIZER, "codec", is_tokenizer=True),
    attribute="decoder",
    assemble=_assemble,
    recipe=CodedRecipe,
    objective=_objective,
    inner_stub=UnknownTokenizer,
    cost=_cost,
    facts=sphere_facts,
)
