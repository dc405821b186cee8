"""The angle of the noise of each step.

A schedule says for each step t how strong the noise is, as a fraction r_t of the magnitude of the training noise:
`fixed` and `decay` are the published ones; any function `(t, steps) -> r_t` of yours, or the numbers themselves, can
stand in their place. `angle` lowers the angle of the noise evenly instead of its magnitude, and `Angles` are angles as
they are. All of them become angles in radians here; a fraction r of alpha_max is the angle atan(r * tan(alpha_max)).

Source: Yue et al. 2026 (arXiv 2602.15030), generation schedules (method.md, section 1.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from spheregen.errors import ConfigError, did_you_mean
from spheregen.sphere import scale_noise

MOST_STEPS = 10_000
"""More is a typing error, or an attempt to keep a machine busy."""


@dataclass(frozen=True)
class Angles:
    """A schedule of the angles themselves."""

    degrees: tuple[float, ...]
    """One for each noisy step, 0 to 90."""


Schedule = str | Sequence[float] | Callable[[int, int], float] | Angles
"""A name in `SCHEDULES`; fractions of the training noise's magnitude; a function of step and steps that gives them; or
`Angles`."""


SCHEDULES: Mapping[str, Callable[[int, int, float], float]] = MappingProxyType(
    {
        "fixed": lambda t, steps, largest: largest,  # r_t = 1, as noisy as training was: the paper's best
        "decay": lambda t, steps, largest: scale_noise(largest, 1 - t / steps).item(),  # r_t = 1 - t/steps
        # ours: late steps have far less noise, for few-step denoisers of latents, whose angles are near 90 degrees for
        # most magnitudes
        "angle": lambda t, steps, largest: largest * (1 - t / steps),
    }
)
"""The schedules that have a name: step t = 1 .. steps-1, steps and alpha_max in radians to an angle in radians."""


def generation_angles(
    schedule: Schedule, steps: int, alpha_max: float = 85.0, strength: float = 1.0
) -> tuple[float, ...]:
    """Return the angles in radians of the noise of steps 2 .. T of generation.

    Args:
        schedule: of T = `steps` steps; a sequence holds T - 1 numbers.
        steps: T.
        alpha_max: of the model, in degrees.
        strength: a factor of the magnitude of all noise.

    Raises:
        ConfigError: fewer than 1 step, an unknown schedule, a sequence of another length, or impossible numbers.
    """
    return _angles(schedule, steps, 1, alpha_max, strength)


def edit_angles(schedule: Schedule, steps: int, strength: float, alpha_max: float = 85.0) -> tuple[float, ...]:
    """Return the angles in radians of `steps` = T edit steps: the schedule of T+1 steps at t = 1 .. T, by `strength`.

    So `fixed` is r_t = strength and `decay` r_t = strength * (1 - t/(T+1)). A sequence holds T numbers.

    Raises:
        ConfigError: as for `generation_angles`, or an impossible strength.
    """
    return _angles(schedule, steps, 0, alpha_max, strength)


def _angles(schedule: Schedule, steps: int, clean: int, alpha_max: float, strength: float) -> tuple[float, ...]:
    """Return the angles of the noisy steps, all but the `clean` first ones."""
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps is at least 1, and at most {MOST_STEPS}, not {steps}")
    count = steps - clean
    if not 0 <= strength < math.inf:
        raise ConfigError(f"strength is a fraction of the training noise from 0 up, not {strength:g}")
    largest = math.radians(alpha_max)
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            hint = did_you_mean(schedule, SCHEDULES)
            raise ConfigError(
                f"unknown schedule {schedule!r}{hint}; use {', '.join(SCHEDULES)}, a list of numbers or a function"
            )
        found = [SCHEDULES[schedule](t, count + 1, largest) for t in range(1, count + 1)]
    elif isinstance(schedule, Angles):
        if not all(0 <= degrees <= 90 for degrees in schedule.degrees):
            raise ConfigError("a schedule of angles holds degrees from 0 to 90")
        found = [math.radians(degrees) for degrees in schedule.degrees]
    else:
        numbers = [schedule(t, count + 1) for t in range(1, count + 1)] if callable(schedule) else list(schedule)
        if not all(0 <= r < math.inf for r in numbers):
            raise ConfigError("a schedule holds finite numbers from 0 up")
        found = [scale_noise(largest, float(r)).item() for r in numbers]
    if len(found) != count:
        raise ConfigError(f"a schedule of {len(found)} numbers does not fit {count} noisy steps")
    return tuple(each if strength == 1 else scale_noise(each, strength).item() for each in found)
