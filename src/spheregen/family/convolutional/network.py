"""A Sphere Encoder of convolutions: an image becomes one vector, or a small grid of them, on the sphere.

Every number of the latent reaches every pixel through one linear layer, and there are few of them: random points on
such a sphere lie near codes after minutes of training, where those of a grid of tokens do not (method.md, section 6).

Legend: B samples, C image channels, S image size, E width of the embedding, N = grid^2 tokens of d latent channels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.conditioning import ConditionConfig, Labels, Modulated, NetworkCondition, make_condition
from spheregen.errors import ConfigError, check_choices
from spheregen.family.sphere_encoder.network import ImageAutoencoder
from spheregen.networks.frozen import check_shape
from spheregen.nn.alone import Conv2d, SiLU, silu
from spheregen.nn.block import ClassEmbedding
from spheregen.nn.linear import linear, tag_layer
from spheregen.prior import PriorName
from spheregen.sphere import upcast

GROUPS = 8
"""Of the group norms."""
PATCHES = (2, 4, 8)
SMALLEST_GRID = 4
"""Cells along a side below which images are not halved again."""


@dataclass(frozen=True, kw_only=True)
class ConvolutionalConfig(ConditionConfig):
    """Every choice of a convolutional Sphere Encoder's architecture.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    image_size: int
    """Height and width S in pixels: a multiple of 4; 28 to 128 is what it is made for."""
    image_channels: int = 3
    """3 (RGB) or 1 (grey)."""
    patch: int = 2
    """Pixels along a side of the first cells, 2, 4 or 8: at 4 a step costs a quarter of one at 2."""
    width: int = 48
    """Channels of the first cells; they double with each halving, up to `widest` times as many."""
    widest: int = 4
    blocks: int = 1
    """Residual blocks of two convolutions at each size."""
    embedding: int = 128
    """Width E of the embeddings that modulate the blocks: of the class, and of the latent in the decoder."""
    latent_channels: int = 256
    """Numbers d of a latent token: of the whole latent, where the grid is 1."""
    latent_grid: int = 1
    """Tokens along a side of the latent: 1 is one vector for the image; or the bottom of the convolutions, 4 to 7."""
    num_classes: int = 0
    """0 makes an unconditional model."""
    text_width: int = 0
    """Numbers D of the vectors of texts, where the model follows texts instead of classes."""
    upsample: Literal["nearest", "transposed", "shuffle"] = "nearest"
    """How the decoder doubles a size: nearest neighbours and a 3x3 convolution, a transposed 4x4 one, or a 3x3 one and
    a pixel shuffle."""
    output_activation: Literal["none", "tanh"] = "none"
    prior: PriorName = "sphere"
    """The space of latents."""
    max_angle: float = 80.0
    """alpha_max in degrees: the angle of the strongest training noise, and the unit of every sampling schedule."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("width", "widest", "blocks", "embedding", "latent_channels", "image_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.image_channels not in (1, 3):
            raise ConfigError(f"images have 3 or 1 channels, not {self.image_channels}")
        self.check_condition()
        if self.width % GROUPS:
            raise ConfigError(f"width is a multiple of {GROUPS}, the groups of its norms, not {self.width}")
        if self.patch not in PATCHES:
            raise ConfigError(f"patch is one of {', '.join(map(str, PATCHES))}, not {self.patch}")
        if self.image_size < SMALLEST_GRID * self.patch or self.image_size % max(4, self.patch):
            raise ConfigError(
                f"image_size is a multiple of {max(4, self.patch)} and at least {SMALLEST_GRID * self.patch}, not "
                f"{self.image_size}; images are resized to it"
            )
        if self.latent_grid not in (1, self.bottom):
            raise ConfigError(
                f"latent_grid is 1 (one vector) or {self.bottom}, the bottom of images of {self.image_size} px, not "
                f"{self.latent_grid}"
            )
        if not 0 < self.max_angle <= 90:
            raise ConfigError(f"max_angle lies above 0 and up to 90 degrees, not {self.max_angle:g}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides of the first cells, and after each halving."""
        found = [self.image_size // self.patch]
        while found[-1] % 2 == 0 and found[-1] // 2 >= SMALLEST_GRID:
            found.append(found[-1] // 2)
        return tuple(found)

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of the first cells, and after each halving."""
        return tuple(self.width * min(self.widest, 2**stage) for stage in range(len(self.sizes)))

    @property
    def bottom(self) -> int:
        """The smallest side of the convolutions."""
        return self.sizes[-1]

    @property
    def tokens(self) -> int:
        """Tokens N of a latent."""
        return self.latent_grid**2

    @property
    def channels(self) -> int:
        """Channels d of a latent token."""
        return self.latent_channels


class ModulatedNorm(nn.Module):
    """A group norm whose scale and shift an embedding makes; of its own where there is none.

    Args:
        channels: of the maps (B, channels, h, w).
        embedding: E, or None.
    """

    def __init__(self, channels: int, embedding: int | None) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, affine=embedding is None)
        self.modulation = None if embedding is None else linear(embedding, 2 * channels, init="zero")
        if embedding is None:
            tag_layer(self.norm)

    def vectors(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Return scale and shift, each (B, channels, 1, 1), for embeddings (B, E)."""
        assert self.modulation is not None
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        return 1 + scale, shift

    def forward(self, x: Tensor, told: NetworkCondition | Tensor | None) -> Tensor:
        wide = upcast(x)  # a group norm of bf16 takes a CPU six times as long
        if told is None:
            gain, move = (None if each is None else each.to(wide.dtype) for each in (self.norm.weight, self.norm.bias))
            return functional.group_norm(wide, GROUPS, gain, move, self.norm.eps).to(x.dtype)
        made: Modulated = told.of(self) if isinstance(told, NetworkCondition) else told
        scale, shift = self.vectors(made) if isinstance(made, Tensor) else made
        wide = functional.group_norm(wide, GROUPS, eps=self.norm.eps)
        return torch.addcmul(shift.to(wide.dtype), wide, scale.to(wide.dtype)).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, each behind a modulated norm and SiLU; it starts as the identity."""

    def __init__(self, channels: int, embedding: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = (ModulatedNorm(channels, embedding) for _ in range(2))
        self.conv1, self.conv2 = (_conv(channels, channels) for _ in range(2))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, told: NetworkCondition | Tensor | None) -> Tensor:
        inner = self.conv1(silu(self.norm1(x, told)))
        added: Tensor = x + self.conv2(silu(self.norm2(inner, told)))
        return added


class Stage(nn.Module):
    """The residual blocks of one size."""

    def __init__(self, channels: int, embedding: int | None, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(channels, embedding) for _ in range(blocks))

    def forward(self, x: Tensor, told: NetworkCondition | Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, told)
        return x


class _Conditioned(nn.Module):
    """What encoder and decoder share: the class embedding, and what a condition means for them."""

    gathered_methods: tuple[str, ...] = ("embed_labels",)

    def __init__(self, config: ConvolutionalConfig, name: str) -> None:
        super().__init__()
        self.name, self.label_width = name, config.label_width
        self.labels = ClassEmbedding(config.label_width, config.embedding) if config.label_width else None

    def embed_labels(self, labels: Tensor | None) -> Tensor | None:
        """Return the embeddings (R, E) that labels need; None if it is unconditional."""
        return None if self.labels is None else self.labels(labels)

    def told(self, labels: Labels, batch: int) -> NetworkCondition | None:
        """Return what labels, or the condition of a whole model, mean for this network; None if it is unconditional."""
        condition = make_condition(labels, self.label_width, {self.name: self.embed_labels}).check(batch)
        return condition.of(self.name) if self.label_width else None


class ConvolutionalEncoder(_Conditioned):
    """Images (B, C, S, S) in [-1, 1] to raw latents (B, N, d), before the sphere. `labels=None`: the null class."""

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__(config, "encoder")
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        widths, embedding = config.widths, config.embedding if config.label_width else None
        halvings = (_conv(inputs, outputs, 4, stride=2) for inputs, outputs in itertools.pairwise(widths))
        self.down = nn.ModuleList([_patches(config.image_channels, widths[0], config.patch), *halvings])
        self.stages = nn.ModuleList(Stage(width, embedding, config.blocks) for width in widths)
        self.whole = config.latent_grid == 1
        numbers = widths[-1] * config.bottom**2 if self.whole else widths[-1]
        self.project = linear(numbers, config.latent_channels)

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:
        check_shape(images, self.image_shape, "images")
        told = self.told(labels, len(images))
        x = images.contiguous(memory_format=torch.channels_last)
        for down, stage in zip(self.down, self.stages, strict=True):
            x = stage(down(x), told)
        x = silu(x)
        tokens = x.flatten(1)[:, None] if self.whole else x.flatten(2).transpose(1, 2)
        z: Tensor = self.project(tokens)
        return z


class ConvolutionalDecoder(_Conditioned):
    """Points on the sphere (B, N, d) to images (B, C, S, S), in [-1, 1] under tanh, else free."""

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__(config, "decoder")
        widths, numbers = config.widths[::-1], config.tokens * config.latent_channels
        self.bottom, self.whole = config.bottom, config.latent_grid == 1
        inputs = (numbers, widths[0] * config.bottom**2) if self.whole else (config.latent_channels, widths[0])
        self.embed = linear(*inputs)
        self.style = nn.Sequential(
            linear(numbers, 2 * config.embedding), SiLU(), linear(2 * config.embedding, config.embedding)
        )
        self.stages = nn.ModuleList(Stage(width, config.embedding, config.blocks) for width in widths)
        doublings = (_upsampling(inner, outer, config.upsample) for inner, outer in itertools.pairwise(widths))
        last = (
            _upsampling(widths[-1], config.image_channels, config.upsample)
            if config.patch == 2
            else _pixels(widths[-1], config.image_channels, config.patch)
        )
        self.up = nn.ModuleList([*doublings, last])
        self.tanh = config.output_activation == "tanh"

    def forward(self, latents: Tensor, labels: Labels = None) -> Tensor:
        told = self.told(labels, len(latents))
        style: Tensor = self.style(latents.flatten(1))
        if told is not None:
            style = style + told.embedding.to(style.dtype)
        x: Tensor = self.embed(latents)
        x = x.unflatten(-1, (-1, self.bottom, self.bottom))[:, 0] if self.whole else self._grid(x)
        x = x.contiguous(memory_format=torch.channels_last)
        for stage, up in zip(self.stages, self.up, strict=True):
            x = up(stage(x, style))
        return torch.tanh(x) if self.tanh else x

    def _grid(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).reshape(len(tokens), -1, self.bottom, self.bottom)


class ConvolutionalAutoencoder(ImageAutoencoder):
    """Encoder and decoder of a convolutional Sphere Encoder."""

    config: ConvolutionalConfig

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__(config, ConvolutionalEncoder(config), ConvolutionalDecoder(config))


def _conv(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1) -> nn.Conv2d:
    layer = Conv2d(inputs, outputs, kernel, stride, padding=1)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    tag_layer(layer)
    return layer


def _patches(inputs: int, outputs: int, patch: int) -> nn.Module:
    """A layer that makes cells of patches of pixels."""
    if patch == 2:
        return _conv(inputs, outputs, 4, stride=2)
    return nn.Sequential(nn.PixelUnshuffle(patch), _conv(inputs * patch**2, outputs))


def _pixels(inputs: int, outputs: int, patch: int) -> nn.Module:
    """A layer that makes pixels of cells."""
    return nn.Sequential(_conv(inputs, outputs * patch**2), nn.PixelShuffle(patch))


def _upsampling(inputs: int, outputs: int, kind: str) -> nn.Module:
    """A layer that doubles the side of maps and changes their channels."""
    if kind == "transposed":
        layer = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        tag_layer(layer)
        return layer
    if kind == "shuffle":
        return nn.Sequential(_conv(inputs, 4 * outputs), nn.PixelShuffle(2))
    return nn.Sequential(nn.Upsample(scale_factor=2), _conv(inputs, outputs))
