"""How strong the noise of each refinement step is, as a fraction r_t of sigma_max.

A schedule is a function `(t, steps) -> r_t` for t = 1 .. steps-1; `fixed` and `decay` are the published ones, `angle`
lowers the angle of the noise evenly instead of its magnitude, and any function of yours, or the numbers themselves, can
stand in their place.

Source: Yue et al. 2026 (arXiv 2602.15030), generation schedules.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from spheregen.errors import ConfigError, did_you_mean
from spheregen.sphere import angle_to_sigma, sigma_to_angle

Schedule = str | Sequence[float] | Callable[[int, int], float]
"""A name in `SCHEDULES`, the fractions themselves, or a function of step and steps."""

SIGMA_85 = angle_to_sigma(85.0)
"""sigma_max of a model of the paper's most used angle, for those who check a schedule without a model."""

MOST_STEPS = 10_000
"""More is a typing error, or somebody else's attempt to keep us busy."""


def fixed(t: int, steps: int) -> float:
    """r_t = 1: every step is as noisy as training was; the paper's best."""
    return 1.0


def decay(t: int, steps: int) -> float:
    """r_t = 1 - t/steps."""
    return 1 - t / steps


def angle(t: int, steps: int, sigma_max: float = SIGMA_85) -> float:
    """r_t = tan(alpha_max * (1 - t/steps)) / tan(alpha_max): the angle falls evenly, so late steps have far less noise.

    Ours; for few-step denoisers of latents, whose noise angles are near 90 degrees for most magnitudes.
    """
    return angle_to_sigma(sigma_to_angle(sigma_max) * (1 - t / steps)) / sigma_max


SCHEDULES: Mapping[str, Callable[[int, int], float]] = MappingProxyType(
    {"fixed": fixed, "decay": decay, "angle": angle}
)
"""The schedules that have a name; `angle` is told the model's sigma_max."""


def refinement_radii(schedule: Schedule, steps: int, sigma_max: float = SIGMA_85) -> tuple[float, ...]:
    """The radii r_1 .. r_{T-1} of generation in `steps` = T steps; a sequence holds T-1 numbers.

    `sigma_max` is the model's, on which the schedule `angle` depends.

    Raises:
        ConfigError: fewer than 1 step, an unknown schedule, a sequence of another length, or negative radii.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps is at least 1, not {steps}: one step decodes a random point; {MOST_STEPS} at most")
    return _radii(schedule, steps - 1, "refinement steps (steps - 1)", sigma_max)


def edit_radii(schedule: Schedule, steps: int, strength: float, sigma_max: float = SIGMA_85) -> tuple[float, ...]:
    """The radii of `steps` = T edit steps: `strength` times the schedule of T+1 steps at t = 1 .. T.

    So `fixed` is r_t = strength and `decay` r_t = strength * (1 - t/(T+1)). A sequence holds T numbers.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps is at least 1, not {steps}: a step encodes and decodes once; {MOST_STEPS} at most")
    if not 0 <= strength < math.inf:
        raise ConfigError(f"strength is a fraction of the training noise from 0 up, not {strength:g}")
    return tuple(strength * r for r in _radii(schedule, steps, "edit steps", sigma_max))


def _radii(schedule: Schedule, count: int, what: str, sigma_max: float) -> tuple[float, ...]:
    """The radii of `count` noisy steps."""
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            hint = did_you_mean(schedule, SCHEDULES)
            raise ConfigError(
                f"unknown schedule {schedule!r}{hint}; use {', '.join(SCHEDULES)}, a list of numbers or a function"
            )
        schedule = functools.partial(angle, sigma_max=sigma_max) if schedule == "angle" else SCHEDULES[schedule]
    if callable(schedule):
        radii = tuple(float(schedule(t, count + 1)) for t in range(1, count + 1))
    else:
        radii = tuple(float(r) for r in schedule)
    if len(radii) != count:
        raise ConfigError(f"a schedule of {len(radii)} numbers does not fit {count} {what}")
    if not all(0 <= r < math.inf for r in radii):
        raise ConfigError("a schedule holds finite numbers from 0 up")
    return radii
