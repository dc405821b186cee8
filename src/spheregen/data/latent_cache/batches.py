"""Training batches of latents, by step: the same for any start, cached or mapped, and for any number of processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spheregen.data.batches import Batch, free_memory, to_device
from spheregen.data.latent_cache.read import LatentCache
from spheregen.data.order import SampleOrder, flip_draws
from spheregen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Which latents make a batch."""

    step: int  # the global step
    numbers: Tensor  # (B,) int64, of images in the cache
    views: Tensor  # (B,) int64, of each
    indices: Tensor  # (B,) int64, numbers in the source


class LatentBatches:
    """The batches of steps `start_step` .. `steps`-1; iterate, or ask for any one with `batch(step)`.

    The order is that of `TrainingBatches` over the same images, fully shuffled, and so are the flips, which take the
    second view. A cache of up to `cache_bytes` is read into memory here; rows of a larger one are read from disk, a few
    batches ahead.

    Args:
        cache: the latents.
        batch_size: over all ranks together; it may exceed the number of images.
        steps: length of the whole run, not of what is left of it.
        seed: of the order and the flips.
        flips: take the latent of the mirror image with probability 0.5, drawn anew in each epoch.
        cache_bytes: the most memory that latents may take in each process.
        start_step: where to continue.
        rank, world_size: this process's share of each batch.
        prefetch: batches that are read ahead.
        device: where latents and labels of the batches shall be; None = the CPU. On an accelerator, latents that are
            read into memory move there if they take at most a quarter of what is free.

    Raises:
        ConfigError: an argument is impossible, or flips is on and the cache has one view of each image.
    """

    def __init__(
        self,
        cache: LatentCache,
        *,
        batch_size: int,
        steps: int,
        seed: int = 0,
        flips: bool = False,
        cache_bytes: int = 2 << 30,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        device: torch.device | None = None,
    ) -> None:
        if flips and cache.views < 2:
            raise ConfigError(
                f"flips is on, but the latent cache {cache.path} holds no latents of mirror images; encode again with "
                "--flips, or set data.flips=false"
            )
        if not 0 <= start_step <= steps:
            raise ConfigError(f"start_step is {start_step}; with {steps} steps it is from 0 to {steps}")
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; give a number of batches from 1 up")
        self.cache = cache
        self.steps = steps
        self.start_step = start_step
        self.seed = seed
        self.flips = flips
        self.prefetch = prefetch
        self.device = device if device is not None else torch.device("cpu")
        self.count = cache.count  # images in an epoch
        self.fingerprint = cache.fingerprint  # of images, tokenizer and settings
        self.skipped = cache.skipped  # one line for each image left out
        self._indices = cache.indices.numpy()
        self.order = SampleOrder(self._indices, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self.cached = cache.nbytes <= cache_bytes
        self._latents: Tensor | None = None  # (count * views, N, d) as they are stored
        if self.cached:
            self._latents = cache.load().flatten(0, 1)
            if self._latents.nbytes <= free_memory(self.device) // 4:
                self._latents = self._latents.to(self.device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty = unlabelled."""
        return self.cache.class_names

    def __len__(self) -> int:
        """Steps left."""
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start_step, self.steps)
        if self._latents is not None:
            yield from map(self.batch, steps)
            return
        ahead: deque[tuple[_Choice, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="spheregen-latents") as executor:
            try:
                for step in steps:
                    choice = self._choose(step)
                    ahead.append((choice, executor.submit(self.cache.stored_rows, choice.numbers, choice.views)))
                    if len(ahead) > self.prefetch:
                        choice, future = ahead.popleft()
                        yield self._finish(choice, future.result())
                while ahead:
                    choice, future = ahead.popleft()
                    yield self._finish(choice, future.result())
            finally:
                for _, future in ahead:
                    future.cancel()

    def batch(self, step: int) -> Batch:
        """The batch of any step >= 0, computed by itself in this process.

        `Batch.inputs` are the latents, (B, N, d) in float32.
        """
        choice = self._choose(step)
        if self._latents is None:
            return self._finish(choice, self.cache.stored_rows(choice.numbers, choice.views))
        rows = to_device(choice.numbers * self.cache.views + choice.views, self._latents.device)
        return self._finish(choice, self._latents[rows])

    def _choose(self, step: int) -> _Choice:
        order = self.order.batch(step)
        views = flip_draws(self.seed, order) if self.flips else np.zeros(len(order.indices))
        return _Choice(
            step=step,
            numbers=torch.from_numpy(np.searchsorted(self._indices, order.indices)),
            views=torch.from_numpy(views.astype(np.int64)),
            indices=torch.from_numpy(order.indices),
        )

    def _finish(self, choice: _Choice, latents: Tensor) -> Batch:
        labels = None if self.cache.labels is None else to_device(self.cache.labels[choice.numbers], self.device)
        return Batch(
            inputs=to_device(latents, self.device).float(), labels=labels, indices=choice.indices, step=choice.step
        )
