"""How strong the noise of each refinement step is, as a fraction r_t of sigma_max.

A schedule is a function `(t, steps) -> r_t` for t = 1 .. steps-1; `fixed` and `decay` are the published ones, and any
function of yours, or the numbers themselves, can stand in their place.

Source: Yue et al. 2026 (arXiv 2602.15030), generation schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from spheregen.errors import ConfigError, did_you_mean

Schedule = str | Sequence[float] | Callable[[int, int], float]
"""A name in `SCHEDULES`, the fractions themselves, or a function of step and steps."""

MOST_STEPS = 10_000
"""More is a typing error, or somebody else's attempt to keep us busy."""


def fixed(t: int, steps: int) -> float:
    """r_t = 1: every step is as noisy as training was; the paper's best."""
    return 1.0


def decay(t: int, steps: int) -> float:
    """r_t = 1 - t/steps."""
    return 1 - t / steps


SCHEDULES: Mapping[str, Callable[[int, int], float]] = MappingProxyType({"fixed": fixed, "decay": decay})
"""The schedules that have a name."""


def refinement_radii(schedule: Schedule, steps: int) -> tuple[float, ...]:
    """The radii r_1 .. r_{T-1} of generation in `steps` = T steps; a sequence holds T-1 numbers.

    Raises:
        ConfigError: fewer than 1 step, an unknown schedule, a sequence of another length, or negative radii.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps is at least 1, not {steps}: one step decodes a random point; {MOST_STEPS} at most")
    return _radii(schedule, steps - 1, "refinement steps (steps - 1)")


def edit_radii(schedule: Schedule, steps: int, strength: float) -> tuple[float, ...]:
    """The radii of `steps` = T edit steps: `strength` times the schedule of T+1 steps at t = 1 .. T.

    So `fixed` is r_t = strength and `decay` r_t = strength * (1 - t/(T+1)). A sequence holds T numbers.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps is at least 1, not {steps}: a step encodes and decodes once; {MOST_STEPS} at most")
    if not 0 <= strength < math.inf:
        raise ConfigError(f"strength is a fraction of the training noise from 0 up, not {strength:g}")
    return tuple(strength * r for r in _radii(schedule, steps, "edit steps"))


def _radii(schedule: Schedule, count: int, what: str) -> tuple[float, ...]:
    """The radii of `count` noisy steps."""
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            hint = did_you_mean(schedule, SCHEDULES)
            raise ConfigError(
                f"unknown schedule {schedule!r}{hint}; use {', '.join(SCHEDULES)}, a list of numbers or a function"
            )
        schedule = SCHEDULES[schedule]
    if callable(schedule):
        radii = tuple(float(schedule(t, count + 1)) for t in range(1, count + 1))
    else:
        radii = tuple(float(r) for r in schedule)
    if len(radii) != count:
        raise ConfigError(f"a schedule of {len(radii)} numbers does not fit {count} {what}")
    if not all(0 <= r < math.inf for r in radii):
        raise ConfigError("a schedule holds finite numbers from 0 up")
    return radii
