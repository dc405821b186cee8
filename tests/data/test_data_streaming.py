"""Block order, windows, workers, validation and devices: exact whatever the machine looks like."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spheregen.data import Batch, BlockOrder, ImageOptions, ImageSource, TrainingBatches, open_source
from spheregen.data.batches import finish_images, free_memory, to_device
from spheregen.data.decoding import decode_chunks
from spheregen.data.pool import ordered_map
from spheregen.errors import ConfigError, DataError
from tests.data.kinds import all_kinds, contents, same, write_folder

OPTIONS = ImageOptions(image_size=5)
GOLDEN_BLOCKS = [1, 2, 9, 0, 7, 8, 3, 6, 5, 4]
PICTURE_BYTES = 170  # of tests.data.kinds.picture, about


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return all_kinds(tmp_path_factory.mktemp("kinds"), contents())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few pictures, windows of a few blocks, and everything counts as large."""
    monkeypatch.setattr("spheregen.data.tars._BLOCK_BYTES", 4096)
    monkeypatch.setattr("spheregen.data.sources.FITS_IN_MEMORY", 100)
    monkeypatch.setattr("spheregen.data.sources._HELD_BYTES", 3 * PICTURE_BYTES)
    original = BlockOrder.__init__

    def with_small_windows(self: BlockOrder, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **{"window_bytes": 8 * PICTURE_BYTES, **options})

    monkeypatch.setattr(BlockOrder, "__init__", with_small_windows)


# --- the order of blocks


@st.composite
def block_sets(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Samples that may be drawn, starts and sizes of uneven blocks; some blocks may have none of the samples."""
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    sizes = draw(st.lists(st.integers(0, 50), min_size=len(counts), max_size=len(counts)))
    starts = np.cumsum([0, *counts[:-1]])
    keep = draw(st.lists(st.booleans(), min_size=sum(counts), max_size=sum(counts)))
    keep[draw(st.integers(0, sum(counts) - 1))] = True
    return np.flatnonzero(keep), starts, np.array(sizes)


@settings(max_examples=40, deadline=None)
@given(blocks=block_sets(), batch_size=st.integers(1, 60), seed=st.integers(0, 2**64), window=st.integers(1, 120))
def test_each_epoch_draws_each_sample_once(blocks: Any, batch_size: int, seed: int, window: int) -> None:
    indices, starts, sizes = blocks

    def order(size: int, rank: int = 0, world: int = 1) -> BlockOrder:
        return BlockOrder(
            indices, starts, sizes, batch_size=size, seed=seed, window_bytes=window, rank=rank, world_size=world
        )

    count = len(indices)
    whole = order(3 * count).batch(0)
    assert whole.epochs.tolist() == [0] * count + [1] * count + [2] * count
    for epoch in range(3):
        assert sorted(whole.indices[whole.epochs == epoch]) == indices.tolist()
    # any batch size, any step computed alone, any division over ranks cuts the same sequence
    steps = -(-3 * count // batch_size)
    cut = np.concatenate([order(batch_size).batch(step).indices for step in reversed(range(steps))][::-1])
    assert np.array_equal(cut[: 3 * count], whole.indices)
    shares = [order(3 * count, rank, 3).batch(0) for rank in range(3)]
    assert np.array_equal(np.concatenate([share.indices for share in shares]), whole.indices)
    # what a window says it holds is what its samples need, and windows follow each other without gaps
    assert whole.windows is not None
    where, key = order(1), (0, 0)
    for place in range(3 * count):
        here = (int(whole.epochs[place]), int(whole.windows[place]))
        if here != key:
            assert where.next_window(*key) == here
            assert where.window_start(*here) == place
            key = here
        block = int(np.searchsorted(starts, whole.indices[place], side="right")) - 1
        assert block in where.window_blocks(*here)


def test_block_order_mixes_blocks_and_epochs() -> None:
    starts = np.arange(0, 1000, 10)
    order = BlockOrder(range(1000), starts, np.full(100, 100), batch_size=1000, seed=0, window_bytes=1000)
    first, second = order.batch(0).indices, order.batch(1).indices
    assert (first != second).mean() > 0.95
    assert len(np.unique(first[:100] // 10)) == 10  # a window holds ten blocks
    assert np.abs(np.diff(first)).mean() > 100
    other = BlockOrder(range(1000), starts, np.full(100, 100), batch_size=1000, seed=1, window_bytes=1000)
    assert (first != other.batch(0).indices).mean() > 0.95


def test_block_order_never_changes() -> None:
    """Runs are continued with later versions: these numbers are part of the format."""
    order = BlockOrder(range(10), np.array([0, 3, 5, 9]), np.full(4, 10), batch_size=10, seed=0, window_bytes=20)
    assert order.batch(0).indices.tolist() == GOLDEN_BLOCKS


# --- batches in block order


@pytest.mark.parametrize("kind", ["parquet", "remote parquet", "remote tar", "remote pattern"])
def test_streamed_resumed_and_any_worker_count_agree(kinds: dict[str, str], kind: str, small_blocks: None) -> None:
    def batches(start: int = 0, workers: int = 0, cache_bytes: int = 0, **more: Any) -> TrainingBatches:
        return TrainingBatches(
            open_source(kinds[kind]), OPTIONS, batch_size=6, steps=11, seed=2, flips=True, workers=workers,
            cache_bytes=cache_bytes, start_step=start, **more,
        )  # fmt: skip

    reference = list(batches())
    assert len(reference) == 11
    assert isinstance(batches().order, BlockOrder)
    assert sorted(torch.cat([batch.indices for batch in reference])[:46].bincount().tolist()) == [2] * 23
    for start, workers, cache_bytes in [(0, 0, 1 << 30), (7, 2, 0), (4, 0, 0), (11, 1, 0)]:
        runs = list(batches(start, workers, cache_bytes))
        assert len(runs) == 11 - start
        assert all(same(a, b) for a, b in zip(reference[start:], runs, strict=True)), (start, workers, cache_bytes)
    assert same(batches().batch(9), reference[9])
    shares = [list(batches(rank=rank, world_size=3)) for rank in range(3)]
    for step, whole in enumerate(reference):
        assert torch.equal(torch.cat([share[step].inputs for share in shares]), whole.inputs)


def test_workers_read_by_themselves_or_are_fed_alike(kinds: dict[str, str], small_blocks: None) -> None:
    """The local tar is read in full order by workers; asked for blocks, it is read here."""
    for shuffle in ("full", "blocks"):
        runs = [
            list(
                TrainingBatches(
                    open_source(kinds["shards"]), OPTIONS, batch_size=5, steps=9, workers=workers, cache_bytes=0,
                    shuffle=shuffle, prefetch=3,  # type: ignore[arg-type]
                )
            )
            for workers in (0, 2)
        ]  # fmt: skip
        assert all(same(a, b) for a, b in zip(*runs, strict=True))


def test_a_window_is_read_once_and_only_what_is_needed(
    kinds: dict[str, str], small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(kinds["remote parquet"])
    read: list[int] = []
    original = source.read_block
    monkeypatch.setattr(source, "read_block", lambda block: read.append(block) or original(block))
    blocks = source.blocks()
    assert blocks is not None
    list(TrainingBatches(source, OPTIONS, batch_size=23, steps=1, cache_bytes=0))
    assert sorted(read) == list(range(len(blocks.starts)))
    read.clear()
    late = TrainingBatches(source, OPTIONS, batch_size=23, steps=5, cache_bytes=0, start_step=4)
    list(late)
    assert sorted(read) == list(range(len(blocks.starts)))  # nothing of the epochs before


def test_skipped_pictures_are_left_out_of_blocks(tmp_path: Path, small_blocks: None) -> None:
    files = contents()
    bad = [2, 3, 9]
    names = list(files)
    kinds = all_kinds(tmp_path, files | {names[i]: b"broken" for i in bad})
    runs = []
    for cache_bytes in (0, 1 << 30):
        batches = TrainingBatches(
            open_source(kinds["remote parquet"]), OPTIONS, batch_size=20, steps=3, on_error="skip",
            cache_bytes=cache_bytes,
        )  # fmt: skip
        assert batches.count == 20
        runs.append(list(batches))
    assert all(same(a, b) for a, b in zip(*runs, strict=True))
    for batch in runs[0]:
        assert sorted(batch.indices.tolist()) == [i for i in range(23) if i not in bad]
    with pytest.raises(ConfigError, match="not stored in blocks"):
        TrainingBatches(open_source(kinds["zip"]), OPTIONS, batch_size=2, steps=1, shuffle="blocks")


def test_a_run_that_stops_early_leaves_nothing_behind(kinds: dict[str, str], small_blocks: None) -> None:
    before = threading.active_count()
    run = iter(
        TrainingBatches(open_source(kinds["remote tar"]), OPTIONS, batch_size=4, steps=900, workers=2, cache_bytes=0)
    )
    assert [next(run).step for _ in range(3)] == [0, 1, 2]
    run.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert not multiprocessing.active_children()


def test_a_block_that_cannot_be_read_comes_when_it_is_due(
    kinds: dict[str, str], small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workers in (0, 2):
        source = open_source(kinds["remote parquet"])
        batches = TrainingBatches(source, OPTIONS, batch_size=2, steps=12, cache_bytes=0, workers=workers)
        last = int(batches.order.batch(11).indices[0])  # of the last window of the epoch
        blocks = source.blocks()
        assert blocks is not None
        gone = int(np.searchsorted(blocks.starts, last, side="right")) - 1
        original = source.read_block

        def read(block: int, original: Any = original, gone: int = gone) -> Any:
            if block == gone:
                raise DataError("the network is gone")
            return original(block)

        monkeypatch.setattr(source, "read_block", read)
        seen: list[Batch] = []
        with pytest.raises(DataError, match="network is gone"):
            seen.extend(batches)
        assert [batch.step for batch in seen] == list(range(len(seen)))
        assert len(seen) >= 3


# --- workers


def double(x: int) -> int:
    if x == 13:
        raise DataError("thirteen")
    return 2 * x


def large(x: int) -> bytes:
    return bytes(1 << 20)


def test_results_come_in_order() -> None:
    for workers in (0, 1, 3):
        assert list(ordered_map(double, range(10), workers=workers)) == [2 * i for i in range(10)]
        seen: list[int] = []
        with pytest.raises(DataError, match=r"^thirteen$"):
            seen.extend(ordered_map(double, range(20), workers=workers))
        assert seen == [2 * i for i in range(13)]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(ordered_map(divide, [1, 0], workers=1))


def divide(x: int) -> float:
    return 1 / x


def test_large_items_both_ways_do_not_block() -> None:
    items = (bytes(1 << 20) for _ in range(8))
    assert sum(map(len, ordered_map(large, items, workers=2, prefetch=3))) == 8 << 20  # type: ignore[arg-type]


def test_an_error_of_the_maker_waits_for_its_turn() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise DataError("no more")

    seen: list[int] = []
    with pytest.raises(DataError, match="no more"):
        seen.extend(ordered_map(double, items(), workers=2))
    assert seen == [0, 2, 4]


class _Fatal(ImageSource):
    """A source whose picture 5 kills the process that reads it."""

    def __init__(self, inner: ImageSource) -> None:
        self.inner = inner
        self.labels, self.class_names, self.fingerprint = inner.labels, inner.class_names, inner.fingerprint
        self.name, self.split, self.encoded_bytes = inner.name, inner.split, inner.encoded_bytes

    def __len__(self) -> int:
        return len(self.inner)

    def describe(self, index: int) -> str:
        return self.inner.describe(index)

    def read_bytes(self, index: int) -> bytes:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.read_bytes(index)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on Windows")
def test_a_worker_that_dies_is_an_error(kinds: dict[str, str]) -> None:
    source = _Fatal(open_source(kinds["folder"]))
    batches = TrainingBatches(source, OPTIONS, batch_size=4, steps=20, workers=2, cache_bytes=0, validate=False)
    with pytest.raises(DataError, match=r"worker process .* signal 9.*use fewer workers") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_spawned_workers(kinds: dict[str, str]) -> None:
    """What Windows and macOS do."""
    kind = "remote tar"
    chunks = [np.arange(3), np.array([22, 5])]
    context = multiprocessing.get_context("spawn")
    runs = [
        list(decode_chunks(open_source(kinds[kind]), OPTIONS, chunks, workers, context=context)) for workers in (0, 1)
    ]
    assert all(np.array_equal(a.images, b.images) for a, b in zip(*runs, strict=True))


# --- validation


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """23 pictures of which seven are bad."""
    files = contents()
    return write_folder(tmp_path / "data", files | dict.fromkeys(list(files)[3:10], b"no"))


def test_bad_files_are_named_before_the_first_step(broken: Path) -> None:
    for cache_bytes, workers in ((0, 0), (0, 1), (1 << 30, 0)):
        with pytest.raises(DataError) as caught:
            TrainingBatches(
                open_source(broken), OPTIONS, batch_size=2, steps=1, cache_bytes=cache_bytes, workers=workers
            )
        text = str(caught.value)
        assert "7 of 23 images are bad" in text
        assert sum(name in text for name in contents()) == 5
        assert "spheregen stats" in text
        assert "\n" not in text


def test_without_validation_a_bad_file_is_fatal_when_it_is_met(broken: Path) -> None:
    batches = TrainingBatches(open_source(broken), OPTIONS, batch_size=2, steps=20, cache_bytes=0, validate=False)
    with pytest.raises(DataError, match="not an image"):
        list(batches)
    with pytest.raises(ConfigError, match=r"data\.check"):
        TrainingBatches(
            open_source(broken), OPTIONS, batch_size=2, steps=1, cache_bytes=0, validate=False, on_error="skip"
        )


def test_remote_data_are_not_read_twice_unasked(kinds: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("spheregen.data.batches.find_bad", lambda *a, **k: calls.append(1) or ())
    for kind, options, expected in (
        ("remote tar", {}, 0), ("remote tar", {"validate": True}, 1), ("remote tar", {"on_error": "skip"}, 1),
        ("parquet", {}, 1), ("parquet", {"validate": False}, 0),
    ):  # fmt: skip
        calls.clear()
        TrainingBatches(open_source(kinds[kind]), OPTIONS, batch_size=2, steps=1, cache_bytes=0, **options)  # type: ignore[arg-type]
        assert len(calls) == expected, (kind, options)


def test_the_outcome_is_remembered(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered = tmp_path / "run" / "checked.json"
    calls: list[int] = []

    def batches(options: ImageOptions = OPTIONS) -> TrainingBatches:
        return TrainingBatches(
            open_source(broken), options, batch_size=4, steps=8, cache_bytes=0, on_error="skip", remembered=remembered,
            progress=lambda done, total: calls.append(done),
        )  # fmt: skip

    first = batches()
    assert calls
    calls.clear()
    second = batches()
    assert not calls
    assert second.skipped == first.skipped
    assert second.fingerprint == first.fingerprint
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    batches(ImageOptions(image_size=4))  # other options: looked at again
    assert calls
    for text in ("{", "[]", '{"version": 1}', remembered.read_text().replace("image_size", "x")):
        remembered.write_text(text)
        calls.clear()
        assert batches().skipped == first.skipped
        assert calls
    values = json.loads(remembered.read_text())
    assert len(values["bad"]) == 7
    with pytest.raises(DataError, match="7 of 23"):
        TrainingBatches(open_source(broken), OPTIONS, batch_size=4, steps=8, cache_bytes=0, remembered=remembered)


def run_ranks(world: int, action: Callable[[int, Any], Any]) -> list[Any]:
    """Call `action(rank, gather)` in one thread a rank, with a gather among them."""
    slots: list[Any] = [None] * world
    barrier = threading.Barrier(world, timeout=30)
    results: list[Any] = [None] * world

    def gather_for(rank: int) -> Any:
        def gather(value: object) -> list[Any]:
            slots[rank] = value
            barrier.wait()
            everything = list(slots)
            barrier.wait()
            return everything

        return gather

    def work(rank: int) -> None:
        try:
            results[rank] = action(rank, gather_for(rank))
        except DataError as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_ranks_divide_the_validation(broken: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def batches(rank: int, gather: Any, on_error: Any = "skip") -> TrainingBatches:
        return TrainingBatches(
            open_source(broken), OPTIONS, batch_size=6, steps=8, cache_bytes=0, on_error=on_error, rank=rank,
            world_size=3, gather=gather, remembered=tmp_path / "checked.json",
            progress=lambda done, total: seen.append(total),
        )  # fmt: skip

    alone = TrainingBatches(open_source(broken), OPTIONS, batch_size=6, steps=8, cache_bytes=0, on_error="skip")
    results = run_ranks(3, batches)
    assert sum(seen) == 23
    assert all(rank.skipped == alone.skipped and rank.fingerprint == alone.fingerprint for rank in results)
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([rank.batch(step).inputs for rank in results]), batch.inputs)
    assert all("7 of 23" in str(e) for e in run_ranks(3, lambda rank, gather: batches(rank, gather, "fail")))


# --- devices


def test_the_device_path_gives_the_same_pictures(kinds: dict[str, str]) -> None:
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mirrored = torch.tensor([True, False, False, True])
    device = torch.device("cpu")
    done = finish_images(to_device(images, device), mirrored)
    assert done.dtype == torch.float32
    expected = torch.stack([image.flip(-1) if m else image for image, m in zip(images, mirrored, strict=True)])
    assert torch.equal(((done + 1) * 127.5).round().to(torch.uint8), expected)
    plain, placed = (
        list(TrainingBatches(open_source(kinds["zip"]), OPTIONS, batch_size=5, steps=3, flips=True, device=device))
        for device in (None, torch.device("cpu"))
    )
    assert all(same(a, b) for a, b in zip(plain, placed, strict=True))


@pytest.mark.parametrize(("cache_bytes", "free"), [(0, 1 << 40), (1 << 30, 1 << 40), (1 << 30, 4 * 23 * 75 - 1)])
def test_what_travels_to_the_device(
    kinds: dict[str, str], cache_bytes: int, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures go there as bytes, wherever they are kept, and are flipped and scaled there."""
    sent: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def record(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        assert device == torch.device("cpu")
        sent.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    monkeypatch.setattr("spheregen.data.batches.free_memory", lambda device: free)
    monkeypatch.setattr("spheregen.data.batches.to_device", record)
    batches = TrainingBatches(
        open_source(kinds["tar"]), OPTIONS, batch_size=5, steps=3, flips=True, device=torch.device("cpu"),
        cache_bytes=cache_bytes,
    )  # fmt: skip
    batches.batch(0)
    rows = [(torch.int64, (5,))] if cache_bytes else []  # which rows of the cache
    batch = (torch.uint8, (5, 3, 5, 5))
    assert sorted(sent, key=str) == [(torch.bool, (5,)), (torch.int64, (5,)), *rows, batch]


def test_only_accelerators_have_free_memory() -> None:
    assert free_memory(torch.device("cpu")) == 0


def test_impossible_arguments(kinds: dict[str, str]) -> None:
    for bad in ({"shuffle": "some"}, {"prefetch": 0}):
        with pytest.raises(ConfigError):
            TrainingBatches(open_source(kinds["tar"]), OPTIONS, batch_size=1, steps=1, **bad)  # type: ignore[arg-type]
