"""The training noise: stratified radii, hard cases, one direction for both perturbations."""

from __future__ import annotations

import math

import pytest
import torch

from spheregen.errors import ConfigError
from spheregen.noise import NoiseConfig, Radii, draw_radii, hard_limit, perturb, stratified
from spheregen.sphere import angle_between, angle_to_sigma, sigma_to_angle, spherify

LAWS = ["magnitude", "angle"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def radii_of(count: int, max_angle: float = 80, seed: int = 0, **options: object) -> Radii:
    return draw_radii(count, NoiseConfig(**options), max_angle, generator=seeded(seed))  # type: ignore[arg-type]


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


def test_one_stratified_draw_is_uniform() -> None:
    draws = torch.cat([stratified(1, generator=seeded(seed)) for seed in range(400)])
    assert ((draws >= 0) & (draws <= 1)).all()
    assert abs(draws.mean() - 0.5) < 0.06
    assert abs(draws.std() - 12**-0.5) < 0.03


def test_stratified_draws_are_shuffled_and_repeatable() -> None:
    values = stratified(256, generator=seeded(3))
    assert torch.equal(values, stratified(256, generator=seeded(3)))
    assert not torch.equal(values, stratified(256, generator=seeded(4)))
    place = torch.stack([stratified(8, generator=seeded(seed)).argmax() for seed in range(200)])
    assert set(place.tolist()) == set(range(8))  # the strongest noise meets every position
    with pytest.raises(ValueError, match="at least one"):
        stratified(0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("count", [1, 2, 3, 256])
def test_radii_without_hard_cases(law: str, count: int) -> None:
    radii = radii_of(count, radius_law=law, hard_probability=0.0, weak_fraction=0.4)
    assert radii.strong.shape == radii.weak.shape == (count,)
    assert ((radii.strong >= 0) & (radii.strong <= 1 + 1e-5)).all()
    assert (radii.weak >= 0).all()
    assert (radii.weak <= 0.4 * radii.strong + 1e-7).all()
    if count > 1:
        assert (radii.strong == 0).sum() == 1
        assert radii.strong.max() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("hard_law", ["uniform", "published"])
@pytest.mark.parametrize("law", LAWS)
def test_hard_cases_change_the_strong_noise_only(law: str, hard_law: str) -> None:
    easy = radii_of(64, radius_law=law, hard_law=hard_law, hard_probability=0.0)
    hard = radii_of(64, radius_law=law, hard_law=hard_law, hard_probability=0.5)
    assert torch.equal(easy.weak, hard.weak)
    same = easy.strong == hard.strong
    assert 10 < same.sum() < 54
    assert (hard.strong[~same] >= 1).all()


@pytest.mark.parametrize(("max_angle", "limit"), [(80, 85), (85, 89), (87, 89), (45, 50)])
def test_hard_cases_share_and_range(max_angle: float, limit: float) -> None:
    radii = radii_of(20000, max_angle)
    hard = radii.strong[radii.strong > 1]
    assert abs(len(hard) / 20000 - 0.1) < 0.01
    ratio = angle_to_sigma(limit) / angle_to_sigma(max_angle)
    assert hard_limit(max_angle) == pytest.approx(ratio)
    assert hard.max() <= ratio * (1 + 1e-6)
    place = (hard - 1) / (ratio - 1)  # uniform in [0, 1]
    assert place.max() > 0.98
    assert place.min() < 0.02
    assert abs(place.mean() - 0.5) < 0.03


@pytest.mark.parametrize("max_angle", [89, 89.5])
def test_hard_cases_are_never_easier_than_the_maximum(max_angle: float) -> None:
    assert hard_limit(max_angle) == 1
    assert radii_of(64, max_angle, hard_probability=1.0).strong.eq(1).all()


@pytest.mark.parametrize(("max_angle", "largest"), [(80, 80.9), (85, 86.4)])
def test_the_published_law_reaches_a_tenth_of_the_range(max_angle: float, largest: float) -> None:
    radii = radii_of(20000, max_angle, hard_law="published")
    assert abs((radii.strong > 1).float().mean() - 0.1) < 0.01
    assert sigma_to_angle(float(radii.strong.max()) * angle_to_sigma(max_angle)) == pytest.approx(largest, abs=0.05)


@pytest.mark.parametrize("max_angle", [80.0, 85.0, 89.0])
def test_the_angle_law_is_uniform_in_the_angle(max_angle: float) -> None:
    count = 256
    radii = radii_of(count, max_angle, radius_law="angle", hard_probability=0.0)
    angles = torch.rad2deg(torch.atan(radii.strong.double() * angle_to_sigma(max_angle))).sort().values
    even = torch.linspace(0, max_angle, count - 1).double()  # bounds of the strata
    assert (angles[1:-1] >= even[:-1] - 1e-3).all()
    assert (angles[1:-1] <= even[1:] + 1e-3).all()


def test_radii_repeat_and_slice() -> None:
    radii = radii_of(16, seed=7)
    again = radii_of(16, seed=7)
    assert torch.equal(radii.strong, again.strong)
    assert torch.equal(radii.weak, again.weak)
    part = radii[4:8]
    assert isinstance(part, Radii)
    assert torch.equal(part.strong, radii.strong[4:8])
    assert torch.equal(part.weak, radii.weak[4:8])


def test_both_perturbations_lie_on_one_great_circle() -> None:
    v, e = spherify(torch.randn(4, 16, 8, generator=seeded())), torch.randn(4, 16, 8, generator=seeded(1))
    radii = Radii(strong=torch.tensor([0.2, 0.5, 1.0, 2.0]), weak=torch.tensor([0.1, 0.1, 0.3, 0.4]))
    pair = perturb(v.double(), e.double(), radii, 2.0)
    for points in (pair.strong, pair.weak):
        assert points.flatten(1).norm(dim=1).allclose(torch.tensor(128.0).sqrt().double(), rtol=1e-6)
    # on one circle the angles add up: v -> weak -> strong
    total = angle_between(v.double(), pair.weak) + angle_between(pair.weak, pair.strong)
    torch.testing.assert_close(total, angle_between(v.double(), pair.strong), rtol=1e-9, atol=0)


def test_the_perturbations_are_the_published_ones() -> None:
    v, e = spherify(torch.randn(3, 6, 4, generator=seeded())), torch.randn(3, 6, 4, generator=seeded(1))
    radii = Radii(strong=torch.tensor([0.0, 0.7, 1.3]), weak=torch.tensor([0.0, 0.2, 0.0]))
    sigma = math.tan(math.radians(80))
    pair = perturb(v, e, radii, sigma)
    assert torch.equal(pair.strong[0], v[0])  # r = 0 is the latent itself
    assert torch.equal(pair.weak[[0, 2]], v[[0, 2]])
    for i, (strong, weak) in enumerate(zip(radii.strong.tolist(), radii.weak.tolist(), strict=True)):
        torch.testing.assert_close(pair.strong[i], spherify(v + strong * sigma * e)[i])
        torch.testing.assert_close(pair.weak[i], spherify(v + weak * sigma * e)[i])


@pytest.mark.parametrize("name", ["weak_fraction", "hard_probability"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_impossible_fractions_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        NoiseConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["radius_law", "hard_law"])
def test_unknown_laws_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        NoiseConfig(**{name: "angel"})  # type: ignore[arg-type]


def test_configurations_are_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        NoiseConfig().weak_fraction = 0.2  # type: ignore[misc]
    with pytest.raises(TypeError):
        NoiseConfig("angle")  # type: ignore[misc]


# pairs of independent draws, as latent denoisers have them


@pytest.mark.parametrize("law", ["logit_normal", "uniform"])
@pytest.mark.parametrize("radius_law", LAWS)
def test_pairs_are_ordered_and_within_the_training_noise(law: str, radius_law: str) -> None:
    radii = radii_of(4096, law=law, radius_law=radius_law, hard_probability=0.0)
    assert ((radii.weak >= 0) & (radii.weak <= radii.strong) & (radii.strong <= 1 + 1e-5)).all()


def test_uniform_pairs_have_the_moments_of_order_statistics() -> None:
    radii = radii_of(20_000, law="uniform", hard_probability=0.0)
    assert abs(radii.strong.mean() - 2 / 3) < 0.01
    assert abs(radii.weak.mean() - 1 / 3) < 0.01


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-1.0, 0.5)])
def test_logit_normal_pairs_are_logit_normal(mean: float, deviation: float) -> None:
    radii = radii_of(20_000, law="logit_normal", logit_mean=mean, logit_deviation=deviation, hard_probability=0.0)
    both = torch.logit(torch.cat([radii.strong, radii.weak]).double())
    assert abs(both.mean() - mean) < 0.02 * deviation + 0.01
    assert abs(both.std() - deviation) < 0.02 * deviation + 0.01


def test_hard_cases_reach_the_angle_that_is_asked_for() -> None:
    radii = radii_of(20_000, law="logit_normal", hard_probability=0.2, hard_angle=88.0)
    hard = radii.strong > 1
    assert abs(hard.double().mean() - 0.2) < 0.01
    angles = sigma_to_angle(float(radii.strong.max()) * angle_to_sigma(80))
    assert 87.9 < angles <= 88.0 + 1e-3
    assert (radii.weak <= 1).all()  # the weak one is never hard
    assert hard_limit(80, 70) == 1.0  # a hard range below the training noise is none


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"law": "gauss"}, "noise.law"),
        ({"logit_deviation": -1.0}, "logit_deviation"),
        ({"logit_mean": float("inf")}, "logit_mean"),
        ({"hard_angle": 90.0}, "hard_angle"),
    ],
)
def test_impossible_pair_laws_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NoiseConfig(**values)  # type: ignore[arg-type]
