"""The order of training samples, computed and not stored: where a run stands is its step alone.

Epoch e is a permutation of all samples that depends on (seed, e) only. Steps cut the endless sequence of epochs into
batches; a batch may straddle epochs. Both the permutation and the flips come from splitmix64 (Steele, Lea and Flood
2014), so they are the same on every machine and with every version of numpy and torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spheregen.errors import ConfigError

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_ORDER, _FLIP = 1, 2  # independent streams of one seed


@dataclass(frozen=True, kw_only=True)
class OrderedBatch:
    """Which samples make a batch."""

    indices: Integers  # (B,) sample numbers
    epochs: Integers  # (B,) the epoch in which each is drawn


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
        if step < 0:
            raise IndexError(step)
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        epochs, places = np.divmod(np.arange(first, first + share, dtype=np.int64), len(self.indices))
        chosen = np.empty(share, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            chosen[here] = self._epoch(epoch)[places[here]]
        return OrderedBatch(indices=chosen, epochs=epochs)

    def _epoch(self, epoch: int) -> Integers:
        if epoch not in self._epochs:
            if len(self._epochs) >= 2:  # a batch rarely meets more
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = self.indices[permutation(self.seed, epoch, len(self.indices))]
        return self._epochs[epoch]
