"""The uniformity terms: small for evenly spread points, larger for others, and gradients that spread points."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spheregen.family.uniformity import (
    SOFTENING,
    hyperspherical_energy,
    projection_directions,
    sliced_wasserstein,
)
from spheregen.sphere import spherify, uniform_points

TOKENS, CHANNELS = 4, 6
NUMBERS = TOKENS * CHANNELS
Term = Callable[[Tensor], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(batch: int, seed: int = 0) -> Tensor:
    return uniform_points(batch, (TOKENS, CHANNELS), generator=seeded(seed))


def sliced(latents: Tensor) -> Tensor:
    return sliced_wasserstein(latents, projection_directions(256, NUMBERS, generator=seeded(7)))


TERMS: dict[str, Term] = {
    "sliced_wasserstein": sliced,
    "log energy": lambda z: hyperspherical_energy(z, 0.0),
    "energy": hyperspherical_energy,
    "energy, s = 2": lambda z: hyperspherical_energy(z, 2.0),
}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())


def crowded(batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Points that do not fill the sphere, each in its way."""
    z = points(batch, seed)
    flat = z.flatten(1)
    half = flat.clone()
    half[:, NUMBERS // 2 :] = 0
    return {
        "a cap": spherify(z + 1.5 * points(1, 99)),
        "two caps": spherify(z + 1.5 * points(1, 99) * torch.where(torch.arange(batch) % 2 == 0, 1, -1)[:, None, None]),
        "a subspace": spherify(half).view_as(z),
        "ten points": points(10, seed)[torch.arange(batch) % 10],
        "one point": points(1, seed).expand(batch, -1, -1),
    }


@every_term
def test_uniform_points_have_the_least_in_expectation(term: Term) -> None:
    seeds = range(10)
    uniform = torch.stack([term(points(128, seed)) for seed in seeds])
    for name in crowded(2):
        other = torch.stack([term(crowded(128, seed)[name]) for seed in seeds])
        assert other.mean() > uniform.mean() + 2 * uniform.std(), name


def test_the_energy_by_its_formula() -> None:
    x = points(9).flatten(1).double() / math.sqrt(NUMBERS)
    distances = torch.pdist(x)
    for s in (0.5, 1.0, 2.0):
        torch.testing.assert_close(
            hyperspherical_energy(x * 3, s), (distances.square() + SOFTENING**2).pow(-s / 2).mean(), rtol=1e-4, atol=0
        )
    expected = (2 / (distances.square() + SOFTENING**2).sqrt()).log().mean()
    torch.testing.assert_close(hyperspherical_energy(x, 0.0), expected, rtol=1e-4, atol=0)
    opposite = torch.stack([x[0], -x[0]])
    assert 0 <= hyperspherical_energy(opposite, 0.0).item() + SOFTENING**2 < 1e-3  # never negative


def test_the_sliced_distance_by_its_formula() -> None:
    batch = 11
    z, directions = points(batch).double(), projection_directions(5, NUMBERS, generator=seeded())
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    quantiles = normal.icdf((torch.arange(batch) + 0.5).double() / batch)
    projected = z.flatten(1) @ directions.double().T
    expected = torch.stack([(column.sort().values - quantiles).square().mean() for column in projected.T]).mean()
    torch.testing.assert_close(sliced_wasserstein(z, directions), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(5))


def spread(z: Tensor) -> Tensor:
    """The mean cosine to the nearest other point: 1 where points coincide."""
    unit = torch.nn.functional.normalize(z.detach().flatten(1), dim=1)
    gram = unit @ unit.T
    return gram.fill_diagonal_(-1).max(1).values.mean()


@every_term
@pytest.mark.parametrize("case", ["one", "two", "duplicates", "one point", "zeros", "opposite", "tiny"])
def test_values_and_gradients_are_finite(term: Term, case: str) -> None:
    z = {
        "one": points(1),
        "two": points(2),
        "duplicates": points(4).repeat(3, 1, 1),
        "one point": points(1).expand(8, -1, -1),
        "zeros": torch.zeros(8, TOKENS, CHANNELS),
        "opposite": torch.cat([points(4), -points(4)]),
        "tiny": 1e-20 * points(8),
    }[case]
    z = z.clone().requires_grad_()
    value = term(z)
    (gradient,) = torch.autograd.grad(value, z)
    assert value.isfinite() and gradient.isfinite().all()
    if case == "one":
        assert value.item() == 0 and not gradient.any()


@every_term
def test_autocast_and_half_types_compute_in_float32(term: Term) -> None:
    z = points(16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(z)
    assert value.dtype == torch.float32 and value.shape == ()
    assert torch.equal(value, term(z.float()))
    assert term(z.double()).dtype == torch.float64
