"""The trained parts of a representation autoencoder: a projection of the encoder's tokens, and a decoder.

Source: Zheng et al. 2025, "Diffusion Transformers with Representation Autoencoders" (arXiv 2510.11690).
Legend: as in `representation.py`; B samples, C image channels, S image size; E = G^2 tokens of D channels from the
encoder, k channels of each after the projection; N latent tokens of d channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.networks.normaliser import EPS, Normaliser, Wide
from spheregen.nn.block import Trunk
from spheregen.nn.linear import DECAY, ENCODER, initialise, linear, tag
from spheregen.nn.norm import LayerNorm, RMSNorm
from spheregen.nn.patches import ConvPixelHead, LinearPixelHead
from spheregen.sphere import full_precision, upcast

if TYPE_CHECKING:
    from spheregen.family.representation.network import RepresentationConfig


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
