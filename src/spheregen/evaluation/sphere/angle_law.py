"""The law of the angle between two independent uniform points on a sphere.

In L dimensions its density is proportional to sin^(L-2), and the squared cosine follows Beta(1/2, (L-1)/2). All of it
is computed in float64, the tails in logarithms: in high L the interesting angles are those that never occur.

Angles are in degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.errors import DataError

_PRECISION = 1e-15
_MOST_TERMS = 100_000  # it takes about sqrt(L) at worst


@dataclass(frozen=True)
class AngleLaw:
    """The angle between two independent uniform points in L dimensions.

    Raises:
        DataError: fewer than two dimensions; a sphere on a line is two points.
    """

    dim: int
    """L >= 2."""

    def __post_init__(self) -> None:
        if self.dim < 2:
            raise DataError(f"angles on a sphere need at least 2 dimensions, not {self.dim}")

    @property
    def mean(self) -> float:
        """90: the law is symmetric."""
        return 90.0

    @property
    def std(self) -> float:
        """The standard deviation, exactly sqrt(psi'(L/2) / 2) radians; about 57.3 / sqrt(L) degrees."""
        trigamma = torch.special.polygamma(1, torch.tensor(self.dim / 2, dtype=torch.float64))
        return math.degrees(math.sqrt(float(trigamma) / 2))

    def density(self, angle: Tensor) -> Tensor:
        """The density per degree, float64, the shape of `angle` in [0, 180]."""
        half = self.dim / 2
        constant = math.lgamma(half) - math.lgamma(half - 0.5) - 0.5 * math.log(math.pi) + math.log(math.pi / 180)
        sine = torch.sin(torch.deg2rad(angle.to(torch.float64))).clamp_min(0)
        return torch.exp(constant + torch.xlogy(torch.full_like(sine, self.dim - 2), sine))

    def cdf(self, angle: Tensor) -> Tensor:
        """P(angle <= `angle`), float64."""
        return torch.exp(self.log_cdf(angle))

    def log_cdf(self, angle: Tensor) -> Tensor:
        """log P(angle <= `angle`), float64, the shape of `angle` in [0, 180]; exact also where P underflows."""
        wide = angle.to(torch.float64)
        low = torch.minimum(wide, 180 - wide)  # the law is symmetric: all is said by the lower half
        tail = self._log_tail(torch.deg2rad(low))
        return torch.where(wide <= 90, tail, torch.log1p(-torch.exp(tail)))

    def log_tail_of_cosine(self, cosine: float) -> float:
        """log P(|cos| >= `cosine`) for a cosine in [0, 1]: both ends of the law, near 0 and near 180 degrees."""
        low = torch.tensor(math.atan2(math.sqrt((1 - cosine) * (1 + cosine)), cosine), dtype=torch.float64)
        return float(self._log_tail(low)) + math.log(2)

    def quantile(self, probability: float) -> float:
        """The angle below which a pair lies with this probability, in (0, 1)."""
        if probability > 0.5:
            return 180 - self.quantile(1 - probability)
        low, high, target = 0.0, 90.0, math.log(probability)
        for _ in range(5):  # each narrows the bracket 512 times
            grid = torch.linspace(low, high, 513, dtype=torch.float64)
            place = int((self.log_cdf(grid) < target).sum())
            low, high = float(grid[max(place - 1, 0)]), float(grid[min(place, 512)])
        return (low + high) / 2

    def median_nearest(self, count: int) -> float:
        """The median angle from a point to the nearest of `count` independent uniform points."""
        return self.quantile(-math.expm1(-math.log(2) / count))

    def _log_tail(self, radians: Tensor) -> Tensor:
        """log P(angle <= `radians`) for float64 angles in [0, pi/2]: half of I_{sin^2}((L-1)/2, 1/2)."""
        sine, cosine = torch.sin(radians), torch.cos(radians)
        return log_incomplete_beta(sine.square(), cosine.square(), (self.dim - 1) / 2, 0.5) - math.log(2)


def log_incomplete_beta(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    """The logarithm of the regularised incomplete beta function I_x(a, b).

    By its continued fraction (DLMF 8.17.22), on the side of the mean where it converges fast.

    Args:
        x: float64 in [0, 1].
        y: 1 - x, given so that it may be exact where x is near 1.
        a, b: positive.
    """
    beyond = x > (a + 1) / (a + b + 2)
    near, far = torch.where(beyond, y, x), torch.where(beyond, x, y)
    first = torch.where(beyond, b, a).to(torch.float64)
    second = torch.where(beyond, a, b).to(torch.float64)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = torch.xlogy(first, near) + torch.xlogy(second, far) - torch.log(first) - log_beta
    value = front - torch.log(_continued_fraction(near, first, second))
    return torch.where(beyond, torch.log1p(-torch.exp(value).clamp_max(1)), value)


def _continued_fraction(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """1 + d1/(1 + d2/(1 + ...)) of the incomplete beta function, by Lentz' method."""
    tiny = 1e-300
    value, c, d = torch.ones_like(x), torch.ones_like(x), torch.zeros_like(x)
    for term in range(1, _MOST_TERMS):
        m = term // 2
        if term % 2:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 + numerator * d
        d = 1 / torch.where(d.abs() < tiny, tiny, d)
        c = 1 + numerator / c
        c = torch.where(c.abs() < tiny, tiny, c)
        change = c * d
        value = value * change
        if bool(((change - 1).abs() < _PRECISION).all()):
            break
    return value
