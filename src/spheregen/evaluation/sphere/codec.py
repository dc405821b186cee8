"""A generator's two networks in batches, and the random draws of the studies: one seed for each row.

Legend: n rows, latents (n, *latent_shape), images (n, C, S, S).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spheregen.batching import images_at_once, in_batches
from spheregen.errors import ConfigError
from spheregen.losses.reconstruction import to_unit
from spheregen.models.protocol import SphereGenerator


class Codec:
    """E and D of a generator on its device, batch by batch; what goes in and comes out lies on the CPU.

    Args:
        model: any generator of the family; it is on `device` already.
        batch_size: rows in one pass; by default what fits into memory.
    """

    def __init__(self, model: SphereGenerator, device: torch.device, batch_size: int | None = None) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, not {batch_size}")
        self.model, self.device, self.batch_size = model, device, batch_size
        self._type = torch.float64 if model.dtype == torch.float64 else torch.float32

    def encode(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """8-bit images to points on the sphere."""

        def call(part: Tensor, of: Tensor | None) -> Tensor:
            return self.model.encode(part.to(self._type) / 127.5 - 1, of)

        return self._mapped(images, labels, call)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Points on the sphere to images in [0, 1]."""

        def call(part: Tensor, of: Tensor | None) -> Tensor:
            return to_unit(self.model.decode(part.to(self._type), of)).clamp(0, 1)

        return self._mapped(latents, labels, call)

    def around(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Points on the sphere to images and back to the sphere, E(D(v)), under the same labels."""

        def call(part: Tensor, of: Tensor | None) -> Tensor:
            return self.model.encode(self.model.decode(part.to(self._type), of), of)

        return self._mapped(latents, labels, call)

    def some_labels(self, count: int) -> Tensor | None:
        """Labels for random points as generation spreads them: class i modulo K; None for an unconditional model."""
        return torch.arange(count) % self.model.num_classes if self.model.num_classes else None

    @torch.no_grad()
    def _mapped(self, rows: Tensor, labels: Tensor | None, call: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        def run(part: slice) -> Tensor:
            of = None if labels is None else labels[part].to(self.device)
            return call(rows[part].to(self.device), of).to("cpu", self._type)

        size = self.batch_size or images_at_once(self.model, self.device)
        return torch.cat([result for _, result in in_batches(len(rows), size, run)])


@dataclass(frozen=True)
class Starts:
    """Points that a study starts from, with the labels of their decoding."""

    name: str
    """`random` or `data`."""
    latents: Tensor
    """(n, *latent_shape) on the sphere."""
    labels: Tensor | None

    def first(self, count: int) -> Starts:
        """The first of them."""
        return Starts(self.name, self.latents[:count], None if self.labels is None else self.labels[:count])


def gaussian(count: int, shape: tuple[int, ...], seed: int, stream: int) -> Tensor:
    """Standard Gaussian rows (count, *shape) float32; row i depends on (seed, stream, i) alone."""
    rows = []
    for index in range(count):
        state = np.random.SeedSequence((seed, stream, index)).generate_state(1, np.uint64)[0]
        rows.append(torch.randn(shape, generator=torch.Generator().manual_seed(int(state) >> 1)))
    return torch.stack(rows)


def random_order(count: int, seed: int, stream: int) -> Tensor:
    """A permutation of range(count) that depends on (seed, stream) alone."""
    state = np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0]
    return torch.randperm(count, generator=torch.Generator().manual_seed(int(state) >> 1))


@contextlib.contextmanager
def at_rest(model: SphereGenerator) -> Iterator[None]:
    """The model in evaluation mode, for as long as it is studied."""
    was_training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        if was_training and isinstance(model, nn.Module):
            model.train()
