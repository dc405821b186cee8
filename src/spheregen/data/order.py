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

import numpy as np
import numpy.typing as npt

from spheregen.errors import ConfigError

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

WINDOW_BYTES = 64 << 20  # encoded bytes of a window, give or take a block

_ORDER, _FLIP, _BLOCKS, _WINDOWS = 1, 2, 3, 4  # independent streams of one seed


@dataclass(frozen=True, kw_only=True)
class OrderedBatch:
    """Which samples make a batch."""

    indices: Integers  # (B,) sample numbers
    epochs: Integers  # (B,) the epoch in which each is drawn
    windows: Integers | None = None  # (B,) number in the epoch of the window that each is in; None = no windows


def _mix(values: Hashes) -> Hashes:
    """splitmix64: a bijection of 64-bit integers that makes neighbours unrelated."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hash(seed: int, stream: int, epochs: Integers, indices: Integers) -> Hashes:
    """One 64-bit number for each (epoch, index); shapes broadcast."""
    start = _mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)) ^ np.array([stream], dtype=np.uint64)
    return _mix(_mix(_mix(start) ^ epochs.astype(np.uint64)) ^ indices.astype(np.uint64))


def permutation(seed: int, epoch: int, count: int) -> Integers:
    """The order of `count` samples in one epoch: (count,) int64, each of 0 .. count-1 once."""
    keys = _hash(seed, _ORDER, np.array([epoch], dtype=np.int64), np.arange(count, dtype=np.int64))
    return np.argsort(keys, kind="stable").astype(np.int64)  # the keys are distinct: _mix is a bijection


def flip_draws(seed: int, batch: OrderedBatch) -> npt.NDArray[np.bool_]:
    """(B,) True with probability 0.5, a function of (seed, epoch, index) and so of no batch."""
    return (_hash(seed, _FLIP, batch.epochs, batch.indices) >> np.uint64(63)).astype(np.bool_)


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
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._epochs: dict[int, Integers] = {}

    def batch(self, step: int) -> OrderedBatch:
        """This rank's samples of batch `step` (>= 0)."""
        epochs, places = self._places(step)
        chosen = np.empty(len(places), dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            chosen[here] = self._epoch(epoch)[places[here]]
        return OrderedBatch(indices=chosen, epochs=epochs)

    def _places(self, step: int) -> tuple[Integers, Integers]:
        """Epoch of each sample of this rank's share of a batch, and its place in that epoch."""
        if step < 0:
            raise IndexError(step)
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        epochs, places = np.divmod(np.arange(first, first + share, dtype=np.int64), len(self.indices))
        return epochs, places

    def _epoch(self, epoch: int) -> Integers:
        if epoch not in self._epochs:
            if len(self._epochs) >= 2:  # a batch rarely meets more
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = self.indices[permutation(self.seed, epoch, len(self.indices))]
        return self._epochs[epoch]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The windows of one epoch."""

    blocks: Integers  # (K,) the permuted blocks
    firsts: Integers  # (W + 1,) place in `blocks` of each window's first block, and the end
    starts: Integers  # (W + 1,) place in the epoch of each window's first sample, and the end


class BlockOrder(SampleOrder):
    """Batches of an endless sequence in which each epoch permutes blocks, and the samples of each window of blocks.

    A window is a run of permuted blocks of about `window_bytes` together (at least one block). All of it depends on
    (seed, epoch) and the data only; a window is computed without those before it.

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
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        super().__init__(indices, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self.starts = starts
        self.sizes = sizes
        self.window_bytes = window_bytes
        bounds = np.searchsorted(self.indices, np.append(starts, np.iinfo(np.int64).max))
        self._lows, self._highs = bounds[:-1].astype(np.int64), bounds[1:].astype(np.int64)
        self._blocks = np.flatnonzero(self._highs > self._lows).astype(np.int64)  # those with a sample to draw
        self._plans: dict[int, _Plan] = {}
        self._windows: dict[tuple[int, int], Integers] = {}

    def batch(self, step: int) -> OrderedBatch:
        epochs, places = self._places(step)
        chosen = np.empty(len(places), dtype=np.int64)
        windows = np.empty(len(places), dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = np.flatnonzero(epochs == epoch)
            starts = self._plan(epoch).starts
            windows[here] = np.searchsorted(starts, places[here], side="right") - 1
            for window in range(int(windows[here[0]]), int(windows[here[-1]]) + 1):
                inside = here[windows[here] == window]
                chosen[inside] = self._window(epoch, window)[places[inside] - starts[window]]
        return OrderedBatch(indices=chosen, epochs=epochs, windows=windows)

    def window_blocks(self, epoch: int, window: int) -> Integers:
        """The blocks of a window."""
        plan = self._plan(epoch)
        return plan.blocks[plan.firsts[window] : plan.firsts[window + 1]]

    def next_window(self, epoch: int, window: int) -> tuple[int, int]:
        """Epoch and number of the window behind this one."""
        return (epoch, window + 1) if window + 2 < len(self._plan(epoch).firsts) else (epoch + 1, 0)

    def window_start(self, epoch: int, window: int) -> int:
        """Place of a window's first sample in the endless sequence of epochs."""
        return epoch * len(self.indices) + int(self._plan(epoch).starts[window])

    def _plan(self, epoch: int) -> _Plan:
        if epoch not in self._plans:
            if len(self._plans) >= 3:  # epochs that a batch, and what is read ahead of it, meet
                self._plans.pop(next(iter(self._plans)))
            keys = _hash(self.seed, _BLOCKS, np.array([epoch], dtype=np.int64), self._blocks)
            blocks = self._blocks[np.argsort(keys, kind="stable")]
            ends = np.cumsum(self.sizes[blocks])
            numbers = (ends - self.sizes[blocks]) // self.window_bytes
            firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
            samples = np.concatenate([[0], np.cumsum(self._highs[blocks] - self._lows[blocks])])
            firsts = np.append(firsts, len(blocks)).astype(np.int64)
            self._plans[epoch] = _Plan(blocks=blocks, firsts=firsts, starts=samples[firsts].astype(np.int64))
        return self._plans[epoch]

    def _window(self, epoch: int, window: int) -> Integers:
        """The samples of a window in their order."""
        key = (epoch, window)
        if key not in self._windows:
            if len(self._windows) >= 4:
                self._windows.pop(next(iter(self._windows)))
            blocks = self.window_blocks(epoch, window).tolist()
            samples = np.concatenate([self.indices[self._lows[block] : self._highs[block]] for block in blocks])
            keys = _hash(self.seed, _WINDOWS, np.array([epoch], dtype=np.int64), samples)
            self._windows[key] = samples[np.argsort(keys, kind="stable")]
        return self._windows[key]
