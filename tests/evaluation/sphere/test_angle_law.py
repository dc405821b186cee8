"""The angle law against closed forms, scipy and integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spheregen.errors import DataError
from spheregen.evaluation.sphere.angle_law import AngleLaw

GRID = torch.linspace(0, 180, 721, dtype=torch.float64)
DIMS = (2, 3, 4, 24, 512, 2048, 98_304)


def test_closed_forms_in_two_and_three_dimensions() -> None:
    assert torch.allclose(AngleLaw(2).cdf(GRID), GRID / 180, rtol=0, atol=1e-14)
    assert torch.allclose(AngleLaw(3).cdf(GRID), (1 - torch.cos(torch.deg2rad(GRID))) / 2, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dim", DIMS)
def test_distribution_function_equals_scipys(dim: int) -> None:
    special = pytest.importorskip("scipy.special")
    low = np.deg2rad(np.minimum(GRID.numpy(), 180 - GRID.numpy()))
    square = np.cos(low) ** 2
    near = 0.5 * special.betaincc(0.5, (dim - 1) / 2, square)
    far = 0.5 * special.betainc((dim - 1) / 2, 0.5, np.sin(low) ** 2)
    tail = np.where(square < 0.5, near, far)
    expected = torch.from_numpy(np.where(GRID.numpy() <= 90, tail, 1 - tail))
    assert torch.allclose(AngleLaw(dim).cdf(GRID), expected, rtol=1e-9, atol=1e-290)


@pytest.mark.parametrize("dim", [24, 512, 2048])
@pytest.mark.parametrize("angle", [1.0, 10.0, 45.0, 80.0, 89.9])
def test_far_tails_equal_the_integral_of_the_density(dim: int, angle: float) -> None:
    grid = torch.linspace(0, math.radians(angle), 400_001, dtype=torch.float64)[1:]
    step = float(grid[1] - grid[0])
    weights = torch.full_like(grid, math.log(step))
    weights[-1] -= math.log(2)
    constant = math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2) - math.log(math.pi) / 2
    integral = constant + float(torch.logsumexp((dim - 2) * torch.log(torch.sin(grid)) + weights, dim=0))
    value = float(AngleLaw(dim).log_cdf(torch.tensor(angle, dtype=torch.float64)))
    assert value == pytest.approx(integral, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dim", DIMS)
def test_symmetric_rising_and_right_at_the_ends(dim: int) -> None:
    cdf = AngleLaw(dim).cdf(GRID)
    assert torch.allclose(cdf + cdf.flip(0), torch.ones_like(cdf), rtol=0, atol=1e-12)
    assert bool((cdf.diff() >= 0).all())
    assert (float(cdf[0]), float(cdf[360]), float(cdf[-1])) == (0.0, pytest.approx(0.5, abs=1e-12), 1.0)


@pytest.mark.parametrize("dim", [2, 3, 24, 512])
def test_density_and_deviation(dim: int) -> None:
    law = AngleLaw(dim)
    fine = torch.linspace(0, 180, 180_001, dtype=torch.float64)
    density = law.density(fine)
    assert float(torch.trapezoid(density, fine)) == pytest.approx(1, abs=1e-9)
    assert float(torch.trapezoid(density * (fine - 90).square(), fine)) ** 0.5 == pytest.approx(law.std, rel=1e-8)
    assert law.mean == 90


@pytest.mark.parametrize("dim", [2, 24, 2048])
@pytest.mark.parametrize("probability", [1e-200, 1e-6, 0.3, 0.5, 0.9, 1 - 1e-9])
def test_quantile_inverts_the_distribution_function(dim: int, probability: float) -> None:
    angle = AngleLaw(dim).quantile(probability)
    assert float(AngleLaw(dim).cdf(torch.tensor(angle, dtype=torch.float64))) == pytest.approx(probability, rel=1e-6)


def test_median_nearest_of_simulated_points() -> None:
    random = torch.randn(400, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    others = torch.randn(100, 400, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    angles = torch.rad2deg(torch.acos(torch.cosine_similarity(random[None], others, dim=2)))
    assert float(angles.min(dim=0).values.median()) == pytest.approx(AngleLaw(24).median_nearest(100), abs=0.7)


def test_both_tails_of_a_cosine() -> None:
    law = AngleLaw(24)
    below = float(law.cdf(torch.tensor(60.0, dtype=torch.float64)))
    assert math.exp(law.log_tail_of_cosine(0.5)) == pytest.approx(2 * below, rel=1e-12)
    assert math.exp(law.log_tail_of_cosine(0.0)) == pytest.approx(1)
    assert law.log_tail_of_cosine(1.0) == -math.inf


def test_a_line_has_no_angles() -> None:
    with pytest.raises(DataError, match="at least 2 dimensions"):
        AngleLaw(1)
