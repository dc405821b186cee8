"""A representation autoencoder of our own: a frozen encoder, and a decoder that is trained for its tokens.

What others learned about images is kept as it is; only the way back to pixels is learned, and, where tokens are to be
smaller, a linear projection of them.

Source: Zheng et al. 2025, "Diffusion Transformers with Representation Autoencoders" (arXiv 2510.11690).
Legend: B samples, C image channels, S image size; E = G^2 tokens of D channels that the encoder gives; k channels of
each after the projection (k = D without one); p the packing; N = (G/p)^2 latent tokens of d = p^2 * k channels.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor

from spheregen.errors import ConfigError, check_choices
from spheregen.external import locate, read_json
from spheregen.family.representation.codec import TokenCodec
from spheregen.networks.encoders import EncoderConfig, FrozenEncoder, build_encoder
from spheregen.networks.frozen import Frozen, check_shape
from spheregen.nn.block import BlockOptions
from spheregen.nn.sizes import OneTransformer, TransformerSize, check_images, resolve_size
from spheregen.nn.uninitialised import Uninitialised
from spheregen.sphere import upcast


@dataclass(frozen=True, kw_only=True)
class RepresentationConfig(OneTransformer):
    """Choices of a representation autoencoder's architecture.

    Sizes that depend on the encoder are properties. For an encoder of the package transformers they build it without
    weights, once, and read its source's config.json if `encoder.config` does not give the architecture.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    transformer = "decoder"  # what is trained
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

    image_size: int
    """Height and width S in pixels."""
    image_channels: int = 3
    """3 (RGB) or 1 (grey, which the encoder sees as grey in colour)."""
    encoder: EncoderConfig
    """The frozen network."""
    pack: int = 1
    """p: p x p neighbouring tokens become one of p^2 times the channels, so that a denoiser has fewer tokens to see."""
    latent_channels: int | None = None
    """k: each token is projected to so many channels, by a linear that learns with the decoder; None: the encoder's own
    tokens, as published."""
    decoder: str | TransformerSize = "base"
    """A named size or an explicit one."""
    patch_size: int | None = None
    """Pixels along a side of what a decoder's token stands for; None: one of its tokens for each of the encoder's. Its
    grid may be a whole multiple or a whole part of the encoder's."""
    blocks: BlockOptions = field(default_factory=BlockOptions)
    """The choices of the decoder's transformer blocks."""
    pixel_head: Literal["linear", "conv"] = "linear"
    output_activation: Literal["none", "tanh"] = "none"
    """"none" leaves the training output free and clamps in `decode`."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_images(self.image_size, self.image_channels, self.patch_size)
        if self.pack < 1:
            raise ConfigError(f"pack is at least 1, not {self.pack}; 2 makes a quarter of the tokens")
        if self.latent_channels is not None and self.latent_channels < 1:
            raise ConfigError(f"latent_channels is at least 1, not {self.latent_channels}")
        resolve_size(self.decoder)
        if self.encoder.kind == "feature_net":
            self.check_encoder()  # of others it takes their package, which takes seconds to load

    def check_encoder(self) -> None:
        """Check that everything fits the encoder's tokens.

        Raises:
            ConfigError: it does not.
            ModelFileError: the encoder's architecture is not given and cannot be read.
            SphereGenError: its package is not installed.
        """
        grid, channels = self.encoder_grid, self.encoder_channels
        if grid % self.pack:
            raise ConfigError(
                f"a pack of {self.pack} does not divide the encoder's {grid}x{grid} tokens; choose a divisor of {grid}"
            )
        if self.latent_channels is not None and self.latent_channels > channels:
            raise ConfigError(
                f"latent_channels is at most {channels}, the channels of the encoder's tokens, not "
                f"{self.latent_channels}; leave it out to keep all"
            )
        if self.patch_size is None and self.image_size % grid:
            raise ConfigError(
                f"{grid}x{grid} tokens of the encoder do not divide an image of {self.image_size} px; set patch_size, "
                "or another input_size of the encoder"
            )
        if self.decoder_grid % grid and grid % self.decoder_grid:
            raise ConfigError(
                f"the decoder's {self.decoder_grid}x{self.decoder_grid} tokens are neither a multiple nor a part of "
                f"the encoder's {grid}x{grid}; change patch_size"
            )
        if self.pixel_head == "conv" and self.decoder_grid < 2:
            raise ConfigError("the conv pixel head needs at least 2x2 tokens; shrink the patch or take the linear head")

    @property
    def encoder_grid(self) -> int:
        """Tokens G along one side that the encoder gives."""
        return _encoder_shape(self.encoder, self.image_size)[0]

    @property
    def encoder_channels(self) -> int:
        """Channels D of one."""
        return _encoder_shape(self.encoder, self.image_size)[1]

    @property
    def grid(self) -> int:
        """Latent tokens along one side."""
        return self.encoder_grid // self.pack

    @property
    def tokens(self) -> int:
        """Latent tokens N."""
        return self.grid**2

    @property
    def channels(self) -> int:
        """Channels d of a latent token."""
        return self.token_channels * self.pack**2

    @property
    def token_channels(self) -> int:
        """Channels k of an encoder's token after the projection, if there is one."""
        return self.encoder_channels if self.latent_channels is None else self.latent_channels

    @property
    def decoder_grid(self) -> int:
        """Tokens along one side in the decoder."""
        return self.encoder_grid if self.patch_size is None else self.image_size // self.patch_size

    @property
    def num_classes(self) -> int:
        """A tokenizer knows no classes."""
        return 0


@functools.lru_cache(maxsize=64)
def with_architecture(encoder: EncoderConfig) -> EncoderConfig:
    """Return the encoder with its architecture filled in, from its source's config.json where it is not given.

    Raises:
        ModelFileError: there is no such source, or it cannot be reached.
    """
    if encoder.kind == "feature_net" or encoder.config is not None:
        return encoder
    assert encoder.source is not None
    return dataclasses.replace(encoder, config=read_json(locate(encoder.source, "the encoder").config, encoder.source))


@functools.lru_cache(maxsize=64)
def _encoder_shape(encoder: EncoderConfig, image_size: int) -> tuple[int, int]:
    """Tokens along one side and their channels, for images of this size."""
    with torch.random.fork_rng(()), torch.device("meta"):
        built = build_encoder(with_architecture(encoder), pretrained=False)
    return built.grid_of(image_size), built.channels


class RepresentationAutoencoder(Frozen):
    """A frozen encoder and the codec that was trained for its tokens; a `Tokenizer`.

    Args:
        encoder: as the codec's configuration has it.
        codec: trained, or to be filled from a state dictionary; it is frozen.
    """

    def __init__(self, encoder: FrozenEncoder, codec: TokenCodec) -> None:
        super().__init__()
        self.encoder, self.codec = encoder, codec
        self.freeze()

    @classmethod
    def from_config(cls, config: RepresentationConfig) -> Self:
        """Build the architecture alone, for a state dictionary to fill.

        Raises:
            SphereGenError: the encoder's package is not installed.
            ModelFileError: its architecture is none that is known here.
            ConfigError: the parts do not fit together.
        """
        with Uninitialised():
            codec = TokenCodec(config)
        return cls(build_encoder(config.encoder, pretrained=False), codec)

    @property
    def config(self) -> RepresentationConfig:
        """The configuration from which `from_config` makes its like."""
        return dataclasses.replace(self.codec.config, encoder=self.encoder.config)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        config = self.codec.config
        return config.image_channels, config.image_size, config.image_size

    @property
    def latent_shape(self) -> tuple[int, int]:
        return self.codec.latent_shape

    @property
    def dtype(self) -> torch.dtype:
        return self.codec.decoder.embed.weight.dtype

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, C, S, S) in [-1, 1] to normalised latents (B, N, d)."""
        check_shape(images, self.image_shape, "images")
        return self.codec.encode(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents (B, N, d) to images (B, C, S, S), clamped to [-1, 1]."""
        check_shape(latents, self.latent_shape, "latents")
        return upcast(self.codec.decode(latents.to(self.dtype))).clamp(-1, 1)
