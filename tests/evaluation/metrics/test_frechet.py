"""The Frechet distance equals scipy's, the features' own nuclear norm where scipy's errs, and known formulas.

The bar: at most 1e-6 of the two traces together.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spheregen.errors import DataError
from spheregen.evaluation.metrics import Gaussian, frechet_distance, moments
from tests.evaluation.metrics.conftest import Pair, random_features


def by_features(x: Tensor, y: Tensor) -> float:
    """From the centred features alone: tr (S1 S2)^(1/2) is the nuclear norm of A B^T, and no root is ever taken."""
    x, y = x.double(), y.double()
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    apart = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    return float(apart - 2 * torch.linalg.matrix_norm(a @ b.T, ord="nuc"))


def traces(a: Gaussian, b: Gaussian) -> float:
    return float(a.covariance.trace() + b.covariance.trace())


def test_it_equals_the_nuclear_norm_of_the_features(pair: Pair) -> None:
    a, b = (moments(x).gaussian for x in pair)
    assert abs(frechet_distance(a, b) - by_features(*pair)) <= 1e-6 * traces(a, b)


def test_it_equals_scipys(pair: Pair) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    if min(map(len, pair)) <= pair[0].shape[1]:
        pytest.skip("scipy's root of a singular matrix is not exact")
    a, b = (moments(x).gaussian for x in pair)
    root = linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    expected = float((a.mean - b.mean).square().sum()) + traces(a, b) - 2 * root.trace().real
    assert abs(frechet_distance(a, b) - expected) <= 1e-6 * traces(a, b)


@pytest.mark.parametrize(("count", "dim"), [(2, 16), (40, 256), (255, 256), (257, 256)])
def test_few_images_with_and_without_their_number(count: int, dim: int) -> None:
    """Published files do not say how many images they are of; the bar holds without that too."""
    x, y = random_features(count, dim, 0), random_features(count + 1, dim, 1, 1.3)
    a, b = moments(x).gaussian, moments(y).gaussian
    bar = 1e-6 * traces(a, b)
    assert abs(frechet_distance(a, b) - by_features(x, y)) <= bar
    unknown = [Gaussian(g.mean, g.covariance) for g in (a, b)]
    assert abs(frechet_distance(unknown[0], unknown[1]) - by_features(x, y)) <= bar
    assert abs(frechet_distance(unknown[0], b) - by_features(x, y)) <= bar


def test_diagonal_gaussians_in_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    means, deviations = (torch.rand(2, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (Gaussian(mean, deviation.square().diag()) for mean, deviation in zip(means, deviations, strict=True))
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_scaled_copies_in_closed_form(pair: Pair) -> None:
    """Features times c, moved by d: |d|^2 + (1 - c)^2 tr S."""
    x = pair[0].double()
    a, b = moments(x).gaussian, moments((x - x.mean(0)) * 1.5 + x.mean(0) + 0.2).gaussian
    expected = 0.04 * a.dim + 0.25 * float(a.covariance.trace())
    assert abs(frechet_distance(a, b) - expected) <= 1e-9 * traces(a, b)


def test_equal_sets_are_not_apart(pair: Pair) -> None:
    for features in pair:
        known = moments(features).gaussian
        unknown = Gaussian(known.mean, known.covariance)
        for gaussian in (known, unknown):
            assert 0 <= frechet_distance(gaussian, gaussian) <= 1e-6 * traces(gaussian, gaussian)


def test_it_is_symmetric_and_blind_to_rotation_and_order(rotation: Tensor) -> None:
    x, y = random_features(90, 24, 0).double(), random_features(80, 24, 1, 1.2).double()
    a, b = moments(x).gaussian, moments(y).gaussian
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-9)
    turned = frechet_distance(moments(x @ rotation).gaussian, moments(y @ rotation).gaussian)
    assert turned == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(moments(x.flip(0)).gaussian, b) == pytest.approx(distance, rel=1e-9)


def test_constant_features() -> None:
    a, b = (Gaussian(torch.full((3,), value), torch.zeros(3, 3), 10) for value in (1.0, 2.0))
    assert frechet_distance(a, b) == 3
    assert frechet_distance(a, a) == 0
    single = Gaussian(torch.full((3,), 3.0), torch.zeros(3, 3), 1)
    assert frechet_distance(single, b) == 3


def test_errors() -> None:
    good = Gaussian(torch.zeros(3), torch.eye(3))
    cases = {
        "one distribution has 3 features and the other 2": Gaussian(torch.zeros(2), torch.eye(2)),
        r"covariance of shape \(2, 2\)": Gaussian(torch.zeros(3), torch.eye(2)),
        "holds NaN": Gaussian(torch.zeros(3), torch.full((3, 3), torch.nan)),
        "has the eigenvalue -1 and so is none": Gaussian(torch.zeros(3), torch.diag(torch.tensor([1.0, 1.0, -1.0]))),
    }
    for message, bad in cases.items():
        with pytest.raises(DataError, match=message):
            frechet_distance(good, bad)
