"""The Sphere Latent Encoder: a denoiser on the sphere of a frozen tokenizer's latents.

One network takes a noisy point on the sphere, is not told how noisy, and predicts the clean latent. Applied to a random
point, and again to its own prediction with less noise, it generates in a few steps; the tokenizer decodes once.

Source: Do et al. 2026, "Efficient Image Synthesis with Sphere Latent Encoder" (arXiv 2605.15592).
Legend: B samples, C image channels, S image size, N = grid^2 tokens, d latent channels, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from spheregen.conditioning import EmbedLabels, Labels
from spheregen.errors import ConfigError, check_choices
from spheregen.networks.frozen import check_shape
from spheregen.nn.block import BlockOptions, Output, Trunk
from spheregen.nn.linear import linear
from spheregen.nn.sizes import TransformerConfig, TransformerSize, check_architecture, resolve_size
from spheregen.prior import Angle, PriorName
from spheregen.protocol import SphereGenerator, Tokenizer
from spheregen.sphere import upcast


@dataclass(frozen=True, kw_only=True)
class LatentDenoiserConfig(TransformerConfig):
    """Every choice of a latent denoiser's architecture.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    image_size: int
    """Height and width S in pixels of the tokenizer's images."""
    image_channels: int = 3
    """3 (RGB) or 1 (grey)."""
    tokens: int
    """Tokens N of a latent, a square number."""
    channels: int
    """Channels d of a latent token."""
    size: str | TransformerSize = "base"
    """A named size or an explicit one; patch 1, so that N tokens go through it. Width W is better not below d."""
    blocks: BlockOptions = field(default_factory=BlockOptions)
    """The choices of the transformer blocks."""
    num_classes: int = 0
    """0 makes an unconditional model."""
    text_width: int = 0
    """Numbers D of the vectors of texts, where the model follows texts instead of classes."""
    text_tokens: int = 0
    """Tokens of a text, beside its vector, that blocks attend to; `text_width` counts the numbers of all of them."""
    prior: PriorName = "sphere"
    """The space of latents; "gaussian" and "additive" put nothing on the sphere, to see what
    it is good for."""
    max_angle: float = 85.0
    """alpha_max in degrees: the angle of the strongest training noise, and the unit of every sampling schedule."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_architecture(self)
        if self.tokens < 1 or math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ConfigError(f"tokens is a square number (16, 64, 256 ...), not {self.tokens}")
        if self.channels < 1:
            raise ConfigError(f"channels is at least 1, not {self.channels}")
        resolve_size(self.size)

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return math.isqrt(self.tokens)


class LatentDenoiser(nn.Module):
    """Points on the sphere (B, N, d), noisy or not, to clean latents (B, N, d). `labels=None`: the null class."""

    gathered_methods: tuple[str, ...] = ()

    def __init__(self, config: LatentDenoiserConfig) -> None:
        super().__init__()
        self.config = config
        (size,) = config.transformers
        self.embed = linear(config.channels, size.width)
        self.trunk = Trunk(
            size,
            config.grid,
            config.label_width,
            name="denoiser",
            text_tokens=config.text_tokens,
            options=config.blocks,
        )
        self.output = Output(size.width, config.blocks) if config.label_width else None
        self.project = linear(size.width, config.channels, init="zero")

    def forward(self, latents: Tensor, labels: Labels = None) -> Tensor:
        check_shape(latents, (self.config.tokens, self.config.channels), "latents")
        told = self.trunk.told(labels, len(latents))
        x = self.trunk(self.embed(latents), told)
        if self.output is not None:
            x = self.output(x, told)
        return self.project(x)  # type: ignore[no-any-return]

    def label_networks(self) -> Mapping[str, EmbedLabels]:
        """Return what embeds labels for this network, by its name in a condition."""
        return {"denoiser": self.trunk.embed_labels}


class LatentGenerator(SphereGenerator):
    """A latent denoiser and its tokenizer.

    Predictions are clean latents. They are the tokenizer's normalised ones, not points on the sphere: the denoiser
    learned to find their length too.

    Args:
        denoiser: predicts clean latents.
        tokenizer: a frozen `nn.Module` that answers to `Tokenizer`.

    Raises:
        ConfigError: their latents or images differ.
    """

    guidance_places = ("latent",)

    def __init__(self, denoiser: LatentDenoiser, tokenizer: Tokenizer) -> None:
        super().__init__(denoiser.config)
        for what, ours, theirs in (
            ("latents", self.latent_shape, tuple(tokenizer.latent_shape)),
            ("images", self.image_shape, tuple(tokenizer.image_shape)),
        ):
            if ours != theirs:
                raise ConfigError(
                    f"the denoiser was made for {what} of shape {ours}, but the tokenizer's are {theirs}; "
                    "take the tokenizer that it was trained with"
                )
        if not isinstance(tokenizer, nn.Module):
            raise TypeError(f"a tokenizer is an nn.Module, not a {type(tokenizer).__name__}")
        self.denoiser = denoiser
        self.codec: nn.Module = tokenizer.eval().requires_grad_(False)

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen codec."""
        return cast(Tokenizer, self.codec)

    def label_networks(self) -> Mapping[str, EmbedLabels]:
        return self.denoiser.label_networks()

    def predict(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        return upcast(self.denoiser(latents.to(self.dtype), labels))

    def to_image(self, prediction: Tensor) -> Tensor:
        return self.tokenizer.decode(prediction)

    def from_image(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)
