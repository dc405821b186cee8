"""Training batches, by step: the same for any start, any number of workers, cached or read from disk each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from spheregen.data.dataset import (
    OnError,
    Progress,
    check_reading,
    load_all,
    part_fingerprint,
    usable_indices,
    validate,
)
from spheregen.data.decoding import DecodedChunk, decode, decode_chunks
from spheregen.data.images import ImageOptions, to_model_range
from spheregen.data.order import Integers, OrderedBatch, SampleOrder, flip_draws
from spheregen.data.sources import ImageSource
from spheregen.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one training step sees (one rank's share)."""

    images: torch.Tensor  # (B, C, S, S) float32 in [-1, 1]
    labels: torch.Tensor | None  # (B,) int64, or None
    indices: torch.Tensor  # (B,) int64, numbers in the source
    step: int  # the global step


class TrainingBatches:
    """The batches of steps `start_step` .. `steps`-1; iterate, or ask for any one with `batch(step)`.

    If the decoded pictures fit in `cache_bytes` they are decoded once, here; otherwise `workers` processes decode ahead
    while training runs. Either way every batch is the same, bit for bit. With on_error="skip" the bad pictures are
    found here and left out for good, so that the order is fixed before the first step.

    Args:
        batch_size: over all ranks together; it may exceed the number of pictures.
        steps: length of the whole run, not of what is left of it.
        seed: of the order and the flips.
        flips: mirror each picture left to right with probability 0.5, drawn anew in each epoch.
        on_error: pictures that cannot be read are fatal ("fail") or left out ("skip").
        workers: processes that decode; 0 = this one.
        cache_bytes: the most memory that decoded pictures may take.
        start_step: where to continue.
        rank, world_size: this process's share of each batch.
        progress: called while pictures are decoded or checked here.

    Raises:
        DataError: bad pictures, see `load_all`; when reading from disk with "fail" it comes with the batch.
        ConfigError: an argument is impossible, or the source's pictures must not be flipped.
    """

    def __init__(
        self,
        source: ImageSource,
        options: ImageOptions,
        *,
        batch_size: int,
        steps: int,
        seed: int = 0,
        flips: bool = False,
        on_error: OnError = "fail",
        workers: int = 0,
        cache_bytes: int = 2 << 30,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        progress: Progress | None = None,
    ) -> None:
        check_reading(on_error, workers)
        if flips and not source.flips_allowed:
            raise ConfigError(
                f"flips is on, but mirror images of {source.name} are no {source.name}; set data.flips=false"
            )
        if not 0 <= start_step <= steps:
            raise ConfigError(f"start_step is {start_step}; with {steps} steps it is from 0 to {steps}")
        self.source = source
        self.options = options
        self.steps = steps
        self.start_step = start_step
        self.flips = flips
        self.seed = seed
        self.workers = workers
        self.cached = len(source) * options.bytes_per_image <= cache_bytes
        self.skipped: tuple[str, ...] = ()  # one line for each picture left out
        self._cache: torch.Tensor | None = None  # (kept, C, S, S) uint8
        usable = usable_indices(source, [])
        if self.cached:
            loaded = load_all(source, options, on_error=on_error, workers=workers, progress=progress)
            self._cache, self.skipped = loaded.images, loaded.skipped
            usable = loaded.indices.numpy()
        elif on_error == "skip":
            bad = validate(source, options, workers=workers, progress=progress)
            self.skipped = tuple(image.reason for image in bad)
            usable = usable_indices(source, bad)
        self.order = SampleOrder(usable, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self.count = len(usable)  # pictures in an epoch
        self.fingerprint = part_fingerprint(source, usable)  # of the data, without what was skipped
        self._places = torch.full((len(source),), -1, dtype=torch.int64)  # number in the source -> row of the cache
        self._places[torch.from_numpy(usable)] = torch.arange(self.count)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty = unlabelled."""
        return self.source.class_names

    def __len__(self) -> int:
        """Steps left."""
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start_step, self.steps)
        if self._cache is not None:
            for step in steps:
                yield self.batch(step)
            return
        chunks = decode_chunks(self.source, self.options, _StepIndices(self.order, steps), self.workers)
        for step, chunk in zip(steps, chunks, strict=True):
            yield self._finish(step, self.order.batch(step), _sound(chunk))

    def batch(self, step: int) -> Batch:
        """The batch of any step >= 0, computed by itself in this process."""
        order = self.order.batch(step)
        if self._cache is not None:
            return self._finish(step, order, self._cache[self._places[torch.from_numpy(order.indices)]])
        return self._finish(step, order, _sound(decode(self.source, self.options, order.indices)))

    def _finish(self, step: int, order: OrderedBatch, images: torch.Tensor) -> Batch:
        indices = torch.from_numpy(order.indices)
        if self.flips:
            mirrored = torch.from_numpy(flip_draws(self.seed, order)).view(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(-1), images)
        labels = None if self.source.labels is None else self.source.labels[indices]
        return Batch(images=to_model_range(images), labels=labels, indices=indices, step=step)


class _StepIndices:
    """The picture numbers of each step, as chunks to decode."""

    def __init__(self, order: SampleOrder, steps: range) -> None:
        self._order = order
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, place: int, /) -> Integers:
        return self._order.batch(self._steps[place]).indices


def _sound(chunk: DecodedChunk) -> torch.Tensor:
    if chunk.bad:
        raise DataError(chunk.bad[0].reason)
    return torch.from_numpy(chunk.images)
