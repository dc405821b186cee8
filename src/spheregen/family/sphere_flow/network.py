"""Sphere Flow: a transformer that turns a rough image into a fine one in a few steps of a flow.

A generator of the sphere decodes a random point to a rough image x_0; the flow starts at rho * noise + (1 - rho) * x_0
and ends at an image. The network sees the point of the path as patches, and the point on the sphere and the decoder's
last tokens as context; it predicts the clean image, from which the velocity follows (as in JiT, Li and He 2025, arXiv
2511.13720).

Source: Sphere Flow. Legend: B samples, C image channels, S image size, P patch size, N latent tokens, d latent
channels, W width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.conditioning import EmbedLabels, Labels
from spheregen.errors import ConfigError, check_choices
from spheregen.family.sphere_encoder.network import DEFAULT_PATCH
from spheregen.networks.frozen import check_shape
from spheregen.nn.block import BlockOptions, Output, Trunk
from spheregen.nn.linear import linear
from spheregen.nn.norm import RMSNorm
from spheregen.nn.patches import LinearPixelHead, PatchEmbedding
from spheregen.nn.positions import TimeEmbedding
from spheregen.nn.sizes import TransformerConfig, TransformerSize, check_architecture, resolve_size
from spheregen.prior import Angle
from spheregen.protocol import Context, SphereGenerator
from spheregen.sphere import upcast


@dataclass(frozen=True, kw_only=True)
class FlowRefinerConfig(TransformerConfig):
    """Every choice of a refiner's architecture.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    image_size: int
    """Height and width S in pixels."""
    image_channels: int = 3
    """3 (RGB) or 1 (grey)."""
    patch_size: int | None = None
    """Patch P in pixels; None takes the Sphere Encoder's of the image size."""
    size: str | TransformerSize = "base"
    """A named size or an explicit one."""
    blocks: BlockOptions = field(default_factory=lambda: BlockOptions(qk_norm=True))
    """The choices of the transformer blocks."""
    num_classes: int = 0
    """0 makes an unconditional refiner, whatever the generator in front of it."""
    text_width: int = 0
    """Numbers D of the vectors of texts, where the refiner follows texts instead of classes."""
    rho: float = 0.75
    """The share of noise in the start of the flow: 1 is an ordinary flow from noise, 0 starts at the rough image."""
    residual: bool = False
    """The network predicts what is missing of the rough image, instead of the clean image itself (as published): it
    starts from the rough image, and learns sooner where that is good."""
    context: Literal["add", "tokens"] = "add"
    """The way the network sees what it is told of the rough image: added to the patch tokens of the same place, or as
    tokens of their own, which take as long again."""
    context_tokens: int | None = None
    """Tokens N of the generator's latents, a square number; None: as the generator has."""
    latent_channels: int | None = None
    """Channels d of the point on the sphere; None: as the generator has, 0: the network is not told the point."""
    decoder_width: int | None = None
    """Width of the decoder's last tokens; None: as the generator has (0 if it is no Sphere Encoder), 0: not told."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.patch_size is None and self.image_size not in DEFAULT_PATCH:
            raise ConfigError(f"no default patch for {self.image_size} px; set patch_size")
        check_architecture(self, "context_tokens", "latent_channels", "decoder_width")
        if not 0 <= self.rho <= 1:
            raise ConfigError(f"rho is a share of noise from 0 to 1, not {self.rho:g}")
        tokens = self.context_tokens or 0
        if math.isqrt(tokens) ** 2 != tokens:
            raise ConfigError(f"context_tokens is a square number (16, 64, 256 ...), not {tokens}")
        if not tokens and (self.latent_channels or self.decoder_width) and self.context_tokens is not None:
            raise ConfigError("a context of 0 tokens has no channels: set latent_channels and decoder_width to 0")
        resolve_size(self.size)

    @property
    def patch(self) -> int:
        """Patch size P in pixels."""
        return DEFAULT_PATCH[self.image_size] if self.patch_size is None else self.patch_size

    @property
    def grid(self) -> int:
        """Patches along one side, S / P."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return self.grid**2

    @property
    def uses_rough(self) -> bool:
        """The rough image has a part in the flow: a complete configuration without it is a plain flow."""
        return self.rho < 1 or self.residual or bool(self.latent_channels) or bool(self.decoder_width)

    @property
    def longest(self) -> int:
        """Tokens that go through the transformer, those of the context among them."""
        told = bool(self.latent_channels) + bool(self.decoder_width) if self.context == "tokens" else 0
        return self.tokens + told * (self.context_tokens or 0)

    @property
    def complete(self) -> bool:
        """Nothing of it is left to the generator."""
        return None not in (self.context_tokens, self.latent_channels, self.decoder_width)

    def completed(self, latent_shape: tuple[int, ...], decoder_width: int) -> Self:
        """The same for a generator of these latents (N, d), with what was left to it filled in.

        Args:
            decoder_width: of the decoder's last tokens; 0 where it has none to show.

        Raises:
            ConfigError: the refiner was made for a generator of other latents.
        """
        tokens, channels = latent_shape
        theirs = {"context_tokens": tokens, "latent_channels": channels, "decoder_width": decoder_width}
        found: dict[str, Any] = {
            name: value if getattr(self, name) is None else getattr(self, name) for name, value in theirs.items()
        }
        if not found["latent_channels"] and not found["decoder_width"]:
            found = dict.fromkeys(theirs, 0)
        for name, value in theirs.items():
            if found[name] not in (0, value):
                raise ConfigError(
                    f"the refiner was made for a generator whose {name} is {found[name]}, but it is {value} here; take "
                    f"the generator that it was trained with, or leave model.{name} out"
                )
        return dataclasses.replace(self, **found)


class FlowRefiner(nn.Module):
    """Points of the path (B, C, S, S) at times (B,) in [0, 1] to predicted clean images (B, C, S, S), not clamped.

    Raises:
        ConfigError: its context is left to a generator; see `FlowRefinerConfig.completed`.
    """

    gathered_methods: tuple[str, ...] = ()

    def __init__(self, config: FlowRefinerConfig) -> None:
        super().__init__()
        if not config.complete:
            raise ConfigError("a refiner is built for a generator: complete its configuration with that one's latents")
        self.config = config
        (size,) = config.transformers
        latent, decoder = config.latent_channels or 0, config.decoder_width or 0
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.patches = PatchEmbedding(config.image_channels, config.patch, size.width)
        self.time = TimeEmbedding(size.width)
        self.latent = linear(latent, size.width) if latent else None
        self.decoder_norm = RMSNorm(decoder) if decoder else None
        self.decoder = linear(decoder, size.width, bias=False) if decoder else None
        side = math.isqrt(config.context_tokens or 0)
        parts = bool(latent) + bool(decoder) if config.context == "tokens" else 0
        self.trunk = Trunk(
            size,
            config.grid,
            config.label_width,
            name="refiner",
            options=config.blocks,
            conditional=True,
            front_grids=(side,) * parts,
        )
        self.output = Output(size.width, config.blocks)
        self.head = LinearPixelHead(size.width, config.patch, config.image_channels, config.grid)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the network computes."""
        return self.time.inner.weight.dtype

    def forward(self, x: Tensor, times: Tensor, labels: Labels = None, context: Context | None = None) -> Tensor:
        check_shape(x, self.image_shape, "images")
        tokens = self.patches(x)
        told = self._told(context)
        front = None
        if told and self.config.context == "add":
            tokens = upcast(tokens) + sum(_on_grid(part, self.config.grid) for part in told)
        elif told:
            front = torch.cat(told, dim=1)
        embedding = self.time(times)
        condition = self.trunk.told(labels, len(x))
        if condition is not None:
            embedding = embedding + condition.embedding
        tokens = self.trunk(tokens, embedding, front)
        return self.head(self.output(tokens, embedding))  # type: ignore[no-any-return]

    def _told(self, context: Context | None) -> list[Tensor]:
        """The context as tokens of this network's width, each (B, N, W)."""
        parts = []
        if self.latent is not None:
            if context is None:
                raise ValueError("this refiner is told of the rough image; give its context")
            parts.append(self.latent(context.latent.to(self.dtype)))
        if self.decoder is not None and self.decoder_norm is not None:
            if context is None or context.tokens is None:
                raise ValueError("this refiner is told the decoder's last tokens; give them in its context")
            parts.append(self.decoder(self.decoder_norm(context.tokens.to(self.dtype))))
        return parts


def _on_grid(tokens: Tensor, grid: int) -> Tensor:
    """Tokens (B, N, W) of a grid over the image as those of another: repeated, or averaged, where sizes differ."""
    side = math.isqrt(tokens.shape[1])
    if side == grid:
        return tokens
    maps = tokens.transpose(1, 2).unflatten(2, (side, side))
    return functional.adaptive_avg_pool2d(maps, grid).flatten(2).transpose(1, 2).contiguous()


class RefinedGenerator(SphereGenerator):
    """A generator of the sphere and a refiner of its images.

    Predictions, decodes and edits are rough: those of the generator in front. `refined` is the network of the flow,
    which `spheregen.sampling.flow` runs after any few-step loop.

    Args:
        source: the generator in front.
        refiner: made for it.

    Raises:
        ConfigError: their images, latents or classes differ.
    """

    def __init__(self, source: SphereGenerator, refiner: FlowRefiner) -> None:
        super().__init__()
        self.config = config = refiner.config
        config.completed(tuple(source.latent_shape), source.token_width)
        if refiner.image_shape != tuple(source.image_shape):
            shapes = f"images of shape {refiner.image_shape}, but the generator's are {tuple(source.image_shape)}"
            raise ConfigError(f"the refiner was made for {shapes}")
        for name, what in (("num_classes", "classes"), ("text_width", "numbers of a text")):
            ours, theirs = getattr(config, name), getattr(source, name)
            if (config.label_width and source.label_width) and ours != theirs:
                raise ConfigError(
                    f"the refiner has {ours} {what}, and the generator {theirs}: both need the same ones, or one of "
                    "them none"
                )
        self.image_shape, self.latent_shape = source.image_shape, source.latent_shape
        self.num_classes = max(source.num_classes, config.num_classes)
        self.text_width = max(source.text_width, config.text_width)
        self.text_tokens = source.text_tokens
        for fact in ("alpha_max", "max_angle", "prior", "guidance_places", "guidance_law", "unguided", "reuses_noise"):
            setattr(self, fact, getattr(source, fact))
        self.fitted = source.fitted
        self.rough: nn.Module = source
        self.refiner: FlowRefiner = refiner

    @property
    def source(self) -> SphereGenerator:
        """The generator in front."""
        return cast(SphereGenerator, self.rough)

    @property
    def start_angle(self) -> float:
        return self.source.start_angle

    @property
    def dtype(self) -> torch.dtype:
        return self.refiner.dtype

    def label_networks(self) -> Mapping[str, EmbedLabels]:
        return {**self.source.label_networks(), "refiner": self.refiner.trunk.embed_labels}

    def predict(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        return self.source.predict(latents, self._of_source(labels), angle)

    def predict_with_context(
        self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0
    ) -> tuple[Tensor, Context | None]:
        condition = self._of_source(labels)
        if self.refiner.decoder is not None:
            return self.source.predict_with_context(latents, condition, angle)
        return self.source.predict(latents, condition, angle), Context(latents, None)

    def to_latent(self, prediction: Tensor, labels: Labels = None) -> Tensor:
        return self.source.to_latent(prediction, self._of_source(labels))

    def to_image(self, prediction: Tensor) -> Tensor:
        return self.source.to_image(prediction)

    def from_image(self, images: Tensor) -> Tensor:
        return self.source.from_image(images)

    def mix(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        return self.source.mix(first, second, mask)

    def refined(
        self, x: Tensor, times: Tensor, labels: Labels, context: Context | None, rough: Tensor | None = None
    ) -> Tensor:
        """Return the clean images (B, C, S, S) that the refiner sees in points of its path at times (B,).

        Args:
            rough: the rough images, which a refiner that predicts the residual needs.
        """
        told = self.condition(labels) if self.config.label_width else None
        found: Tensor = upcast(self.refiner(x.to(self.dtype), times, told, context))
        if not self.config.residual:
            return found
        if rough is None:
            raise ValueError("this refiner predicts what is missing of the rough image; give that")
        return found + rough

    def _of_source(self, labels: Labels) -> Labels:
        """Return labels as the generator in front takes them."""
        return self.condition(labels) if self.source.label_width else None
