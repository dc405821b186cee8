"""The order is exact: for every start, worker count, cache and share; each epoch is a permutation."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spheregen.data import ImageOptions, SampleOrder, TrainingBatches, open_source, permutation
from spheregen.data.decoding import Decoder, Work
from spheregen.data.order import OrderedBatch, flip_draws
from spheregen.errors import ConfigError, DataError
from tests.data.kinds import same

# Python 3.12 warns about fork in a process with threads, which torch's own loader does by default.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

OPTIONS = ImageOptions(image_size=5)
GOLDEN_0 = [1, 6, 5, 4, 3, 7, 2, 0]
GOLDEN_123 = [4, 0, 5, 1, 3, 2, 6, 7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven different pictures in three classes."""
    generator = np.random.default_rng(0)
    for i in range(11):
        path = tmp_path / f"class {i % 3}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)).save(path)
    return tmp_path


# --- the order


def test_permutation_is_one_and_depends_on_seed_and_epoch() -> None:
    seen = {tuple(permutation(seed, epoch, 50).tolist()) for seed in (0, 1, -1, 2**63) for epoch in range(20)}
    assert len(seen) == 80
    assert all(sorted(order) == list(range(50)) for order in seen)


def test_permutation_never_changes() -> None:
    """Runs are continued with later versions: these numbers are part of the format."""
    assert permutation(0, 0, 8).tolist() == GOLDEN_0
    assert permutation(123, 7, 8).tolist() == GOLDEN_123


def test_permutation_is_uniform() -> None:
    """Each sample is equally likely at each place: chi-squared with 8 * 8 cells (49 free) over 4000 epochs."""
    counts = np.zeros((8, 8))
    for epoch in range(4000):
        counts[np.arange(8), permutation(5, epoch, 8)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 49 + 5 * np.sqrt(2 * 49)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40), batch_size=st.integers(1, 90), seed=st.integers(-(2**63), 2**64), first=st.integers(0, 9)
)
def test_steps_cut_the_sequence_of_epochs(count: int, batch_size: int, seed: int, first: int) -> None:
    order = SampleOrder(range(count), batch_size=batch_size, seed=seed)
    batches = [order.batch(step) for step in range(first, first + 4)]
    indices = np.concatenate([batch.indices for batch in batches])
    epochs = np.concatenate([batch.epochs for batch in batches])
    position = np.arange(first * batch_size, (first + 4) * batch_size)
    whole = np.concatenate([permutation(seed, epoch, count) for epoch in range(epochs[0], epochs[-1] + 1)])
    assert np.array_equal(epochs, position // count)
    assert np.array_equal(indices, whole[position - epochs[0] * count])
    for epoch in np.unique(epochs)[1:-1]:  # those that are whole
        assert sorted(indices[epochs == epoch]) == list(range(count))


def test_ranks_share_each_batch() -> None:
    whole = SampleOrder(range(10), batch_size=6, seed=3)
    shares = [SampleOrder(range(10), batch_size=6, seed=3, rank=rank, world_size=3) for rank in range(3)]
    for step in range(5):
        assert np.array_equal(whole.batch(step).indices, np.concatenate([s.batch(step).indices for s in shares]))


def test_any_step_is_reached_directly() -> None:
    order = SampleOrder(range(1000), batch_size=64, seed=0)
    assert order.batch(10**12).indices.shape == (64,)
    assert np.array_equal(order.batch(3).indices, SampleOrder(range(1000), batch_size=64, seed=0).batch(3).indices)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"batch_size": 4, "world_size": 3}, {"batch_size": 4, "rank": 1}])
def test_impossible_orders(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        SampleOrder(range(5), seed=0, **bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        SampleOrder([], seed=0, batch_size=1)


def test_flips_are_fair_and_independent() -> None:
    epochs, indices = np.divmod(np.arange(20_000), 200)
    draws = flip_draws(0, OrderedBatch(indices=indices, epochs=epochs)).reshape(100, 200).astype(float)
    assert abs(draws.mean() - 0.5) < 4 * 0.5 / np.sqrt(20_000)
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 4 / np.sqrt(20_000)


# --- batches


def test_batches_hold_what_they_say(folder: Path) -> None:
    source = open_source(folder)
    batches = TrainingBatches(source, OPTIONS, batch_size=4, steps=6, seed=1)
    assert len(batches) == 6
    assert batches.count == 11
    for step, batch in enumerate(batches):
        assert batch.step == step
        assert batch.inputs.dtype == torch.float32
        assert batch.labels is not None
        assert source.labels is not None
        for image, label, index in zip(batch.inputs, batch.labels, batch.indices.tolist(), strict=True):
            pixels = torch.from_numpy(np.array(source.read(index))).permute(2, 0, 1)
            assert torch.equal(((image + 1) * 127.5).round().to(torch.uint8), pixels)
            assert label == source.labels[index]


@pytest.mark.parametrize("flips", [False, True])
def test_cached_streamed_resumed_and_any_worker_count_agree(folder: Path, flips: bool) -> None:
    def batches(start: int = 0, workers: int = 0, cache_bytes: int = 0) -> TrainingBatches:
        return TrainingBatches(
            open_source(folder), OPTIONS, batch_size=7, steps=8, seed=2, flips=flips,
            workers=workers, cache_bytes=cache_bytes, start_step=start,
        )  # fmt: skip

    reference = list(batches())
    assert len(reference) == 8
    for workers, cache_bytes, start in [(0, 1 << 30, 0), (1, 0, 0), (2, 0, 0), (0, 1 << 30, 5), (2, 0, 3), (0, 0, 8)]:
        runs = list(batches(start, workers, cache_bytes))
        assert len(runs) == 8 - start
        assert all(same(a, b) for a, b in zip(reference[start:], runs, strict=True)), (workers, cache_bytes, start)
    for cache_bytes in (0, 1 << 30):
        assert all(same(batches(cache_bytes=cache_bytes).batch(k), reference[k]) for k in (6, 0, 7, 3))


def test_cache_limit_is_exact(folder: Path) -> None:
    size = 11 * 3 * 5 * 5
    source = open_source(folder)
    assert TrainingBatches(source, OPTIONS, batch_size=1, steps=1, cache_bytes=size).cached
    assert not TrainingBatches(source, OPTIONS, batch_size=1, steps=1, cache_bytes=size - 1).cached


def test_a_batch_may_exceed_the_data(folder: Path) -> None:
    batch = TrainingBatches(open_source(folder), OPTIONS, batch_size=25, steps=1).batch(0)
    assert sorted(batch.indices.bincount().tolist()) == [2] * 8 + [3] * 3


def test_flips_mirror_half_of_the_pictures_and_differ_by_epoch(folder: Path) -> None:
    source = open_source(folder)
    plain = list(TrainingBatches(source, OPTIONS, batch_size=11, steps=40, seed=4))
    flipped = list(TrainingBatches(source, OPTIONS, batch_size=11, steps=40, seed=4, flips=True))
    mirrored = []
    for a, b in zip(plain, flipped, strict=True):
        assert torch.equal(a.indices, b.indices)
        row = torch.empty(11, dtype=torch.bool)
        for x, y, index in zip(a.inputs, b.inputs, a.indices, strict=True):
            assert torch.equal(y, x) or torch.equal(y, x.flip(-1))
            row[index] = not torch.equal(y, x)
        mirrored.append(row)
    share = torch.stack(mirrored).float()
    assert abs(share.mean() - 0.5) < 0.1
    assert (share.mean(0) > 0).all()
    assert (share.mean(0) < 1).all()


def test_flips_do_not_depend_on_the_batch(folder: Path) -> None:
    def pictures(batch_size: int) -> torch.Tensor:
        steps = 22 // batch_size
        run = TrainingBatches(open_source(folder), OPTIONS, batch_size=batch_size, steps=steps, flips=True)
        return torch.cat([batch.inputs for batch in run])

    assert torch.equal(pictures(2), pictures(11))


def test_digits_are_never_flipped() -> None:
    source = open_source("digits")
    options = ImageOptions(image_size=8, channels=1)
    with pytest.raises(ConfigError, match="mirror images of digits"):
        TrainingBatches(source, options, batch_size=8, steps=1, flips=True)
    assert TrainingBatches(source, options, batch_size=8, steps=1).batch(0).inputs.shape == (8, 1, 8, 8)


def test_training_batches_leave_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(TrainingBatches(open_source(folder), OPTIONS, batch_size=4, steps=2, workers=1, cache_bytes=0, flips=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_may_stop_early(folder: Path) -> None:
    run = iter(TrainingBatches(open_source(folder), OPTIONS, batch_size=4, steps=1000, workers=2, cache_bytes=0))
    assert [next(run).step for _ in range(3)] == [0, 1, 2]
    del run  # the workers end with it, without warnings


def test_what_workers_need_can_be_sent_to_them(folder: Path) -> None:
    """Where processes are spawned, not forked (Windows, macOS), the decoder is pickled."""
    batches = TrainingBatches(open_source(folder), OPTIONS, batch_size=4, steps=3, cache_bytes=0)
    decoder = Decoder(batches.source, OPTIONS)
    work = Work(indices=batches.order.batch(2).indices)
    assert np.array_equal(pickle.loads(pickle.dumps(decoder))(work).images, decoder(work).images)


def test_unlabelled(tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    batch = TrainingBatches(open_source(tmp_path), OPTIONS, batch_size=2, steps=1).batch(0)
    assert batch.labels is None
    assert batch.indices.tolist() == [0, 0]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_fatal_or_left_out_for_good(folder: Path, cache_bytes: int, workers: int) -> None:
    source = open_source(folder)
    bad = [i for i in range(11) if i in (2, 9)]
    for index in bad:
        Path(source.describe(index)).write_bytes(b"broken")
    source = open_source(folder)

    def batches(on_error: str) -> TrainingBatches:
        return TrainingBatches(
            source, OPTIONS, batch_size=3, steps=12, on_error=on_error,  # type: ignore[arg-type]
            workers=workers, cache_bytes=cache_bytes,
        )  # fmt: skip

    with pytest.raises(DataError, match=r"\.png: not an image") as caught:
        list(batches("fail"))
    assert "\n" not in str(caught.value)
    run = batches("skip")
    assert run.count == 9
    assert len(run.skipped) == 2
    assert run.fingerprint != source.fingerprint
    seen = torch.cat([batch.indices for batch in run])
    assert seen.bincount(minlength=11).tolist() == [0 if i in bad else 4 for i in range(11)]


def test_skipping_gives_one_order_cached_or_not(folder: Path) -> None:
    next(folder.rglob("7.png")).write_bytes(b"")
    source = open_source(folder)
    first, second = (
        TrainingBatches(source, OPTIONS, batch_size=4, steps=9, on_error="skip", cache_bytes=size, flips=True)
        for size in (0, 1 << 30)
    )
    assert first.fingerprint == second.fingerprint
    assert first.skipped == second.skipped
    assert all(same(a, b) for a, b in zip(first, second, strict=True))


def test_all_bad_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for cache_bytes in (0, 1 << 30):
        with pytest.raises(DataError, match="none of the 1 images"):
            TrainingBatches(
                open_source(tmp_path), OPTIONS, batch_size=1, steps=1, on_error="skip", cache_bytes=cache_bytes
            )


def test_impossible_arguments(folder: Path) -> None:
    for bad in ({"start_step": 3}, {"start_step": -1}, {"workers": -1}, {"on_error": "ignore"}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            TrainingBatches(open_source(folder), OPTIONS, **({"batch_size": 1, "steps": 2} | bad))  # type: ignore[arg-type]
