"""Latent spaces: how latents enter them, how noise of an angle moves points, from 0 to 90 degrees."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spheregen.prior import ADDITIVE, GAUSSIAN, PRIORS, ROTATION, SPHERE, TOKEN_ROTATION, Prior
from spheregen.sphere import angle_between, scale_noise, spherify

EACH = [*PRIORS.values()]
EVERY = pytest.mark.parametrize("prior", EACH, ids=[prior.name for prior in EACH])


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Z, E = 3 * gaussian(6, 4, 8), gaussian(6, 4, 8, seed=1)
ANGLES = torch.tensor([0.0, 5.0, 45.0, 80.0, 85.0, 89.0], dtype=torch.float64).deg2rad()


@EVERY
def test_noise_of_nothing_changes_no_bit(prior: Prior) -> None:
    v = prior.project(Z)
    assert torch.equal(prior.perturb(v, E, 0.0), v)
    assert torch.equal(prior.perturb(v, E, torch.zeros(6)), v)
    assert torch.equal(prior.perturb(v, E, ANGLES)[0], v[0])


@EVERY
def test_one_angle_for_all_is_one_for_each(prior: Prior) -> None:
    v = prior.project(Z)
    together = prior.perturb(v, E, ANGLES)
    for row, angle in enumerate(ANGLES.tolist()):
        alone = prior.perturb(v[row : row + 1], E[row : row + 1], angle)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)


@EVERY
@pytest.mark.parametrize("angle", [10.0, 45.0, 80.0])
def test_a_point_moves_by_the_angle_of_the_noise(prior: Prior, angle: float) -> None:
    v, e = prior.project(gaussian(64, 64, 64)), gaussian(64, 64, 64, seed=1)
    moved = prior.perturb(v, e, math.radians(angle))
    assert angle_between(v, moved).mean().item() == pytest.approx(angle, abs=1)


@pytest.mark.parametrize("given", [math.pi / 2, torch.full((6,), math.pi / 2), torch.full((6,), math.pi / 2).double()])
def test_at_a_right_angle_nothing_is_left_of_the_point(given: Tensor | float) -> None:
    v = spherify(Z)
    for prior in (SPHERE, ROTATION):
        torch.testing.assert_close(prior.perturb(v, E, given), prior.project(E), atol=1e-5, rtol=0)
    torch.testing.assert_close(GAUSSIAN.perturb(Z, E, given), E, atol=1e-5, rtol=0)
    assert ADDITIVE.perturb(Z, E, given).isfinite().all()


def test_the_laws_by_hand() -> None:
    v, a = spherify(Z), math.radians(70)
    assert torch.equal(SPHERE.project(Z), v)
    torch.testing.assert_close(ROTATION.project(Z), spherify(Z, 1e-5))
    torch.testing.assert_close(TOKEN_ROTATION.project(Z)[:, 1], spherify(Z[:, 1], 1e-5))
    assert GAUSSIAN.project(Z) is Z and ADDITIVE.project(Z) is Z
    torch.testing.assert_close(SPHERE.perturb(v, E, a), spherify(v + math.tan(a) * E))
    torch.testing.assert_close(ROTATION.perturb(v, E, a), math.cos(a) * v + math.sin(a) * ROTATION.project(E))
    torch.testing.assert_close(GAUSSIAN.perturb(Z, E, a), (Z + math.tan(a) * E) / math.hypot(1, math.tan(a)))
    torch.testing.assert_close(ADDITIVE.perturb(Z, E, a), Z + math.tan(a) * E)
    assert SPHERE.perturb(v.bfloat16(), E.bfloat16(), ANGLES).dtype == torch.bfloat16


@pytest.mark.parametrize("prior", [SPHERE, GAUSSIAN, ROTATION], ids=["sphere", "gaussian", "rotation"])
def test_a_draw_stays_a_draw_under_any_noise(prior: Prior) -> None:
    """Mean 0 and variance 1 before and after, at every strength."""
    v, e = prior.project(gaussian(4000, 4, 8)), gaussian(4000, 4, 8, seed=1)
    for degrees in (0, 30, 45, 84, 90):
        moved = prior.perturb(v, e, math.radians(degrees))
        assert abs(moved.mean().item()) < 0.02
        assert moved.var().item() == pytest.approx(1, abs=0.02)


def test_scaled_noise_has_a_scaled_magnitude() -> None:
    angles = scale_noise(math.radians(80), torch.tensor([0.0, 0.5, 1.0, 2.0]))
    torch.testing.assert_close(torch.tan(angles), math.tan(math.radians(80)) * torch.tensor([0, 0.5, 1, 2]).double())
    assert scale_noise(math.pi / 2, 0.0) == 0
    assert scale_noise(math.pi / 2, 0.3) == pytest.approx(math.pi / 2)
