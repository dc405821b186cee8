"""How many directions of the sphere points fill: the eigenvalues of their second moment.

For n uniform points in L dimensions, scaled to the sphere of radius sqrt(L), the second moment is the identity up to
chance: its eigenvalues spread between the edges (1 -+ sqrt(L/n))^2 of the Marchenko-Pastur law (and L - n of them are 0
where n < L). What lies outside is structure of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.evaluation.sphere.pairs import unit_points

MOST = 2048
"""Points or dimensions, whichever are fewer, that are decomposed; of more points the first are taken."""
_COLUMNS = 4096


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Eigenvalues of the second moment (1/n) sum x x^T of points with |x|^2 = L."""

    count: int
    """n points that were decomposed."""
    dim: int
    """L."""
    eigenvalues: tuple[float, ...]
    """Descending, the min(n, L) that are not 0 by necessity; they sum to L."""
    participation: float
    """(sum)^2 / (sum of squares): the effective number of directions of these n points, at most min(n, L)."""
    axes: Tensor
    """(3, L) float64: the three leading directions, unit vectors; zeros where there are fewer."""

    @property
    def edges(self) -> tuple[float, float]:
        """Where the eigenvalues of n uniform points begin and end, for large n and L: Marchenko-Pastur."""
        root = math.sqrt(self.dim / self.count)
        return (1 - root) ** 2, (1 + root) ** 2

    @property
    def expected_participation(self) -> float:
        """The participation of n uniform points: n L / (n + L - 1)."""
        return self.count * self.dim / (self.count + self.dim - 1)

    @property
    def beyond(self) -> int:
        """Eigenvalues above the upper edge, a fiftieth of it left to chance."""
        return sum(value > 1.02 * self.edges[1] for value in self.eigenvalues)

    def share(self, leading: int) -> float:
        """The share of all squared length in so many leading directions."""
        return sum(self.eigenvalues[:leading]) / self.dim


@torch.no_grad()
def spectrum(points: Tensor) -> Spectrum:
    """Decompose points (n, L); only their directions count.

    Raises:
        DataError: too few points or dimensions, or points that have no direction.
    """
    unit = unit_points(points).cpu()
    count, dim = unit.shape
    if min(count, dim) > MOST:
        unit, count = unit[:MOST], MOST
    if dim <= count:
        moment = sum((part.double().T @ part.double() for part in unit.split(_COLUMNS)), torch.zeros(dim, dim).double())
        values, vectors = torch.linalg.eigh(moment * (dim / count))
        axes = vectors.T
    else:  # the same eigenvalues from the smaller matrix of cosines
        columns = unit.split(_COLUMNS, dim=1)
        cosines = sum((part.double() @ part.double().T for part in columns), torch.zeros(count, count).double())
        values, vectors = torch.linalg.eigh(cosines * (dim / count))
        leading = vectors.T[-3:]
        axes = torch.cat([leading @ part.double() for part in columns], dim=1)
        axes = axes / torch.linalg.vector_norm(axes, dim=1, keepdim=True).clamp_min(1e-30)
    values = values.flip(0).clamp_min(0)
    three = torch.zeros(3, dim, dtype=torch.float64)
    three[: min(3, len(axes))] = axes[-3:].flip(0)
    # an axis has no sign of its own: its largest number is positive, on every machine
    three *= torch.sign(three.gather(1, three.abs().argmax(dim=1, keepdim=True)))
    return Spectrum(
        count=count,
        dim=dim,
        eigenvalues=tuple(values.tolist()),
        participation=float(values.sum().square() / values.square().sum()),
        axes=three,
    )
