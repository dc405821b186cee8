"""What the test of uniformity finds, and that its p-values are right. Level and power have files of their own."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.evaluation.sphere.uniformity import gamma_tail, uniformity_test
from spheregen.sphere import rotate
from tests.evaluation.sphere.toys import generator, uniform


@pytest.mark.parametrize("skewness", [1.6, 0.3, 0.0078, 0.002, 0.0])
@pytest.mark.parametrize("z", [-3.0, 0.0, 2.0, 2.7, 10.0, 30.0])
def test_gamma_tail_equals_scipys(skewness: float, z: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert gamma_tail(z, skewness) == pytest.approx(float(stats.pearson3(skewness).sf(z)), rel=1e-6)


def test_classical_laws_where_points_are_many() -> None:
    """With n = 4000 in 3 dimensions the chi-squared laws of the textbooks hold."""
    stats = pytest.importorskip("scipy.stats")
    points = uniform(4000, 3, 1)
    points[:, 0] += 0.05
    points[:, 1] *= 1.04
    tests = uniformity_test(points).tests
    unit = torch.nn.functional.normalize(points.double(), dim=1)
    rayleigh = 4000 * 3 * float(unit.mean(dim=0).square().sum())
    moment = unit.T @ unit / 4000
    bingham = 4000 * 15 / 2 * (float(moment.square().sum()) - 1 / 3)
    assert tests["rayleigh"].statistic == pytest.approx(rayleigh, rel=1e-5)
    assert tests["bingham"].statistic == pytest.approx(bingham, rel=1e-4)
    assert tests["rayleigh"].p_value == pytest.approx(float(stats.chi2(3).sf(rayleigh)), rel=0.02)
    assert tests["bingham"].p_value == pytest.approx(float(stats.chi2(5).sf(bingham)), rel=0.02)


@pytest.mark.parametrize(("count", "dim"), [(2, 512), (10, 3), (20, 24), (60, 8), (100, 300)])
def test_level_of_small_sets(count: int, dim: int) -> None:
    """At a level of 10 % and 200 draws: 20 expected at most, and 36 is 3.8 deviations more."""
    p_values = [uniformity_test(uniform(count, dim, 1000 + draw)).p_value for draw in range(200)]
    assert sum(p < 0.1 for p in p_values) <= 36


def test_moments_of_the_sums_in_high_dimension() -> None:
    """At n = 100 and L = 300 neither textbook law holds; mean and deviation of the statistics must."""
    tests = [uniformity_test(uniform(100, 300, 5000 + draw)).tests for draw in range(300)]
    for name, deviation in (("rayleigh", math.sqrt(2 * 300 * 99 / 100)), ("bingham", None)):
        values = torch.tensor([test[name].statistic for test in tests], dtype=torch.float64)
        p_values = torch.tensor([test[name].p_value for test in tests])
        assert float(p_values.mean()) == pytest.approx(0.5, abs=0.07)  # 0.017 is one deviation
        assert float(p_values.std()) == pytest.approx(0.289, abs=0.04)
        if deviation is not None:
            assert float(values.mean()) == pytest.approx(300, abs=4 * deviation / math.sqrt(300))
            assert float(values.std()) == pytest.approx(deviation, rel=0.17)


def antipodal_clumps() -> Tensor:
    points = uniform(2000, 512, 21)
    center = uniform(1, 512, 22).expand(20, -1) * torch.tensor([1.0, -1.0]).repeat(10)[:, None]
    points[:20] = rotate(center, torch.randn(20, 512, generator=generator(23)), 25.0)
    return points


def low_rank() -> Tensor:
    points = uniform(2000, 512, 24)
    points[:, 500:] = 0
    return points @ torch.linalg.qr(torch.randn(512, 512, generator=generator(25)))[0]


def half_missing() -> Tensor:
    points = uniform(2000, 512, 26)
    direction = uniform(1, 512, 27)
    return points * torch.sign(points @ direction.T)


def hole() -> Tensor:
    points = uniform(3000, 4, 28)
    return points[points[:, 0] < 2 * math.cos(math.radians(40))]


def classes() -> Tensor:
    centers = uniform(10, 512, 29)
    away = torch.randn(2000, 512, generator=generator(30))
    return rotate(centers.repeat(200, 1), away, 86.0)


def one_pair() -> Tensor:
    points = uniform(2000, 512, 31)
    points[1999] = rotate(points[:1], uniform(1, 512, 32), 70.0)[0]
    return points


STRUCTURES = {
    "antipodal clumps": (antipodal_clumps, "bingham"),
    "a great sphere of 500 dimensions": (low_rank, "bingham"),
    "half of the sphere": (half_missing, "rayleigh"),
    "a hole of 40 degrees in 4 dimensions": (hole, "rayleigh"),
    "10 classes 86 degrees wide": (classes, "rayleigh"),
    "one pair 70 degrees apart": (one_pair, "largest_cosine"),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_is_found(name: str) -> None:
    make, finder = STRUCTURES[name]
    found = uniformity_test(make())
    assert found.rejected and found.p_value < 0.01
    assert found.tests[finder].p_value < 0.01 / 3


def test_the_closest_pair_is_named() -> None:
    assert uniformity_test(one_pair()).closest_pair == (0, 1999)


def test_rotation_changes_nothing() -> None:
    points = uniform(300, 12, 41)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator(42)))[0]
    one, other = uniformity_test(points), uniformity_test(7 * points @ turn)
    for name in one.tests:
        assert one.tests[name].p_value == pytest.approx(other.tests[name].p_value, rel=1e-3)


def test_distance_of_the_angles_from_their_law() -> None:
    assert uniformity_test(uniform(2000, 512, 51)).ks_distance < 2e-3
    spread_out = uniformity_test(torch.eye(64)).ks_distance  # all angles are 90: half of the law lies on either side
    assert spread_out == pytest.approx(0.5, abs=1e-3)


def test_more_even_than_chance_passes() -> None:
    found = uniformity_test(torch.eye(64))
    assert not found.rejected and found.tests["largest_cosine"].p_value == 1


def test_plain_values() -> None:
    found = uniformity_test(uniform(20, 8, 61)).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["tests"]) == {"rayleigh", "bingham", "largest_cosine"}


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_levels_that_cannot_be(level: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        uniformity_test(uniform(20, 8, 71), level)
