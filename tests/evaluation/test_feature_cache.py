"""Sets of images to features on disk: interrupted, continued, shared; whole chunks or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spheregen.errors import ConfigError, DataError, SphereGenError
from spheregen.evaluation.feature_cache import extract_features
from spheregen.measure.features import FeatureBatch
from tests.evaluation.stubs import RandomImages, TinyFeatures

COUNT = 3 * 256 + 10


def test_features_are_those_of_the_network_in_the_order_of_the_images(tmp_path: Path) -> None:
    images, tiny = RandomImages(COUNT), TinyFeatures(64)
    found = extract_features(images, {"tiny": tiny}, tmp_path, thumbnails=300)
    expected = images.images.flatten(1).float() / 255 @ tiny.matrix
    assert torch.allclose(found.features["tiny"], expected, atol=1e-5)
    assert torch.equal(found.logits["tiny"], found.features["tiny"][:, :3])
    assert torch.equal(found.thumbnails, images.images[:300])
    assert found.labels is not None and len(found.labels) == COUNT
    found.features["tiny"].zero_()  # which does not reach the file
    again = extract_features(images, {"tiny": tiny}, tmp_path, thumbnails=300)
    assert torch.allclose(again.features["tiny"], expected, atol=1e-5)


def test_what_was_measured_is_not_measured_again_and_new_images_are(tmp_path: Path) -> None:
    extract_features(RandomImages(COUNT), {"tiny": TinyFeatures(64)}, tmp_path)
    images, tiny = RandomImages(COUNT), TinyFeatures(64)
    extract_features(images, {"tiny": tiny}, tmp_path)
    assert images.read == tiny.seen == 0
    other = RandomImages(COUNT, seed=1)
    extract_features(other, {"tiny": tiny}, tmp_path)
    assert other.read == COUNT


def test_an_interrupted_extraction_continues_with_the_same_bits(tmp_path: Path) -> None:
    whole = extract_features(RandomImages(COUNT), {"tiny": TinyFeatures(64)}, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        extract_features(RandomImages(COUNT, breaks_at=2), {"tiny": TinyFeatures(64)}, tmp_path / "parts")
    images = RandomImages(COUNT)
    parts = extract_features(images, {"tiny": TinyFeatures(64)}, tmp_path / "parts")
    assert images.read == COUNT - 512
    assert torch.equal(parts.features["tiny"], whole.features["tiny"])


@pytest.mark.parametrize("damage", ["no record", "half a record", "shortened", "rewritten"])
def test_a_damaged_cache_is_made_again(damage: str, tmp_path: Path) -> None:
    whole = extract_features(RandomImages(COUNT), {"tiny": TinyFeatures(64)}, tmp_path).features["tiny"].clone()
    (folder,) = tmp_path.iterdir()
    done, features = folder / "done.npy", folder / "0.npy"
    if damage == "no record":
        done.unlink()
    elif damage == "half a record":
        np.save(done, np.array([1, 0, 1, 1], np.uint8))
    elif damage == "shortened":
        features.write_bytes(features.read_bytes()[:-5])
    else:
        np.save(features, np.zeros((3, 6), np.float32))
    images = RandomImages(COUNT)
    found = extract_features(images, {"tiny": TinyFeatures(64)}, tmp_path)
    assert images.read == (256 if damage == "half a record" else COUNT)
    assert torch.equal(found.features["tiny"], whole)


def test_refusals(tmp_path: Path) -> None:
    class Liar(TinyFeatures):
        def __call__(self, images: torch.Tensor) -> FeatureBatch:
            return FeatureBatch(super().__call__(images).features[:, :2])

    with pytest.raises(DataError, match="image 319"):
        extract_features(RandomImages(COUNT), {"tiny": TinyFeatures(64, poison=256)}, tmp_path)
    with pytest.raises(ConfigError, match=r"\(256, 2\)"):
        extract_features(RandomImages(COUNT), {"tiny": Liar(64)}, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SphereGenError, match="file"):
        extract_features(RandomImages(COUNT), {"tiny": TinyFeatures(64)}, tmp_path / "file")
