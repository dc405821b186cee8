"""The order of training samples, computed and not stored: where a run stands is its step alone.

Epoch e is a permutation of all samples that depends on (seed, e) only. Steps cut the endless sequence of epochs into
batches; a batch may straddle epochs. Both the permutation and the flips come from splitmix64 (Steele, Lea and Flood
2014), so they are the same on every machine and with every version of numpy and torch.

Two kinds of permutation: `SampleOrder` takes samples from anywhere; `BlockOrder` is for data that are fast to read in
runs only. It permutes the runs (blocks), and then the samples of each window of several consecutive permuted blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from spheregen.errors import ConfigError

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

WINDOW_BYTES = 64 << 20  # encoded bytes of a window, give or take a block

_ORDER, _FLIP, _BLOCKS, _WINDOWS, _CAPTION = 1, 2, 3, 4, 5  # independent streams of one seed
_KEPT = 4  # windows, and plans of epochs, that are remembered: those that a batch and what is read ahead of it meet


@dataclass(frozen=True, kw_only=True)
class OrderedBatch:
    """Which samples make a batch."""

    indices: Integers  # (B,) sample numbers
    epochs: Integers  # (B,) the epoch in which each is drawn


@dataclass(frozen=True, kw_only=True)
class Window:
    """Samples that follow each other in an epoch: all of it, or those of some blocks."""

    epoch: int
    start: int  # place of the first sample in the endless sequence of epochs
    samples: Integers  # (n,) sample numbers in their order
    blocks: Integers  # those that hold them; none where samples are taken from anywhere

    @property
    def end(self) -> int:
        """Place behind the last sample."""
        return self.start + len(self.samples)


def _mix(values: Hashes) -> Hashes:
    """Mix by splitmix64, a bijection of 64-bit integers that makes neighbours unrelated."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hash(seed: int, stream: int, epochs: Integers | int, indices: Integers) -> Hashes:
    """Return one 64-bit number for each (epoch, index); shapes broadcast."""
    start = _mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)) ^ np.array([stream], dtype=np.uint64)
    return _mix(_mix(_mix(start) ^ np.atleast_1d(epochs).astype(np.uint64)) ^ indices.astype(np.uint64))


def _shuffled(seed: int, stream: int, epoch: int, values: Integers) -> Integers:
    """Return the values in an order of their own; their keys are distinct, since `_mix` is a bijection."""
    return values[np.argsort(_hash(seed, stream, epoch, values), kind="stable")]


def permutation(seed: int, epoch: int, count: int) -> Integers:
    """Return the order of `count` samples in one epoch: (count,) int64, each of 0 .. count-1 once."""
    return _shuffled(seed, _ORDER, epoch, np.arange(count, dtype=np.int64))


def flip_draws(seed: int, batch: OrderedBatch) -> npt.NDArray[np.bool_]:
    """Draw (B,) True with probability 0.5, a function of (seed, epoch, index) and so of no batch."""
    return (_hash(seed, _FLIP, batch.epochs, batch.indices) >> np.uint64(63)).astype(np.bool_)


def caption_draws(seed: int, batch: OrderedBatch, counts: Integers) -> Integers:
    """Draw one of the captions 0 .. counts-1 of each sample, (B,): a function of (seed, epoch, index) alone."""
    return (_hash(seed, _CAPTION, batch.epochs, batch.indices) % counts.astype(np.uint64)).astype(np.int64)


class SampleOrder:
    """Batches of an endless, reshuffled sequence, by step.

    Args:
        indices: the samples to draw, distinct numbers; an epoch is all of them.
        batch_size: B, over all ranks together; it may exceed the number of samples.
        rank, world_size: this process gets its share, B / world_size consecutive samples of each batch.

    Raises:
        ConfigError: there are no samples, or B is not a positive multiple of world_size.
    """

    def __init__(
        self, indices: Sequence[int] | Integers, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.indices = np.asarray(indices, dtype=np.int64)
        if len(self.indices) == 0:
            raise ConfigError("there are no samples to put in order; give at least one")
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"batch_size is {batch_size}; give a positive multiple of the {world_size} processes")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank}; with {world_size} processes it is from 0 to {world_size - 1}")
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self._window = lru_cache(maxsize=_KEPT)(self._make_window)

    def batch(self, step: int) -> OrderedBatch:
        """Return this rank's samples of batch `step` (>= 0)."""
        parts = self.parts(step)
        return OrderedBatch(
            indices=np.concatenate([window.samples[part] for window, part in parts]),
            epochs=np.concatenate([np.full(part.stop - part.start, window.epoch) for window, part in parts]),
        )

    def parts(self, step: int) -> list[tuple[Window, slice]]:
        """Return the windows that batch `step` meets, each with the part of its samples that this rank takes."""
        if step < 0:
            raise IndexError(step)
        share = self.batch_size // self.world_size
        place = step * self.batch_size + self.rank * share
        end, parts = place + share, []
        while place < end:
            window = self.window_at(place)
            stop = min(end, window.end)
            parts.append((window, slice(place - window.start, stop - window.start)))
            place = stop
        return parts

    def window_at(self, place: int) -> Window:
        """Return the window that holds a place of the endless sequence of epochs; it is found without those before."""
        epoch, offset = divmod(place, len(self.indices))
        return self._window(epoch, self._window_number(epoch, offset))

    def _window_number(self, epoch: int, offset: int) -> int:
        return 0

    def _make_window(self, epoch: int, number: int) -> Window:
        count = len(self.indices)
        samples = self.indices[permutation(self.seed, epoch, count)]
        return Window(epoch=epoch, start=epoch * count, samples=samples, blocks=np.empty(0, dtype=np.int64))


class BlockOrder(SampleOrder):
    """Batches of an endless sequence in which each epoch permutes blocks, and the samples of each window of blocks.

    A window is a run of permuted blocks of about `window_bytes` together (at least one block). All of it depends on
    (seed, epoch) and the data only.

    Args:
        indices: the samples to draw, ascending; those of a block that are not among them are left out.
        starts: (K,) first sample of each block, ascending; a block ends where the next one starts.
        sizes: (K,) encoded bytes of each block.
        window_bytes: encoded bytes of a window.
        batch_size, seed, rank, world_size: as for `SampleOrder`.

    Raises:
        ConfigError: as `SampleOrder`.
    """

    def __init__(
        self,
        indices: Sequence[int] | Integers,
        starts: Integers,
        sizes: Integers,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        window_bytes: int | None = None,
    ) -> None:
        super().__init__(indices, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self.starts, self.sizes = starts, sizes
        self.window_bytes = window_bytes or WINDOW_BYTES
        bounds = np.searchsorted(self.indices, np.append(starts, np.iinfo(np.int64).max))
        self._lows, self._highs = bounds[:-1].astype(np.int64), bounds[1:].astype(np.int64)
        self._plan = lru_cache(maxsize=_KEPT)(self._make_plan)

    def _window_number(self, epoch: int, offset: int) -> int:
        return int(np.searchsorted(self._plan(epoch)[2], offset, side="right")) - 1

    def _make_window(self, epoch: int, number: int) -> Window:
        permuted, firsts, starts = self._plan(epoch)
        blocks = permuted[firsts[number] : firsts[number + 1]]
        samples = np.concatenate([self.indices[self._lows[block] : self._highs[block]] for block in blocks.tolist()])
        start = epoch * len(self.indices) + int(starts[number])
        return Window(epoch=epoch, start=start, samples=_shuffled(self.seed, _WINDOWS, epoch, samples), blocks=blocks)

    def _make_plan(self, epoch: int) -> tuple[Integers, Integers, Integers]:
        """Return the permuted blocks of an epoch, and the first block and place of each window, and the end."""
        drawn = np.flatnonzero(self._highs > self._lows).astype(np.int64)  # blocks with a sample to draw
        blocks = _shuffled(self.seed, _BLOCKS, epoch, drawn)
        numbers = (np.cumsum(self.sizes[blocks]) - self.sizes[blocks]) // self.window_bytes
        firsts = np.append(np.flatnonzero(np.diff(numbers, prepend=-1)), len(blocks)).astype(np.int64)
        samples = np.concatenate([[0], np.cumsum(self._highs[blocks] - self._lows[blocks])])
        return blocks, firsts, samples[firsts].astype(np.int64)
