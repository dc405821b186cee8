"""The training noise: stratified angles, hard cases, one noise for both perturbations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.noise import BatchNoise, NoiseConfig, TrainingNoise, draw_angles, gaussian, hard_limit, stratified
from spheregen.sphere import angle_to_sigma

LAWS = ["magnitude", "angle"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Magnitudes:
    """As fractions of tan(alpha_max)."""

    strong: Tensor
    weak: Tensor


def drawn(count: int, alpha_max: float = 80, seed: int = 0, **options: object) -> Magnitudes:
    angles = draw_angles(count, NoiseConfig(**options), alpha_max, generator=seeded(seed))  # type: ignore[arg-type]
    assert all(each.dtype == torch.float32 and each.shape == (count,) for each in angles)
    return Magnitudes(*(torch.tan(each.double()) / angle_to_sigma(alpha_max) for each in angles))


@pytest.mark.parametrize("count", [2, 3, 4, 16, 256])
@pytest.mark.parametrize("seed", [0, 1])
def test_stratified_draws(count: int, seed: int) -> None:
    values = stratified(count, generator=seeded(seed))
    assert values.shape == (count,)
    assert (values == 0).sum() == 1
    assert (values == 1).sum() == 1
    inner = values.sort().values[1:-1].double()
    strata = count - 2
    for i, value in enumerate(inner):
        assert (i + 1e-3) / strata - 1e-6 <= value <= (i + 1) / strata


def test_stratified_draws_are_shuffled_and_repeatable() -> None:
    values = stratified(256, generator=seeded(3))
    assert torch.equal(values, stratified(256, generator=seeded(3)))
    assert not torch.equal(values, stratified(256, generator=seeded(4)))
    place = torch.stack([stratified(8, generator=seeded(seed)).argmax() for seed in range(200)])
    assert set(place.tolist()) == set(range(8))  # the strongest noise meets every position
    with pytest.raises(ValueError, match="at least one"):
        stratified(0)


@pytest.mark.parametrize("hard_law", ["uniform", "published"])
@pytest.mark.parametrize("law", LAWS)
def test_hard_cases_change_the_strong_noise_only(law: str, hard_law: str) -> None:
    easy = drawn(64, radius_law=law, hard_law=hard_law, hard_probability=0.0)
    hard = drawn(64, radius_law=law, hard_law=hard_law, hard_probability=0.5)
    assert torch.equal(easy.weak, hard.weak)
    same = easy.strong == hard.strong
    assert 10 < same.sum() < 54
    assert (hard.strong[~same] >= 1).all()


@pytest.mark.parametrize(("alpha_max", "limit"), [(80, 85), (85, 89), (87, 89), (45, 50)])
def test_hard_cases_share_and_range(alpha_max: float, limit: float) -> None:
    radii = drawn(20000, alpha_max)
    hard = radii.strong[radii.strong > 1]
    assert abs(len(hard) / 20000 - 0.1) < 0.01
    ratio = angle_to_sigma(limit) / angle_to_sigma(alpha_max)
    assert hard_limit(alpha_max) == pytest.approx(ratio)
    assert hard.max() <= ratio * (1 + 1e-6)
    place = (hard - 1) / (ratio - 1)  # uniform in [0, 1]
    assert place.max() > 0.98
    assert place.min() < 0.02
    assert abs(place.mean() - 0.5) < 0.03


# pairs of independent draws, as latent denoisers have them


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("law", "gauss"),
        ("radius_law", "angel"),
        ("hard_law", "hard"),
        ("logit_deviation", -1.0),
        ("logit_mean", math.inf),
        ("hard_angle", 90.0),
        ("weak_fraction", -0.1),
        ("weak_fraction", math.nan),
        ("hard_probability", 1.1),
    ],
)
def test_impossible_laws_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        NoiseConfig(**{name: value})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Nested(BatchNoise):
    inner: TrainingNoise
    times: Tensor
    none: Tensor | None = None
    progress: float = 0.5


def test_random_numbers_of_a_batch_are_sliced_and_changed_together() -> None:
    strong, weak = draw_angles(16, NoiseConfig(), 80.0, generator=seeded(7))
    again = draw_angles(16, NoiseConfig(), 80.0, generator=seeded(7))
    assert torch.equal(strong, again[0]) and torch.equal(weak, again[1])
    noise = TrainingNoise(
        strong=strong,
        weak=weak,
        noise=gaussian(16, (4, 2), seeded()),
        dropped=torch.rand(16, 4) < 0.5,
        projections=torch.ones(5, 8),
    )
    whole = Nested(inner=noise, times=torch.arange(16.0))
    part = whole[4:8]
    for name in ("strong", "weak", "noise", "dropped"):
        assert torch.equal(getattr(part.inner, name), getattr(noise, name)[4:8])
    assert part.inner.projections is noise.projections  # the same for all samples
    assert part.times.tolist() == [4, 5, 6, 7] and part.none is None and part.progress == 0.5
    wide = whole.each(lambda tensor: tensor.double())
    assert wide.inner.projections is not None and wide.inner.projections.dtype == wide.times.dtype == torch.float64


def test_noise_of_some_rows_is_that_of_the_whole_batch() -> None:
    whole = gaussian(4000, (2, 4), seeded(1))
    assert torch.equal(gaussian(4000, (2, 4), seeded(1), slice(100, 200)), whole[100:200])
    flat = whole.flatten(1)
    assert abs(flat.mean().item()) < 0.02 and abs(flat.std().item() - 1) < 0.02
    assert abs(torch.cosine_similarity(flat[:-1], flat[1:], dim=1).mean().item()) < 0.02


@pytest.mark.parametrize("options", [{}, {"radius_law": "angle"}, {"law": "uniform"}, {"hard_angle": 80.0}])
def test_a_largest_angle_of_90_degrees_is_finite(options: dict[str, object]) -> None:
    strong, weak = draw_angles(64, NoiseConfig(**options), 90.0, generator=seeded())  # type: ignore[arg-type]
    for angles in (strong, weak):
        assert angles.isfinite().all() and (angles >= 0).all() and (angles <= math.pi / 2 + 1e-6).all()
    assert (weak <= strong + 1e-6).all()
