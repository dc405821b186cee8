"""Sphere Encoder 2: a decoder that is told how far noise turned a point, behind a frozen encoder or one of its own.

Sources: *Sphere Encoder 2* (arXiv 2610.02208) and facts of its code (method.md, section 4). Legend: B samples, C image
channels, S image size, P patch size, N = (S/P)^2 tokens, d latent channels, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spheregen.conditioning import EmbedLabels, Labels, NetworkCondition
from spheregen.errors import ConfigError
from spheregen.family.sphere_encoder.network import ImageAutoencoder
from spheregen.family.sphere_encoder_2.config import SphereEncoder2Config
from spheregen.networks.encoders import FrozenEncoder, build_encoder
from spheregen.networks.frozen import check_shape
from spheregen.nn.block import BlockOptions, Output, Trunk
from spheregen.nn.linear import linear
from spheregen.nn.patches import ConvPixelHead, LinearPixelHead, PatchEmbedding
from spheregen.nn.positions import SCALE, TimeEmbedding, sinusoid_rates
from spheregen.prior import ROTATION_EPS, Angle
from spheregen.protocol import Context
from spheregen.sphere import upcast

NORM_EPS = 1e-5
"""Of all norms, as published; the Sphere Encoder has 1e-6."""
TANH_REACH = 1.5
"""The scaled tanh of training reaches 1 here: tanh(x) / tanh(1.5)."""


class OwnEncoder(nn.Module):
    """Images (B, C, S, S) in [-1, 1] to raw latents (B, N, d); it learns, and sees no labels.

    At the start its latents are exactly 0, as published: the sphere's slope there, 1/sqrt(1e-5), makes them large at
    once; `model.output_init=xavier` begins with codes that differ.
    """

    gathered_methods: tuple[str, ...] = ()

    def __init__(self, config: SphereEncoder2Config) -> None:
        super().__init__()
        size = config.encoder_size
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.patches = PatchEmbedding(config.image_channels, config.patch, size.width)
        self.trunk = Trunk(
            size,
            config.grid,
            0,
            context_tokens=config.in_context_tokens,
            options=BlockOptions(qk_norm=config.qk_norm, eps=NORM_EPS),
        )
        self.project = linear(size.width, config.channels, init=config.output_init)

    def forward(self, images: Tensor, labels: Labels = None, *, kept: Tensor | None = None) -> Tensor:
        check_shape(images, self.image_shape, "images")
        return self.project(self.trunk(self.patches(images), kept=kept))  # type: ignore[no-any-return]


class PretrainedEncoder(nn.Module):
    """Images (B, C, S, S) in [-1, 1] to the tokens (B, N, d) of a frozen encoder, or what a linear makes of them.

    Gradients reach the images.

    Args:
        config: of the whole model.
        frozen: the encoder.
        adapter: a linear that is there already, where there is one.
    """

    gathered_methods: tuple[str, ...] = ()

    def __init__(self, config: SphereEncoder2Config, frozen: FrozenEncoder, adapter: nn.Module | None = None) -> None:
        super().__init__()
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.frozen = frozen
        found = frozen.grid_of(config.image_size)
        if found != config.grid:
            raise ConfigError(f"the encoder gives {found}x{found} tokens, not {config.grid}x{config.grid}")
        self.adapter = adapter
        if adapter is None and config.latent_channels is not None:
            self.adapter = Adapter(frozen.channels, config.channels)

    def forward(
        self, images: Tensor, labels: Labels = None, *, kept: Tensor | None = None, class_token: bool = False
    ) -> Any:
        """Return tokens, and with `class_token` also the encoder's class token (B, D)."""
        check_shape(images, self.image_shape, "images")
        tokens, seen = self.frozen(images, class_token=True) if class_token else (self.frozen(images), None)
        tokens = tokens if self.adapter is None else self.adapter(tokens)
        return (tokens, seen) if class_token else tokens


class Adapter(nn.Module):
    """A linear from the tokens of a frozen encoder to other channels, which learns; (B, N, D) to (B, N, d)."""

    gathered_methods: tuple[str, ...] = ()

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = linear(inputs, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens)  # type: ignore[no-any-return]


class NoEncoder(nn.Module):
    """Stand for a frozen encoder that was left out of a model folder."""

    def forward(self, images: Tensor, labels: Labels = None, *, kept: Tensor | None = None) -> Tensor:
        raise ConfigError(
            "this model came without its encoder and makes images in one step alone: sample with steps=1, or convert "
            "the checkpoint again without --decoder-only"
        )


class AngleEmbedding(TimeEmbedding):
    """Angles (B,) in radians to (B, W): waves of their share of the largest one, linear, SiLU, linear.

    Args:
        width: W.
        largest: radians; larger angles are told as this one.
        silent: start at 0, as a decoder does that is told more than the angle.
        rounded: the rates of the waves have the 8 bits of bfloat16.
    """

    def __init__(self, width: int, largest: float, *, silent: bool, rounded: bool = False) -> None:
        super().__init__(width)
        self.largest, self.rounded = largest, rounded
        nn.init.normal_(self.inner.weight, std=0.02)
        if silent:
            nn.init.zeros_(self.outer.weight)
        else:
            nn.init.normal_(self.outer.weight, std=0.02)

    def forward(self, angles: Tensor) -> Tensor:
        share = (upcast(angles) / self.largest).clamp(0, 1)
        rates = sinusoid_rates(angles.device)
        if self.rounded:
            rates = rates.bfloat16().float()
        # phases reach 1000 rad, where float32 is coarse: in this order, as published
        phases = share[:, None] * rates * SCALE
        return self.embed(torch.cat([phases.cos(), phases.sin()], dim=1))


class AngleDecoder(nn.Module):
    """Points (B, N, d) that noise turned by an angle, to images (B, C, S, S), about [-1, 1] and not clamped."""

    gathered_methods: tuple[str, ...] = ("embed_labels",)

    def __init__(self, config: SphereEncoder2Config) -> None:
        super().__init__()
        size, mode = config.decoder_size, config.angle_condition
        self.embed = linear(config.channels, size.width, init="scaled")
        self.angle = (
            AngleEmbedding(
                size.width,
                math.radians(config.max_angle),
                silent=config.label_width > 0 or mode != "adaln",
                rounded=config.angle_rounding == "bf16",
            )
            if mode != "none"
            else None
        )
        self.on_tokens, self.with_class = mode in ("token", "both"), mode in ("adaln", "both")
        options = BlockOptions(qk_norm=config.qk_norm, eps=NORM_EPS)
        self.trunk = Trunk(
            size,
            config.grid,
            config.label_width,
            name="decoder",
            text_tokens=config.text_tokens,
            context_tokens=config.in_context_tokens,
            spherify_blocks=config.spherify_decoder_blocks,
            sphere_eps=ROTATION_EPS,
            options=options,
            conditional=config.modulated,
        )
        self.output = Output(size.width, options) if config.modulated else None
        patch, channels, grid = config.patch, config.image_channels, config.grid
        self.head: ConvPixelHead | LinearPixelHead
        if config.pixel_head == "conv":
            self.head = ConvPixelHead(size.width, patch, channels, grid, init=config.output_init)
        else:
            smooth = config.pixel_head == "smooth"
            self.head = LinearPixelHead(size.width, patch, channels, grid, init=config.output_init, smooth=smooth)
        self.tanh = config.output_activation == "tanh"

    def embed_labels(self, labels: Tensor | None) -> Tensor | None:
        """Return the embeddings (R, W) that labels need; None if there are no classes."""
        return self.trunk.embed_labels(labels)

    def told(self, labels: Labels, angle: Tensor | None, batch: int) -> NetworkCondition | None:
        """Return what labels and the angle's embeddings (1 or B, W) together mean for the blocks."""
        told = self.trunk.told(labels, batch)
        if angle is None or not self.with_class:
            return told
        if told is not None:
            return told.plus(angle)
        return NetworkCondition(angle, None if len(angle) == 1 else torch.arange(len(angle), device=angle.device))

    def forward(
        self,
        latents: Tensor,
        labels: Labels = None,
        angle: Angle = 0.0,
        *,
        tokens: bool = False,
        kept: Tensor | None = None,
    ) -> Any:
        """Return images, and with `tokens` also the last tokens (B, N, W), as they are in front of the pixel head.

        Args:
            latents: points (B, N, d).
            labels: or the condition.
            angle: radians, one number or (B,).
            tokens: return the last tokens too.
            kept: (B, blocks, 2) factors of stochastic depth, see `nn.block.Block`.

        Raises:
            ConfigError: labels or angles of another number than samples.
        """
        embedded = None
        if self.angle is not None:
            angles = torch.as_tensor(angle, dtype=torch.float32, device=latents.device).reshape(-1)
            if len(angles) not in (1, len(latents)):
                raise ConfigError(f"{len(angles)} angles for {len(latents)} samples; give one for all or one for each")
            embedded = self.angle(angles)
        told = self.told(labels, embedded, len(latents))
        x = self.embed(latents)
        if embedded is not None and self.on_tokens:
            x = upcast(x) + upcast(embedded)[:, None]
        x = self.trunk(x, told, kept=kept)
        if self.output is not None:
            x = self.output(x, told)
        images: Tensor = self.head(x)
        if self.tanh and self.training:
            images = torch.tanh(images) / math.tanh(TANH_REACH)
        return (images, x) if tokens else images


class SphereEncoder2(ImageAutoencoder):
    """Encoder and decoder of Sphere Encoder 2.

    Predictions are images that may leave [-1, 1]: they are encoded again as they are, and clamped at the end.

    Args:
        config: the architecture.
        encoder: one that is there already; None makes a fresh one, or builds a frozen one without its weights.
        decoder: one that is there already; None makes a fresh one.
    """

    config: SphereEncoder2Config
    guidance_law = "rotation"
    unguided = 0.0
    reuses_noise = True

    def __init__(
        self,
        config: SphereEncoder2Config,
        encoder: nn.Module | None = None,
        decoder: AngleDecoder | None = None,
    ) -> None:
        seen = config.pretrained_encoder
        if encoder is None and seen is None:
            encoder = OwnEncoder(config)
        elif encoder is None and not config.has_encoder:
            encoder = NoEncoder()
        elif encoder is None and seen is not None:
            encoder = PretrainedEncoder(config, build_encoder(seen, pretrained=False))
        assert encoder is not None
        super().__init__(config, encoder, decoder or AngleDecoder(config), config.decoder_size.width)
        self.max_angle, self.alpha_max = config.max_angle, config.told_angle
        self.has_sampling_angle = config.angle_condition != "none"
        if config.angle_rounding == "bf16":
            for trunk in (module for module in self.modules() if isinstance(module, Trunk)):
                assert trunk.rotary is not None
                trunk.rotary.turns = trunk.rotary.turns.bfloat16().float()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype  # type: ignore[no-any-return]

    def label_networks(self) -> Mapping[str, EmbedLabels]:
        return {"decoder": self.decoder.embed_labels}

    def predict(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        return upcast(self.decoder(latents.to(self.dtype), labels, angle))

    def predict_with_context(
        self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0
    ) -> tuple[Tensor, Context | None]:
        images, tokens = self.decoder(latents.to(self.dtype), labels, angle, tokens=True)
        return upcast(images), Context(latents, upcast(tokens))

    def to_image(self, prediction: Tensor) -> Tensor:
        return prediction.clamp(-1, 1)

    def decode(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        """Return points (B, N, d) as images (B, C, S, S) about [-1, 1], not clamped, as published.

        Args:
            latents: points of the latent space.
            labels: or the condition.
            angle: degrees, one number or (B,): how far noise turned the points.
        """
        radians = torch.deg2rad(angle.double()) if isinstance(angle, Tensor) else math.radians(angle)
        return self.predict(latents, labels, radians)
