"""The order is exact: each epoch is a permutation, cut alike for every batch size, start and division over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spheregen.data import BlockOrder, SampleOrder, permutation
from spheregen.data.order import OrderedBatch, flip_draws
from spheregen.errors import ConfigError


def test_the_order_never_changes() -> None:
    """Runs are continued with later versions: these numbers are part of the format."""
    assert permutation(0, 0, 8).tolist() == [1, 6, 5, 4, 3, 7, 2, 0]
    assert permutation(123, 7, 8).tolist() == [4, 0, 5, 1, 3, 2, 6, 7]
    order = BlockOrder(range(10), np.array([0, 3, 5, 9]), np.full(4, 10), batch_size=10, seed=0, window_bytes=20)
    assert order.batch(0).indices.tolist() == [1, 2, 9, 0, 7, 8, 3, 6, 5, 4]
    batch = OrderedBatch(indices=np.arange(8), epochs=np.zeros(8, dtype=np.int64))
    assert flip_draws(0, batch).astype(int).tolist() == [1, 0, 0, 0, 1, 0, 0, 1]


def test_permutations_are_uniform_and_depend_on_seed_and_epoch() -> None:
    seen = {tuple(permutation(seed, epoch, 50).tolist()) for seed in (0, 1, -1, 2**63) for epoch in range(20)}
    assert len(seen) == 80
    counts = np.zeros((8, 8))
    for epoch in range(2000):
        counts[np.arange(8), permutation(5, epoch, 8)] += 1
    assert ((counts - 250) ** 2 / 250).sum() < 49 + 5 * np.sqrt(2 * 49)  # chi-squared, 49 degrees of freedom


def test_flips_are_fair_and_independent() -> None:
    epochs, indices = np.divmod(np.arange(20_000), 200)
    draws = flip_draws(0, OrderedBatch(indices=indices, epochs=epochs)).reshape(100, 200).astype(float)
    assert abs(draws.mean() - 0.5) < 4 * 0.5 / np.sqrt(20_000)
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 4 / np.sqrt(20_000)


@st.composite
def block_sets(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Samples that may be drawn, starts and sizes of uneven blocks; some blocks may have none of the samples."""
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    sizes = draw(st.lists(st.integers(0, 50), min_size=len(counts), max_size=len(counts)))
    keep = draw(st.lists(st.booleans(), min_size=sum(counts), max_size=sum(counts)))
    keep[draw(st.integers(0, sum(counts) - 1))] = True
    return np.flatnonzero(keep), np.cumsum([0, *counts[:-1]]), np.array(sizes)


@settings(max_examples=25, deadline=None)
@given(
    blocks=block_sets(),
    batch_size=st.integers(1, 60),
    seed=st.integers(-(2**63), 2**64),
    window=st.one_of(st.none(), st.integers(1, 120)),
)
def test_each_epoch_draws_each_sample_once(blocks: Any, batch_size: int, seed: int, window: int | None) -> None:
    indices, starts, sizes = blocks
    count = len(indices)

    def order(size: int, rank: int = 0, world: int = 1) -> SampleOrder:
        share = {"batch_size": size, "seed": seed, "rank": rank, "world_size": world}
        if window is None:
            return SampleOrder(indices, **share)
        return BlockOrder(indices, starts, sizes, window_bytes=window, **share)

    whole = order(3 * count).batch(0)
    assert whole.epochs.tolist() == [0] * count + [1] * count + [2] * count
    for epoch in range(3):
        assert sorted(whole.indices[whole.epochs == epoch]) == indices.tolist()
    steps = -(-3 * count // batch_size)
    cut = np.concatenate([order(batch_size).batch(step).indices for step in reversed(range(steps))][::-1])
    assert np.array_equal(cut[: 3 * count], whole.indices)
    shares = [order(3 * count, rank, 3).batch(0) for rank in range(3)]
    assert np.array_equal(np.concatenate([share.indices for share in shares]), whole.indices)
    place, where = 0, order(1)  # windows follow each other without gaps, and hold what they say
    while place < 3 * count:
        found = where.window_at(place)
        assert found.start == place
        assert np.array_equal(found.samples, whole.indices[found.start : found.end])
        if window is not None:
            assert set(np.searchsorted(starts, found.samples, side="right") - 1) <= set(found.blocks.tolist())
        place = found.end


def test_blocks_and_epochs_are_mixed() -> None:
    def order(seed: int) -> BlockOrder:
        starts = np.arange(0, 1000, 10)
        return BlockOrder(range(1000), starts, np.full(100, 100), batch_size=1000, seed=seed, window_bytes=1000)

    first, second = order(0).batch(0).indices, order(0).batch(1).indices
    assert (first != second).mean() > 0.95
    assert (first != order(1).batch(0).indices).mean() > 0.95
    assert len(np.unique(first[:100] // 10)) == 10  # a window holds ten blocks
    assert np.abs(np.diff(first)).mean() > 100


def test_impossible_orders() -> None:
    for bad in ({"batch_size": 0}, {"batch_size": 4, "world_size": 3}, {"batch_size": 4, "rank": 1}):
        with pytest.raises(ConfigError):
            SampleOrder(range(5), seed=0, **bad)
    with pytest.raises(ConfigError):
        SampleOrder([], seed=0, batch_size=1)
