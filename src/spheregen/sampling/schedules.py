"""How strong the noise of each refinement step is, as a fraction r_t of sigma_max."""

from __future__ import annotations

from collections.abc import Sequence

from spheregen.errors import ConfigError, did_you_mean

SCHEDULES = ("fixed", "decay")
Schedule = str | Sequence[float]
"""`fixed`, `decay`, or the fractions themselves."""


def refinement_radii(schedule: Schedule, steps: int) -> tuple[float, ...]:
    """The radii r_1 .. r_{T-1} of generation in `steps` = T steps.

    `fixed`: r_t = 1 (the paper's best). `decay`: r_t = 1 - t/T. A sequence must hold T-1 numbers.

    Raises:
        ConfigError: fewer than 1 step, an unknown schedule, or a sequence of another length.
    """
    if steps < 1:
        raise ConfigError(f"steps is at least 1, not {steps}: one step decodes a random point")
    if schedule == "fixed":
        return (1.0,) * (steps - 1)
    if schedule == "decay":
        return tuple(1 - t / steps for t in range(1, steps))
    return _explicit(schedule, steps - 1, "refinement steps (steps - 1)")


def edit_radii(schedule: Schedule, steps: int, strength: float) -> tuple[float, ...]:
    """The radii of `steps` = T edit steps: `fixed` r_t = strength, `decay` r_t = strength * (1 - t/(T+1)), t = 1..T.

    A sequence holds T numbers that `strength` multiplies.
    """
    if steps < 1:
        raise ConfigError(f"steps is at least 1, not {steps}: an edit step encodes and decodes once")
    if strength < 0:
        raise ConfigError(f"strength is not negative: {strength:g}")
    if schedule == "fixed":
        return (strength,) * steps
    if schedule == "decay":
        return tuple(strength * (1 - t / (steps + 1)) for t in range(1, steps + 1))
    return tuple(strength * r for r in _explicit(schedule, steps, "edit steps"))


def _explicit(schedule: Schedule, count: int, what: str) -> tuple[float, ...]:
    if isinstance(schedule, str):
        raise ConfigError(
            f"unknown schedule {schedule!r}{did_you_mean(schedule, SCHEDULES)}; use {', '.join(SCHEDULES)} or a list"
        )
    radii = tuple(float(r) for r in schedule)
    if len(radii) != count:
        raise ConfigError(f"a schedule of {len(radii)} numbers does not fit {count} {what}")
    if any(r < 0 for r in radii):
        raise ConfigError("a schedule holds no negative numbers")
    return radii
