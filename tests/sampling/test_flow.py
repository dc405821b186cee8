"""Solvers of a flow, on Gaussians, whose flow is known in closed form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from spheregen.sampling.flow import LEAST_REMAINDER, SOLVERS, evaluations, integrate, velocity

MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
DEVIATION = torch.tensor([0.3, 1.6], dtype=torch.float64)


def expected_end(x: Tensor, t: float) -> Tensor:
    """E[x_1 | x_t] where x_1 ~ N(MEAN, DEVIATION^2) and x_0 ~ N(0, 1), both independent."""
    variance = (1 - t) ** 2 + (t * DEVIATION) ** 2
    return MEAN + t * DEVIATION**2 / variance * (x - t * MEAN)


def exact_end(start: Tensor) -> Tensor:
    """Where the flow takes a start: it keeps the place in units of the deviation."""
    return MEAN + DEVIATION * start


def errors(solver: str, steps: tuple[int, ...]) -> list[float]:
    start = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return [(integrate(expected_end, start, n, solver) - exact_end(start)).abs().mean().item() for n in steps]


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_every_solver_converges_at_its_order(solver: str, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # the bound on 1 - t is a property of training; without it the flow is the exact one to its end
    monkeypatch.setattr("spheregen.sampling.flow.LEAST_REMAINDER", 0.0)
    counts = (16, 32, 64, 128)
    found = errors(solver, counts)
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(found)]
    assert slopes[-1] == pytest.approx(order, abs=0.2), slopes
    assert found[-1] < 0.02


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_last_step_is_plain_and_evaluations_are_counted(solver: str) -> None:
    asked: list[float] = []

    def end(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return torch.full_like(x, 3.0)

    assert torch.equal(integrate(end, torch.zeros(2, 3), 4, solver), torch.full((2, 3), 3.0))
    assert len(asked) == evaluations(4, solver)
    assert asked[-1] == 0.75
    assert max(asked) < 1


def test_velocities_stay_finite_at_the_end() -> None:
    end, x = torch.ones(2, 3), torch.zeros(2, 3)
    assert torch.equal(velocity(end, x, 1.0), torch.full((2, 3), 1 / LEAST_REMAINDER))
    times = torch.tensor([0.0, 1.0]).view(2, 1)
    assert torch.allclose(velocity(end, x, times), torch.tensor([[1.0], [1 / LEAST_REMAINDER]]).expand(2, 3))
    assert torch.equal(velocity(end, x, 0.5), velocity(end, x, torch.tensor(0.5)))
