"""The studies of the sphere, with generators whose geometry is known exactly, and on the bundled model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spheregen
from spheregen.data import ImageOptions, load_all, open_source
from spheregen.errors import DataError
from spheregen.evaluation.report.parts import Section
from spheregen.evaluation.sphere import sphere_section, study, study_sphere
from spheregen.evaluation.sphere.study import ANGLES, Codec, cones, denoise, loop, point_figures, turn
from spheregen.measure.features import FeatureBatch
from spheregen.prior import SPHERE, Prior
from spheregen.sphere import uniform_points

GAIN = 0.2  # latent to pixel, so that hardly any pixel leaves [-1, 1]


class Mirror(nn.Module):
    """A generator whose image is its latent: E(D(v)) = v, up to what `pull` adds.

    Args:
        pull: encoding moves every latent towards one fixed direction: spherify(v + pull * direction).
        fraction: the decoder keeps only the first part of a latent, the rest of the image is grey.
    """

    dtype = torch.float32
    prior: Prior = SPHERE
    alpha_max = 80.0

    def __init__(self, *, size: int = 8, classes: int = 0, pull: float = 0.0, fraction: float = 1.0) -> None:
        super().__init__()
        self.image_shape, self.latent_shape, self.num_classes, self.pull = (1, size, size), (size, size), classes, pull
        self.kept = (torch.arange(size * size) < fraction * size * size).float().view(size, size)
        self.direction = uniform_points(1, self.latent_shape, generator=generator(5))
        self.eval()

    def encode(self, images: Tensor, labels: Any = None) -> Tensor:
        assert labels is None or self.num_classes
        return self.prior.project(images[:, 0] / GAIN + self.pull * self.direction)

    def decode(self, latents: Tensor, labels: Any = None) -> Tensor:
        assert labels is None or self.num_classes
        return (GAIN * latents * self.kept)[:, None].clamp(-1, 1)


class PixelFeatures:
    """Features that are the pixels, so that their distances are known."""

    def __call__(self, images: Tensor) -> FeatureBatch:
        assert images.dtype == torch.uint8 and len(images) <= 64
        return FeatureBatch(features=images.flatten(1).float())


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "images_at_once", lambda *_: 7)
        for name, count in (("TURNED", 8), ("LOOPED", 8), ("RANDOM", 40), ("UNRELATED", 16)):
            patch.setattr(study, name, count)
        yield


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int, dim: int, seed: int) -> Tensor:
    return uniform_points(count, (dim,), generator=generator(seed))


def codec(**options: Any) -> Codec:
    return Codec(Mirror(**options), torch.device("cpu"))  # type: ignore[arg-type]


def uniform_images(count: int, seed: int = 1, size: int = 8) -> Tensor:
    """Images whose latents are all but uniform under `Mirror`."""
    latents = torch.randn(count, 1, size, size, generator=generator(seed))
    return ((GAIN * latents + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def study_of(
    model: Any, images: Tensor, labels: Tensor | None = None, **options: Any
) -> tuple[dict[str, Any], Tensor, Section]:
    figures, strip = study_sphere(model, images, labels, **options)
    section = sphere_section(figures, strip)
    for table in section.tables:
        assert table.rows and all(len(row) == len(table.header) for row in table.rows)
    for plot in section.plots:
        for series in plot.series:
            assert len(series.x) == len(series.y) > 0 and np.isfinite([*series.x, *series.y]).all()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    return figures, strip, section


@pytest.mark.parametrize(("count", "dim"), [(203, 7), (40, 90)])
def test_figures_of_points_are_those_of_all_pairs(count: int, dim: int) -> None:
    drawn = torch.randn(count, dim, generator=generator(1)) * 3 + 0.3
    found = point_figures(drawn)
    unit = torch.nn.functional.normalize(drawn.double(), dim=1)
    cosines = (unit @ unit.T).clamp(-1, 1)[tuple(torch.triu_indices(count, count, 1))]
    angles = torch.rad2deg(torch.acos(cosines))
    assert found["mean_angle"] == pytest.approx(float(angles.mean()))
    assert found["angle_std"] == pytest.approx(float(angles.std(correction=0)))
    assert found["effective_dimension"] == pytest.approx(1 / float(cosines.square().mean()))
    assert found["resultant"] == pytest.approx(float(unit.mean(0).norm()))
    width = found["histogram"]["angles"][1] - found["histogram"]["angles"][0]
    assert sum(found["histogram"]["density"]) * width == pytest.approx(1)


def test_turning_a_latent_turns_the_image_of_a_mirror() -> None:
    latents = points(20, 64, 101).view(20, 8, 8)
    found, strip = turn(codec(), latents, None, uniform_images(9), PixelFeatures())  # type: ignore[arg-type]
    expected = [GAIN * math.sin(math.radians(angle / 2)) for angle in ANGLES]  # the chord, in [0, 1]
    assert found["pixels"]["mean"] == pytest.approx(expected, abs=1e-4)
    half = 2 * math.degrees(math.asin(math.sin(math.radians(45)) / 2))
    assert found["pixels"]["half_angle"] == pytest.approx(half, abs=0.2)
    features = [value * 255 * 8 for value in expected]
    assert found["features"]["mean"][5:] == pytest.approx(features[5:], rel=0.02)
    assert strip.shape == (6, len(ANGLES), 1, 8, 8)


def test_a_loop_that_pulls_contracts() -> None:
    """spherify(v + c m) for v across from m turns v by atan(c) and shrinks small angles by cos(atan(c))."""
    one = codec(pull=0.5)
    direction = one.model.direction  # type: ignore[attr-defined]
    away = points(60, 64, 3).view(60, 8, 8)
    away = away - (away * direction).sum((1, 2), keepdim=True) / direction.square().sum() * direction
    found = loop(one, away * 8 / away.flatten(1).norm(dim=1).view(-1, 1, 1), None)
    assert found["drift"][0] == pytest.approx(math.degrees(math.atan(0.5)), abs=0.1)
    assert found["drift"] == sorted(found["drift"], reverse=True) and found["from_start"][-1] > 70
    assert found["contraction"][0] == pytest.approx(math.cos(math.atan(0.5)), abs=0.01)


def test_noise_that_a_pass_takes_away() -> None:
    """A decoder that keeps half of the numbers takes away the noise in the others, where data have nothing."""
    half = codec(fraction=0.5)
    start = points(100, 64, 4).view(100, 8, 8) * half.model.kept  # type: ignore[attr-defined]
    start = start * 8 / start.flatten(1).norm(dim=1).view(-1, 1, 1) * 0.999999
    found = denoise(half, start, None)
    assert found["noise"] == [0, 10, 20, 30, 40, 50, 60, 70, 80, 85, 89]
    assert found["before"][3] == pytest.approx(30, abs=2) and found["after"][0] == pytest.approx(0, abs=1e-3)
    expected = math.degrees(math.atan(math.tan(math.radians(30)) * math.sqrt(0.5)))
    assert found["after"][3] == pytest.approx(expected, abs=2)


def test_one_step_samples_of_a_narrow_model_come_close_to_its_data() -> None:
    narrow = codec(fraction=0.1)
    data = narrow.around(points(300, 64, 7).view(300, 8, 8), None).flatten(1)
    found = cones(narrow, points(100, 64, 8).view(100, 8, 8), None, data)
    assert found["max_angle"] == pytest.approx(80) and 0 < found["random_in_cones"] <= 1
    assert found["samples_to_data"]["median"] < found["random_to_data"]["median"] - 20


def test_digits() -> None:
    pipeline = spheregen.Pipeline.from_pretrained("digits", device="cpu")
    data = load_all(open_source("digits"), ImageOptions(image_size=8, channels=1), limit=200)
    found, _, section = study_of(pipeline.model, data.images, data.labels)
    assert found["duplicates"] == 0 and found["latents"]["own class"]["dim"] == 24
    assert list(found["latents"]) == ["null class", "own class"]
    assert 0 < found["null_to_own_angle"] < 30
    assert found["denoising"]["before"][5] - found["denoising"]["after"][5] > 5  # the bundled model takes noise away
    assert found["loop"]["data"]["contraction"][0] < 1
    assert found["loop"]["random"]["drift"][-1] < 0.2 * found["loop"]["random"]["drift"][0]
    assert any("random points decode where training hardly was" in warning for warning in section.warnings)


def test_the_same_call_gives_the_same_findings() -> None:
    model, images = Mirror(fraction=0.5), uniform_images(60).repeat(2, 1, 1, 1)
    one, again, other = (study_of(model, images, seed=seed) for seed in (3, 3, 4))
    assert one[0]["duplicates"] == 60 and one[0] == again[0] != other[0] and torch.equal(one[1], again[1])


def test_impossible_input_is_refused() -> None:
    with pytest.raises(DataError, match="1 different images"):
        study_sphere(Mirror(), uniform_images(1).repeat(5, 1, 1, 1), None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="0 to 2"):
        study_sphere(Mirror(classes=3), uniform_images(5), torch.arange(5))  # type: ignore[arg-type]
