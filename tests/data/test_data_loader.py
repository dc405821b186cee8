"""Batches are exact whatever the machine looks like: any start, workers, cache, ranks, and kind of source."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spheregen.data import Batch, BlockOrder, ImageOptions, ImageSource, TrainingBatches, open_source
from spheregen.data.decoding import _as_it_is, _begin_worker, _Calls, decode, find_bad, ordered_map, read_work
from spheregen.errors import ConfigError, DataError
from tests.data.kinds import all_kinds, contents, same, write_folder

OPTIONS = ImageOptions(image_size=5)
PICTURE_BYTES = 170  # of tests.data.kinds.picture, about


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return all_kinds(tmp_path_factory.mktemp("kinds"), contents())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few images, windows of a few blocks, and everything counts as large."""
    monkeypatch.setattr("spheregen.data.archives._BLOCK_BYTES", 4096)
    monkeypatch.setattr("spheregen.data.source.FITS_IN_MEMORY", 100)
    monkeypatch.setattr("spheregen.data.source._HELD_BYTES", 3 * PICTURE_BYTES)
    monkeypatch.setattr("spheregen.data.order.WINDOW_BYTES", 8 * PICTURE_BYTES)


def run_of(source: str | Path | ImageSource, **options: Any) -> TrainingBatches:
    opened = source if isinstance(source, ImageSource) else open_source(source)
    return TrainingBatches(opened, OPTIONS, **({"batch_size": 6, "steps": 11, "seed": 2, "cache_bytes": 0} | options))


# --- batches


def test_batches_hold_what_they_say(kinds: dict[str, str]) -> None:
    source = open_source(kinds["folder"])
    batches = run_of(source, cache_bytes=1 << 30)
    assert len(batches) == 11
    assert batches.count == 23
    for step, batch in enumerate(batches):
        assert batch.step == step
        assert batch.inputs.dtype == torch.float32
        assert batch.labels is not None and source.labels is not None
        assert torch.equal(batch.labels, source.labels[batch.indices])
        for image, index in zip(batch.inputs, batch.indices.tolist(), strict=True):
            expected = decode(source, OPTIONS, read_work(source, np.array([index]))).images[0]
            assert torch.equal(((image + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(expected))


@pytest.mark.parametrize(("kind", "flips"), [("folder", True), ("parquet", False), ("remote pattern", True)])
def test_streamed_resumed_and_any_worker_count_agree(
    kinds: dict[str, str], kind: str, flips: bool, small_blocks: None
) -> None:
    reference = list(run_of(kinds[kind], flips=flips))
    assert len(reference) == 11
    assert isinstance(run_of(kinds[kind]).order, BlockOrder) == (kind != "folder")
    assert sorted(torch.cat([batch.indices for batch in reference])[:46].bincount().tolist()) == [2] * 23
    for start, workers, cache_bytes in [(0, 0, 1 << 30), (7, 2, 0), (4, 0, 0), (11, 1, 0)]:
        resumed = list(run_of(kinds[kind], flips=flips, start_step=start, workers=workers, cache_bytes=cache_bytes))
        assert len(resumed) == 11 - start
        assert all(same(a, b) for a, b in zip(reference[start:], resumed, strict=True)), (start, workers, cache_bytes)
    for cache_bytes in (0, 1 << 30):
        assert same(run_of(kinds[kind], flips=flips, cache_bytes=cache_bytes).batch(9), reference[9])
    shares = [list(run_of(kinds[kind], flips=flips, rank=rank, world_size=3)) for rank in range(3)]
    for step, whole in enumerate(reference):
        assert torch.equal(torch.cat([share[step].inputs for share in shares]), whole.inputs)


def test_a_local_tar_may_be_read_in_blocks(kinds: dict[str, str], small_blocks: None) -> None:
    for shuffle in ("full", "blocks"):
        runs = [list(run_of(kinds["shards"], shuffle=shuffle, workers=workers, prefetch=3)) for workers in (0, 2)]
        assert all(same(a, b) for a, b in zip(*runs, strict=True))
    with pytest.raises(ConfigError, match="blocks"):
        run_of(kinds["zip"], shuffle="blocks")


def test_a_window_is_read_once_and_only_what_is_needed(kinds: dict[str, str], small_blocks: None) -> None:
    source = open_source(kinds["remote parquet"])
    blocks, original, read = source.blocks(), source.read_block, list[int]()
    assert blocks is not None
    source.read_block = lambda block: read.append(block) or original(block)  # type: ignore[method-assign,func-returns-value]
    for start in (0, 4):  # nothing of the epochs before
        read.clear()
        list(run_of(source, batch_size=23, steps=start + 1, start_step=start, validate=False))
        assert sorted(read) == list(range(len(blocks.starts)))


def test_a_run_that_stops_early_leaves_nothing_behind(kinds: dict[str, str], small_blocks: None) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    run = iter(run_of(kinds["remote tar"], steps=900, workers=2))
    assert [next(run).step for _ in range(3)] == [0, 1, 2]
    run.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("spheregen")]
    assert not multiprocessing.active_children()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_block_that_cannot_be_read_comes_when_it_is_due(
    kinds: dict[str, str], small_blocks: None, workers: int
) -> None:
    source = open_source(kinds["remote parquet"])
    batches = run_of(source, batch_size=2, steps=12, workers=workers)
    last = int(batches.order.batch(11).indices[0])  # of the last window of the epoch
    blocks, original = source.blocks(), source.read_block
    assert blocks is not None
    gone = int(np.searchsorted(blocks.starts, last, side="right")) - 1

    def read(block: int) -> Any:
        if block == gone:
            raise DataError("the network is gone")
        return original(block)

    source.read_block = read  # type: ignore[method-assign]
    seen: list[Batch] = []
    with pytest.raises(DataError, match="network is gone"):
        seen.extend(batches)
    assert [batch.step for batch in seen] == list(range(len(seen)))
    assert len(seen) >= 3


def test_flips_mirror_half_of_the_images_differ_by_epoch_and_not_by_batch(kinds: dict[str, str]) -> None:
    plain, flipped = (
        run_of(kinds["tar"], batch_size=23, steps=40, flips=f, cache_bytes=1 << 30) for f in (False, True)
    )
    mirrored = torch.zeros(40, 23)
    for a, b in zip(plain, flipped, strict=True):
        assert torch.equal(a.indices, b.indices)
        for x, y, index in zip(a.inputs, b.inputs, a.indices, strict=True):
            assert torch.equal(y, x) or torch.equal(y, x.flip(-1))
            mirrored[a.step, index] = not torch.equal(y, x)
    assert abs(mirrored.mean() - 0.5) < 0.1
    assert (mirrored.mean(0) % 1 > 0).all()
    small = torch.cat([batch.inputs for batch in run_of(kinds["tar"], batch_size=1, steps=46, flips=True)])
    assert torch.equal(small, torch.cat([flipped.batch(step).inputs for step in range(2)]))


def test_digits_are_never_flipped_and_labels_may_be_missing(tmp_path: Path) -> None:
    source, options = open_source("digits"), ImageOptions(image_size=8, channels=1)
    with pytest.raises(ConfigError, match="flips"):
        TrainingBatches(source, options, batch_size=8, steps=1, flips=True)
    assert TrainingBatches(source, options, batch_size=8, steps=1).batch(0).inputs.shape == (8, 1, 8, 8)
    write_folder(tmp_path, {"a.png": contents(1)["ant/000.png"]})
    assert run_of(tmp_path).batch(0).labels is None


def test_impossible_arguments(kinds: dict[str, str]) -> None:
    for bad in ({"start_step": 12}, {"start_step": -1}, {"batch_size": 0}, {"shuffle": "some"}, {"prefetch": 0}):
        with pytest.raises(ConfigError):
            run_of(kinds["tar"], **bad)


# --- bad images


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """23 images of which seven are bad."""
    files = contents()
    return all_kinds(tmp_path / "data", files | dict.fromkeys(list(files)[3:10], b"no"))


def test_bad_files_are_fatal_before_the_first_step_or_when_they_are_met(broken: dict[str, str]) -> None:
    for cache_bytes, workers in ((0, 0), (0, 1), (1 << 30, 0)):
        with pytest.raises(DataError, match="7 of 23") as caught:
            run_of(broken["folder"], cache_bytes=cache_bytes, workers=workers)
        assert sum(name in str(caught.value) for name in contents()) == 5
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"\.png: not an image"):
        list(run_of(broken["folder"], validate=False))
    with pytest.raises(ConfigError, match=r"data\.check"):
        run_of(broken["folder"], validate=False, on_error="skip")


@pytest.mark.parametrize("kind", ["folder", "remote parquet"])
def test_bad_files_are_left_out_for_good(broken: dict[str, str], kind: str, small_blocks: None) -> None:
    source = open_source(broken[kind])
    runs = [run_of(source, on_error="skip", flips=True, cache_bytes=size) for size in (0, 1 << 30)]
    assert all(run.count == 16 and len(run.skipped) == 7 and run.fingerprint != source.fingerprint for run in runs)
    assert runs[0].skipped == runs[1].skipped
    assert runs[0].fingerprint == runs[1].fingerprint
    assert all(same(a, b) for a, b in zip(*runs, strict=True))
    seen = torch.cat([batch.indices for batch in runs[0]])[:64]
    assert seen.bincount(minlength=23).tolist() == [0 if 3 <= i < 10 else 4 for i in range(23)]


def test_remote_data_are_not_read_twice_unasked(kinds: dict[str, str]) -> None:
    for kind, options, expected in (
        ("remote tar", {}, False), ("remote tar", {"validate": True}, True), ("remote tar", {"on_error": "skip"}, True),
        ("parquet", {}, True), ("parquet", {"validate": False}, False),
    ):  # fmt: skip
        calls: list[int] = []
        run_of(kinds[kind], progress=lambda done, total, calls=calls: calls.append(done), **options)
        assert bool(calls) == expected


def test_the_outcome_is_remembered(broken: dict[str, str], tmp_path: Path) -> None:
    remembered = tmp_path / "run" / "checked.json"

    def examine(size: int = 5) -> tuple[TrainingBatches, bool]:
        calls: list[int] = []
        batches = TrainingBatches(
            open_source(broken["folder"]), ImageOptions(image_size=size), batch_size=4, steps=8, cache_bytes=0,
            on_error="skip", remembered=remembered, progress=lambda done, total: calls.append(done),
        )  # fmt: skip
        return batches, bool(calls)

    first, looked = examine()
    assert looked
    second, looked = examine()
    assert not looked
    assert (second.skipped, second.fingerprint) == (first.skipped, first.fingerprint)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert examine(size=4)[1]  # other options: looked at again
    for text in ("{", "[]", '{"version": 1}', remembered.read_text().replace("image_size", "x")):
        remembered.write_text(text)
        again, looked = examine()
        assert looked
        assert again.skipped == first.skipped
    assert len(json.loads(remembered.read_text())["bad"]) == 7
    with pytest.raises(DataError, match="7 of 23"):
        run_of(broken["folder"], remembered=remembered)


def test_ranks_divide_the_validation(broken: dict[str, str]) -> None:
    source = open_source(broken["folder"])
    bad, ends = find_bad(source, OPTIONS), (0, 7, 15, 23)
    parts: list[Any] = [[b for b in bad if ends[rank] <= b.index < ends[rank + 1]] for rank in range(3)]
    seen: list[int] = []

    def gather(mine: object) -> list[Any]:  # of what is remembered, then of what each rank found
        assert mine is None or mine in parts
        return [None] * 3 if mine is None else parts

    def batches(rank: int, on_error: str = "skip") -> TrainingBatches:
        progress: Any = lambda done, total: seen.append(total)  # noqa: E731
        return run_of(source, on_error=on_error, rank=rank, world_size=3, gather=gather, progress=progress)

    alone, ranks = run_of(source, on_error="skip"), [batches(rank) for rank in range(3)]
    assert sum(seen) == 23
    assert all(rank.skipped == alone.skipped and rank.fingerprint == alone.fingerprint for rank in ranks)
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([rank.batch(step).inputs for rank in ranks]), batch.inputs)
    with pytest.raises(DataError, match="7 of 23"):
        batches(0, "fail")
    parts[1] = "rank 1 has no network"
    with pytest.raises(DataError, match="rank 1"):
        batches(0)


# --- workers


def double(x: Any) -> Any:
    if x == 13:
        raise DataError("thirteen")
    return 2 * x if x != 21 else 1 / 0


@pytest.mark.parametrize("workers", [0, 2])
def test_results_and_errors_come_in_order(workers: int) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise DataError("no more")

    for made, problem, count in ((range(20), "thirteen", 13), (items(), "no more", 3)):
        seen: list[int] = []
        with pytest.raises(DataError, match=rf"^{problem}$"):
            seen.extend(ordered_map(double, made, workers=workers))
        assert seen == [2 * i for i in range(count)]
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(double, [20, 21], workers=workers))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on Windows")
def test_a_worker_that_dies_is_an_error(kinds: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    source = open_source(kinds["folder"])
    source.read_bytes = lambda index: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(DataError, match=r"data\.workers") as caught:
        list(run_of(source, workers=2, validate=False))
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_what_workers_need_can_be_sent_to_them(kinds: dict[str, str]) -> None:
    """Where processes are spawned, not forked (Windows, macOS), it is pickled."""
    for kind in ("folder", "remote tar", "parquet"):
        source = open_source(kinds[kind])
        decoder, work = partial(decode, source, OPTIONS), read_work(source, np.array([22, 5]))
        calls, sent, begin, collate = pickle.loads(pickle.dumps((_Calls(decoder), work, _begin_worker, _as_it_is)))
        assert np.array_equal(calls[sent].images, decoder(work).images)
        assert callable(begin)
        assert callable(collate)
