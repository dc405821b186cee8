"""Requests for curves: one setting of sampling and the values that it takes, such as steps, guidance or the angle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spheregen.errors import ConfigError, did_you_mean
from spheregen.evaluation.protocol import CurveRequest
from spheregen.pipeline import GenerationOptions, Pipeline
from spheregen.sampling.flow import SOLVERS
from spheregen.sampling.schedules import SCHEDULES, Angles

_STEPS = (1, 2, 4, 6, 8)
_GUIDANCE = (1.0, 1.2, 1.4, 1.8)
_REFINEMENT_STEPS = (0, 1, 2, 4, 8)
_BELOW_MAX = (30.0, 20.0, 10.0, 5.0, 0.0)  # degrees: angles of the steps' noise below that of the training
_NOISE = ("shared", "fresh")


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"use {(' or ' if len(choices) == 2 else ', ').join(choices)}")
        return text

    return parse


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("give finite numbers")
    return number


def _angle(text: str) -> float:
    if not 0 <= (angle := _number(text)) <= 90:
        raise ValueError("an angle lies in [0, 90] degrees")
    return angle


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "steps": int,
    "guidance": _number,
    "schedule": _one_of(tuple(SCHEDULES)),
    "refinement_steps": int,
    "refinement_guidance": _number,
    "solver": _one_of(tuple(SOLVERS)),
    "noise": _one_of(_NOISE),
    "angle": _angle,
}
NAMES = tuple(_PARSERS)


def parse_curve(text: str) -> CurveRequest:
    """Return `steps=1,2,4` as a request.

    Raises:
        ConfigError: an unknown setting, or values that it cannot take.
    """
    name, equals, listed = text.partition("=")
    name = name.replace("-", "_")
    if name not in NAMES:
        raise ConfigError(f"there is no curve over {name!r}{did_you_mean(name, NAMES)}; use {', '.join(NAMES)}")
    items = [item.strip() for item in listed.split(",")]
    if not equals or not all(items):
        raise ConfigError(f"a curve is written as {name}=VALUE,VALUE, not {text!r}")
    try:
        return CurveRequest(name, tuple(map(_PARSERS[name], items)))
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from error


def usual_curves(pipe: Pipeline, options: GenerationOptions) -> list[CurveRequest]:
    """Return the curves of a report: those whose settings change something for this model and its number of steps."""
    steps = pipe.settings(options)["steps"]
    curves: dict[str, Sequence[Any]] = {"steps": _STEPS}
    if pipe.classes.count:
        curves["guidance"] = _GUIDANCE
    if pipe.model.refiner is not None:
        curves["refinement_steps"] = _REFINEMENT_STEPS
        if pipe.classes.count:
            curves["refinement_guidance"] = _GUIDANCE
        curves["solver"] = tuple(SOLVERS)
    if steps > 1:
        largest = pipe.model.alpha_max
        curves["schedule"] = tuple(SCHEDULES)
        if steps > 2:
            curves["noise"] = _NOISE
        curves["angle"] = [round(largest - less, 6) for less in _BELOW_MAX if largest > less]
    return [CurveRequest(name, tuple(values)) for name, values in curves.items()]


def curve_options(pipe: Pipeline, options: GenerationOptions, name: str, value: Any) -> GenerationOptions:
    """Return the sampler's options at a point of a curve.

    Raises:
        ConfigError: a value that is impossible for this model.
    """
    if name == "noise":
        changed = dataclasses.replace(options, share_noise=value == "shared")
    elif name == "angle":
        noisy = pipe.settings(options)["steps"] - 1
        changed = dataclasses.replace(options, schedule=Angles((value,) * noisy))
    else:
        if name in ("guidance", "refinement_guidance") and value != 1 and not pipe.classes.count:
            raise ConfigError("a model without classes has no guidance; leave the curve over guidance out")
        changed = dataclasses.replace(options, **{name: value})
    pipe.settings(changed)
    return changed


def check_curves(pipe: Pipeline, options: GenerationOptions, curves: Sequence[CurveRequest]) -> None:
    """Refuse impossible curves before any work is done.

    Raises:
        ConfigError: a value that is impossible for this model, or a curve that would be flat.
    """
    steps = pipe.settings(options)["steps"]
    for curve in curves:
        if curve.name in ("schedule", "noise", "angle") and steps < 2:
            raise ConfigError(f"with one step {curve.name} changes nothing; take --steps 2 or more for this curve")
        for value in curve.values:
            curve_options(pipe, options, curve.name, value)
