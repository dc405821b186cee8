"""Small tokenizers and data for tests of the latent cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spheregen.data import ImageOptions, ImageSource
from spheregen.data.latent_cache import CacheIndex, write_latent_cache
from spheregen.errors import DataError

SIZE = 6
OPTIONS = ImageOptions(image_size=SIZE)


class Pixels(nn.Module):
    """Every pixel is a token, so that a latent tells exactly which image it is of."""

    image_shape = (3, SIZE, SIZE)
    latent_shape = (SIZE * SIZE, 3)
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def encode(self, images: Tensor) -> Tensor:
        self.calls += 1
        return _tokens(images)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2).reshape(-1, 3, SIZE, SIZE)


class Convolution(Pixels):
    """Patches of 2 x 2 pixels by a fixed convolution: 9 tokens of 5 channels, an odd number of numbers."""

    latent_shape = (9, 5)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Conv2d(3, 5, 2, stride=2).requires_grad_(False).eval()

    def encode(self, images: Tensor) -> Tensor:
        self.calls += 1
        grid: Tensor = self.network(images)
        return _tokens(grid)


class Stopping(Convolution):
    """Fails after some batches, as if the process were interrupted."""

    def __init__(self, after: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.after = after
        self.error = error or DataError("stopped")

    def encode(self, images: Tensor) -> Tensor:
        if self.calls == self.after:
            raise self.error
        return super().encode(images)


def _tokens(grid: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return grid.flatten(2).transpose(1, 2)


def encode(tokenizer: Pixels, source: ImageSource, out: Path, **changes: Any) -> CacheIndex:
    """Write a cache of small shards."""
    settings: dict[str, Any] = {
        "tokenizer_name": "toy",
        "tokenizer_fingerprint": "conv" * 4 if isinstance(tokenizer, Convolution) else "pixels" * 4,
        "flips": True,
        "dtype": "float32",
        "shard_images": 7,
        "batch_size": 3,
    }
    options = changes.pop("options", OPTIONS)
    return write_latent_cache(tokenizer, source, options, out, **(settings | changes))


def files_of(folder: Path) -> Mapping[str, bytes]:
    """Everything in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
