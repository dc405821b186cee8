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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.conditioning import Condition
from spheregen.errors import ConfigError, check_choices
from spheregen.models.autoencoder import DEFAULT_PATCH, SphereAutoencoder
from spheregen.models.protocol import GeneratorModule, Labels, SphereGenerator
from spheregen.models.sizes import TransformerSize, check_images, resolve_size
from spheregen.models.trunk import Output, Trunk
from spheregen.nn.block import BlockOptions
from spheregen.nn.linear import linear
from spheregen.nn.norm import RMSNorm
from spheregen.nn.patches import LinearPixelHead, PatchEmbedding
from spheregen.nn.time import TimeEmbedding
from spheregen.prior import Prior
from spheregen.sphere import upcast


@dataclass(frozen=True, kw_only=True)
class FlowRefinerConfig:
    """Every choice of a refiner's architecture.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

    image_size: int
    """Height and width S in pixels."""
    image_channels: int = 3
    """3 (RGB) or 1 (grey)."""
    patch_size: int | None = None
    """Patch P in pixels; None takes the Sphere Encoder's of the image size."""
    size: str | TransformerSize = "base"
    """A named size or an explicit one."""
    blocks: BlockOptions = field(default_factory=lambda: BlockOptions(qk_norm=True))
    """What the transformer blocks are made of."""
    num_classes: int = 0
    """0 makes an unconditional refiner, whatever the generator in front of it."""
    rho: float = 0.75
    """The share of noise in the start of the flow: 1 is an ordinary flow from noise, 0 starts at the rough image."""
    residual: bool = False
    """The network predicts what is missing of the rough image, instead of the clean image itself (as published): it
    starts from the rough image, and learns sooner where that is good."""
    context: Literal["add", "tokens"] = "add"
    """How the network sees what it is told of the rough image: added to the patch tokens of the same place, or as
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
        check_images(self.image_size, self.image_channels, self.patch)
        for name in ("num_classes", "context_tokens", "latent_channels", "decoder_width"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} is not negative: {getattr(self, name)}")
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
        """Whether the rough image has a part in the flow: a complete configuration without it is a plain flow."""
        return self.rho < 1 or self.residual or bool(self.latent_channels) or bool(self.decoder_width)

    @property
    def longest(self) -> int:
        """Tokens that go through the transformer, those of the context among them."""
        told = bool(self.latent_channels) + bool(self.decoder_width) if self.context == "tokens" else 0
        return self.tokens + told * (self.context_tokens or 0)

    @property
    def transformers(self) -> tuple[TransformerSize, ...]:
        """Of the one transformer that there is."""
        return (resolve_size(self.size),)

    def with_transformers(self, sizes: Sequence[TransformerSize]) -> Self:
        """The same architecture with another size of `transformers`."""
        (size,) = sizes
        return dataclasses.replace(self, size=size)

    @property
    def complete(self) -> bool:
        """Whether nothing of it is left to the generator."""
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
        filled: dict[str, Any] = {name: value for name, value in theirs.items() if getattr(self, name) is None}
        if not filled.get("latent_channels", self.latent_channels) and not filled.get(
            "decoder_width", self.decoder_width
        ):
            filled |= {"context_tokens": 0, "latent_channels": 0, "decoder_width": 0}
        found = dataclasses.replace(self, **filled)
        for name, value in theirs.items():
            ours = getattr(found, name)
            if ours and ours != value:
                raise ConfigError(
                    f"the refiner was made for a generator whose {name} is {ours}, but it is {value} here; take the "
                    f"generator that it was trained with, or leave model.{name} out"
                )
        return found


@dataclass(frozen=True)
class RoughContext:
    """What a refiner is told of a rough image."""

    latent: Tensor
    """(B, N, d) the point on the sphere that it was decoded from."""
    tokens: Tensor | None
    """(B, N, W) the decoder's last tokens; None of a generator that has none."""

    def __getitem__(self, part: slice) -> RoughContext:
        return RoughContext(self.latent[part], None if self.tokens is None else self.tokens[part])

    def twice(self) -> RoughContext:
        """For 2 B samples, the second half as the first."""
        return RoughContext(
            torch.cat([self.latent, self.latent]), None if self.tokens is None else torch.cat([self.tokens] * 2)
        )

    def detach(self) -> RoughContext:
        """The same without gradients."""
        return RoughContext(self.latent.detach(), None if self.tokens is None else self.tokens.detach())


class FlowRefiner(nn.Module):
    """Points of the path (B, C, S, S) at times (B,) in [0, 1] to predicted clean images (B, C, S, S), not clamped.

    Raises:
        ConfigError: its context is left to a generator; see `FlowRefinerConfig.completed`.
    """

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
            config.num_classes,
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

    def forward(
        self, x: Tensor, times: Tensor, labels: Tensor | None = None, context: RoughContext | None = None
    ) -> Tensor:
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(f"images have shape {tuple(x.shape)}; this model takes (B, *{self.image_shape})")
        tokens = self.patches(x)
        told = self._told(context)
        front = None
        if told and self.config.context == "add":
            tokens = upcast(tokens) + sum(_on_grid(part, self.config.grid) for part in told)
        elif told:
            front = torch.cat(told, dim=1)
        embedding = self.time(times)
        if self.config.num_classes:
            embedding = embedding + self.trunk.embed(labels, x.shape[0])
        tokens = self.trunk.transform(tokens, embedding, front=front)
        return self.head(self.output(tokens, embedding))  # type: ignore[no-any-return]

    def _told(self, context: RoughContext | None) -> list[Tensor]:
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


@dataclass(frozen=True)
class RefinedCondition:
    """Labels as the generator and its refiner need them; a `Condition`."""

    rough: Condition | None
    """Of the generator in front; None where it is unconditional."""
    labels: Tensor | None

    def rows(self, index: Tensor) -> RefinedCondition:
        """The condition of these rows."""
        return RefinedCondition(
            None if self.rough is None else self.rough.rows(index), None if self.labels is None else self.labels[index]
        )


class RefinedGenerator(nn.Module):
    """A generator of the sphere and a refiner of its images.

    As a `SphereGenerator` it is the generator in front: predictions, decodes and edits are rough. `refined` is the
    network of the flow, which `spheregen.sampling.refinement` runs after any few-step loop.

    Args:
        source: a Sphere Encoder, a latent denoiser with its tokenizer, or any `nn.Module` that answers to
            `SphereGenerator`.
        refiner: made for it.

    Raises:
        ConfigError: their images, latents or classes differ.
    """

    def __init__(self, source: GeneratorModule, refiner: FlowRefiner) -> None:
        super().__init__()
        if not isinstance(source, nn.Module):
            raise TypeError(f"a source is an nn.Module, not a {type(source).__name__}")
        config = refiner.config
        config.completed(tuple(source.latent_shape), decoder_width(source))
        if refiner.image_shape != tuple(source.image_shape):
            raise ConfigError(
                f"the refiner was made for images of shape {refiner.image_shape}, but the generator's are "
                f"{tuple(source.image_shape)}"
            )
        if config.num_classes and source.num_classes not in (0, config.num_classes):
            raise ConfigError(
                f"the refiner has {config.num_classes} classes, and the generator {source.num_classes}: both need the "
                "same ones, or one of them none"
            )
        self.rough: nn.Module = source
        self.refiner = refiner

    @property
    def source(self) -> GeneratorModule:
        """The generator in front."""
        return cast(GeneratorModule, self.rough)

    @property
    def config(self) -> FlowRefinerConfig:
        """Of the refiner."""
        return self.refiner.config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.source.image_shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.source.latent_shape

    @property
    def num_classes(self) -> int:
        return max(self.source.num_classes, self.config.num_classes)

    @property
    def sigma_max(self) -> float:
        return self.source.sigma_max

    @property
    def prior(self) -> Prior:
        return self.source.prior

    @property
    def dtype(self) -> torch.dtype:
        """The type of the refiner's weights."""
        return self.refiner.dtype

    @property
    def guidance_places(self) -> tuple[str, ...]:
        return self.source.guidance_places

    def condition(self, labels: Tensor | None) -> RefinedCondition | None:
        if not self.num_classes:
            self.source.condition(labels)  # complains about labels
            return None
        if labels is None:
            device = next(self.parameters()).device
            labels = torch.full((1,), self.num_classes, dtype=torch.int64, device=device)
        return RefinedCondition(self.source.condition(labels) if self.source.num_classes else None, labels)

    def predict(self, latents: Tensor, labels: Labels = None) -> Tensor:
        return self.source.predict(latents, self._of_source(labels))

    def to_latent(self, prediction: Tensor, labels: Labels = None) -> Tensor:
        return self.source.to_latent(prediction, self._of_source(labels))

    def to_image(self, prediction: Tensor) -> Tensor:
        return self.source.to_image(prediction)

    def from_image(self, images: Tensor) -> Tensor:
        return self.source.from_image(images)

    def mix(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        return self.source.mix(first, second, mask)

    def encode_raw(self, images: Tensor, labels: Labels = None) -> Tensor:
        return self.source.encode_raw(images, self._of_source(labels))

    def encode(self, images: Tensor, labels: Labels = None) -> Tensor:
        return self.source.encode(images, self._of_source(labels))

    def decode(self, latents: Tensor, labels: Labels = None) -> Tensor:
        return self.source.decode(latents, self._of_source(labels))

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:
        """Images there and back through the generator in front: decode(encode(x))."""
        return self.decode(self.encode(images, labels), labels)

    def predict_with_context(self, latents: Tensor, labels: Labels = None) -> tuple[Tensor, RoughContext]:
        """`predict`, with what the refiner is told of the image that it makes, from the same pass."""
        of_source = self._of_source(labels)
        if self.refiner.decoder is not None and isinstance(self.rough, SphereAutoencoder):
            prediction, tokens = self.rough.predict_with_tokens(latents, of_source)
            return prediction, RoughContext(latents, tokens)
        return self.source.predict(latents, of_source), RoughContext(latents, None)

    def refined(
        self, x: Tensor, times: Tensor, labels: Labels, context: RoughContext | None, rough: Tensor | None = None
    ) -> Tensor:
        """The clean images (B, C, S, S) that the refiner sees in points of the path at times (B,).

        Args:
            rough: the rough images, which a refiner that predicts the residual needs.
        """
        if isinstance(labels, RefinedCondition):
            labels = labels.labels
        if labels is not None and not isinstance(labels, Tensor):
            raise ValueError(f"a {type(labels).__name__} is no condition of this model; take model.condition(labels)")
        if labels is not None and labels.shape[0] == 1:
            labels = labels.expand(x.shape[0], *labels.shape[1:])
        told = labels if self.config.num_classes else None
        found: Tensor = upcast(self.refiner(x.to(self.dtype), times, told, context))
        if not self.config.residual:
            return found
        if rough is None:
            raise ValueError("this refiner predicts what is missing of the rough image; give that")
        return found + rough

    def _of_source(self, labels: Labels) -> Labels:
        """Labels as the generator in front takes them."""
        if not self.source.num_classes:
            return None
        return labels.rough if isinstance(labels, RefinedCondition) else labels


def decoder_width(source: SphereGenerator) -> int:
    """The width of a generator's last decoder tokens; 0 where it has none to show."""
    return source.config.decoder_size.width if isinstance(source, SphereAutoencoder) else 0
