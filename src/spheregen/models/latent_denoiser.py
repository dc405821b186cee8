"""The Sphere Latent Encoder: a denoiser on the sphere of a frozen tokenizer's latents.

One network takes a noisy point on the sphere, is not told how noisy, and predicts the clean latent. Applied to a random
point, and again to its own prediction with less noise, it generates in a few steps; the tokenizer decodes once.

Source: Do et al. 2026, "Efficient Image Synthesis with Sphere Latent Encoder" (arXiv 2605.15592).
Legend: B samples, C image channels, S image size, N = grid^2 tokens, d latent channels, W width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self, cast

import torch
from torch import Tensor, nn

from spheregen.conditioning import Unprepared
from spheregen.errors import ConfigError, check_choices
from spheregen.models.protocol import Labels, Tokenizer, mix_tokens
from spheregen.models.sizes import TransformerSize, check_images, resolve_size
from spheregen.models.trunk import NetworkCondition, Output, Trunk
from spheregen.nn.block import BlockOptions
from spheregen.nn.linear import linear
from spheregen.prior import PRIORS, Prior, PriorName
from spheregen.sphere import angle_to_sigma, upcast


@dataclass(frozen=True, kw_only=True)
class LatentDenoiserConfig:
    """Every choice of a latent denoiser's architecture.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

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
    """What the transformer blocks are made of."""
    num_classes: int = 0
    """0 makes an unconditional model."""
    prior: PriorName = "sphere"
    """Where latents live and what is sampled; "gaussian" and "additive" put nothing on the sphere, to see what
    it is good for."""
    max_angle: float = 85.0
    """alpha_max in degrees: the tilt of the strongest training noise, and the unit of every sampling schedule."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_images(self.image_size, self.image_channels)
        if self.tokens < 1 or math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ConfigError(f"tokens is a square number (16, 64, 256 ...), not {self.tokens}")
        if self.channels < 1:
            raise ConfigError(f"channels is at least 1, not {self.channels}")
        if self.num_classes < 0:
            raise ConfigError(f"num_classes is not negative: {self.num_classes}")
        if not 0 < self.max_angle < 90:
            raise ConfigError(f"max_angle lies between 0 and 90 degrees, not {self.max_angle:g}; 80 to 85 works best")
        resolve_size(self.size)

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return math.isqrt(self.tokens)

    @property
    def transformers(self) -> tuple[TransformerSize, ...]:
        """Of the one transformer that there is."""
        return (resolve_size(self.size),)

    def with_transformers(self, sizes: Sequence[TransformerSize]) -> Self:
        """The same architecture with another size of `transformers`."""
        (size,) = sizes
        return dataclasses.replace(self, size=size)


class LatentDenoiser(nn.Module):
    """Points on the sphere (B, N, d), noisy or not, to clean latents (B, N, d). `labels=None`: the null class."""

    def __init__(self, config: LatentDenoiserConfig) -> None:
        super().__init__()
        self.config = config
        (size,) = config.transformers
        self.embed = linear(config.channels, size.width)
        self.trunk = Trunk(size, config.grid, config.num_classes, options=config.blocks)
        self.output = Output(size.width, config.blocks) if config.num_classes else None
        self.project = linear(size.width, config.channels, init="zero")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the network computes."""
        return self.embed.weight.dtype

    def forward(self, latents: Tensor, labels: Tensor | NetworkCondition | None = None) -> Tensor:
        if tuple(latents.shape[1:]) != (self.config.tokens, self.config.channels):
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; this model takes (B, {self.config.tokens}, "
                f"{self.config.channels})"
            )
        x, condition = self.trunk(self.embed(latents), labels)
        if self.output is not None:
            x = self.output(x, condition)
        return self.project(x)  # type: ignore[no-any-return]

    def condition(self, labels: Tensor | None) -> NetworkCondition | Unprepared | None:
        """Everything that the network makes of labels (B,), or of the null class for all; None without classes."""
        classes = self.config.num_classes
        if not classes:
            self.trunk.embed(labels, 0)  # complains about labels
            return None
        if any(hasattr(parameter, "placements") for parameter in self.parameters()):
            return Unprepared(labels)  # sharded weights are gathered when a whole module is called, not before
        if labels is not None and not labels.is_floating_point() and labels.shape[0] > classes + 1:
            # classes repeat: compute each once
            return self.trunk.condition(torch.arange(classes + 1, device=labels.device), self.output).rows(labels)
        return self.trunk.condition(labels, self.output)


class LatentGenerator(nn.Module):
    """A latent denoiser and its tokenizer; answers to `SphereGenerator`.

    Predictions are clean latents. They are the tokenizer's normalised ones, not points on the sphere: the denoiser
    learned to find their length too.

    Args:
        denoiser: predicts clean latents.
        tokenizer: a frozen `nn.Module` that answers to `Tokenizer`.

    Raises:
        ConfigError: their latents or images differ.
    """

    def __init__(self, denoiser: LatentDenoiser, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = denoiser.config
        for what, ours, theirs in (
            ("latents", (config.tokens, config.channels), tuple(tokenizer.latent_shape)),
            ("images", (config.image_channels, config.image_size, config.image_size), tuple(tokenizer.image_shape)),
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

    @property
    def config(self) -> LatentDenoiserConfig:
        """Of the denoiser."""
        return self.denoiser.config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.config.image_channels, self.config.image_size, self.config.image_size

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.config.tokens, self.config.channels

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def sigma_max(self) -> float:
        return angle_to_sigma(self.config.max_angle)

    @property
    def prior(self) -> Prior:
        return PRIORS[self.config.prior]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the denoiser's weights."""
        return self.denoiser.dtype

    @property
    def guidance_places(self) -> tuple[str, ...]:
        return ("latent",)

    def condition(self, labels: Tensor | None) -> NetworkCondition | Unprepared | None:
        return self.denoiser.condition(labels)

    def predict(self, latents: Tensor, labels: Labels = None) -> Tensor:
        return upcast(self.denoiser(latents.to(self.dtype), _of_network(labels)))

    def to_latent(self, prediction: Tensor, labels: Labels = None) -> Tensor:
        return prediction

    def to_image(self, prediction: Tensor) -> Tensor:
        return self.tokenizer.decode(prediction)

    def from_image(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)

    def mix(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        return mix_tokens(first, second, mask)

    def encode_raw(self, images: Tensor, labels: Labels = None) -> Tensor:
        return self.from_image(images)

    def encode(self, images: Tensor, labels: Labels = None) -> Tensor:
        return self.prior.project(self.encode_raw(images, labels))

    def decode(self, latents: Tensor, labels: Labels = None) -> Tensor:
        return self.to_image(self.predict(latents, labels))

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:
        """Images there, through the denoiser, and back: decode(encode(x))."""
        return self.decode(self.encode(images, labels), labels)


def _of_network(labels: Labels) -> Tensor | NetworkCondition | None:
    """Labels as the denoiser takes them."""
    if isinstance(labels, Unprepared):
        return labels.labels
    if labels is None or isinstance(labels, Tensor | NetworkCondition):
        return labels
    raise ValueError(f"a {type(labels).__name__} is no condition of this model; take model.condition(labels)")
