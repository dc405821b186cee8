"""Spectra and the figures of a set of latents, on points whose structure is known."""

from __future__ import annotations

import math

import pytest
import torch

from spheregen.evaluation.sphere import spectrum as module
from spheregen.evaluation.sphere.latents import latent_figures
from spheregen.evaluation.sphere.spectrum import spectrum
from spheregen.sphere import rotate
from tests.evaluation.sphere.toys import generator, uniform


@pytest.mark.parametrize(("count", "dim"), [(300, 20), (30, 200), (2, 50), (50, 2)])
def test_eigenvalues_of_the_second_moment(count: int, dim: int) -> None:
    points = uniform(count, dim, 1)
    found = spectrum(5 * points)
    unit = torch.nn.functional.normalize(points.double(), dim=1)
    expected = torch.linalg.eigvalsh(dim * unit.T @ unit / count).flip(0)[: min(count, dim)]
    values = torch.tensor(found.eigenvalues, dtype=torch.float64)
    assert torch.allclose(values, expected, atol=1e-5)
    assert sum(found.eigenvalues) == pytest.approx(dim, rel=1e-6) and found.share(dim) == pytest.approx(1)
    assert found.participation == pytest.approx(float(expected.sum() ** 2 / expected.square().sum()), rel=1e-4)


@pytest.mark.parametrize(("count", "dim"), [(400, 30), (40, 300)])
def test_axes_are_the_leading_directions(count: int, dim: int) -> None:
    points = uniform(count, dim, 2)
    points[:, :3] *= torch.tensor([6.0, 5.0, 4.0])
    found = spectrum(points)
    assert torch.allclose(found.axes @ found.axes.T, torch.eye(3, dtype=torch.float64), atol=1e-6)
    unit = torch.nn.functional.normalize(points.double(), dim=1)
    along = (unit @ found.axes.T).square().mean(dim=0) * dim
    assert torch.allclose(along, torch.tensor(found.eigenvalues[:3], dtype=torch.float64), rtol=1e-5)


@pytest.mark.parametrize(("count", "dim"), [(1500, 300), (300, 600), (600, 600)])
def test_uniform_points_stay_between_the_edges(count: int, dim: int) -> None:
    found = spectrum(uniform(count, dim, 3))
    lower, upper = found.edges
    assert found.beyond == 0
    assert found.eigenvalues[0] == pytest.approx(upper, rel=0.05)
    if count > dim:
        assert found.eigenvalues[-1] == pytest.approx(lower, abs=0.05)
    assert found.participation == pytest.approx(found.expected_participation, rel=0.01)


def test_of_very_many_points_the_first_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 20)
    points = uniform(60, 30, 4)
    assert spectrum(points).eigenvalues == spectrum(points[:20]).eigenvalues
    assert spectrum(points).count == 20 and spectrum(points[:, :15]).count == 60


def test_a_great_sphere_fills_its_own_dimensions() -> None:
    points = uniform(1000, 64, 5)
    points[:, 16:] = 0
    found = latent_figures(points)
    assert found.effective_dimension == pytest.approx(16, rel=0.02)
    assert found.spectrum.share(16) == pytest.approx(1)
    assert found.angle_std > 1.8 * found.law_std
    assert found.classes == ()


def test_uniform_points_look_uniform() -> None:
    found = latent_figures(uniform(800, 48, 6))
    assert found.mean_angle == pytest.approx(90, abs=0.1)
    assert found.angle_std == pytest.approx(found.law_std, rel=0.01)
    assert found.effective_dimension == pytest.approx(48, rel=0.02)
    assert found.resultant == pytest.approx(1 / math.sqrt(800), rel=0.3)
    assert float(found.nearest.median()) == pytest.approx(found.expected_nearest, abs=1)
    assert not found.uniformity.rejected


def test_classes() -> None:
    centers = uniform(3, 256, 7)
    centers[2] = rotate(centers[:1], centers[1:2], 40.0)[0]
    labels = torch.arange(300) % 3
    points = rotate(centers[labels], torch.randn(300, 256, generator=generator(8)), 50.0)
    points = torch.cat([points, uniform(1, 256, 9)])
    found = latent_figures(points, torch.cat([labels, torch.tensor([7])]), ("ant", "bee", "cat")).classes
    assert [(of.name, of.count) for of in found] == [("ant", 100), ("bee", 100), ("cat", 100), ("7", 1)]
    ant, bee, cat, alone = found
    cosine = math.cos(math.radians(50))
    for of in (ant, bee, cat):
        assert of.resultant == pytest.approx(cosine, abs=0.02)
        assert of.within == pytest.approx(math.degrees(math.acos(cosine**2)), abs=1)
        assert of.effective_dimension == pytest.approx(1 / (cosine**4 + (1 - cosine**2) ** 2 / 256), rel=0.1)
    assert (ant.nearest_class, cat.nearest_class) == ("cat", "ant")
    assert ant.nearest_class_angle == pytest.approx(40, abs=3)
    assert bee.between is not None and ant.between is not None and bee.between > ant.between
    assert (alone.within, alone.effective_dimension, alone.resultant) == (None, None, pytest.approx(1))


def test_one_class_has_no_others() -> None:
    (found,) = latent_figures(uniform(20, 8, 10), torch.full((20,), 4)).classes
    assert (found.name, found.between, found.nearest_class, found.nearest_class_angle) == ("4", None, None, None)
    assert found.within == pytest.approx(90, abs=10)
