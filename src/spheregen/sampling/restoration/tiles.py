"""Images larger than the model: the prior step on tiles that overlap, joined by smooth weights, so that no seam shows.

The data step is on the whole image. Legend: B samples, n tiles of an image, images (B, C, H, W) in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spheregen.conditioning import Condition
from spheregen.errors import ConfigError
from spheregen.prior import Angle
from spheregen.protocol import Context, SphereGenerator
from spheregen.sampling.loop import GuidedModel, streams_of

OVERLAP = 0.5
"""The least share of a tile that its neighbour shares."""
AT_ONCE = 64
"""Tiles that go through the network together."""


def tile_starts(length: int, size: int) -> list[int]:
    """Return the first pixels of tiles of `size` that cover `length` evenly, both ends included."""
    count = 1 if length == size else math.ceil((length - size) / (size * (1 - OVERLAP))) + 1
    return [round(number * (length - size) / max(1, count - 1)) for number in range(count)]


class TiledModel:
    """A generator on large images: its points are those of all tiles, image by image.

    Args:
        model: the generator.
        condition: of the B samples, or of any number.
        guide: makes the generator follow the condition of its tiles.
        size: (H, W) of the images.

    Raises:
        ConfigError: images smaller than the model's, or a guidance that follows several predictions.
    """

    def __init__(
        self,
        model: SphereGenerator,
        condition: Condition,
        guide: Callable[[SphereGenerator, Condition], GuidedModel],
        size: tuple[int, int],
    ) -> None:
        side = model.image_shape[-1]
        if min(size) < side:
            raise ConfigError(f"images of {size[1]} x {size[0]} pixels are smaller than the model's {side}")
        self.model, self.prior, self.size, self.side = model, model.prior, size, side
        self.places = [(row, column) for row in tile_starts(size[0], side) for column in tile_starts(size[1], side)]
        self._condition, self._guide = condition, guide
        if streams_of(guide(model, condition)) > 1:
            raise ConfigError("tiles cannot be guided by rotation; leave guidance out")
        place = torch.arange(side, dtype=torch.float32, device="cpu")
        line = torch.sin(math.pi * (place + 0.5) / side).square()
        self.window = line[:, None] * line

    def _parts(self, count: int) -> list[tuple[slice, GuidedModel]]:
        """Return the parts of `count` points that go through the network together, with what predicts them."""
        tiles = len(self.places)
        parts = [slice(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
        if self._condition.index is None:
            return [(part, self._guide(self.model, self._condition)) for part in parts]
        of = torch.arange(count, device=self._condition.index.device) // tiles
        return [(part, self._guide(self.model, self._condition[of[part]])) for part in parts]

    def to_latent(self, prediction: Tensor) -> Tensor:
        """Return images (B, C, H, W) as the latents (B n, N, d) of their tiles."""
        side = self.side
        tiles = torch.stack([prediction[..., r : r + side, c : c + side] for r, c in self.places], 1).flatten(0, 1)
        found = [guided.to_latent(self.model.from_image(tiles[part])) for part, guided in self._parts(len(tiles))]
        return torch.cat(found)

    def predict(self, v: Tensor, angle: Angle) -> tuple[Tensor, Context | None]:
        """Return points (B n, N, d) as images (B, C, H, W)."""
        made = [self.model.to_image(guided.predict(v[part], angle)[0]) for part, guided in self._parts(len(v))]
        tiles = torch.cat(made).unflatten(0, (-1, len(self.places)))
        window = self.window.to(tiles.device, tiles.dtype)
        total = tiles.new_zeros((len(tiles), tiles.shape[2], *self.size))
        weight = tiles.new_zeros(self.size)
        for number, (r, c) in enumerate(self.places):
            total[..., r : r + self.side, c : c + self.side] += window * tiles[:, number]
            weight[r : r + self.side, c : c + self.side] += window
        return total / weight, None
