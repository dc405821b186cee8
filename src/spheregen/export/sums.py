"""Schedules, checks and sums of the runner, in numpy: what `sampling.schedules`, `pipeline.options` and guidance are
where torch is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spheregen.errors import ConfigError, did_you_mean
from spheregen.export.noise import Array


def step_angles(settings: Mapping[str, Any], largest: float, *, clean: int) -> list[float]:
    """Return the angles of the noisy steps, see `sampling.schedules`; `clean` steps have none."""
    schedule, strength = settings["schedule"], settings["strength"]
    steps, top = settings["steps"] + 1 - clean, math.radians(largest)

    def scaled(angle: float, by: float) -> float:
        return math.atan2(by * math.sin(angle), math.cos(angle))

    shares: dict[str, Callable[[int], float]] = {
        "fixed": lambda t: top,
        "decay": lambda t: scaled(top, 1 - t / steps),
        "angle": lambda t: top * (1 - t / steps),
    }
    if isinstance(schedule, str):
        if schedule not in shares:
            raise ConfigError(f"unknown schedule {schedule!r}{did_you_mean(schedule, shares)}; use {', '.join(shares)}")
        law = shares[schedule]
        found = [law(t) for t in range(1, steps)]
    else:
        found = [scaled(top, float(share)) for share in schedule]
    if len(found) != steps - 1:
        raise ConfigError(f"a schedule of {len(found)} numbers does not fit {steps - 1} noisy steps")
    return [angle if strength == 1 else scaled(angle, strength) for angle in found]


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise a ConfigError for numbers that cannot be."""
    for name, low, high in (
        ("steps", 1, 10_000),
        ("strength", 0, math.inf),
        ("guidance", 0, math.inf),
        ("temperature", 0, math.inf),
        ("prior_angle", 0, 90),
        ("start_angle", 0, 90),
        ("loop_angle", 0, 90),
        ("refinement_steps", 0, 10_000),
    ):
        value = settings.get(name, low)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high:
            raise ConfigError(f"{name} is a number from {low} to {high}, not {value!r}")
    if not isinstance(settings["steps"], int):
        raise ConfigError(f"steps is a whole number, not {settings['steps']!r}")
    choices = {
        "prior": ("sphere", "fitted"),
        "guidance_at": ("pixel", "latent", "both"),
        "solver": ("heun", "euler", "midpoint"),
    }
    for name, known in choices.items():
        if (value := settings.get(name, known[0])) not in known:
            raise ConfigError(f"unknown {name} {value!r}{did_you_mean(str(value), known)}; use {', '.join(known)}")
    if settings["prior"] != "fitted" and (settings["temperature"], settings["prior_angle"]) != (1, 0):
        raise ConfigError("temperature and prior_angle are of a fitted prior; give prior=fitted with them")


def filled(value: float, count: int) -> Array:
    """Return a number for each of B samples, (B,)."""
    return np.full(count, value, np.float32)


def mixed(pair: Array, scale: float) -> Array:
    """Return classifier-free guidance of predictions with and without the class, one behind the other."""
    conditional, unconditional = np.split(pair, 2)
    return unconditional + np.float32(scale) * (conditional - unconditional)


def positions(ends: int, frames: int) -> tuple[Array, Array]:
    """Return the places of an interpolation, across and down, each (F,) or (F*F,) from 0 to 1."""
    t = np.linspace(0, 1, frames, dtype=np.float32)
    return (t, np.zeros_like(t)) if ends == 2 else (np.tile(t, frames), np.repeat(t, frames))


def blend(ends: Array, frames: int) -> Array:
    """Return shares of classes (2 or 4, K + 1) mixed linearly, as `positions` goes."""
    across, down = (t[:, None] for t in positions(len(ends), frames))
    upper, *lower = [(1 - across) * ends[i] + across * ends[i + 1] for i in range(0, len(ends), 2)]
    found: Array = (1 - down) * upper + down * lower[0] if lower else upper
    return found


def slerp(a: Array, b: Array, t: Array) -> Array:
    """Return the way between the noises of two flows; nearly orthogonal, they need no care."""
    flat_a, flat_b = (end.reshape(len(t), -1).astype(np.float64) for end in (a, b))
    unit_a, unit_b = (end / np.linalg.norm(end, axis=1, keepdims=True) for end in (flat_a, flat_b))
    omega = 2 * np.arctan2(np.linalg.norm(unit_a - unit_b, axis=1), np.linalg.norm(unit_a + unit_b, axis=1))
    same = np.sin(omega) < 2e-6
    sine = np.where(same, 1, np.sin(omega))
    first = np.where(same, 1 - t, np.sin((1 - t) * omega) / sine)
    second = np.where(same, t, np.sin(t * omega) / sine)
    return (first[:, None] * flat_a + second[:, None] * flat_b).reshape(a.shape).astype(np.float32)
