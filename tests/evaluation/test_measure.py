"""Sets of images to features on disk: interrupted, continued, shared."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from spheregen.distributed import World
from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.features.base import FeatureBatch
from spheregen.evaluation.images import chunk_of
from spheregen.evaluation.measure import measure, pick, spread
from tests.evaluation.stubs import RandomImages, TinyFeatures

COUNT = 3 * 256 + 10


def test_features_are_those_of_the_network_in_the_order_of_the_images(tmp_path: Path) -> None:
    images, tiny = RandomImages(COUNT), TinyFeatures(64)
    found = measure(images, {"tiny": tiny}, tmp_path, thumbnails=300)
    expected = images.images.flatten(1).float() / 255 @ tiny.matrix
    assert torch.allclose(found.features["tiny"][0:COUNT], expected, atol=1e-5)
    assert torch.equal(found.logits["tiny"][0:COUNT], found.features["tiny"][0:COUNT][:, :3])
    assert torch.equal(found.thumbnails(), images.images[:300])
    assert found.labels is not None and len(found.labels) == COUNT


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    measure(RandomImages(COUNT), {"tiny": TinyFeatures(64)}, tmp_path)
    images, tiny = RandomImages(COUNT), TinyFeatures(64)
    measure(images, {"tiny": tiny}, tmp_path)
    assert images.read == tiny.seen == 0
    other = RandomImages(COUNT, seed=1)
    measure(other, {"tiny": tiny}, tmp_path)
    assert other.read == COUNT


def test_an_interrupted_measurement_continues_with_the_same_bits(tmp_path: Path) -> None:
    whole = measure(RandomImages(COUNT), {"tiny": TinyFeatures(64)}, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        measure(RandomImages(COUNT, breaks_at=2), {"tiny": TinyFeatures(64)}, tmp_path / "parts")
    images = RandomImages(COUNT)
    parts = measure(images, {"tiny": TinyFeatures(64)}, tmp_path / "parts")
    assert images.read == COUNT - 512
    assert torch.equal(parts.features["tiny"][0:COUNT], whole.features["tiny"][0:COUNT])


class Pair(World):
    """One of two processes, here threads, that wait for each other."""

    def __init__(self, rank: int, barrier: threading.Barrier) -> None:
        super().__init__(rank, 2, rank)
        object.__setattr__(self, "barrier", barrier)

    def wait_for_all(self) -> None:
        self.barrier.wait(60)  # type: ignore[attr-defined]


def test_two_processes_give_the_same_bits_as_one(tmp_path: Path) -> None:
    alone = measure(RandomImages(COUNT), {"tiny": TinyFeatures(64)}, tmp_path / "alone")
    barrier = threading.Barrier(2)
    sets = [RandomImages(COUNT), RandomImages(COUNT)]
    threads = [
        threading.Thread(
            target=measure,
            args=(sets[rank], {"tiny": TinyFeatures(64)}, tmp_path / "both"),
            kwargs={"world": Pair(rank, barrier)},
        )
        for rank in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(images.read for images in sets) == [256 + 10, 512]
    both = measure(RandomImages(COUNT), {"tiny": TinyFeatures(64)}, tmp_path / "both")
    assert torch.equal(both.features["tiny"][0:COUNT], alone.features["tiny"][0:COUNT])


def test_features_that_are_not_finite_are_refused_by_number(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="for image 319"):
        measure(RandomImages(COUNT), {"tiny": TinyFeatures(64, poison=256)}, tmp_path)


def test_a_network_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    class Liar(TinyFeatures):
        def __call__(self, images: torch.Tensor) -> FeatureBatch:
            return FeatureBatch(super().__call__(images).features[:, :2])

    with pytest.raises(ConfigError, match=r"shape \(256, 2\)"):
        measure(RandomImages(COUNT), {"tiny": Liar(64)}, tmp_path)


def test_large_images_are_kept_small(tmp_path: Path) -> None:
    images = RandomImages(5, size=128)
    found = measure(images, {"tiny": TinyFeatures(128 * 128)}, tmp_path, thumbnails=3)
    assert found.thumbnails().shape == (3, 1, 64, 64)
    assert abs(found.thumbnails().float().mean() - images.images[:3].float().mean()) < 2


def test_chunks_depend_on_the_size_of_the_images_alone() -> None:
    assert chunk_of((3, 32, 32)) == chunk_of((1, 64, 64)) == 256
    assert chunk_of((3, 256, 256)) == 16
    assert chunk_of((3, 4096, 4096)) == 8


def test_rows_are_picked_and_spread() -> None:
    rows = torch.randn(10_000, 2)
    chosen = spread(7, len(rows))
    assert chosen.tolist() == [0, 1428, 2857, 4285, 5714, 7142, 8571]
    assert torch.equal(pick(rows, chosen), rows[chosen])
    assert spread(20, 4).tolist() == [0, 1, 2, 3]
