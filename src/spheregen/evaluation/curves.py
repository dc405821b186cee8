"""Requests for curves: one setting of sampling and the values that it takes, such as steps, guidance or the angle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from spheregen.errors import ConfigError, did_you_mean
from spheregen.evaluation.protocol import CurveRequest
from spheregen.pipeline import GenerationOptions, Pipeline
from spheregen.sampling.flow import SOLVERS
from spheregen.sampling.loop import STARTS
from spheregen.sampling.schedules import SCHEDULES, Angles

_STEPS = (1, 2, 4, 6, 8)
_GUIDANCE = (1.0, 1.2, 1.4, 1.8)
_TURNS = (0.0, 5.0, 10.0)  # degrees of guidance by rotation
_REFINEMENT_STEPS = (0, 1, 2, 4, 8)
_BELOW_MAX = (30.0, 20.0, 10.0, 5.0, 0.0)  # degrees: angles of the steps' noise below that of the training
_NOISE = ("shared", "fresh")
_TEMPERATURES = (0.7, 0.85, 1.0, 1.15)
_KINDS: Mapping[str, Any] = {
    "steps": int,
    "guidance": FiniteFloat,
    "schedule": Literal[tuple(SCHEDULES)],
    "refinement_steps": int,
    "refinement_guidance": FiniteFloat,
    "solver": Literal[tuple(SOLVERS)],
    "noise": Literal[_NOISE],
    "angle": Annotated[float, Field(ge=0, le=90)],  # degrees
    "strength": Annotated[FiniteFloat, Field(ge=0)],
    "prior": Literal[tuple(STARTS)],
    "temperature": Annotated[FiniteFloat, Field(ge=0)],
}
NAMES = tuple(_KINDS)


def parse_curve(text: str) -> CurveRequest:
    """Return `steps=1,2,4` as a request."""
    name, equals, listed = text.partition("=")
    name = name.replace("-", "_")
    if name not in NAMES:
        raise ConfigError(f"there is no curve over {name!r}{did_you_mean(name, NAMES)}; use {', '.join(NAMES)}")
    items = [item.strip() for item in listed.split(",")]
    if not equals or not all(items):
        raise ConfigError(f"a curve is written as {name}=VALUE,VALUE, not {text!r}")
    kind: TypeAdapter[Any] = TypeAdapter(_KINDS[name])
    try:
        return CurveRequest(name, tuple(map(kind.validate_python, items)))
    except ValidationError as error:
        raise ConfigError(f"{text!r}: {error.errors()[0]['msg'].lower()}") from error


def usual_curves(pipe: Pipeline, options: GenerationOptions) -> list[CurveRequest]:
    """Return the curves of a report: those whose settings change something for this model and its number of steps."""
    settings = pipe.settings(options)
    steps = settings["steps"]
    curves: dict[str, Sequence[Any]] = {"steps": _STEPS}
    if pipe.model.fitted is not None:
        curves["prior"] = tuple(STARTS)
        if settings["prior"] == "fitted":
            curves["temperature"] = _TEMPERATURES
    if pipe.classes.count:
        curves["guidance"] = _GUIDANCE if pipe.model.unguided == 1 else _TURNS
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
    """Return the sampler's options at a point of a curve."""
    if name == "noise":
        changed = dataclasses.replace(options, share_noise=value == "shared")
    elif name == "angle":
        noisy = pipe.settings(options)["steps"] - 1
        changed = dataclasses.replace(options, schedule=Angles((value,) * noisy))
    else:
        unguided = pipe.model.unguided if name == "guidance" else 1
        if name in ("guidance", "refinement_guidance") and value != unguided and not pipe.classes.count:
            raise ConfigError("a model without classes has no guidance; leave the curve over guidance out")
        changed = dataclasses.replace(options, **{name: value})
    pipe.settings(changed)
    return changed


def check_curves(pipe: Pipeline, options: GenerationOptions, curves: Sequence[CurveRequest]) -> None:
    """Refuse impossible curves before any work is done."""
    steps = pipe.settings(options)["steps"]
    for curve in curves:
        if curve.name in ("schedule", "noise", "angle") and steps < 2:
            raise ConfigError(f"with one step {curve.name} changes nothing; take --steps 2 or more for this curve")
        for value in curve.values:
            curve_options(pipe, options, curve.name, value)
