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
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ConfigError, check_choices
from spheregen.external import locate, read_json
from spheregen.networks.encoders import EncoderConfig, FrozenEncoder, build_encoder
from spheregen.networks.frozen import FrozenTokenizer
from spheregen.networks.normaliser import EPS, Normaliser
from spheregen.nn.block import BlockOptions, Trunk
from spheregen.nn.linear import DECAY, ENCODER, initialise, linear, tag
from spheregen.nn.norm import LayerNorm, RMSNorm, Wide
from spheregen.nn.patches import ConvPixelHead, LinearPixelHead
from spheregen.nn.sizes import TransformerConfig, TransformerSize, check_images, resolve_size
from spheregen.nn.uninitialised import Uninitialised, weightless
from spheregen.sphere import full_precision, upcast


@dataclass(frozen=True, kw_only=True)
class RepresentationConfig(TransformerConfig):
    """Choices of a representation autoencoder's architecture.

    Sizes that depend on the encoder are properties. For an encoder of the package transformers they build it without
    weights, once, and read its source's config.json if `encoder.config` does not give the architecture.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    transformer_fields = ("decoder",)  # what is trained

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
        grid, decoder = self.encoder_grid, self.decoder_grid
        if grid % self.pack:
            raise ConfigError(f"a pack of {self.pack} does not divide the encoder's {grid}x{grid} tokens")
        if (self.latent_channels or 0) > self.encoder_channels:
            raise ConfigError(
                f"latent_channels is at most {self.encoder_channels}, as the encoder's tokens have, not "
                f"{self.latent_channels}; leave it out to keep all"
            )
        if (self.patch_size is None and self.image_size % grid) or (decoder % grid and grid % decoder):
            raise ConfigError(
                f"the decoder's {decoder}x{decoder} tokens do not divide an image of {self.image_size} px, or are "
                f"neither a multiple nor a part of the encoder's {grid}x{grid}; set patch_size or another input_size"
            )
        if self.pixel_head == "conv" and decoder < 2:
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
    with torch.random.fork_rng(()), weightless():
        built = build_encoder(with_architecture(encoder), pretrained=False)
    return built.grid_of(image_size), built.channels


class Projection(Wide):
    """Tokens (B, E, D) of mean 0 and variance 1 to fewer channels (B, E, k), again of mean 0 and variance 1.

    A linear without bias. What it makes of tokens with the correlations R has the variance w'Rw in the channel of the
    row w, whatever the weights; so the variance is divided out exactly, for the trained and the averaged weights alike,
    and never depends on a batch. The length of a row means nothing.
    """

    gathered_methods: tuple[str, ...] = ()

    correlation: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        initialise(self.weight, "scaled", fan_in=inputs)
        tag([self.weight], DECAY, ENCODER)
        self.register_buffer("correlation", torch.eye(inputs))

    def forward(self, tokens: Tensor) -> Tensor:
        with full_precision(tokens.device.type):
            variance = ((self.weight @ self.correlation) * self.weight).sum(dim=1, keepdim=True)
            return functional.linear(upcast(tokens), self.weight * torch.rsqrt(variance + EPS))

    @torch.no_grad()
    def start(self) -> None:
        """Begin with the principal components of the tokens: of all projections, they keep most of the variance."""
        _, vectors = torch.linalg.eigh(self.correlation.double().cpu())
        rows = vectors.T.flip(0)[: self.weight.shape[0]]
        peaks = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
        self.weight.copy_(rows * peaks.sign())  # a vector and its opposite are both right; take one of them


class TokenDecoder(nn.Module):
    """Decode normalised latents (B, N, d) to images (B, C, S, S), not yet clamped."""

    gathered_methods: tuple[str, ...] = ()

    def __init__(self, config: RepresentationConfig) -> None:
        super().__init__()
        (size,) = config.transformers
        self.latent_grid, self.pack = config.grid, config.pack
        self.encoder_grid, grid = config.encoder_grid, config.decoder_grid
        self.join, self.split = max(1, self.encoder_grid // grid), max(1, grid // self.encoder_grid)
        self.embed = linear(config.token_channels * self.join**2, size.width * self.split**2, init="scaled")
        self.trunk = Trunk(size, grid, 0, options=config.blocks)
        self.norm = RMSNorm(size.width) if config.blocks.norm == "rms" else LayerNorm(size.width)
        head = ConvPixelHead if config.pixel_head == "conv" else LinearPixelHead
        self.head = head(size.width, config.image_size // grid, config.image_channels, grid, init="xavier")
        self.tanh = config.output_activation == "tanh"

    def forward(self, latents: Tensor) -> Tensor:
        tokens = unfold(latents, self.latent_grid, self.pack)
        x = self.embed(fold(tokens, self.encoder_grid, self.join))
        x = self.trunk(unfold(x, self.encoder_grid // self.join, self.split))
        images: Tensor = self.head(self.norm(x))
        return torch.tanh(images) if self.tanh else images


class TokenCodec(nn.Module):
    """All of a representation autoencoder but its encoder: the statistics of its tokens, and what is trained."""

    def __init__(self, config: RepresentationConfig) -> None:
        super().__init__()
        config.check_encoder()
        self.config = config
        self.normaliser = Normaliser.identity(config.encoder_channels)
        self.projection = (
            Projection(config.encoder_channels, config.latent_channels) if config.latent_channels is not None else None
        )
        self.decoder = TokenDecoder(config)
        self.latent_shape = (config.tokens, config.channels)
        """(N, d)."""
        self._grid = config.encoder_grid

    def encode(self, tokens: Tensor) -> Tensor:
        """Encode the encoder's tokens (B, E, D) to normalised latents (B, N, d), float32 or wider."""
        z = self.normaliser(tokens)
        if self.projection is not None:
            z = self.projection(z)
        return fold(z, self._grid, self.config.pack)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents (B, N, d) to images (B, C, S, S), not yet clamped."""
        images: Tensor = self.decoder(latents)
        return images

    @torch.no_grad()
    def set_statistics(self, measured: Normaliser, correlation: Tensor | None = None) -> None:
        """Take over statistics of the encoder's tokens, by channel; with a projection their correlations (D, D) too."""
        self.normaliser.mean.copy_(measured.mean)
        self.normaliser.std.copy_(measured.std)
        if self.projection is not None:
            assert correlation is not None
            self.projection.correlation.copy_(correlation)


def fold(tokens: Tensor, grid: int, factor: int) -> Tensor:
    """Each square of factor x factor of the grid x grid tokens (B, grid^2, c) becomes one token, of factor^2 * c
    channels: row, column, channel, the channel fastest."""
    if factor == 1:
        return tokens
    batch, _, channels = tokens.shape
    small = grid // factor
    squares = tokens.reshape(batch, small, factor, small, factor, channels).transpose(2, 3)
    return squares.reshape(batch, small**2, factor**2 * channels)


def unfold(tokens: Tensor, grid: int, factor: int) -> Tensor:
    """Undo `fold`: grid x grid tokens (B, grid^2, factor^2 * c) to (B, (grid * factor)^2, c)."""
    if factor == 1:
        return tokens
    batch, _, channels = tokens.shape
    squares = tokens.reshape(batch, grid, grid, factor, factor, channels // factor**2).transpose(2, 3)
    return squares.reshape(batch, (grid * factor) ** 2, channels // factor**2)


class RepresentationAutoencoder(FrozenTokenizer):
    """A frozen encoder and the codec that was trained for its tokens; a `Tokenizer`.

    Args:
        encoder: as the codec's configuration has it.
        codec: trained, or to be filled from a state dictionary; it is frozen.
    """

    def __init__(self, encoder: FrozenEncoder, codec: TokenCodec) -> None:
        super().__init__()
        self.encoder, self.codec = encoder, codec
        size = codec.config.image_size
        self.image_shape, self.latent_shape = (codec.config.image_channels, size, size), codec.latent_shape
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

    def to_latents(self, images: Tensor) -> Tensor:
        return self.codec.encode(self.encoder(images))

    def to_images(self, latents: Tensor) -> Tensor:
        return self.codec.decode(latents.to(self.dtype))
