"""Latent statistics follow the exact laws of uniform points, and see a collapse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spheregen.sphere import angle_between, uniform_points
from spheregen.training import latents
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


def test_a_subspace_covers_its_share() -> None:
    """Points that are uniform in M of L dimensions: E tr(G^2) = B + B (B - 1) / M."""
    batch, used, numbers = 512, 6, 96
    z = torch.zeros(batch, numbers)
    z[:, :used] = points(batch, 24).flatten(1)[:, :used]
    expected = (1 + (batch - 1) / numbers) / (1 + (batch - 1) / used)
    assert numbers_of(z)["latent_coverage"] == pytest.approx(expected, rel=0.03)


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


def test_small_angles_keep_their_digits() -> None:
    """A tenth of a thousandth of a degree: acos of a float32 cosine would give 0 or 0.02."""
    base = torch.zeros(1, 1000)
    base[0, 0] = 1
    other = base.clone()
    other[0, 1] = math.tan(math.radians(1e-4))
    assert numbers_of(torch.cat([base, other]))["latent_neighbour_angle"] == pytest.approx(1e-4, rel=1e-3)


def test_a_batch_of_one_and_latents_of_zeros_are_finite() -> None:
    one = numbers_of(points(1) * 2)
    assert (one["latent_neighbour_angle"], one["latent_mean_angle"], one["latent_coverage"]) == (90, 90, 1)
    assert one["latent_radius"] == pytest.approx(2, rel=1e-5)
    assert numbers_of(torch.eye(16))["latent_coverage"] == 1  # more spread than uniform
    zeros = numbers_of(torch.zeros(4, 6, 4))
    assert all(math.isfinite(value) for value in zeros.values())
    assert zeros["latent_radius"] == 0


def test_values_are_scalars_of_float32_without_gradients() -> None:
    z = points(8).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        statistics = latent_statistics(z)
    for value in statistics.values():
        assert value.shape == () and value.dtype == torch.float32 and not value.requires_grad
    wide = latent_statistics(z.detach().float())
    assert all(torch.equal(wide[name], value) for name, value in statistics.items())


def test_nothing_waits_for_the_device() -> None:
    """On the meta device any read of a value raises."""
    for batch in (1, 8, latents.LARGEST_BATCH + 8):
        statistics = latent_statistics(torch.empty(batch, 6, 4, device="meta"))
        assert all(value.device.type == "meta" for value in statistics.values())


def test_of_a_large_batch_the_first_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "LARGEST_BATCH", 16)
    z = points(64)
    assert torch.equal(latent_statistics(z)["latent_coverage"], latent_statistics(z[:16])["latent_coverage"])
