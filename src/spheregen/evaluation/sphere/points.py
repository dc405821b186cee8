"""Sets of points on the sphere: how evenly they fill it, in figures that uniform random points give the scale of.

Legend: n points, L dimensions, u_i unit vectors, cos_ij the cosine of the angle between points i and j. Angles in
degrees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spheregen.errors import DataError

_BINS = 60


@torch.no_grad()
def point_figures(points: Tensor) -> dict[str, Any]:
    """Measure points (n, L); only their directions count. Memory grows with n^2: n is a few thousand at most.

    Returns:
        Plain values. `count`, `dim`: n and L. `mean_angle`, `angle_std`: of all pairs; 90 and about 57.3 / sqrt(L) for
        uniform points. `resultant`: length of the mean of the u_i, 0 balanced, 1 all the same; about 1 / sqrt(n) for
        uniform points. `effective_dimension`: 1 / mean cos_ij^2 of all pairs, whatever their number; L for uniform
        points. `histogram`: of the angles of all pairs, the middles of bins (`angles`) and the `density`. `nearest`:
        the angle to the nearest other point, see `spread`.

    Raises:
        DataError: too few points or dimensions, or points that have no direction.
    """
    unit = unit_points(points)
    count, dim = unit.shape
    cosine = (unit @ unit.T).clamp_(-1, 1)
    first, second = torch.triu_indices(count, count, 1)
    pairs = cosine[first, second]
    angles = torch.rad2deg(torch.acos(pairs))
    low = float(angles.min())
    width = max((float(angles.max()) - low) / _BINS, 0.1)
    density = torch.histc(angles, _BINS, low, low + _BINS * width) / (len(angles) * width)
    return {
        "count": count,
        "dim": dim,
        "mean_angle": float(angles.mean()),
        "angle_std": float(angles.std(correction=0)),
        "resultant": float(unit.mean(dim=0).norm()),
        "effective_dimension": 1 / max(float(pairs.square().mean()), 1e-300),
        "histogram": {
            "angles": (low + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)).tolist(),
            "density": density.tolist(),
        },
        "nearest": spread(nearest_angles(unit)),
    }


@torch.no_grad()
def nearest_angles(points: Tensor, reference: Tensor | None = None) -> Tensor:
    """Return the angle from each point (n, L) to the nearest of `reference` (m, L), or other point, (n,) float64."""
    unit = unit_points(points, least=1)
    other = unit if reference is None else unit_points(reference, least=1)
    cosine = unit @ other.T
    if reference is None:
        cosine.fill_diagonal_(-2)
    chord = (unit - other[cosine.argmax(dim=1)]).norm(dim=1)  # acos of the cosine loses digits near 0
    return torch.rad2deg(2 * torch.asin((chord / 2).clamp_max(1)))


def spread(angles: Tensor) -> dict[str, float]:
    """Return the distribution of angles (n,): mean, least, p5, median, p95, largest."""
    levels = {"least": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "largest": 1.0}
    found = torch.quantile(angles.double(), torch.tensor(list(levels.values()), dtype=torch.float64))
    return {"mean": float(angles.double().mean()), **dict(zip(levels, found.tolist(), strict=True))}


def unit_points(points: Tensor, *, least: int = 2) -> Tensor:
    """Return points (n, L) as unit vectors, float64 on the CPU.

    Raises:
        DataError: not a matrix, fewer than `least` points or 2 dimensions, numbers that are not finite, or a zero.
    """
    if points.ndim != 2 or points.shape[0] < least or points.shape[1] < 2:
        raise DataError(f"points have shape {tuple(points.shape)}; give (n, L), n at least {least} and L at least 2")
    wide = points.detach().cpu().double()
    norm = wide.norm(dim=1, keepdim=True)
    bad = ~(torch.isfinite(norm) & (norm > 0)).flatten()
    if bool(bad.any()):
        place = int(bad.nonzero()[0, 0])
        raise DataError(f"point {place} has no direction: its numbers are not finite or all zero")
    unit: Tensor = wide / norm
    return unit
