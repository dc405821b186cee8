"""Latent statistics follow the exact laws of uniform points, and see a collapse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spheregen.sphere import angle_between, uniform_points
from spheregen.training.latents import latent_statistics


def points(batch: int, numbers: int = 24, seed: int = 0) -> Tensor:
    return uniform_points(batch, (numbers // 4, 4), generator=torch.Generator().manual_seed(seed))


def numbers_of(z: Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in latent_statistics(z).items()}


def test_uniform_points_cover_the_sphere_at_right_angles() -> None:
    means = torch.tensor([list(numbers_of(points(256, 48, seed)).values()) for seed in range(20)]).mean(0)
    _, mean_angle, coverage, radius = means.tolist()
    assert mean_angle == pytest.approx(90, abs=0.1)
    assert 0.98 < coverage <= 1
    assert radius == pytest.approx(1, abs=1e-4)


def test_one_point_for_all_is_a_collapse() -> None:
    batch, numbers = 64, 24
    statistics = numbers_of(points(1, numbers).expand(batch, -1, -1) * 3)
    assert statistics["latent_coverage"] == pytest.approx((1 + (batch - 1) / numbers) / batch, rel=1e-5)
    assert statistics["latent_neighbour_angle"] == pytest.approx(0, abs=1e-3)
    assert statistics["latent_mean_angle"] == pytest.approx(0, abs=0.05)
    assert statistics["latent_radius"] == pytest.approx(3, rel=1e-5)


def test_angles_are_those_of_the_sphere() -> None:
    z = points(12)
    pairs = torch.stack([angle_between(z, z[i : i + 1].expand_as(z)) for i in range(12)])
    pairs.fill_diagonal_(float("inf"))
    statistics = numbers_of(z)
    assert statistics["latent_neighbour_angle"] == pytest.approx(pairs.min(1).values.mean().item(), rel=1e-5)
    finite = pairs[pairs.isfinite()]
    assert statistics["latent_mean_angle"] == pytest.approx(finite.mean().item(), rel=1e-5)
