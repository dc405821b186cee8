"""KID and CMMD equal their double sums, whatever the blocks; subsets are drawn as they should be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.metrics import cmmd, exact, kernel, kernel_distance
from tests.evaluation.metrics.conftest import Pair, Stored, random_features


def unbiased(x: Tensor, y: Tensor) -> float:
    """Binkowski et al. 2018, equation 4, pair by pair."""
    x, y = x.double(), y.double()

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    xs, ys = list(x), list(y)
    within_x = math.fsum(k(a, b) for i, a in enumerate(xs) for j, b in enumerate(xs) if i != j)
    within_y = math.fsum(k(a, b) for i, a in enumerate(ys) for j, b in enumerate(ys) if i != j)
    between = math.fsum(k(a, b) for a in xs for b in ys)
    pairs = len(xs) * (len(xs) - 1)
    return within_x / pairs + within_y / pairs - 2 * between / len(xs) ** 2


def test_kid_of_everything_equals_the_double_sum(pair: Pair) -> None:
    samples, reference = (x[:50] for x in pair)
    found = kernel_distance(samples, reference, subsets=3, size=50)
    assert found.value == pytest.approx(unbiased(samples, reference), rel=1e-6)
    assert found.deviation == pytest.approx(0, abs=1e-9 * abs(found.value))  # the order of rows alone differs


@pytest.mark.parametrize("size", [2, 3, 5, 47])
def test_kid_of_small_subsets_equals_the_double_sum(size: int) -> None:
    samples, reference = random_features(size, 8, 0), random_features(size, 8, 1)
    found = kernel_distance(samples, reference, subsets=1, size=size)
    assert found.value == pytest.approx(unbiased(samples, reference), rel=1e-9)
    assert found.deviation == found.error == 0


def test_kid_is_symmetric_and_blind_to_rotation(rotation: Tensor) -> None:
    x, y = random_features(80, 24, 0).double(), random_features(80, 24, 1, 1.3).double()
    value = kernel_distance(x, y, subsets=1, size=80).value
    assert kernel_distance(y, x, subsets=1, size=80).value == pytest.approx(value, rel=1e-9)
    assert kernel_distance(x @ rotation, y @ rotation, subsets=1, size=80).value == pytest.approx(value, rel=1e-9)


def test_kid_is_unbiased() -> None:
    """Sets of one distribution: the mean is within its error of 0, and single estimates fall on both sides."""
    x, y = random_features(4000, 6, 0), random_features(4000, 6, 1)
    estimates = [
        kernel_distance(x[at : at + 40], y[at : at + 40], subsets=1, size=40).value for at in range(0, 4000, 40)
    ]
    values = torch.tensor(estimates)
    assert values.min() < 0 < values.max()
    assert abs(values.mean()) < 4 * values.std() / 10


def test_subsets_are_drawn_without_replacement_by_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, reference = random_features(5000, 4, 0), random_features(300, 4, 1)
    drawn: list[Pair] = []

    def spy(x: Tensor, y: Tensor) -> float:
        drawn.append((x.clone(), y.clone()))
        return float(len(drawn))

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "_discrepancy", spy)
        found = kernel_distance(samples, reference, subsets=4, size=200, seed=7)
        assert (found.value, found.deviation, found.error) == pytest.approx((2.5, 1.25**0.5, 1.25**0.5 / 2))
        first, drawn = drawn, []
        patch.setattr(kernel, "_GATHERED_BYTES", 1)  # one subset at a time
        kernel_distance(Stored(samples), Stored(reference), subsets=4, size=200, seed=7)
        assert all(torch.equal(x, a) and torch.equal(y, b) for (x, y), (a, b) in zip(first, drawn, strict=True))
        drawn = []
        kernel_distance(samples, reference, subsets=4, size=200, seed=8)
        assert not torch.equal(first[0][0], drawn[0][0])
    places = set()
    for x, y in first:
        for rows, source in ((x, samples), (y, reference)):
            found_at = (rows[:, None] == source.double()).all(-1).nonzero()
            assert len(found_at) == 200 == len(found_at[:, 1].unique())
        places.add(tuple(x[:3, 0].tolist()))
    assert len(places) == 4


def test_kid_reads_files_in_blocks() -> None:
    samples, reference = Stored(random_features(9000, 3, 0)), Stored(random_features(5000, 3, 1))
    kernel_distance(samples, reference, subsets=2, size=50)
    assert max(samples.largest, reference.largest) <= 4096


def test_kid_errors() -> None:
    few, many = random_features(30, 4, 0), random_features(50, 4, 0)
    with pytest.raises(DataError, match=r"KID on subsets of 50 needs at least 50 samples, not 30; .* lower `size`"):
        kernel_distance(few, many, size=50)
    with pytest.raises(DataError, match="KID on subsets of 1000 needs at least 1000 reference images, not 30"):
        kernel_distance(random_features(1000, 4, 0), few)
    with pytest.raises(DataError, match="4 features each and the reference 5"):
        kernel_distance(few, random_features(30, 5, 0), size=10)
    with pytest.raises(ConfigError, match="not 0 of 10"):
        kernel_distance(few, many, subsets=0, size=10)
    with pytest.raises(DataError, match="image 2 hold NaN"):
        kernel_distance(few.index_fill(0, torch.tensor(2), torch.nan), many, subsets=1, size=30)


# --- CMMD ---


def unit(pair: Pair) -> Pair:
    normalize = torch.nn.functional.normalize
    return normalize(pair[0]), normalize(pair[1])


def direct_cmmd(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a[:, None] - b).square().sum(-1) / 200).mean()

    return 1000 * float(mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_cmmd_equals_its_means_over_all_pairs(pair: Pair) -> None:
    x, y = unit((pair[0][:200], pair[1]))
    assert cmmd(x, y) == pytest.approx(direct_cmmd(x, y), rel=1e-6, abs=1e-9)
    assert cmmd(y, x) == pytest.approx(cmmd(x, y), rel=1e-9, abs=1e-12)
    assert 0 <= cmmd(x, x) < 1e-9


def test_cmmd_does_not_depend_on_blocks_order_or_rotation(rotation: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = unit((random_features(70, 24, 0).double(), random_features(90, 24, 1, 2).double()))
    value = cmmd(x, y)
    assert cmmd(x.flip(0), y.roll(3, 0)) == pytest.approx(value, rel=1e-9)
    assert cmmd(x @ rotation, y @ rotation) == pytest.approx(value, rel=1e-9)
    for size in (11, 70, 89):
        monkeypatch.setattr(exact, "PAIR_BLOCK", size)
        assert cmmd(Stored(x), Stored(y)) == pytest.approx(value, rel=1e-9)


def test_cmmd_errors() -> None:
    x = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(DataError, match="embeddings of unit norm, but that of image 2 of the samples has norm 3"):
        cmmd(x * torch.tensor([1, 1, 3, 1, 1, 1])[:, None], x)
    with pytest.raises(DataError, match="4 features each and the reference 3"):
        cmmd(x, x[:, :3])
    with pytest.raises(DataError, match="CMMD needs at least 1 reference images, not 0"):
        cmmd(x, x[:0])
