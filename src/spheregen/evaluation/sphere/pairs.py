"""All pairs of a set of points, block by block: what the tests and figures of the sphere are made of.

Legend: n points, L dimensions, K classes, cos_ij the cosine of the angle between points i and j.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.errors import DataError
from spheregen.sphere import angle_between

BLOCK = 512
"""Points that are compared with as many others at a time."""
BINS_PER_DEGREE = 100


@dataclass(frozen=True, kw_only=True)
class PairSurvey:
    """What all n(n-1)/2 pairs of a set of points say. Angles in degrees; tensors on the CPU."""

    count: int
    """n."""
    dim: int
    """L."""
    resultant: float
    """The length of the mean of the unit vectors: 0 balanced, 1 all the same; about 1/sqrt(n) for uniform points."""
    mean_square_cosine: float
    """The mean of cos_ij^2; 1/L for uniform points, so its inverse is an effective dimension."""
    mean_angle: float
    angle_std: float
    histogram: Tensor
    """(18000,) int64: pairs by angle, 100 bins a degree."""
    largest_cosine: float
    """The largest |cos_ij|."""
    largest_pair: tuple[int, int]
    """The places of the two points that have it."""
    nearest: Tensor
    """(n,) float64: the angle from each point to its nearest other."""
    class_angles: Tensor | None
    """(K, K) float64: mean angles of pairs from two classes, and on the diagonal within one; NaN without pairs."""
    class_square_cosines: Tensor | None
    """(K,) float64: the mean cos_ij^2 within a class; NaN without pairs."""

    @property
    def pairs(self) -> int:
        """n(n-1)/2."""
        return self.count * (self.count - 1) // 2


@torch.no_grad()
def survey_pairs(points: Tensor, labels: Tensor | None = None, classes: int = 0) -> PairSurvey:
    """Look at every pair of points once.

    Args:
        points: (n, L) on a sphere of any radius, or anywhere but the origin: only directions count. n and L at least 2.
        labels: (n,) int64 in [0, classes), for the figures by class.

    Raises:
        DataError: too few points or dimensions, or points that have no direction.
    """
    unit = unit_points(points)
    count, dim = unit.shape
    if labels is not None:
        labels = labels.to(unit.device)
    wide = unit if unit.device.type == "cpu" else unit.double()  # a GPU may round float32 products to TF32
    histogram = torch.zeros(180 * BINS_PER_DEGREE, dtype=torch.int64, device=unit.device)
    sums = torch.zeros(3, dtype=torch.float64, device=unit.device)  # cos^2, angle - 90, (angle - 90)^2
    by_class = torch.zeros(2, classes * classes, dtype=torch.float64, device=unit.device)  # angle, cos^2
    closest = torch.full((count,), -2.0, dtype=wide.dtype, device=unit.device)
    neighbour = torch.zeros(count, dtype=torch.int64, device=unit.device)
    extremes: list[tuple[float, int, int]] = []
    for left, right, cosine in _blocks(wide):
        for part, axis, offset in ((left, 1, right.start), (right, 0, left.start)):
            best, place = cosine.max(dim=axis)
            better = best > closest[part]
            neighbour[part] = torch.where(better, place + offset, neighbour[part])
            closest[part] = torch.where(better, best, closest[part])
        magnitude = cosine.abs()
        if left == right:  # each pair once: the others become the 0 that adds nothing to the sums
            again = torch.ones_like(cosine, dtype=torch.bool).tril_()
            cosine.masked_fill_(again, 0)
            magnitude.masked_fill_(again, -1)
        row, column = divmod(int(magnitude.argmax()), cosine.shape[1])
        extremes.append((float(magnitude[row, column]), left.start + row, right.start + column))
        angle = torch.rad2deg(torch.acos(cosine))
        off = angle - 90
        square = cosine.square()
        sums += torch.stack([part.sum(dtype=torch.float64) for part in (square, off, off.square())])
        if left == right:
            angle.masked_fill_(again, -1)  # outside the histogram
        # counts of a block are exact in float32
        histogram += torch.histc(angle, bins=len(histogram), min=0, max=180).long()
        if labels is not None:
            cells = (labels[left, None] * classes + labels[None, right]).flatten()
            by_class[0].index_add_(0, cells, off.flatten().double())
            by_class[1].index_add_(0, cells, square.flatten().double())
    pairs = count * (count - 1) / 2
    mean_square, mean_off, mean_off_square = (sums / pairs).tolist()
    class_angles, class_squares = _class_means(by_class, labels, classes) if labels is not None else (None, None)
    _, *largest_pair = max(extremes)
    exact = unit[largest_pair].double()
    return PairSurvey(
        count=count,
        dim=dim,
        resultant=float(torch.linalg.vector_norm(unit.mean(dim=0, dtype=torch.float64))),
        mean_square_cosine=mean_square,
        mean_angle=90 + mean_off,
        angle_std=max(0.0, mean_off_square - mean_off**2) ** 0.5,
        histogram=histogram.cpu(),
        largest_cosine=min(1.0, abs(float(exact[0] @ exact[1]))),
        largest_pair=(largest_pair[0], largest_pair[1]),
        nearest=_angles_to(unit, unit, neighbour),
        class_angles=class_angles,
        class_square_cosines=class_squares,
    )


@torch.no_grad()
def nearest_angles(points: Tensor, reference: Tensor) -> Tensor:
    """The angle in degrees from each point (n, L) to the nearest of `reference` (m, L), (n,) float64 on the CPU."""
    unit, other = unit_points(points, least=1), unit_points(reference, least=1)
    nearest = []
    for start in range(0, len(unit), BLOCK):
        part = unit[start : start + BLOCK]
        best = [(part @ other[at : at + BLOCK].T).max(dim=1) for at in range(0, len(other), BLOCK)]
        cosines = torch.stack([values for values, _ in best])
        places = torch.stack([place + number * BLOCK for number, (_, place) in enumerate(best)])
        nearest.append(places.gather(0, cosines.argmax(dim=0, keepdim=True))[0])
    return _angles_to(unit, other, torch.cat(nearest))


def unit_points(points: Tensor, *, least: int = 2) -> Tensor:
    """Points (n, L) as unit vectors, float32 or wider; on the CPU where the device has no float64.

    Raises:
        DataError: not a matrix, fewer than `least` points or 2 dimensions, numbers that are not finite, or a zero.
    """
    if points.ndim != 2 or points.shape[0] < least or points.shape[1] < 2:
        raise DataError(
            f"points on the sphere have shape {tuple(points.shape)}; give (n, L) with n at least {least} and L at "
            "least 2"
        )
    here = points.detach().cpu() if points.device.type == "mps" else points.detach()
    wide = here if here.dtype == torch.float64 else here.float()
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True, dtype=torch.float64)
    bad = ~(torch.isfinite(norm) & (norm > 0)).flatten()
    if bool(bad.any()):
        place = int(bad.nonzero()[0, 0])
        raise DataError(f"point {place} has no direction: its numbers are not finite or all zero")
    unit: Tensor = wide / norm.to(wide.dtype)
    return unit


def _blocks(unit: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Cosines of each block of points with itself and with the later ones; -2, below all, for a point with itself."""
    parts = [slice(start, min(start + BLOCK, len(unit))) for start in range(0, len(unit), BLOCK)]
    for number, left in enumerate(parts):
        for right in parts[number:]:
            cosine = (unit[left] @ unit[right].T).clamp_(-1, 1)
            yield left, right, cosine.fill_diagonal_(-2) if left == right else cosine


def _class_means(sums: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    sizes = torch.bincount(labels, minlength=classes).double()
    angle, square = sums.view(2, classes, classes)
    pairs = sizes[:, None] * sizes[None, :]
    both = angle + angle.T  # a pair of two classes was met in either order; sums of angle - 90
    both.diagonal().copy_(angle.diagonal())
    pairs.diagonal().copy_(sizes * (sizes - 1) / 2)
    return (90 + both / pairs).cpu(), (square.diagonal() / pairs.diagonal()).cpu()  # 0 / 0 is the NaN that was promised


def _angles_to(unit: Tensor, other: Tensor, place: Tensor) -> Tensor:
    """The angles between points and the chosen others; by their difference, since acos loses digits near 0."""
    parts = [slice(start, start + BLOCK) for start in range(0, len(unit), BLOCK)]
    return torch.cat([angle_between(unit[part], other[place[part]]) for part in parts]).double().cpu()
