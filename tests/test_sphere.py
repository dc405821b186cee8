"""The geometry: on the sphere, exact angles, constant speed, finite gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spheregen.sphere import (
    EPS,
    angle_between,
    angle_to_sigma,
    rotate,
    sigma_to_angle,
    slerp,
    spherify,
    uniform_points,
)

SHAPES = [(4, 16, 8), (3, 40), (2, 4, 4, 6)]
TYPES = [torch.float32, torch.float64]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def norms(v: Tensor) -> Tensor:
    return v.double().flatten(1).norm(dim=1)


def radius(v: Tensor) -> float:
    return math.sqrt(v[0].numel())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_spherify_puts_samples_on_the_sphere_of_radius_sqrt_l(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    v = spherify(5 * gaussian(*shape, dtype=dtype))
    assert v.shape == shape
    assert v.dtype == dtype
    torch.testing.assert_close(norms(v), torch.full((shape[0],), radius(v)).double(), rtol=1e-6, atol=0)


def test_spherify_is_one_scale_a_sample_not_one_a_token() -> None:
    z = gaussian(3, 10, 4)
    z[:, 0] *= 20
    v = spherify(z)
    scale = v / z
    torch.testing.assert_close(scale, scale[:, :1, :1].expand_as(scale))
    tokens = v.norm(dim=2)
    assert (tokens[:, 0] > 3 * tokens[:, 1:].amax(dim=1)).all()
    for i in range(3):  # and the samples do not see each other
        torch.testing.assert_close(spherify(z[i : i + 1])[0], v[i])


def test_spherify_is_the_published_formula_in_float64() -> None:
    z = 0.01 * gaussian(2, 5, 3, dtype=torch.float64)
    for sample, v in zip(z, spherify(z), strict=True):
        mean_square = sum(float(number) ** 2 for number in sample.flatten()) / 15
        expected = sample / math.sqrt(mean_square + EPS)
        torch.testing.assert_close(v, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_spherify_takes_its_statistics_in_float32(dtype: torch.dtype) -> None:
    z = (30 * gaussian(2, 64, 64)).to(dtype)  # the sum of squares overflows float16 and drowns in bfloat16
    v = spherify(z)
    assert v.dtype == dtype
    torch.testing.assert_close(v, spherify(z.float()).to(dtype), rtol=0, atol=0)


def test_spherify_of_zero_has_a_finite_gradient() -> None:
    z = torch.zeros(2, 4, 4, requires_grad=True)
    v = spherify(z)
    v.sum().backward()
    assert torch.equal(v, torch.zeros_like(v))
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("function", [spherify, lambda x: angle_between(x, x)])
def test_a_single_number_a_sample_is_refused(function: object) -> None:
    with pytest.raises(ValueError, match="batch axis"):
        function(torch.zeros(4))  # type: ignore[operator]


def test_angles_and_sigmas_at_the_limits() -> None:
    assert angle_to_sigma(0) == 0
    assert angle_to_sigma(45) == pytest.approx(1)
    assert angle_to_sigma(85) == pytest.approx(11.430052)
    assert sigma_to_angle(math.inf) == 90
    for angle in (0, 1e-6, 10, 89.999):
        assert sigma_to_angle(angle_to_sigma(angle)) == pytest.approx(angle, rel=1e-12)
    for angle in (90, 120, -1, math.nan):
        with pytest.raises(ValueError, match=r"\[0, 90\)"):
            angle_to_sigma(angle)
    with pytest.raises(ValueError, match="not negative"):
        sigma_to_angle(-0.1)


@pytest.mark.parametrize("degrees", [1e-4, 1e-3, 0.1, 1, 45, 90, 179, 179.9999])
def test_angle_between_is_exact_for_small_and_for_large_angles(degrees: float) -> None:
    v = spherify(gaussian(4, 16, 8, dtype=torch.float64))
    w = rotate(v, gaussian(4, 16, 8, seed=1, dtype=torch.float64), degrees)
    torch.testing.assert_close(angle_between(v, w), torch.full((4,), degrees).double(), rtol=1e-7, atol=0)
    assert (angle_between(v.float(), w.float()) - degrees).abs().max() < 3e-5  # acos would be 0.02 off


def test_angle_between_at_its_limits() -> None:
    v = gaussian(4, 16, 8)
    assert torch.equal(angle_between(v, v), torch.zeros(4))
    torch.testing.assert_close(angle_between(v, -v), torch.full((4,), 180.0))
    torch.testing.assert_close(angle_between(v, 5 * v), torch.zeros(4), atol=5e-5, rtol=0)  # lengths do not count
    assert angle_between(v, gaussian(4, 16, 8, seed=1)).shape == (4,)
    assert angle_between(torch.zeros(1, 4), torch.zeros(1, 4)).isfinite().all()
    x = v.clone().requires_grad_()
    angle_between(x, v).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@settings(deadline=None, max_examples=25)
@given(degrees=st.floats(min_value=0, max_value=180), seed=st.integers(0, 1000))
def test_rotate_turns_by_exactly_the_asked_angle(degrees: float, seed: int) -> None:
    v, towards = spherify(gaussian(2, 6, 4, seed=seed)), gaussian(2, 6, 4, seed=seed + 1)
    turned = rotate(v, towards, degrees)
    assert (angle_between(v, turned) - degrees).abs().max() < 1e-3
    torch.testing.assert_close(norms(turned), norms(v), rtol=1e-6, atol=0)


def test_rotate_follows_the_great_circle_to_its_target() -> None:
    v, target = spherify(gaussian(3, 6, 4)), spherify(gaussian(3, 6, 4, seed=1))
    apart = angle_between(v, target)
    torch.testing.assert_close(rotate(v, target, apart), target, atol=1e-5, rtol=0)
    assert torch.equal(rotate(v, target, 0.0), v)
    angles = torch.tensor([10.0, 60.0, 90.0])
    turned = rotate(v, target, angles)
    torch.testing.assert_close(angle_between(v, turned), angles, atol=1e-3, rtol=0)
    torch.testing.assert_close(angle_between(turned, target), (apart - angles).abs(), atol=1e-3, rtol=0)


def test_slerp_gradients_are_finite_and_right() -> None:
    a, b = (spherify(gaussian(1, 3, 2, seed=seed, dtype=torch.float64)).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda x, y: slerp(x, y, 0.3), (a, b))
    opposite = slerp(a, -a, 0.5)
    opposite.sum().backward()
    assert opposite.isfinite().all()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_uniform_points_are_on_the_sphere_and_spread_evenly() -> None:
    v = uniform_points(4000, (4, 2), generator=torch.Generator().manual_seed(0))
    assert v.shape == (4000, 4, 2)
    torch.testing.assert_close(norms(v), torch.full((4000,), radius(v)).double(), rtol=1e-5, atol=0)
    flat = v.flatten(1)
    assert flat.mean(dim=0).abs().max() < 5 / math.sqrt(4000)
    covariance = flat.T @ flat / 4000
    torch.testing.assert_close(covariance, torch.eye(8), atol=0.1, rtol=0)
    angles = angle_between(v[:2000], v[2000:])
    assert (angles.mean() - 90).abs() < 2
