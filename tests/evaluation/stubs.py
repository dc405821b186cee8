"""Small stand-ins for feature networks and image sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.measure.features import FeatureBatch, FeatureInfo


class TinyFeatures:
    """A fixed random projection of the pixels, with three classes; counts the images that it saw."""

    def __init__(self, pixels: int, dim: int = 6, *, name: str = "tiny", poison: int | None = None) -> None:
        self.matrix = torch.randn(pixels, dim, generator=torch.Generator().manual_seed(1))
        self.poison = poison
        self.seen = 0
        self.info = FeatureInfo(
            name=name,
            title="a random projection",
            distance=f"FD-{name}",
            dim=dim,
            preprocessing="values over 255",
            weights="0123456789abcdef",
            classes=3,
        )

    def __call__(self, images: Tensor) -> FeatureBatch:
        self.seen += len(images)
        features = images.flatten(1).float() / 255 @ self.matrix
        if self.poison is not None and self.seen > self.poison:
            features[-1, 0] = torch.nan
        return FeatureBatch(features=features, logits=features[:, :3])

    def to(self, device: torch.device) -> Self:
        return self


class RandomImages:
    """N random grey images; counts what is read, and can break down at a chunk."""

    def __init__(self, count: int, *, size: int = 8, seed: int = 0, breaks_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 256, (count, 1, size, size), generator=generator).byte()
        self.shape = (1, size, size)
        self.seed, self.breaks_at = seed, breaks_at
        self.labels = torch.arange(count) % 3
        self.read = 0

    def __len__(self) -> int:
        return len(self.images)

    def describe(self) -> dict[str, Any]:
        return {"seed": self.seed, "count": len(self), "size": self.shape[1]}

    def stream(self, parts: Sequence[slice]) -> Iterator[Tensor]:
        for number, part in enumerate(parts):
            if number == self.breaks_at:
                raise KeyboardInterrupt
            self.read += part.stop - part.start
            yield self.images[part]


def pooled() -> Callable[[Tensor], Tensor]:
    """A network of the user's own that takes no time: 4 x 4 means of the first channel."""
    return lambda images: functional.adaptive_avg_pool2d(images[:, :1].float(), 4).flatten(1)


POOLED = f"{__name__}:pooled"
