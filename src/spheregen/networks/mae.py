"""The decoder of a masked autoencoder, which turns the tokens of a frozen encoder back into pixels.

Sources: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377); Zheng et al. 2025,
"Diffusion Transformers with Representation Autoencoders" (arXiv 2510.11690), which trains it for frozen encoders.
Legend: B samples, N = grid^2 tokens in row-major order, d channels of a token, W width, P patch size, S = grid * P.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ConfigError
from spheregen.nn.linear import HIDDEN, NO_DECAY, linear, tag
from spheregen.nn.positions import sincos_table
from spheregen.sphere import upcast

_EPS = 1e-12  # of every norm, as published


@dataclass(frozen=True, kw_only=True)
class MAEDecoderConfig:
    """Sizes of a decoder. The published ViT-XL: 1152, 4096, 28, 16, patch 16, grid 16 and 768 channels.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

    hidden: int
    """Width W, a multiple of 4 and of `heads`."""
    mlp: int
    """Hidden width of the MLPs."""
    layers: int
    """Transformer blocks."""
    heads: int
    """Attention heads."""
    patch: int
    """Side P in pixels of what one token becomes."""
    grid: int
    """Tokens along one side of the image."""
    channels_in: int
    """Channels d of a token."""
    image_channels: int = 3
    """3 (RGB) or 1 (grey)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{name} of the decoder is at least 1, not {value}")
        if self.hidden % 4 or self.hidden % self.heads:
            raise ConfigError(
                f"hidden of the decoder is a multiple of 4 and of its {self.heads} heads, not {self.hidden}"
            )

    @property
    def image_size(self) -> int:
        """Height and width S in pixels."""
        return self.grid * self.patch

    @property
    def tokens(self) -> int:
        """Tokens N of a latent."""
        return self.grid**2


class LayerNorm(nn.LayerNorm):
    """PyTorch's, in float32 or wider whatever the types of input and gain; the result has the type of the input."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=_EPS)
        tag(self.parameters(), NO_DECAY)

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)
        gain, shift = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return functional.layer_norm(wide, self.normalized_shape, gain, shift, self.eps).to(x.dtype)


class MAEBlock(nn.Module):
    """A transformer block with LayerNorms in front of attention and of a GELU MLP; (B, T, W) to (B, T, W)."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = LayerNorm(width)
        self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))
        self.mlp_norm = LayerNorm(width)
        self.up = linear(width, mlp)
        self.down = linear(mlp, width)
        for layer in (self.query, self.key, self.value, self.out, self.up, self.down):
            tag((parameter for parameter in layer.parameters() if parameter.ndim == 2), HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))  # type: ignore[no-any-return]


class MAEDecoder(nn.Module):
    """Tokens (B, N, d) to images (B, C, S, S), in whatever pixel space it was trained for (not yet denormalised).

    A learned class token goes in front and is dropped at the end. Positions are the fixed sin-cos table (zeros for the
    class token); it is part of the state dictionary, since published files bring their own. In a half type the path
    around the blocks stays in float32.
    """

    positions: Tensor

    def __init__(self, config: MAEDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        self.embed = linear(config.channels_in, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        tag([self.class_token], NO_DECAY)
        table = torch.cat([torch.zeros(1, 1, width), sincos_table(config.grid, width)], dim=1)
        self.register_buffer("positions", table)
        self.blocks = nn.ModuleList(MAEBlock(width, config.heads, config.mlp) for _ in range(config.layers))
        self.norm = LayerNorm(width)
        self.predict = linear(width, config.patch**2 * config.image_channels)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the network computes."""
        return self.class_token.dtype

    def forward(self, tokens: Tensor) -> Tensor:
        x = upcast(self.embed(tokens))
        x = torch.cat([self.class_token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self._fold(self.predict(self.norm(x[:, 1:])))

    def _fold(self, patches: Tensor) -> Tensor:
        """(B, N, P*P*C), of each patch row, column, channel with the channel fastest, to (B, C, S, S)."""
        grid, patch = self.config.grid, self.config.patch
        split = patches.unflatten(1, (grid, grid)).unflatten(3, (patch, patch, -1))  # (B, row, column, y, x, C)
        images: Tensor = split.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return images
