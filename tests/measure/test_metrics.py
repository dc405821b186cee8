"""The metrics equal their definitions, computed directly; their properties; what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from spheregen.errors import ConfigError, DataError, SphereGenError
from spheregen.measure import metrics
from spheregen.measure.metrics import (
    Gaussian,
    Manifold,
    Moments,
    cmmd,
    frechet_distance,
    gaussian,
    inception_score,
    kernel_distance,
    manifold,
)

Pair = tuple[Tensor, Tensor]


def random_features(count: int, dim: int, seed: int, scale: float = 1.0) -> Tensor:
    """Features (count, dim) float32 with a decaying spectrum in directions that depend on `dim` alone."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim)) * torch.logspace(0, -3, dim)
    return scale * torch.randn(count, dim, generator=generator) @ directions.T + 0.3


@pytest.fixture(params=["random", "few", "shifted"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Samples and reference (N, D), (N', D), float32."""
    if request.param == "few":  # fewer images than features
        return random_features(60, 96, 0), random_features(50, 96, 1, 1.2)
    shift = 300 if request.param == "shifted" else 0
    return random_features(400, 24, 2) + shift, random_features(300, 24, 3, 1.1) + shift


@pytest.fixture
def rotation() -> Tensor:
    """An orthogonal matrix (24, 24) float64."""
    square = torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found: Tensor = torch.linalg.qr(square).Q
    return found


def in_float64(count: int, seed: int, scale: float = 1.0) -> Tensor:
    return random_features(count, 24, seed, scale).double()


# --- Moments and the Frechet distance -----------------------------------------------------------------------------


def close(found: Tensor, expected: np.ndarray, tolerance: float = 1e-12) -> bool:
    return float(np.abs(found.numpy() - expected).max()) <= tolerance * float(np.abs(expected).max())


@pytest.mark.parametrize("sizes", [(400,), (1,), (7,), (1, 50, 2, 347)])
def test_moments_equal_numpys_in_batches_and_merged(sizes: tuple[int, ...]) -> None:
    features = random_features(400, 24, 0)
    batched, merged = Moments(), Moments()
    for batch in features.split(list(sizes) if sum(sizes) == 400 else sizes[0]):
        batched.update(batch)
        part = Moments()
        part.update(batch)
        merged.merge(part)
    merged.merge(Moments())
    for found in (batched.gaussian, merged.gaussian, gaussian(features)):
        assert found.count == 400 and found.mean.dtype == found.covariance.dtype == torch.float64
        assert close(found.mean, features.double().numpy().mean(0))
        assert close(found.covariance, np.cov(features.double().numpy(), rowvar=False))


def test_a_large_mean_does_no_harm() -> None:
    """Squares of 1e6 and more would drown variances of 2e-5 in float64; multiples of 1/1024 stay exact beside 1e6."""
    features = torch.randint(-8, 9, (500, 6), generator=torch.Generator().manual_seed(0)).double() / 1024
    found = Moments()
    for batch in (features + 1e6).split(33):
        found.update(batch)
    assert close(found.gaussian.covariance, np.cov(features.numpy(), rowvar=False), 1e-8)


def by_features(x: Tensor, y: Tensor) -> float:
    """From the centred features alone: tr (S1 S2)^(1/2) is the nuclear norm of A B^T, and no root is ever taken."""
    x, y = x.double(), y.double()
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    apart = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    return float(apart - 2 * torch.linalg.matrix_norm(a @ b.T, ord="nuc"))


def traces(a: Gaussian, b: Gaussian) -> float:
    return float(a.covariance.trace() + b.covariance.trace())


@pytest.mark.parametrize(("count", "dim"), [(2, 16), (40, 64), (63, 64), (65, 64), (300, 24)])
def test_the_frechet_distance_of_few_and_many_images(count: int, dim: int) -> None:
    """At most 1e-6 of the traces off, also where the number of images is not known, as in published files."""
    x, y = random_features(count, dim, 0) + 100, random_features(count + 1, dim, 1, 1.3) + 100
    a, b = gaussian(x), gaussian(y)
    nameless = [Gaussian(each.mean, each.covariance) for each in (a, b)]
    for one, other in ((a, b), nameless, (nameless[0], b)):
        assert abs(frechet_distance(one, other) - by_features(x, y)) <= 1e-6 * traces(a, b)
    for one in (a, nameless[0]):
        assert 0 <= frechet_distance(one, one) <= 1e-6 * traces(one, one)


def test_the_frechet_distance_is_symmetric_and_blind_to_rotation_and_order(rotation: Tensor) -> None:
    x, y = in_float64(90, 0), in_float64(80, 1, 1.2)
    distance = frechet_distance(gaussian(x), gaussian(y))
    for a, b in ((y, x), (x @ rotation, y @ rotation), (x.flip(0), y)):
        assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(distance, rel=1e-9)


# --- Inception Score ----------------------------------------------------------------------------------------------


def random_logits(count: int, classes: int) -> Tensor:
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(("count", "splits"), [(100, 1), (103, 10), (10, 10)])
def test_the_inception_score_equals_its_definition(count: int, splits: int) -> None:
    logits = random_logits(count, 7)
    p = logits.double().softmax(1).numpy()
    scores = []
    for part in (p[i * count // splits : (i + 1) * count // splits] for i in range(splits)):
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()))
    found = inception_score(logits, splits)
    assert found.value == pytest.approx(np.mean(scores), rel=1e-9)
    assert found.deviation == pytest.approx(np.std(scores), rel=1e-6, abs=1e-12)
    assert 1 <= found.value < 7
    sure = torch.eye(5).repeat(8, 1) * 1000
    assert inception_score(sure, 4).value == pytest.approx(5)
    assert inception_score(sure[:1].repeat(40, 1), 4).value == pytest.approx(1)


# --- KID ----------------------------------------------------------------------------------------------------------


def unbiased(x: Tensor, y: Tensor) -> float:
    """Binkowski et al. 2018, equation 4, pair by pair."""
    x, y = x.double(), y.double()
    (inner_x, inner_y, between) = (((a @ b.T) / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    others = ~torch.eye(len(x), dtype=torch.bool)
    within = math.fsum(inner_x[others].tolist()) + math.fsum(inner_y[others].tolist())
    return within / (len(x) * (len(x) - 1)) - 2 * math.fsum(between.flatten().tolist()) / len(x) ** 2


def test_kid_of_everything_equals_the_double_sum(pair: Pair, rotation: Tensor) -> None:
    samples, reference = (x[:50] for x in pair)
    found = kernel_distance(samples, reference, subsets=3, size=50)
    assert found.value == pytest.approx(unbiased(samples, reference), rel=1e-6)
    assert found.deviation == pytest.approx(0, abs=1e-9 * abs(found.value))  # the order of rows alone differs
    x, y = in_float64(80, 0), in_float64(80, 1, 1.3)
    for a, b in ((x, y), (y, x), (x @ rotation, y @ rotation)):
        assert kernel_distance(a, b, subsets=1, size=80).value == pytest.approx(unbiased(x, y), rel=1e-9)


def test_subsets_are_drawn_without_replacement_by_the_seed_alone() -> None:
    samples, reference = random_features(500, 4, 0), random_features(300, 4, 1)
    generator = torch.Generator().manual_seed(7)
    values = []
    for _ in range(4):
        chosen = [rows[torch.randperm(len(rows), generator=generator)[:200]] for rows in (samples, reference)]
        values.append(unbiased(chosen[0], chosen[1]))
    found = kernel_distance(samples, reference, subsets=4, size=200, seed=7)
    assert (found.value, found.deviation) == pytest.approx((np.mean(values), np.std(values)), rel=1e-6)
    assert found.error == found.deviation / 2
    assert kernel_distance(samples, reference, subsets=4, size=200, seed=7) == found
    assert kernel_distance(samples, reference, subsets=4, size=200, seed=8) != found


# --- CMMD ---------------------------------------------------------------------------------------------------------


def test_cmmd_equals_its_means_over_all_pairs(pair: Pair) -> None:
    x, y = normalize(pair[0][:200]), normalize(pair[1])

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a.double()[:, None] - b.double()).square().sum(-1) / 200).mean()

    expected = 1000 * float(mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert cmmd(y, x) == pytest.approx(cmmd(x, y), rel=1e-9, abs=1e-12)
    assert 0 <= cmmd(x, x) < 1e-9


# --- Precision, recall, density, coverage ---------------------------------------------------------------------------


def direct(samples: Tensor, reference: Tensor, k: int = 3, density_k: int = 5) -> Manifold:
    """From differences, not products, so that equal rows are at distance 0 exactly."""

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return (a.double()[:, None] - b.double()).square().sum(-1)

    def balls(rows: Tensor, neighbours: int) -> Tensor:
        return apart(rows, rows).fill_diagonal_(torch.inf).sort(1).values[:, neighbours - 1]

    between = apart(reference, samples)
    wide = between <= balls(reference, density_k)[:, None]
    return Manifold(
        precision=int((between <= balls(reference, k)[:, None]).any(0).sum()) / len(samples),
        recall=int((between <= balls(samples, k)).any(1).sum()) / len(reference),
        density=int(wide.sum()) / (density_k * len(samples)),
        coverage=int(wide.any(1).sum()) / len(reference),
    )


@pytest.mark.parametrize(("k", "density_k"), [(3, 5), (5, 3), (1, 1)])
def test_the_manifold_equals_a_direct_computation(pair: Pair, k: int, density_k: int) -> None:
    samples, reference = pair[0][:200], pair[1][:250]
    assert manifold(samples, reference, k=k, density_k=density_k) == direct(samples, reference, k, density_k)


def test_blocks_order_place_and_rotation_change_nothing(rotation: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = in_float64(110, 0), in_float64(90, 1, 1.3)
    a, b = normalize(x), normalize(y)
    balls, distance = manifold(x, y), cmmd(a, b)
    assert manifold(x.flip(0), y.roll(5, 0)) == manifold(x @ rotation, y @ rotation) == balls
    assert manifold(x + 1000, y + 1000) == balls
    back = manifold(y, x)
    assert (back.precision, back.recall) == (balls.recall, balls.precision)
    assert cmmd(a @ rotation, b.flip(0) @ rotation) == pytest.approx(distance, rel=1e-9)
    for size in (11, 90, 109):
        monkeypatch.setattr(metrics, "PAIR_BLOCK", size)
        monkeypatch.setattr(metrics, "BLOCK", size)
        assert manifold(x, y) == balls
        assert cmmd(a, b) == pytest.approx(distance, rel=1e-9)
        assert close(gaussian(x).covariance, np.cov(x.numpy(), rowvar=False))


# --- Refusals -----------------------------------------------------------------------------------------------------

X = random_features(30, 4, 0)
BROKEN = X.index_fill(0, torch.tensor(4), torch.nan)
UNIT = normalize(X)
GOOD = Gaussian(torch.zeros(3), torch.eye(3))


def updated(*batches: Tensor) -> Gaussian:
    moments = Moments()
    for batch in batches:
        moments.update(batch)
    return moments.gaussian


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: updated(X[:1]), DataError, "2 images, not 1"),
        (lambda: updated(X, X[:, :3]), DataError, "width 3"),
        (lambda: gaussian(BROKEN), DataError, "image 4"),
        (lambda: frechet_distance(GOOD, Gaussian(torch.zeros(2), torch.eye(2))), DataError, "other 2"),
        (lambda: frechet_distance(GOOD, Gaussian(torch.zeros(3), torch.eye(2))), DataError, r"\(2, 2\)"),
        (lambda: frechet_distance(GOOD, Gaussian(torch.zeros(3), -torch.eye(3))), DataError, "eigenvalue -1"),
        (lambda: inception_score(X, 0), ConfigError, "split"),
        (lambda: inception_score(X[:5]), DataError, "10 images, not 5"),
        (lambda: kernel_distance(X, X, size=50), DataError, "50 samples, not 30"),
        (lambda: kernel_distance(X, X[:, :3], size=10), DataError, "reference 3"),
        (lambda: kernel_distance(X, X, subsets=0, size=10), ConfigError, "0 of 10"),
        (lambda: cmmd(UNIT * torch.eye(30)[2].mul(2).add(1)[:, None], UNIT), DataError, "image 2 of the samples"),
        (lambda: manifold(X, X[:5]), DataError, "6 reference images, not 5"),
        (lambda: manifold(X, X, k=0), ConfigError, "k 0"),
        (lambda: manifold(BROKEN, X), DataError, "image 4"),
    ],
)
def test_refusals(call: Callable[[], object], error: type[SphereGenError], named: str) -> None:
    with pytest.raises(error, match=named):
        call()


def test_taken_and_merged_moments_stay_as_they_were() -> None:
    one, other, joined = Moments(), Moments(), Moments()
    one.update(random_features(20, 24, 0))
    other.update(random_features(20, 24, 1))
    before = one.gaussian
    kept = before.mean.clone(), before.covariance.clone()
    joined.merge(one)
    joined.merge(other)
    one.update(random_features(20, 24, 2))
    assert torch.equal(before.mean, kept[0]) and torch.equal(before.covariance, kept[1])
    assert joined.count == 40
