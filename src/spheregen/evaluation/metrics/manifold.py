"""Precision, recall, density and coverage: which images lie in the balls of the other set's nearest neighbours.

Precision and recall: Kynkaanniemi et al. 2019, arXiv 1904.06991; density and coverage: Naeem et al. 2020, arXiv
2002.09797. The ball of an image reaches to its k-th nearest neighbour in its own set, itself not counted, and the
image at that distance is in it.

Ties. Copies of one image are each other's neighbours at distance 0, so a ball may have radius 0: it then holds exact
copies alone. And a copy of a neighbour lies exactly on a ball's edge, so in it. To keep rounding from deciding such
cases, squared radii are raised by the rounding error of a squared distance (some 1e-13 of the features' own squares);
distinct images are never that close to an edge in practice, so that counts are exact.

Legend: N images, D features; `reference` are real images, `samples` are generated ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.evaluation.metrics.exact import (
    EPS,
    block_pairs,
    check_count,
    check_pair,
    exact,
    exact_blocks,
    squared_distances,
)
from spheregen.evaluation.rows import Rows


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """How the balls of two sets cover each other, and the counts behind it."""

    precision: float
    """Share of samples in the ball of some real image: are samples real-looking?"""
    recall: float
    """Share of real images in the ball of some sample: is everything real covered?"""
    density: float
    """Real balls that a sample lies in, on average, over `density_k`: precision that outliers do not inflate; may
    exceed 1."""
    coverage: float
    """Share of real images with a sample in their ball: recall that strange samples do not inflate."""
    samples: int
    """Number of samples."""
    reference: int
    """Number of real images."""
    precise: int
    """Samples in some real ball."""
    recalled: int
    """Real images in the ball of some sample."""
    contained: int
    """Pairs of a sample and a real ball that holds it, for density."""
    covered: int
    """Real images with a sample in their ball, for coverage."""
    k: int
    """Neighbours that make the balls of precision and recall."""
    density_k: int
    """Neighbours that make the balls of density and coverage."""


def manifold(samples: Rows, reference: Rows, *, k: int = 3, density_k: int = 5) -> Manifold:
    """Precision and recall with `k` neighbours, density and coverage with `density_k`.

    Time grows with the product of both numbers of images, memory with neither but for a few numbers an image. All four
    depend on the number of images, so compare only figures of the same number (the literature: 10 000 or 50 000).

    Args:
        samples: features (N, D).
        reference: features (N', D).
        k: neighbours for precision and recall.
        density_k: neighbours for density and coverage.

    Raises:
        ConfigError: no neighbours.
        DataError: no more images than neighbours, another width, or NaN.
    """
    if min(k, density_k) < 1:
        raise ConfigError(f"precision and recall take at least 1 neighbour, not k {k} and density_k {density_k}")
    check_pair(samples, reference)
    for rows, neighbours, name in ((reference, max(k, density_k), "reference images"), (samples, k, "samples")):
        metric = f"precision and recall of {neighbours} nearest neighbours"
        check_count(rows, neighbours + 1, metric, name, "give more images, or lower the number of neighbours")
    centre = _mean(reference)
    _mean(samples)  # for its check of the numbers
    real, fake = _Centred(reference, centre), _Centred(samples, centre)
    real_ball, wide_ball = _squared_radii(real, (k, density_k)).unbind(dim=1)
    (fake_ball,) = _squared_radii(fake, (k,)).unbind(dim=1)
    device = real_ball.device
    fake_ball = fake_ball.to(device)
    precise = torch.zeros(fake.shape[0], dtype=torch.bool, device=device)
    recalled = torch.zeros(real.shape[0], dtype=torch.bool, device=device)
    covered = torch.zeros_like(recalled)
    contained = 0
    for of_real, x, of_fake, y in block_pairs(real, fake):
        squared = squared_distances(x, y)
        precise[of_fake] |= (squared <= real_ball[of_real, None]).any(dim=0)
        recalled[of_real] |= (squared <= fake_ball[of_fake]).any(dim=1)
        within = squared <= wide_ball[of_real, None]
        covered[of_real] |= within.any(dim=1)
        contained += int(within.count_nonzero())
    return Manifold(
        precision=float(precise.double().cpu().mean()),
        recall=float(recalled.double().cpu().mean()),
        density=contained / (density_k * len(precise)),
        coverage=float(covered.double().cpu().mean()),
        samples=len(precise),
        reference=len(recalled),
        precise=int(precise.count_nonzero()),
        recalled=int(recalled.count_nonzero()),
        contained=contained,
        covered=int(covered.count_nonzero()),
        k=k,
        density_k=density_k,
    )


class _Centred:
    """Rows in float64 with `centre` (D,) taken off: distances stay, and less of them is lost to rounding."""

    def __init__(self, rows: Rows, centre: Tensor) -> None:
        self._rows, self._centre = rows, centre
        self.shape = (rows.shape[0], rows.shape[1])

    def __getitem__(self, part: slice) -> Tensor:
        rows = exact(self._rows[part])
        return rows - self._centre.to(rows.device)


def _mean(rows: Rows) -> Tensor:
    """(D,) float64.

    Raises:
        DataError: a number is not finite.
    """
    total: Tensor | float = 0.0
    for _, block in exact_blocks(rows):
        total = total + block.sum(dim=0)
    assert isinstance(total, Tensor)
    return total / rows.shape[0]


def _squared_radii(rows: Rows, neighbours: Sequence[int]) -> Tensor:
    """Squared distances (N, len(neighbours)) to the k-th nearest other row, for each k; rounded up, see above."""
    count, dim = rows.shape
    most = max(neighbours)
    nearest = torch.empty(0)  # (N, most), on the device of the first block
    norms = torch.empty(0)  # (N,), squared
    for part, x, other, y in block_pairs(rows):
        if not len(nearest):
            nearest, norms = x.new_full((count, most), torch.inf), x.new_zeros(count)
        squared = squared_distances(x, y)
        if part == other:
            norms[part] = x.square().sum(dim=1)
            squared.fill_diagonal_(torch.inf)
        else:
            nearest[other] = _smallest(nearest[other], squared.T)
        nearest[part] = _smallest(nearest[part], squared)
    radii = nearest.sort(dim=1).values[:, [k - 1 for k in neighbours]]
    # What lies on the edge has |y| <= |x| + r, so that |x|^2 + |y|^2 <= 3 |x|^2 + 2 r^2, and a squared distance of D
    # products is wrong by at most about D times the rounding error of that.
    return radii + (dim + 8) * EPS * (3 * norms[:, None] + 2 * radii)


def _smallest(before: Tensor, found: Tensor) -> Tensor:
    """The smallest numbers of each row of `before` (n, k) and `found` (n, m) together, (n, k)."""
    k = before.shape[1]
    best = found.contiguous().topk(min(k, found.shape[1]), dim=1, largest=False, sorted=False).values
    return torch.cat([before, best], dim=1).topk(k, dim=1, largest=False, sorted=False).values
