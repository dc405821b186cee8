"""Following a flow from its start at t = 0 to images at t = 1, by a network that predicts the end.

The path is straight: x_t = (1 - t) x_start + t x, so a predicted end x_pred means the velocity
(x_pred - x_t) / max(1 - t, 0.05). The last step is the plain prediction, which is where an Euler step to t = 1 ends.

Source: Sphere Flow; Li and He 2025 (arXiv 2511.13720), prediction of the end and the bound on 1 - t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from spheregen.errors import ConfigError, did_you_mean

LEAST_REMAINDER = 0.05
"""Velocities near the end are computed as if so much of the path were left, which keeps them finite."""
MOST_STEPS = 10_000
"""More is a typing error, or somebody else's attempt to keep us busy."""

End = Callable[[Tensor, float], Tensor]
"""A point of the path (B, ...) at a time in [0, 1) to the predicted end (B, ...)."""
Solver = Callable[[End, Tensor, float, float], Tensor]
"""One step from a point of the path at a time to the next time."""


def velocity(end: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
    """The velocity at x (B, ...), at one time or (B, 1, ...) times, of a flow that ends at `end`."""
    if isinstance(t, Tensor):
        return (end - x) / (1 - t).clamp_min(LEAST_REMAINDER)
    return (end - x) / max(1 - t, LEAST_REMAINDER)


def euler(end: End, x: Tensor, t: float, to: float) -> Tensor:
    """One evaluation; first order."""
    return x + (to - t) * velocity(end(x, t), x, t)


def heun(end: End, x: Tensor, t: float, to: float) -> Tensor:
    """Two evaluations, at both ends of the step; second order."""
    first = velocity(end(x, t), x, t)
    there = x + (to - t) * first
    return x + (to - t) / 2 * (first + velocity(end(there, to), there, to))


def midpoint(end: End, x: Tensor, t: float, to: float) -> Tensor:
    """Two evaluations, at the beginning and in the middle of the step; second order."""
    middle = (t + to) / 2
    half = x + (middle - t) * velocity(end(x, t), x, t)
    return x + (to - t) * velocity(end(half, middle), half, middle)


SOLVERS: Mapping[str, Solver] = MappingProxyType({"euler": euler, "heun": heun, "midpoint": midpoint})
"""The solvers by their names."""


def evaluations(steps: int, solver: str) -> int:
    """Evaluations of the network in `steps` steps, of which the last one takes one."""
    return (steps - 1) * (1 if solver == "euler" else 2) + 1 if steps else 0


def check_flow(steps: int, solver: str) -> None:
    """Complain of a number of steps or a solver that there is not.

    Raises:
        ConfigError: it is so.
    """
    if not 0 <= steps <= MOST_STEPS:
        raise ConfigError(
            f"refinement_steps is not negative, 0 leaves images rough, and at most {MOST_STEPS}: not {steps}"
        )
    if solver not in SOLVERS:
        raise ConfigError(f"unknown solver {solver!r}{did_you_mean(solver, SOLVERS)}; use {', '.join(SOLVERS)}")


@torch.no_grad()
def integrate(end: End, start: Tensor, steps: int, solver: str = "heun") -> Tensor:
    """The end of the flow from `start` (B, ...) in N even steps; 0 steps give the start.

    Raises:
        ConfigError: another solver, or an impossible number of steps.
    """
    check_flow(steps, solver)
    step, x = SOLVERS[solver], start
    for number in range(steps - 1):
        x = step(end, x, number / steps, (number + 1) / steps)
    return end(x, (steps - 1) / steps) if steps else x
