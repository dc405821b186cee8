"""Precision, recall, density and coverage: the very counts of a direct computation and of the `prdc` package."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.metrics import Manifold, exact, manifold
from tests.evaluation.metrics.conftest import Pair, Stored, random_features


def counts(found: Manifold) -> tuple[int, int, int, int]:
    return found.precise, found.recalled, found.contained, found.covered


def direct(samples: Tensor, reference: Tensor, k: int, density_k: int) -> tuple[int, int, int, int]:
    """From differences, not products, so that equal rows are at distance 0 exactly."""

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return (a.double()[:, None] - b.double()).square().sum(-1)

    def balls(rows: Tensor, neighbours: int) -> Tensor:
        return apart(rows, rows).fill_diagonal_(torch.inf).sort(1).values[:, neighbours - 1]

    between = apart(reference, samples)
    inside = between <= balls(reference, k)[:, None]
    around = between <= balls(samples, k)
    wide = between <= balls(reference, density_k)[:, None]
    return int(inside.any(0).sum()), int(around.any(1).sum()), int(wide.sum()), int(wide.any(1).sum())


@pytest.mark.parametrize(("k", "density_k"), [(3, 5), (5, 3), (1, 1)])
def test_counts_equal_a_direct_computation(pair: Pair, k: int, density_k: int) -> None:
    samples, reference = pair[0][:200], pair[1][:250]
    found = manifold(samples, reference, k=k, density_k=density_k)
    precise, recalled, contained, covered = counts(found)
    assert (precise, recalled, contained, covered) == direct(samples, reference, k, density_k)
    assert (found.samples, found.reference) == (len(samples), len(reference))
    assert found.precision == precise / len(samples)
    assert found.recall == recalled / len(reference)
    assert found.density == contained / (density_k * len(samples))
    assert found.coverage == covered / len(reference)


def test_counts_equal_prdcs(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    prdc = pytest.importorskip("prdc")
    samples, reference = (x.double().numpy() for x in pair)
    precision_recall, density_coverage = (prdc.compute_prdc(reference, samples, k) for k in (3, 5))
    found = manifold(*pair)
    expected = (
        round(precision_recall["precision"] * len(samples)),
        round(precision_recall["recall"] * len(reference)),
        round(density_coverage["density"] * 5 * len(samples)),
        round(density_coverage["coverage"] * len(reference)),
    )
    assert counts(found) == expected


def test_counts_do_not_depend_on_blocks_order_place_or_rotation(
    rotation: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = random_features(110, 24, 0).double(), random_features(90, 24, 1, 1.3).double()
    expected = counts(manifold(x, y))
    assert counts(manifold(x.flip(0), y.roll(5, 0))) == expected
    assert counts(manifold(x @ rotation, y @ rotation)) == expected
    assert counts(manifold(x + 1000, y + 1000)) == expected
    for size in (11, 90, 109):
        monkeypatch.setattr(exact, "PAIR_BLOCK", size)
        assert counts(manifold(Stored(x), Stored(y))) == expected


def test_swapping_the_sets_swaps_precision_and_recall() -> None:
    x, y = random_features(110, 24, 0), random_features(90, 24, 1, 1.3)
    there, back = manifold(x, y), manifold(y, x)
    assert (there.precise, there.recalled) == (back.recalled, back.precise)


def test_copies_lie_in_balls_of_every_radius() -> None:
    """Exact copies are at distance 0, and a copied neighbour on an edge, however large the features are."""
    for scale in (1e-3, 1.0, 1e4):
        reference = random_features(300, 24, 0) * scale + scale
        copied = manifold(reference.clone(), reference)
        assert (copied.precise, copied.recalled, copied.covered) == (300, 300, 300)
        assert copied.contained == 300 * 6  # itself, and its 5 neighbours with the one on the edge
        collapsed = reference[:1].repeat(50, 1)  # a generator with one image: balls of radius 0 on a real image
        found = manifold(collapsed, reference)
        assert (found.precise, found.recalled) == (50, 1)
        assert counts(found) == direct(collapsed, reference, 3, 5)
        assert manifold(collapsed + 0.1 * scale, reference).recalled == 0


def test_duplicates_in_the_reference() -> None:
    """Four equal real images: with k = 3 their ball has radius 0 and holds copies alone."""
    spread = random_features(40, 24, 0)
    reference = torch.cat([spread, spread[:1].repeat(3, 1)])
    samples = torch.cat([spread[:1], spread[:1] + 1e-4, random_features(30, 24, 1)])
    found = manifold(samples, reference)
    assert counts(found) == direct(samples, reference, 3, 5)
    far = torch.cat([torch.full((4, 24), 50.0), spread])
    near = torch.full((1, 24), 50.0 + 1e-3).repeat(5, 1)
    assert manifold(near, far).precise == 0
    assert manifold(near * 0 + 50, far).precise == 5


def test_far_apart_sets() -> None:
    found = manifold(random_features(40, 24, 0) + 1000, random_features(40, 24, 1))
    assert counts(found) == (0, 0, 0, 0)
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_errors() -> None:
    x = random_features(10, 4, 0)
    with pytest.raises(DataError, match="of 5 nearest neighbours needs at least 6 reference images, not 5"):
        manifold(x, x[:5])
    with pytest.raises(DataError, match="of 3 nearest neighbours needs at least 4 samples, not 3"):
        manifold(x[:3], x)
    with pytest.raises(DataError, match="4 features each and the reference 2"):
        manifold(x, x[:, :2])
    with pytest.raises(ConfigError, match="at least 1 neighbour, not k 0"):
        manifold(x, x, k=0)
    broken = x.index_fill(0, torch.tensor(4), torch.nan)
    for samples, reference in ((x, broken), (broken, x)):
        with pytest.raises(DataError, match="image 4 hold NaN"):
            manifold(samples, reference)
