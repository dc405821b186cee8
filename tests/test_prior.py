"""The latent spaces: how latents enter them, how noise moves points, and that the sphere is what it was."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from spheregen.noise import NoiseConfig, draw_radii, perturb
from spheregen.prior import ADDITIVE, GAUSSIAN, PRIORS, SPHERE, Prior
from spheregen.sphere import angle_between, spherify, tilt

EVERY = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS.keys())


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Z, E = 3 * gaussian(6, 4, 8), gaussian(6, 4, 8, seed=1)
SIGMAS = torch.tensor([0.0, 0.1, 1.0, 5.0, 11.4, 57.0])


def test_the_sphere_is_spherify_and_tilt_to_the_last_bit() -> None:
    v = spherify(Z)
    assert torch.equal(SPHERE.project(Z), v)
    for sigma in (0.0, 0.7, SIGMAS):
        assert torch.equal(SPHERE.tilt(v, E, sigma), tilt(v, E, sigma))
    radii = draw_radii(6, NoiseConfig(), 85.0, generator=torch.Generator().manual_seed(2))
    usual = perturb(v, E, radii, 11.4)
    assert torch.equal(usual.strong, tilt(v, E, radii.strong * 11.4))
    assert torch.equal(usual.weak, tilt(v, E, radii.weak * 11.4))


@EVERY
def test_noise_of_nothing_changes_no_bit(prior: Prior) -> None:
    v = prior.project(Z)
    assert torch.equal(prior.tilt(v, E, 0.0), v)
    assert torch.equal(prior.tilt(v, E, torch.zeros(6)), v)
    assert torch.equal(prior.tilt(v, E, SIGMAS)[0], v[0])


@EVERY
def test_one_sigma_for_all_is_one_for_each(prior: Prior) -> None:
    v = prior.project(Z)
    together = prior.tilt(v, E, SIGMAS)
    for row, sigma in enumerate(SIGMAS.tolist()):
        alone = prior.tilt(v[row : row + 1], E[row : row + 1], sigma)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prior", [SPHERE, GAUSSIAN], ids=["sphere", "gaussian"])
def test_a_draw_stays_a_draw_under_any_noise(prior: Prior) -> None:
    """Mean 0 and variance 1 before and after, at every strength."""
    v, e = prior.project(gaussian(4000, 4, 8)), gaussian(4000, 4, 8, seed=1)
    for sigma in (0.0, 0.5, 1.0, 10.0):
        tilted = prior.tilt(v, e, sigma)
        assert abs(tilted.mean().item()) < 0.02
        assert tilted.var().item() == pytest.approx(1, abs=0.02)


def test_added_noise_stays() -> None:
    v, e = ADDITIVE.project(gaussian(4000, 4, 8)), gaussian(4000, 4, 8, seed=1)
    assert torch.equal(v, gaussian(4000, 4, 8))
    for sigma in (0.5, 1.0, 10.0):
        assert ADDITIVE.tilt(v, e, sigma).var().item() == pytest.approx(1 + sigma**2, rel=0.02)


@EVERY
@pytest.mark.parametrize("angle", [10.0, 45.0, 80.0])
def test_the_angle_of_noise_is_that_of_its_magnitude(prior: Prior, angle: float) -> None:
    v, e = prior.project(gaussian(64, 64, 64)), gaussian(64, 64, 64, seed=1)
    tilted = prior.tilt(v, e, math.tan(math.radians(angle)))
    assert angle_between(v, tilted).mean().item() == pytest.approx(angle, abs=1)


def test_a_gaussian_prior_leaves_latents_where_they_are() -> None:
    assert GAUSSIAN.project(Z) is Z
    mixed = GAUSSIAN.tilt(Z, E, 2.0)
    torch.testing.assert_close(mixed, (Z + 2 * E) / math.sqrt(5))
    half = GAUSSIAN.tilt(Z.bfloat16(), E.bfloat16(), SIGMAS)
    assert half.dtype == torch.bfloat16


def test_perturbing_in_another_prior() -> None:
    radii = draw_radii(6, NoiseConfig(), 85.0, generator=torch.Generator().manual_seed(2))
    pair = perturb(Z, E, radii, 11.4, prior=GAUSSIAN)
    sigma = (radii.strong * 11.4)[:, None, None]
    torch.testing.assert_close(pair.strong, (Z + sigma * E) / (1 + sigma**2).sqrt(), rtol=1e-5, atol=1e-5)
    assert {field.name for field in dataclasses.fields(pair)} == {"strong", "weak"}
