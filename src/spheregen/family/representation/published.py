"""The published representation autoencoder (RAE): frozen DINOv2 tokens, and a decoder that was trained for them.

Sources: Zheng et al. 2025, "Diffusion Transformers with Representation Autoencoders" (arXiv 2510.11690); He et al.
2022, "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377), the form of the decoder.
Legend: B samples, N = grid^2 tokens in row-major order, d channels of a token, W width, P patch size, S = grid * P.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError, Settings
from spheregen.networks.backbones.state import load_renamed, read_torch_state, read_weights
from spheregen.networks.encoders import EncoderConfig, FrozenEncoder, build_encoder
from spheregen.networks.frozen import IMAGENET_MEAN, IMAGENET_STD, FrozenTokenizer
from spheregen.networks.normaliser import EPS as NORMALISER_EPS
from spheregen.networks.normaliser import Normaliser, Per
from spheregen.nn.alone import gelu
from spheregen.nn.linear import Linear
from spheregen.nn.norm import LayerNorm
from spheregen.nn.positions import sincos_table
from spheregen.nn.uninitialised import Uninitialised
from spheregen.sphere import upcast

ENCODER = EncoderConfig(
    kind="transformers", source="facebook/dinov2-with-registers-base", input_size=224, antialias=False
)
"""The encoder that the published decoder belongs to."""
HEADS: Mapping[int, int] = {768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published decoders by their width; a file of weights does not tell them."""
EPS = 1e-12
"""Of every norm of the decoder, as published."""
DEVIATION_EPS = 1e-5
"""Added to a deviation in files of diffusers, where the authors add to the variance."""
MODEL, STATISTICS = "model.pt", "stat.pt"

_LAYER = {
    "attention_norm": "layernorm_before",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_WHOLE = {"embed": "decoder_embed", "norm": "decoder_norm", "predict": "decoder_pred"}
_POSITIONS = "decoder_pos_embed"
_OF_DIFFUSERS = {
    ".attention.to_q.": ".attention.attention.query.",
    ".attention.to_k.": ".attention.attention.key.",
    ".attention.to_v.": ".attention.attention.value.",
    ".attention.to_out.0.": ".attention.output.dense.",
}
"""Names inside attention in files of diffusers, and those of the authors."""


@dataclass(frozen=True, kw_only=True)
class MAEDecoderConfig(Settings):
    """Sizes of a decoder. The published ViT-XL: 1152, 4096, 28, 16, patch 16, grid 16 and 768 channels.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

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


@dataclass(frozen=True, kw_only=True)
class PublishedRAEConfig(Settings):
    """The parts of a `PublishedRAE`."""

    encoder: EncoderConfig
    decoder: MAEDecoderConfig
    statistics: Per
    """Latents are normalised for each channel, or for each number of a latent (position)."""


_DINOV2_BASE = {
    "model_type": "dinov2_with_registers",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 14,
    "image_size": 518,
    "num_register_tokens": 4,
}
PUBLISHED: Mapping[str, PublishedRAEConfig] = {
    "rae-dinov2-base": PublishedRAEConfig(
        encoder=EncoderConfig(kind="transformers", config=_DINOV2_BASE, input_size=224),
        decoder=MAEDecoderConfig(channels_in=768, hidden=1152, mlp=4096, layers=28, heads=16, patch=16, grid=16),
        statistics="position",
    )
}
"""Published tokenizers by name. Their weights do not come with the package."""


class PublishedRAE(FrozenTokenizer):
    """A frozen encoder, the statistics of its tokens and an MAE decoder, whose pixels are ImageNet-normalised; a
    `Tokenizer`.

    Raises:
        ConfigError: the parts do not fit together.
    """

    def __init__(self, encoder: FrozenEncoder, normaliser: Normaliser, decoder: MAEDecoder) -> None:
        super().__init__()
        sizes = decoder.config
        if sizes.image_channels != 3:
            raise ConfigError("the decoder of an RAE makes colour images: image_channels is 3")
        found, wanted = (encoder.grid_of(sizes.image_size), encoder.channels), (sizes.grid, sizes.channels_in)
        if found != wanted:
            raise ConfigError(
                f"the decoder takes {wanted[0]}x{wanted[0]} tokens of {wanted[1]} channels, and the encoder makes "
                f"{found[0]}x{found[0]} of {found[1]}; give the encoder that the decoder was trained for, and set the "
                f"encoder's input_size to {sizes.grid * encoder.network.patch}"
            )
        if tuple(normaliser.mean.shape) not in ((1, sizes.channels_in), (sizes.tokens, sizes.channels_in)):
            raise ConfigError(
                f"latent statistics of the shape {tuple(normaliser.mean.shape)} do not fit tokens of the shape "
                f"{(sizes.tokens, sizes.channels_in)}; give those of this encoder"
            )
        self.encoder, self.normaliser, self.decoder = encoder, normaliser, decoder
        self.image_shape = 3, sizes.image_size, sizes.image_size
        self.latent_shape = sizes.tokens, sizes.channels_in
        self.pixels = Normaliser(torch.tensor([IMAGENET_MEAN]), torch.tensor([IMAGENET_STD]), persistent=False)
        self.freeze()

    @classmethod
    def from_config(cls, config: PublishedRAEConfig) -> Self:
        """Build the architecture alone, for a state dictionary to fill.

        Raises:
            SphereGenError: transformers is not installed.
            ModelFileError: the encoder's architecture is none that is known here.
        """
        sizes = config.decoder
        tokens = 1 if config.statistics == "channel" else sizes.tokens
        with Uninitialised():
            decoder = MAEDecoder(sizes)
        encoder = build_encoder(config.encoder, pretrained=False)
        return cls(encoder, Normaliser.identity(sizes.channels_in, tokens), decoder)

    @property
    def config(self) -> PublishedRAEConfig:
        """The configuration from which `from_config` makes its like."""
        per: Per = "channel" if self.normaliser.mean.shape[0] == 1 else "position"
        return PublishedRAEConfig(encoder=self.encoder.config, decoder=self.decoder.config, statistics=per)

    def to_latents(self, images: Tensor) -> Tensor:
        normalised: Tensor = self.normaliser(self.encoder(images))
        return normalised

    def to_images(self, latents: Tensor) -> Tensor:
        decoded = upcast(self.decoder(self.normaliser.inverse(latents).to(self.dtype)))
        return 2 * self.pixels.inverse(decoded.movedim(1, -1)).movedim(-1, 1).contiguous() - 1


class MAEBlock(nn.Module):
    """A transformer block with LayerNorms in front of attention and of a GELU MLP; (B, T, W) to (B, T, W)."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = LayerNorm(width, eps=EPS, affine=True)
        self.query, self.key, self.value, self.out = (Linear(width, width) for _ in range(4))
        self.mlp_norm = LayerNorm(width, eps=EPS, affine=True)
        self.up = Linear(width, mlp)
        self.down = Linear(mlp, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(gelu(self.up(self.mlp_norm(x))))  # type: ignore[no-any-return]


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
        self.embed = Linear(config.channels_in, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        table = torch.cat([torch.zeros(1, 1, width), sincos_table(config.grid, width)], dim=1)
        self.register_buffer("positions", table)
        self.blocks = nn.ModuleList(MAEBlock(width, config.heads, config.mlp) for _ in range(config.layers))
        self.norm = LayerNorm(width, eps=EPS, affine=True)
        self.predict = Linear(width, config.patch**2 * config.image_channels)

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


def read_published_rae(
    folder: Path,
    *,
    encoder: FrozenEncoder | EncoderConfig = ENCODER,
    heads: int | None = None,
) -> PublishedRAE:
    """Read the published files as a tokenizer, float32, on the CPU.

    Args:
        folder: holds `model.pt` (the decoder) and `stat.pt` (statistics of the latents: `mean` and `var`, or
            `latents_mean` and `latents_std`). The decoder's keys may have `decoder.` or `module.` in front and may lie
            in a `state_dict`; inside attention they have the authors' names or those of diffusers.
        encoder: or what to load it from; the default fetches the published one from the Hub, or from its cache.
        heads: attention heads of the decoder; None: those that the published decoder of its width has.

    Raises:
        ModelFileError: a file is missing, broken or does not fit; or the encoder cannot be loaded.
        ConfigError: the number of heads is not known for this width, or the parts do not fit together.
        SphereGenError: transformers is not installed.
    """
    if isinstance(encoder, EncoderConfig):
        encoder = build_encoder(encoder, pretrained=True)
    decoder = _read_decoder(folder / MODEL, encoder, heads)
    return PublishedRAE(encoder, _read_statistics(folder / STATISTICS, decoder.config), decoder)


def _read_decoder(path: Path, encoder: FrozenEncoder, heads: int | None) -> MAEDecoder:
    """Read the decoder, its sizes off the shapes of its tensors."""
    found = read_weights(path)
    found = found.get("state_dict", found) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelFileError(f"{path} is not a table of tensors; give the published {MODEL}")
    state = {str(name).removeprefix("module.").removeprefix("decoder."): tensor for name, tensor in found.items()}
    # of a whole autoencoder the encoder is left out: it is frozen and loaded from its own place
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("encoder.", "_latents_"))}
    for theirs, ours in _OF_DIFFUSERS.items():
        state = {name.replace(theirs, ours): tensor for name, tensor in state.items()}
    layers = {int(name.split(".")[1]) for name in state if name.startswith("decoder_layers.")}
    try:
        width, channels = state["decoder_embed.weight"].shape
        mlp = state["decoder_layers.0.intermediate.dense.weight"].shape[0]
        pixels = state["decoder_pred.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"{path} is no decoder of an RAE ({error}); give the published {MODEL}") from error
    if heads is None and width not in HEADS:
        raise ConfigError(f"the heads of a decoder of width {width} are not known; give heads")
    patch = math.isqrt(pixels // 3)
    if _POSITIONS in state:
        grid = math.isqrt(state[_POSITIONS].numel() // width - 1)
    elif encoder.config.input_size is not None:
        grid = encoder.grid_of(encoder.config.input_size)
    else:
        raise ModelFileError(f"{path} has no {_POSITIONS} to tell its grid; set the encoder's input_size")
    sizes = MAEDecoderConfig(
        hidden=width,
        mlp=mlp,
        layers=max(layers, default=0) + 1,
        heads=HEADS[width] if heads is None else heads,
        patch=patch,
        grid=grid,
        channels_in=channels,
    )
    with Uninitialised():
        decoder = MAEDecoder(sizes)
    names = published_names(decoder)
    if _POSITIONS not in state:  # a fixed table: the one that it was made with
        state = {**state, _POSITIONS: decoder.positions}
    load_renamed(decoder, state, names, str(path))
    return decoder


def published_names(decoder: MAEDecoder) -> dict[str, str]:
    """Return the name in a published file of each tensor of a decoder, by its own name."""

    def published(name: str) -> str:
        *block, part, kind = name.split(".")
        return ".".join(["decoder_layers", block[1], _LAYER[part], kind] if block else [_WHOLE[part], kind])

    other = {"positions": _POSITIONS, "class_token": "trainable_cls_token"}
    return {name: other.get(name) or published(name) for name in decoder.state_dict()}


def _read_statistics(path: Path, sizes: MAEDecoderConfig) -> Normaliser:
    """Read the normaliser of `stat.pt`: `mean` and `var` of the shape (C, H, W) or (C,), or those of diffusers."""
    state = read_torch_state(path)
    if {"latents_mean", "latents_std"} <= state.keys():  # diffusers has the deviation, and adds to that
        deviation = state["latents_std"].double() + DEVIATION_EPS
        state = {"mean": state["latents_mean"], "var": deviation.square() - NORMALISER_EPS}
    shapes = (sizes.channels_in,), (sizes.channels_in, sizes.grid, sizes.grid)
    if not {"mean", "var"} <= state.keys():
        raise ModelFileError(f"{path} has no mean and var of latents; give the published {STATISTICS}")
    mean, variance = state["mean"], state["var"]
    if mean.shape != variance.shape or tuple(mean.shape) not in shapes:
        raise ModelFileError(
            f"{path} has a mean of shape {tuple(mean.shape)} and a var of {tuple(variance.shape)}, not {shapes[0]} or "
            f"{shapes[1]}; give the {STATISTICS} of this decoder's encoder"
        )
    rows = [each.reshape(sizes.channels_in, -1).T.contiguous() for each in (mean.float(), variance)]
    return Normaliser.of_variance(*rows)
