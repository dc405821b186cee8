"""The named transformer sizes, and what every architecture demands of the sizes of its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

from spheregen.conditioning import ConditionConfig
from spheregen.errors import ConfigError, Settings, did_you_mean
from spheregen.prior import PRIORS


@dataclass(frozen=True, kw_only=True)
class TransformerSize(Settings):
    """The shape of a vision transformer.

    Raises:
        ConfigError: heads do not divide the width, or leave head channels that 2-D rotary positions cannot use.
    """

    width: int
    """Channels W of a token."""
    depth: int
    """Transformer blocks."""
    heads: int
    """Attention heads; W / heads must be a multiple of 4."""
    in_context_start: int = 0
    """The block, counted from 0, before which in-context tokens join (only read where a model has such tokens)."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"a transformer's {name} is at least 1, not {getattr(self, name)}")
        if self.width % (4 * self.heads):
            raise ConfigError(
                f"{self.heads} heads do not divide a width of {self.width} into a multiple of 4 channels each, as 2-D "
                "rotary positions need it; change heads or width"
            )
        if self.in_context_start < 0:
            raise ConfigError(f"in_context_start counts blocks from 0 and is not negative: {self.in_context_start}")


SIZES: Mapping[str, TransformerSize] = MappingProxyType(
    {
        # ours, for laptops
        "nano": TransformerSize(width=64, depth=3, heads=4, in_context_start=1),
        "tiny": TransformerSize(width=192, depth=6, heads=6, in_context_start=2),
        # as published
        "small": TransformerSize(width=512, depth=8, heads=8, in_context_start=2),
        "base": TransformerSize(width=768, depth=12, heads=12, in_context_start=4),
        "large": TransformerSize(width=1024, depth=24, heads=16, in_context_start=8),
        "xlarge": TransformerSize(width=1152, depth=28, heads=16, in_context_start=8),
        "huge": TransformerSize(width=1280, depth=32, heads=16, in_context_start=10),
        "giant": TransformerSize(width=1664, depth=40, heads=16, in_context_start=12),
    }
)


def resolve_size(size: str | TransformerSize) -> TransformerSize:
    """Return a size by its name, or the size itself."""
    if isinstance(size, TransformerSize):
        return size
    if size not in SIZES:
        raise ConfigError(f"unknown transformer size {size!r}{did_you_mean(size, SIZES)}; known: {', '.join(SIZES)}")
    return SIZES[size]


class TransformerConfig(ConditionConfig):
    """A configuration, a frozen dataclass, of a model made of transformers."""

    transformer_fields: ClassVar[tuple[str, ...]] = ("size",)
    """The fields that hold their sizes."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Those of `transformer_fields` whose transformers there are."""
        return self.transformer_fields

    @property
    def transformers(self) -> tuple[TransformerSize, ...]:
        """The sizes of its transformers."""
        return tuple(resolve_size(getattr(self, name)) for name in self.trained)

    def with_transformers(self, sizes: Sequence[TransformerSize]) -> Self:
        """Return the same architecture with other sizes of `transformers`."""
        return dataclasses.replace(self, **dict(zip(self.trained, sizes, strict=True)))  # type: ignore[type-var]


def check_images(size: int, channels: int, patch: int | None = None) -> None:
    """Refuse images that no model here can have.

    Args:
        size: height and width in pixels.
        channels: of a pixel.
        patch: pixels along a side of a patch, if there are patches.

    Raises:
        ConfigError: an impossible size, number of channels or patch.
    """
    if size < 2:
        raise ConfigError(f"image_size is at least 2 pixels, not {size}")
    if channels not in (1, 3):
        raise ConfigError(f"image_channels is 3 (RGB) or 1 (grey), not {channels}")
    if patch is not None and (patch < 1 or size % patch):
        raise ConfigError(f"a patch of {patch} px does not divide an image of {size} px")


MOST_PIXELS = 1 << 14  # along a side


def check_architecture(config: Any, *counts: str) -> None:
    """Refuse values that no configuration of a model can have: its images, its numbers, its largest angle.

    Args:
        config: has `image_size` and `image_channels`; `patch`, `max_angle` and `prior` are looked at where it has them.
        counts: names of fields that must not be negative; None passes.

    Raises:
        ConfigError: one of them is impossible.
    """
    if config.image_size > MOST_PIXELS:
        raise ConfigError(f"image_size is at most {MOST_PIXELS} px, not {config.image_size}")
    check_images(config.image_size, config.image_channels, getattr(config, "patch", None))
    for name in counts:
        if (getattr(config, name) or 0) < 0:
            raise ConfigError(f"{name} is not negative: {getattr(config, name)}")
    if isinstance(config, ConditionConfig):
        config.check_condition()
    angle, turns = getattr(config, "max_angle", 85.0), PRIORS[getattr(config, "prior", "sphere")].turns
    if not 0 < angle < 90 and not (angle == 90 and turns):
        raise ConfigError(
            f"max_angle lies between 0 and 90 degrees, not {angle:g}; 80 to 85 works best, and 90 itself needs a prior "
            "that rotates"
        )
