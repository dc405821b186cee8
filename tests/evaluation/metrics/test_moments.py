"""Moments equal those of numpy in one piece, however the features come in, and far from 0 too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spheregen.errors import DataError
from spheregen.evaluation.metrics import Moments, moments
from tests.evaluation.metrics.conftest import Pair, Stored, random_features


def close(found: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-12) -> bool:
    return float(np.abs(found.numpy() - expected).max()) <= tolerance * float(np.abs(expected).max())


def test_they_equal_numpys(pair: Pair) -> None:
    for features in pair:
        found = moments(features)
        assert found.count == len(features)
        assert found.mean.dtype == found.covariance.dtype == torch.float64
        assert close(found.mean, features.double().numpy().mean(0))
        assert close(found.covariance, np.cov(features.double().numpy(), rowvar=False))


@pytest.mark.parametrize("sizes", [(1,), (7,), (1, 50, 2, 347), (399, 1)])
def test_batches_and_merged_parts_equal_the_whole(sizes: tuple[int, ...]) -> None:
    features = random_features(400, 24, 0)
    whole, batched, merged = moments(features), Moments(), Moments()
    batches = features.split(list(sizes) if sum(sizes) == 400 else sizes[0])
    for batch in batches:
        batched.update(batch)
        part = Moments()
        part.update(batch)
        merged.merge(part)
    for found in (batched, merged):
        assert found.count == 400
        assert close(found.mean, whole.mean.numpy())
        assert close(found.covariance, whole.covariance.numpy())


def test_a_large_mean_does_no_harm() -> None:
    """Squares of 1e6 and more would drown variances of 2e-5 in float64; multiples of 1/1024 stay exact beside 1e6."""
    features = torch.randint(-8, 9, (500, 6), generator=torch.Generator().manual_seed(0)).double() / 1024
    found = Moments()
    for batch in (features + 1e6).split(33):
        found.update(batch)
    assert close(found.covariance, np.cov(features.numpy(), rowvar=False), 1e-8)


def test_merging_nothing_changes_nothing_and_parts_stay_as_they_were() -> None:
    features = random_features(40, 24, 0)
    one, other, joined = moments(features[:15]), moments(features[15:]), Moments()
    joined.merge(Moments())
    joined.update(features[:0])
    assert joined.count == 0
    before = one.covariance.clone(), other.covariance.clone()
    joined.merge(one)
    joined.merge(other)
    joined.merge(Moments())
    assert joined.count == 40
    assert torch.equal(one.covariance, before[0]) and torch.equal(other.covariance, before[1])


def test_a_gaussian_stays_as_it_was_taken() -> None:
    features = random_features(40, 24, 0)
    found = moments(features[:20])
    gaussian = found.gaussian
    mean, covariance = gaussian.mean.clone(), gaussian.covariance.clone()
    found.update(features[20:])
    assert torch.equal(gaussian.mean, mean) and torch.equal(gaussian.covariance, covariance)
    assert not torch.equal(found.mean, mean)


def test_files_are_read_in_blocks() -> None:
    rows = Stored(random_features(9000, 3, 0))
    found = moments(rows)
    assert rows.largest <= 4096
    assert close(found.covariance, np.cov(rows[0:9000].double().numpy(), rowvar=False))


def test_errors() -> None:
    with pytest.raises(DataError, match="a mean needs at least 1 image, not 0"):
        _ = Moments().mean
    with pytest.raises(DataError, match="a covariance needs at least 2 images, not 1"):
        _ = moments(torch.zeros(1, 3)).gaussian
    found = moments(torch.zeros(2, 3))
    with pytest.raises(DataError, match="width 4 follow features of width 3"):
        found.update(torch.zeros(2, 4))
    with pytest.raises(DataError, match="the features of image 1 hold NaN"):
        moments(torch.tensor([[0.0], [torch.nan]]))
