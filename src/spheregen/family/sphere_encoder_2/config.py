"""The configuration of Sphere Encoder 2, and the frozen encoders that it may stand behind.

Sources: as in `network`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from spheregen.errors import ConfigError, check_choices, did_you_mean
from spheregen.family.sphere_encoder.network import PatchAutoencoderConfig
from spheregen.networks.backbones.feature_net import WIDTHS
from spheregen.networks.encoders import EncoderConfig
from spheregen.prior import PriorName

LARGE_ANGLE, BASE_ANGLE = 84.0, 85.5
"""Degrees: the published angles of sampling, of large decoders and of base ones."""
LARGE_WIDTH = 1024
"""Decoders of this width and above count as large."""


def _dinov3(width: int, heads: int, inner: int, *, gated: bool) -> Mapping[str, Any]:
    return {
        "model_type": "dinov3_vit",
        "hidden_size": width,
        "num_hidden_layers": 12,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": "silu" if gated else "gelu",
        "use_gated_mlp": gated,
        "patch_size": 16,
        "image_size": 224,
        "num_register_tokens": 4,
    }


def _dinov2(width: int, heads: int) -> Mapping[str, Any]:
    return {
        "model_type": "dinov2_with_registers",
        "hidden_size": width,
        "num_hidden_layers": 12,
        "num_attention_heads": heads,
        "patch_size": 14,
        "image_size": 518,
        "num_register_tokens": 4,
    }


_SIGLIP2: Mapping[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "patch_size": 16,
    "image_size": 256,
}


def _seen(source: str, config: Mapping[str, Any], size: int, filter: Literal["bilinear", "bicubic"]) -> EncoderConfig:
    return EncoderConfig(kind="transformers", source=source, config=config, input_size=size, filter=filter, clamp=True)


ENCODERS: Mapping[str, EncoderConfig] = {
    "dinov3-vits16plus": _seen(
        "facebook/dinov3-vits16plus-pretrain-lvd1689m", _dinov3(384, 6, 1536, gated=True), 256, "bilinear"
    ),
    "dinov3-vits16": _seen(
        "facebook/dinov3-vits16-pretrain-lvd1689m", _dinov3(384, 6, 1536, gated=False), 256, "bilinear"
    ),
    "dinov3-vitb16": _seen(
        "facebook/dinov3-vitb16-pretrain-lvd1689m", _dinov3(768, 12, 3072, gated=False), 256, "bilinear"
    ),
    "dinov2-small": _seen("facebook/dinov2-with-registers-small", _dinov2(384, 6), 224, "bicubic"),
    "dinov2-base": _seen("facebook/dinov2-with-registers-base", _dinov2(768, 12), 224, "bicubic"),
    "siglip2-base": _seen("google/siglip2-base-patch16-256", _SIGLIP2, 256, "bilinear"),
}
"""Frozen encoders that have a name, with their architectures: no file is read to know the shapes of their tokens."""


@dataclass(frozen=True, kw_only=True)
class SphereEncoder2Config(PatchAutoencoderConfig):
    """Every choice of the architecture. Derived sizes are properties and are never stored.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    default_compression = 3.0

    pretrained: str | EncoderConfig | None = None
    """The frozen encoder: a name in `ENCODERS` or its description; None: the model has one of its own, which learns."""
    trained_blocks: int = 0
    """The last blocks of the frozen encoder that learn all the same; 0 as published."""
    trained_norms: bool = False
    """Its norms and layer scales learn all the same."""
    has_encoder: bool = True
    """False: the frozen encoder is left out of the model, which makes images in one step alone."""
    patch_size: int | None = None
    """Patch P in pixels; None takes the published one of the image size, or the frozen encoder's grid."""
    compression: float | None = None
    """Ratio c = C*S^2 / L of image numbers to latent numbers, with an encoder of its own; 3 where this and
    `latent_channels` are None."""
    latent_channels: int | None = None
    """Channels d of a latent token, instead of `compression`. With a frozen encoder a linear that learns brings its
    tokens to so many; None leaves them as they are, as published."""
    pixel_head: Literal["linear", "smooth", "conv"] = "linear"
    """One linear, as published; the same and a 3x3 convolution; or convolutions behind a linear."""
    output_activation: Literal["none", "tanh"] = "none"
    """"tanh" scales pixels by tanh(x) / tanh(1.5) in training alone, as published."""
    sphere: Literal["global", "token"] = "global"
    """One sphere for all numbers of a latent, as published, or one for each token."""
    angle_condition: Literal["none", "adaln", "token", "both"] = "both"
    """The way by which the decoder is told the angle: with the class, added to every token, or both."""
    qk_norm: bool = True
    """An RMSNorm on the queries and keys of each head."""
    max_angle: float = 90.0
    """The largest angle of training in degrees, and the unit of what the decoder is told; 90 is pure noise."""
    sampling_angle: float | None = None
    """Degrees that the decoder is told of a random point, and by which steps turn; None: as published, 84 for decoders
    of width 1024 and more, 85.5 for smaller ones."""
    angle_rounding: Literal["none", "bf16"] = "none"
    """"bf16" rounds the rates of the angle's waves and the rotary tables to 8 bits, as the published evaluation, which
    casts the whole model; training had them in full."""

    def __post_init__(self) -> None:
        check_choices(self)
        self._check_encoder()
        self.check_shapes("trained_blocks")
        if self.sampling_angle is not None and not 0 < self.sampling_angle <= 90:
            raise ConfigError(f"sampling_angle lies between 0 and 90 degrees, not {self.sampling_angle:g}")

    def _check_encoder(self) -> None:
        """Refuse what does not fit the encoder."""
        if self.pretrained is None:
            self.check_patch()
            if self.trained_blocks or self.trained_norms:
                raise ConfigError("trained_blocks and trained_norms are of a frozen encoder; name `pretrained`")
            if not self.has_encoder:
                raise ConfigError("has_encoder=false leaves out a frozen encoder, and there is none; name `pretrained`")
            return
        grid = self.grid
        if self.image_size % grid or (self.patch_size is not None and self.image_size != grid * self.patch_size):
            raise ConfigError(
                f"the encoder's {grid}x{grid} tokens do not divide an image of {self.image_size} px into patches"
                f"{f' of {self.patch_size} px' if self.patch_size else ''}; set its input_size, or another size"
            )
        if self.compression is not None:
            raise ConfigError("compression is of an encoder of its own; a frozen one takes latent_channels, or none")

    @property
    def trained(self) -> tuple[str, ...]:
        return self.transformer_fields if self.pretrained is None else ("decoder",)

    @property
    def pretrained_encoder(self) -> EncoderConfig | None:
        """The description of the frozen encoder; None where the model has its own.

        Raises:
            ConfigError: a name that is not known.
        """
        if not isinstance(self.pretrained, str):
            return self.pretrained
        if self.pretrained not in ENCODERS:
            hint = did_you_mean(self.pretrained, ENCODERS)
            raise ConfigError(f"unknown encoder {self.pretrained!r}{hint}; known: {', '.join(ENCODERS)}")
        return ENCODERS[self.pretrained]

    @property
    def patch(self) -> int:
        """Patch size P in pixels."""
        if self.pretrained is not None and self.patch_size is None:
            return self.image_size // self.grid
        return super().patch

    @property
    def grid(self) -> int:
        """Tokens along one side, S / P."""
        seen = self.pretrained_encoder
        return super().grid if seen is None else encoder_tokens(seen, self.image_size)[0]

    @property
    def channels(self) -> int:
        """Channels d of a latent token."""
        seen = self.pretrained_encoder
        if seen is None or self.latent_channels is not None:
            return super().channels
        return encoder_tokens(seen, self.image_size)[1]

    @property
    def prior(self) -> PriorName:
        """The sphere, and rotation as the law of the noise."""
        return "rotation" if self.sphere == "global" else "token-rotation"

    @property
    def modulated(self) -> bool:
        """The decoder's blocks take a condition."""
        return self.label_width > 0 or self.angle_condition in ("adaln", "both")

    @property
    def told_angle(self) -> float:
        """Degrees: what the decoder is told of a random point."""
        published = LARGE_ANGLE if self.decoder_size.width >= LARGE_WIDTH else BASE_ANGLE
        return min(self.max_angle, published if self.sampling_angle is None else self.sampling_angle)


def encoder_tokens(config: EncoderConfig, image_size: int) -> tuple[int, int]:
    """Return the tokens along one side of a frozen encoder, and their channels, without building it.

    Raises:
        ConfigError: its architecture is not given, or images of this size are none that it takes.
    """
    if config.kind == "feature_net":
        assert config.stage is not None
        patch, channels = 2 ** (config.stage - 1), WIDTHS[config.stage - 1]
    else:
        if config.config is None:
            raise ConfigError(
                f"the architecture of the encoder {config.source} is not given; add it as `config`, or take one of "
                f"{', '.join(ENCODERS)}"
            )
        about = config.config.get("vision_config", config.config)
        patch, channels = int(about.get("patch_size", 16)), int(about.get("hidden_size", 0))
    size = config.input_size or image_size
    if not channels or size % patch:
        raise ConfigError(
            f"the encoder takes images of a multiple of {patch} px, not {size}; set its input_size to one, and they "
            "are resized"
        )
    return size // patch, channels
