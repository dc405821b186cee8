"""The Sphere Encoder: a pixel-space autoencoder whose codes cover a sphere.

Source: Yue et al. 2026, "Image Generation with a Sphere Encoder" (arXiv 2602.15030).
Legend: B samples, C image channels, S image size, P patch size, N = (S/P)^2 tokens, d latent channels, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from spheregen.conditioning import EmbedLabels, Labels
from spheregen.errors import ConfigError, check_choices
from spheregen.networks.frozen import FrozenTokenizer, check_shape
from spheregen.nn.block import Output, Trunk
from spheregen.nn.linear import ENCODER, Init, linear, tag
from spheregen.nn.mixer import Mixer
from spheregen.nn.norm import BatchNorm
from spheregen.nn.patches import ConvPixelHead, LinearPixelHead, PatchEmbedding
from spheregen.nn.sizes import TransformerConfig, TransformerSize, check_architecture, resolve_size
from spheregen.prior import Angle, PriorName
from spheregen.protocol import Context, SphereGenerator
from spheregen.sphere import upcast

DEFAULT_PATCH = {32: 4, 64: 4, 128: 8, 256: 16, 512: 32}
"""The published patch of each image size; the "high" latent resolution halves it."""


@dataclass(frozen=True, kw_only=True)
class PatchAutoencoderConfig(TransformerConfig):
    """The choices that all autoencoders of patches have, with a transformer at each end."""

    transformer_fields = ("encoder", "decoder")
    default_compression: ClassVar[float] = 1.5
    """`compression` where neither it nor `latent_channels` is given."""

    image_size: int
    """Height and width S in pixels."""
    image_channels: int = 3
    """3 (RGB, as published) or 1 (grey)."""
    encoder: str | TransformerSize = "base"
    """A named size or an explicit one."""
    decoder: str | TransformerSize = "base"
    latent_resolution: Literal["standard", "high"] = "standard"
    """Chooses the patch where `patch_size` is not given; "high" halves it."""
    patch_size: int | None = None
    """Patch P in pixels; None takes the published one of the image size."""
    compression: float | None = None
    """Ratio c = C*S^2 / L of image numbers to latent numbers; 1.5 to 3 works best. 1.5 if both this and
    `latent_channels` are None."""
    latent_channels: int | None = None
    """Channels d of a latent token, instead of `compression`."""
    num_classes: int = 0
    """0 makes an unconditional model."""
    text_width: int = 0
    """Numbers D of the vectors of texts, where the model follows texts instead of classes."""
    text_tokens: int = 0
    """Tokens of a text, beside its vector, that blocks attend to; `text_width` counts the numbers of all of them."""
    in_context_tokens: int = 0
    """Extra tokens that carry the condition; they join before block `in_context_start` of the size."""
    pixel_head: Literal["linear", "smooth", "conv"] = "linear"
    output_init: Literal["zero", "xavier"] = "zero"
    """The last linears of decoder and own encoder start at zero, as published, or Xavier-uniform: then codes differ
    from the first step on."""
    spherify_decoder_blocks: bool = False
    """Put the decoder's tokens on the sphere after every block but the last (published as `spherify_model`)."""

    def check_patch(self) -> None:
        """Refuse an image size without a published patch, where none is given."""
        if self.patch_size is None and self.image_size not in DEFAULT_PATCH:
            raise ConfigError(
                f"no default patch for {self.image_size} px (there is one for {', '.join(map(str, DEFAULT_PATCH))}); "
                "set patch_size"
            )

    def check_shapes(self, *counts: str) -> None:
        """Refuse impossible shapes. `counts` names further fields that must not be negative."""
        check_architecture(self, "in_context_tokens", *counts)
        if self.compression is not None and self.latent_channels is not None:
            raise ConfigError("give compression or latent_channels, not both: each determines the other")
        if self.compression is not None and not 0 < self.compression < float("inf"):
            raise ConfigError(f"compression is a positive number, not {self.compression:g}")
        if self.channels < 1:
            raise ConfigError(
                f"compression {self.compression} and latent_channels {self.latent_channels} leave no latent channel; "
                f"a patch of {self.patch} px has {self.image_channels * self.patch**2} numbers"
            )
        if self.pixel_head != "linear" and self.grid < 2:
            raise ConfigError(
                f"the {self.pixel_head} pixel head pads its {self.grid}x{self.grid} grid by reflection and needs at "
                "least 2x2 tokens; shrink the patch or take the linear head"
            )
        for part, size in zip(self.trained, self.transformers, strict=True):
            if self.in_context_tokens and size.in_context_start >= size.depth:
                raise ConfigError(
                    f"the {part}'s in-context tokens would join before block {size.in_context_start}, but it has only "
                    f"{size.depth} blocks (counted from 0); lower in_context_start"
                )

    @property
    def patch(self) -> int:
        """Patch size P in pixels."""
        if self.patch_size is not None:
            return self.patch_size
        return DEFAULT_PATCH[self.image_size] // (2 if self.latent_resolution == "high" else 1)

    @property
    def grid(self) -> int:
        """Tokens along one side, S / P."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Tokens N of a latent."""
        return self.grid**2

    @property
    def channels(self) -> int:
        """Channels d of a latent token: int(C*P^2 / c)."""
        if self.latent_channels is not None:
            return self.latent_channels
        ratio = self.default_compression if self.compression is None else self.compression
        return int(self.image_channels * self.patch**2 / ratio)

    @property
    def encoder_size(self) -> TransformerSize:
        return resolve_size(self.encoder)

    @property
    def decoder_size(self) -> TransformerSize:
        return resolve_size(self.decoder)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(PatchAutoencoderConfig):
    """Every choice of a Sphere Encoder's architecture. Derived sizes are properties and are never stored.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    encoder_mixer_depth: int = 4
    """MLP-Mixer blocks behind the encoder; 0 leaves the mixer and its norm out."""
    decoder_mixer_depth: int = 4
    """MLP-Mixer blocks in front of the decoder's transformer; 0 leaves the mixer and its norm out."""
    mixer_affine: bool = True
    """A learned gain in the last norm of each mixer."""
    pixel_head: Literal["linear", "conv"] = "linear"
    output_activation: Literal["tanh", "none"] = "tanh"
    """"none" leaves the training output free and clamps in `decode`: for images with large saturated areas, on which
    tanh stops learning."""
    decoder_input_init: Literal["normal", "scaled"] = "normal"
    """The decoder's input linears start as N(0, 1) (published) or N(0, 1/fan_in), which trains more stably."""
    prior: PriorName = "sphere"
    """The space of latents; "gaussian" and "additive" put nothing on the sphere, to see what
    it is good for."""
    latent_norm: Literal["none", "batch"] = "none"
    """"batch": a batch norm of each latent channel over images and tokens, without gain and shift, as the encoder's
    last layer; a saved model's statistics are measured anew on the data."""
    max_angle: float = 85.0
    """alpha_max in degrees: the angle of the strongest training noise, and the unit of every sampling schedule."""

    def __post_init__(self) -> None:
        check_choices(self)
        self.check_patch()
        self.check_shapes("encoder_mixer_depth", "decoder_mixer_depth")
        if self.spherify_decoder_blocks and self.in_context_tokens:
            raise ConfigError(
                "spherify_decoder_blocks with in_context_tokens is not defined: the extra tokens have no place on the "
                "grid's sphere; turn one of them off"
            )


class Encoder(nn.Module):
    """Images (B, C, S, S) in [-1, 1] to raw latents (B, N, d), before the sphere. `labels=None`: the null class."""

    gathered_methods: tuple[str, ...] = ("embed_labels",)

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        size = config.encoder_size
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.patches = PatchEmbedding(config.image_channels, config.patch, size.width)
        self.trunk = Trunk(
            size,
            config.grid,
            config.label_width,
            name="encoder",
            text_tokens=config.text_tokens,
            context_tokens=config.in_context_tokens,
        )
        self.output = Output(size.width) if config.label_width else None
        self.project = linear(size.width, config.channels, init=config.output_init)
        self.mixer = (
            Mixer(config.tokens, config.channels, config.encoder_mixer_depth, affine=config.mixer_affine)
            if config.encoder_mixer_depth
            else None
        )
        self.norm = BatchNorm(config.channels) if config.latent_norm == "batch" else None

    def embed_labels(self, labels: Tensor | None) -> Tensor | None:
        """Return the embeddings (R, W) that labels need; None if it is unconditional."""
        return self.trunk.embed_labels(labels)

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:
        check_shape(images, self.image_shape, "images")
        told = self.trunk.told(labels, len(images))
        x = self.trunk(self.patches(images), told)
        if self.output is not None:
            x = self.output(x, told)
        z: Tensor = self.project(x)
        if self.mixer is not None:
            z = self.mixer(z)
        return z if self.norm is None else self.norm(z)


class Decoder(nn.Module):
    """Points on the sphere (B, N, d) to images (B, C, S, S), in [-1, 1] under tanh, else free."""

    gathered_methods: tuple[str, ...] = ("embed_labels",)

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        size = config.decoder_size
        init: Init = config.decoder_input_init
        self.embed = linear(config.channels, size.width, init=init)
        self.mixer = (
            Mixer(config.tokens, size.width, config.decoder_mixer_depth, affine=config.mixer_affine, init=init)
            if config.decoder_mixer_depth
            else None
        )
        self.trunk = Trunk(
            size,
            config.grid,
            config.label_width,
            name="decoder",
            text_tokens=config.text_tokens,
            context_tokens=config.in_context_tokens,
            spherify_blocks=config.spherify_decoder_blocks,
        )
        self.output = Output(size.width) if config.label_width else None
        head = ConvPixelHead if config.pixel_head == "conv" else LinearPixelHead
        self.head = head(size.width, config.patch, config.image_channels, config.grid, init=config.output_init)
        self.tanh = config.output_activation == "tanh"

    def embed_labels(self, labels: Tensor | None) -> Tensor | None:
        """Return the embeddings (R, W) that labels need; None if it is unconditional."""
        return self.trunk.embed_labels(labels)

    def forward(self, latents: Tensor, labels: Labels = None, *, tokens: bool = False) -> Any:
        """Return images, and with `tokens` also the last tokens (B, N, W), as they are in front of the pixel head."""
        told = self.trunk.told(labels, len(latents))
        x = self.embed(latents)
        if self.mixer is not None:
            x = self.mixer(x)
        x = self.trunk(x, told)
        if self.output is not None:
            x = self.output(x, told)
        images: Tensor = self.head(x)
        images = torch.tanh(images) if self.tanh else images
        return (images, x) if tokens else images


class ImageAutoencoder(SphereGenerator):
    """A generator of an encoder and a decoder of images, as the loss of the Sphere Encoder trains it.

    `encoder` and `decoder` are the bare networks, as training uses them; `encode` and `decode` are what users want:
    points on the sphere, and images clamped to [-1, 1].

    Args:
        config: the architecture, see `SphereGenerator`.
        encoder: called with images (B, C, S, S) and labels, gives raw latents (B, N, d); `embed_labels` embeds labels.
        decoder: called with points (B, N, d) and labels, gives images; with `tokens=True` also its last tokens
            (B, N, W); `embed_labels` embeds labels.
        token_width: W; 0 where a decoder has no tokens to give, which is then never asked for any.
    """

    def __init__(self, config: Any, encoder: nn.Module, decoder: nn.Module, token_width: int = 0) -> None:
        super().__init__(config)
        self.token_width = token_width
        self.encoder: Any = encoder
        self.decoder: Any = decoder
        tag(encoder.parameters(), ENCODER)

    def label_networks(self) -> Mapping[str, EmbedLabels]:
        return {"encoder": self.encoder.embed_labels, "decoder": self.decoder.embed_labels}

    def predict(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        return upcast(self.decoder(latents.to(self.dtype), labels)).clamp(-1, 1)

    def predict_with_context(
        self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0
    ) -> tuple[Tensor, Context | None]:
        if not self.token_width:
            return super().predict_with_context(latents, labels, angle)
        images, tokens = self.decoder(latents.to(self.dtype), labels, tokens=True)
        return upcast(images).clamp(-1, 1), Context(latents, upcast(tokens))

    def to_latent(self, prediction: Tensor, labels: Labels = None) -> Tensor:
        return upcast(self.encoder(prediction.to(self.dtype), labels))


class SphereAutoencoder(ImageAutoencoder):
    """Encoder and decoder of the Sphere Encoder."""

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config, Encoder(config), Decoder(config), config.decoder_size.width)


class SphereTokenizer(FrozenTokenizer):
    """A trained autoencoder of images, frozen, without conditions; a `Tokenizer`.

    Latents are points on its sphere: their mean square over all numbers of a sample is 1, so they and Gaussian noise
    are of one size without further statistics. A class-conditional model encodes and decodes under its null class.

    Raises:
        ConfigError: the model has no sphere (prior "gaussian"): nothing holds the size of its latents.
    """

    def __init__(self, model: ImageAutoencoder) -> None:
        super().__init__()
        if not model.prior.on_sphere:
            raise ConfigError(
                f"an autoencoder with the prior {model.prior.name!r} is no tokenizer: its latents are of any size; "
                "take one with the prior 'sphere'"
            )
        self.model = model
        tokens, channels = model.latent_shape
        self.image_shape, self.latent_shape = model.image_shape, (tokens, channels)
        self.freeze()

    def to_latents(self, images: Tensor) -> Tensor:
        return self.model.encode(images)

    def to_images(self, latents: Tensor) -> Tensor:
        return self.model.decode(self.model.prior.project(latents))
