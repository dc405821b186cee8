"""Turning, the loop and the cones, with generators whose geometry is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.evaluation.features.base import FeatureBatch, FeatureInfo
from spheregen.evaluation.sphere.angles import ANGLES, angle_study, half_angle
from spheregen.evaluation.sphere.codec import Codec, Starts, gaussian, random_order
from spheregen.evaluation.sphere.cones import cone_study, spread
from spheregen.evaluation.sphere.loop import denoising_study, loop_study
from spheregen.evaluation.sphere.pairs import nearest_angles
from spheregen.sphere import angle_between, uniform_points
from tests.evaluation.sphere.toys import GAIN, Mirror, generator

CPU = torch.device("cpu")


def codec(**options: float) -> Codec:
    return Codec(Mirror(**options), CPU, batch_size=7)  # type: ignore[arg-type]


def points(count: int, seed: int, size: int = 8) -> Tensor:
    return uniform_points(count, (size, size), generator=generator(seed))


def real(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=generator(9), dtype=torch.uint8)


class PixelFeatures:
    """Features that are the pixels, so that their distances are known."""

    def __init__(self) -> None:
        self.largest = 0

    @property
    def info(self) -> FeatureInfo:
        raise AssertionError("nobody asked")

    def __call__(self, images: Tensor) -> FeatureBatch:
        assert images.dtype == torch.uint8
        self.largest = max(self.largest, len(images))
        return FeatureBatch(features=images.flatten(1).float())

    def to(self, device: torch.device) -> PixelFeatures:
        return self


def test_a_row_of_noise_depends_on_its_number_alone() -> None:
    some = gaussian(3, (2, 4), seed=1, stream=2)
    assert torch.equal(gaussian(5, (2, 4), seed=1, stream=2)[:3], some)
    for other in (gaussian(3, (2, 4), seed=2, stream=2), gaussian(3, (2, 4), seed=1, stream=3)):
        assert not torch.equal(other, some)
    assert sorted(random_order(9, 1, 2).tolist()) == list(range(9))
    assert random_order(9, 1, 2).tolist() != random_order(9, 2, 2).tolist()


def test_images_change_as_the_chord_of_the_angle() -> None:
    """The picture is the latent times GAIN / 2 on [0, 1], so its distance is GAIN sin(a / 2)."""
    features = PixelFeatures()
    start, others = Starts("data", points(40, 1), None), real(70)
    found = angle_study(codec(), start, others, extractor=features, seed=3, shown=4)
    chord = [GAIN * math.sin(math.radians(a / 2)) for a in ANGLES]
    assert found.angles == ANGLES and found.count == 40
    assert found.pixels.mean == pytest.approx(chord, abs=1e-4)
    assert found.pixels.std == pytest.approx([0] * len(ANGLES), abs=1e-3)
    assert found.pixels.half_angle == pytest.approx(2 * math.degrees(math.asin(math.sin(math.pi / 4) / 2)), abs=0.1)
    distances = ((others / 255) - (others / 255).roll(1, 0)).square().flatten(1).mean(1).sqrt()
    assert found.pixels.unrelated == pytest.approx(float(distances.mean()), rel=1e-5)
    assert found.features is not None and features.largest == 64
    assert found.features.unrelated == pytest.approx(255 * 8 * float(distances.mean()), rel=1e-5)
    assert found.features.mean[-1] == pytest.approx(255 * 8 * chord[-1], rel=0.01)
    assert found.strip.shape == (4, len(ANGLES), 1, 8, 8) and found.strip.dtype == torch.uint8


def test_turning_depends_on_the_seed_alone() -> None:
    start = Starts("data", points(8, 1), None)
    one, again = (angle_study(codec(fraction=0.5), start, real(4), seed=3) for _ in range(2))
    other = angle_study(codec(fraction=0.5), start, real(4), seed=4)
    assert one.pixels == again.pixels != other.pixels


@pytest.mark.parametrize(
    ("values", "where"),
    [((0, 1, 2, 3, 4), 20), ((0, 4, 4, 4, 4), 5), ((0, 0, 0, 0, 0), None), ((0, 9, 1, 1, 4), 10 * 2 / 9)],
)
def test_where_half_is_reached(values: tuple[float, ...], where: float | None) -> None:
    found = half_angle((0, 10, 20, 30, 40), values)
    assert found == (None if where is None else pytest.approx(where))


def test_a_perfect_loop_holds_still() -> None:
    found = loop_study(codec(), Starts("random", points(20, 2), None), seed=1)
    assert (found.start, found.count) == ("random", 20) and len(found.drift) == len(found.from_start) == 8
    assert found.drift == pytest.approx([0] * 8, abs=1e-3) and found.from_start == pytest.approx([0] * 8, abs=1e-3)
    assert found.contraction == pytest.approx([1] * 5, abs=1e-3)


def test_a_loop_that_pulls_contracts() -> None:
    """spherify(v + c m) for v across from m turns v by atan(c) and shrinks small angles by cos(atan(c))."""
    pull = 0.5
    one = codec(pull=pull)
    away = points(60, 3)
    direction = one.model.direction  # type: ignore[attr-defined]
    along = (away * direction).sum((1, 2), keepdim=True) / direction.square().sum()
    start = away - along * direction
    start = start * 8 / start.flatten(1).norm(dim=1).view(-1, 1, 1)
    found = loop_study(one, Starts("data", start, None), seed=1)
    assert found.drift[0] == pytest.approx(math.degrees(math.atan(pull)), abs=0.1)
    assert list(found.drift) == sorted(found.drift, reverse=True)
    assert found.from_start[-1] > 70
    assert found.contraction[0] == pytest.approx(math.cos(math.atan(pull)), abs=0.01)


def test_noise_that_a_pass_takes_away() -> None:
    """A decoder that keeps half of the numbers takes away the noise in the others, where data have nothing."""
    half = codec(fraction=0.5)
    start = points(100, 4) * half.model.kept  # type: ignore[attr-defined]
    start = start * 8 / start.flatten(1).norm(dim=1).view(-1, 1, 1) * 0.999999
    found = denoising_study(half, Starts("data", start, None), seed=1)
    assert found.noise == (0, 10, 20, 30, 40, 50, 60, 70, 80, 85, 89)
    assert found.before[0] == 0 and found.after[0] == pytest.approx(0, abs=1e-3)
    assert found.before[3] == pytest.approx(30, abs=2)
    expected = math.degrees(math.atan(math.tan(math.radians(30)) * math.sqrt(0.5)))
    assert found.after[3] == pytest.approx(expected, abs=2) and found.gain[3] > 5
    still = denoising_study(codec(), Starts("data", start, None), seed=1)
    assert still.gain[:6] == pytest.approx([0] * 6, abs=1e-2)


def test_cones() -> None:
    one = codec()
    data, random = points(200, 5), points(300, 6)
    found = cone_study(one, Starts("random", random, None), data, torch.ones(200, dtype=torch.float64))
    assert found.max_angle == pytest.approx(80)
    every = nearest_angles(random.flatten(1), data.flatten(1))
    assert torch.equal(found.random_to_data, every)
    assert torch.allclose(found.samples_to_data, every, atol=1e-2)
    assert found.random_in_cones == float((every <= 80).double().mean())
    assert spread(every).median == pytest.approx(found.expected_random, abs=1)
    assert found.random_to_mean == pytest.approx(90, abs=2) and found.samples_to_start == pytest.approx(0, abs=1e-2)
    assert spread(found.data_to_data).largest == 1


def test_one_step_samples_of_a_narrow_model_come_close_to_its_data() -> None:
    narrow = codec(fraction=0.1)
    data = narrow.around(points(300, 7), None)
    found = cone_study(narrow, Starts("random", points(100, 8), None), data, torch.ones(300))
    assert spread(found.samples_to_data).median < spread(found.random_to_data).median - 20
    assert found.samples_to_start > 60


def test_batches_change_nothing_and_labels_go_along() -> None:
    model = Mirror(classes=3)
    one, other = Codec(model, CPU, 2), Codec(model, CPU, 100)  # type: ignore[arg-type]
    labels = one.some_labels(5)
    assert labels is not None and labels.tolist() == [0, 1, 2, 0, 1]
    latents = points(5, 9)
    assert torch.equal(one.around(latents, labels), other.around(latents, labels))
    assert [part.tolist() for part in model.seen[:2] if part is not None] == [[0, 1], [0, 1]]
    assert Codec(Mirror(), CPU).some_labels(4) is None  # type: ignore[arg-type]
    images = one.decode(latents, None)
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    back = one.encode((images * 255).round().to(torch.uint8), None)
    assert float(angle_between(back, latents).max()) < 2
    with pytest.raises(ConfigError, match="at least 1"):
        Codec(model, CPU, 0)  # type: ignore[arg-type]
