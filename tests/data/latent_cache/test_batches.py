"""Batches of latents come in the order of batches of images, exactly, from memory and from disk."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.data import Batch, ImageSource, TrainingBatches, open_source
from spheregen.data.latent_cache import LatentBatches, LatentCache
from spheregen.errors import ConfigError
from tests.data.kinds import contents, same, write_folder
from tests.data.latent_cache.toys import OPTIONS, Convolution, Pixels, encode


def images_of(batch: Batch) -> Batch:
    """A batch of images from the latents of `Pixels`."""
    return Batch(inputs=Pixels().decode(batch.inputs), labels=batch.labels, indices=batch.indices, step=batch.step)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize("flips", [False, True])
def test_the_order_is_that_of_the_images(encoded: Path, source: ImageSource, cache_bytes: int, flips: bool) -> None:
    images = TrainingBatches(source, OPTIONS, batch_size=5, steps=20, seed=3, flips=flips)
    latents = LatentBatches(LatentCache(encoded), batch_size=5, steps=20, seed=3, flips=flips, cache_bytes=cache_bytes)
    assert latents.cached == (cache_bytes > 0)
    assert (len(latents), latents.count, latents.class_names) == (20, 23, source.class_names)
    pairs = list(zip(images, latents, strict=True))
    assert all(same(first, images_of(second)) for first, second in pairs)
    assert same(images.batch(7), images_of(latents.batch(7)))
    assert all(second.inputs.dtype == torch.float32 for _, second in pairs)


def test_the_order_leaves_out_what_was_skipped(pictures: Path, tmp_path: Path) -> None:
    (pictures / "bee" / "001.png").write_bytes(b"junk")
    source = open_source(pictures)
    encode(Pixels(), source, tmp_path / "cache", on_error="skip")
    images = TrainingBatches(source, OPTIONS, batch_size=4, steps=12, flips=True, on_error="skip")
    latents = LatentBatches(LatentCache(tmp_path / "cache"), batch_size=4, steps=12, flips=True)
    assert latents.skipped == images.skipped
    assert all(same(first, images_of(second)) for first, second in zip(images, latents, strict=True))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize("start", [0, 1, 9, 10])
def test_any_start(encoded: Path, cache_bytes: int, start: int) -> None:
    opened = LatentCache(encoded)
    whole = list(LatentBatches(opened, batch_size=7, steps=10, flips=True))
    rest = LatentBatches(opened, batch_size=7, steps=10, flips=True, start_step=start, cache_bytes=cache_bytes)
    assert len(rest) == 10 - start
    assert [batch.step for batch in rest] == list(range(start, 10))
    assert all(same(first, second) for first, second in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_ranks_share_each_batch(encoded: Path, cache_bytes: int) -> None:
    opened = LatentCache(encoded)
    settings: dict[str, Any] = {"batch_size": 6, "steps": 8, "seed": 1, "cache_bytes": cache_bytes}
    whole = LatentBatches(opened, flips=True, **settings)
    shares = [LatentBatches(opened, flips=True, rank=rank, world_size=3, **settings) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))
        assert torch.equal(batch.indices, torch.cat([part.indices for part in parts]))


def test_bf16_from_memory_and_from_disk(source: ImageSource, tmp_path: Path) -> None:
    encode(Convolution(), source, tmp_path / "cache", dtype="bf16", flips=False)
    opened = LatentCache(tmp_path / "cache")
    memory, disk = (LatentBatches(opened, batch_size=5, steps=9, cache_bytes=bytes) for bytes in (1 << 30, 0))
    assert all(same(first, second) for first, second in zip(memory, disk, strict=True))
    assert memory.batch(0).inputs.dtype == torch.float32
    assert memory.fingerprint == opened.fingerprint


def test_without_labels(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "flat", {Path(name).name: data for name, data in contents(5).items()})
    encode(Pixels(), open_source(folder), tmp_path / "cache")
    batches = LatentBatches(LatentCache(tmp_path / "cache"), batch_size=12, steps=2)
    assert batches.batch(0).labels is None
    assert batches.batch(0).inputs.shape == (12, 36, 3)


def test_flips_of_one_view_are_refused(source: ImageSource, tmp_path: Path) -> None:
    encode(Pixels(), source, tmp_path / "cache", flips=False)
    with pytest.raises(ConfigError, match="cache holds no latents of mirror images; encode again with --flips, or set"):
        LatentBatches(LatentCache(tmp_path / "cache"), batch_size=4, steps=1, flips=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start_step": 6}, "start_step"),
        ({"prefetch": 0}, "prefetch"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 3, "world_size": 2}, "batch_size"),
    ],
)
def test_impossible_arguments(encoded: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LatentBatches(LatentCache(encoded), **({"batch_size": 4, "steps": 5} | change))


def test_a_loop_that_is_left_ends_its_thread(encoded: Path) -> None:
    before = threading.active_count()
    for _ in LatentBatches(LatentCache(encoded), batch_size=4, steps=1000, cache_bytes=0):
        break
    assert threading.active_count() == before
