"""Are points uniform on the sphere? Three tests of whether they are independent draws from the uniform law.

Legend: n points, L dimensions, u_i unit vectors, h a function of the cosine of a pair with mean 0 under uniformity.

The tests of Rayleigh (h = cos) and Bingham (h = cos^2 - 1/L) ask for a preferred direction and for preferred axes or
planes. Both are sums of h over all pairs, and the classical chi-squared laws hold only where n is large against L^2.
Here h is lambda times the reproducing kernel of D functions on the sphere (spherical harmonics of degree 1 and 2),
which gives the first three moments of the sum for every n and L:

    E (sum)^2 = n(n-1)/2 * lambda^2 D,    E (sum)^3 = n(n-1)/2 * E h^3 + n(n-1)(n-2) * lambda^3 D

with lambda = 1/L, D = L and lambda = 2/(L(L+2)), D = (L-1)(L+2)/2. A shifted gamma law with these moments gives the
p-value; it is the chi-squared law where n is large, and normal where L is.

The third test looks at the closest pair, or the most opposite one: it finds a few points that huddle where the sums
drown them. Its p-value is the union bound over all pairs, which is all but exact as pairs are pairwise independent.

A set more even than chance (a lattice) passes: the sums are tested from above alone. In high L a hole passes too, up
to nearly a half of the sphere: no few thousand points can show one whose place is unknown.
Source: Mardia and Jupp 2000, "Directional Statistics", chapter 10, for the classical tests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.evaluation.sphere.angle_law import AngleLaw
from spheregen.evaluation.sphere.pairs import BINS_PER_DEGREE, PairSurvey, survey_pairs

_NORMAL = 1e-3  # skewness below which the normal law gives p-values of 0.001 to half a percent


@dataclass(frozen=True)
class PointTest:
    """One test of uniformity."""

    statistic: float
    """Rayleigh: n L |mean|^2. Bingham: n L(L+2)/2 * (tr(T^2) - 1/L), T the mean of u u^T. Largest cosine: |cos|."""
    expected: float
    """Its mean under uniformity (of the largest cosine: its median)."""
    p_value: float
    """The chance of a value as large or larger under uniformity; 0 means below 1e-300."""


@dataclass(frozen=True)
class UniformityTest:
    """Whether points are a sample of the uniform law on the sphere."""

    count: int
    """n."""
    dim: int
    """L."""
    level: float
    """The chance of rejecting uniform points, at most."""
    p_value: float
    """Of all tests together: three times the smallest (Bonferroni), at most 1."""
    rejected: bool
    """p_value < level."""
    tests: Mapping[str, PointTest]
    """`rayleigh`, `bingham`, `largest_cosine`."""
    closest_pair: tuple[int, int]
    """The places of the two points with the largest |cos|."""
    ks_distance: float
    """A figure, not a test, since pairs are dependent: the largest difference between the distribution function of all
    pairwise angles and its law, to 0.01 degrees. 0 to 1."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"closest_pair": list(self.closest_pair)}


def uniformity_test(points: Tensor, level: float = 0.01) -> UniformityTest:
    """Test whether points are uniform on the sphere.

    Args:
        points: (n, L) on a sphere of any radius, n and L at least 2. All pairs are compared block by block, so that
            memory grows with n alone.
        level: the chance of a false alarm.

    Raises:
        DataError: too few points or dimensions, or points that have no direction.
        ConfigError: a level outside (0, 1).
    """
    return judge_pairs(survey_pairs(points), level)


def judge_pairs(pairs: PairSurvey, level: float = 0.01) -> UniformityTest:
    """The same for points whose pairs were looked at already."""
    if not 0 < level < 1:
        raise ConfigError(f"the level of a test lies between 0 and 1, not {level:g}")
    tests = {"rayleigh": _rayleigh(pairs), "bingham": _bingham(pairs), "largest_cosine": _largest_cosine(pairs)}
    p_value = min(1.0, len(tests) * min(test.p_value for test in tests.values()))
    return UniformityTest(
        count=pairs.count,
        dim=pairs.dim,
        level=level,
        p_value=p_value,
        rejected=p_value < level,
        tests=tests,
        closest_pair=pairs.largest_pair,
        ks_distance=ks_distance(pairs),
    )


def ks_distance(pairs: PairSurvey) -> float:
    """The largest difference between the distribution function of the pairwise angles and its law."""
    below = pairs.histogram.cumsum(0).double() / pairs.pairs
    return float((below - _law_at_edges(pairs.dim)).abs().max())


def gamma_tail(z: float, skewness: float) -> float:
    """P(Z >= z) of a shifted gamma law with mean 0, deviation 1 and this skewness >= 0."""
    if skewness < _NORMAL:
        return 0.5 * math.erfc(z / math.sqrt(2))
    shape = 4 / skewness**2
    place = torch.tensor(max(0.0, shape + z * math.sqrt(shape)), dtype=torch.float64)
    return float(torch.special.gammaincc(torch.tensor(shape, dtype=torch.float64), place))


def _rayleigh(pairs: PairSurvey) -> PointTest:
    n, dim = pairs.count, pairs.dim
    statistic = n * dim * pairs.resultant**2
    total = n * (n * pairs.resultant**2 - 1) / 2  # the sum of all cosines of pairs
    return PointTest(statistic, float(dim), _tail_of_sum(total, n, 1 / dim, dim, 0.0))


def _bingham(pairs: PairSurvey) -> PointTest:
    n, dim = pairs.count, pairs.dim
    excess = pairs.mean_square_cosine - 1 / dim
    square = 1 / n + (n - 1) / n * pairs.mean_square_cosine  # tr(T^2)
    functions = (dim - 1) * (dim + 2) / 2
    a, b = 0.5, (dim - 1) / 2  # cos^2 follows Beta(a, b)
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    skewness = 2 * (b - a) * math.sqrt(a + b + 1) / ((a + b + 2) * math.sqrt(a * b))
    p_value = _tail_of_sum(excess * pairs.pairs, n, 2 / (dim * (dim + 2)), functions, skewness * variance**1.5)
    return PointTest(n * dim * (dim + 2) / 2 * (square - 1 / dim), functions, p_value)


def _tail_of_sum(total: float, n: int, eigenvalue: float, functions: float, third: float) -> float:
    """P(sum of h over all pairs >= total): see above; `third` is E h^3."""
    variance = n * (n - 1) / 2 * eigenvalue**2 * functions
    cube = n * (n - 1) / 2 * third + n * (n - 1) * (n - 2) * eigenvalue**3 * functions
    return gamma_tail(total / math.sqrt(variance), cube / variance**1.5)


@functools.lru_cache(maxsize=8)
def _law_at_edges(dim: int) -> Tensor:
    """The angle law's distribution function at the upper edges of the survey's bins."""
    return AngleLaw(dim).cdf(torch.arange(1, 180 * BINS_PER_DEGREE + 1, dtype=torch.float64) / BINS_PER_DEGREE)


@functools.lru_cache(maxsize=8)
def _median_largest(dim: int, pairs: int) -> float:
    """The median of the largest |cos| of so many independent pairs."""
    return math.cos(math.radians(AngleLaw(dim).quantile(-math.expm1(-math.log(2) / pairs) / 2)))


def _largest_cosine(pairs: PairSurvey) -> PointTest:
    law = AngleLaw(pairs.dim)
    log_bound = math.log(pairs.pairs) + law.log_tail_of_cosine(pairs.largest_cosine)
    expected = _median_largest(pairs.dim, pairs.pairs)
    return PointTest(pairs.largest_cosine, expected, math.exp(min(0.0, log_bound)))
