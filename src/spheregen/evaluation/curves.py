"""Quality against one setting of sampling at a time: steps, guidance, schedule, noise sharing, angle, refinement."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spheregen.errors import ConfigError, did_you_mean
from spheregen.evaluation.cost import generator_cost
from spheregen.evaluation.images import GeneratedImages, plain_settings
from spheregen.evaluation.latency import gflops_per_image, sampling_speed
from spheregen.models.flow_refiner import RefinedGenerator
from spheregen.pipeline import GenerationOptions, Pipeline
from spheregen.sampling.flow import SOLVERS
from spheregen.sampling.schedules import SCHEDULES
from spheregen.sphere import angle_to_sigma, sigma_to_angle

if TYPE_CHECKING:
    from spheregen.evaluation.evaluate import EvaluationOptions, Evaluator

_PLAIN = ("steps", "guidance", "schedule", "refinement_steps", "refinement_guidance", "solver")  # named like options
NAMES = (*_PLAIN, "noise", "angle")
_STEPS = (1, 2, 4, 6, 8)
_GUIDANCE = (1.0, 1.2, 1.4, 1.8)
_REFINEMENT_STEPS = (0, 1, 2, 4, 8)
_BELOW_MAX = (30.0, 20.0, 10.0, 5.0, 0.0)  # degrees: angles of the steps' noise below that of the training


@dataclass(frozen=True)
class CurveRequest:
    """One setting and the values that it takes, in order."""

    name: str
    """One of `NAMES`."""
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A value of the setting and what it gives."""

    value: Any
    settings: Mapping[str, Any]
    """All settings of the sampler."""
    figures: Mapping[str, Mapping[str, float]]
    """By network."""
    ms_per_image: float
    """Median of measured batches."""
    gflops_per_image: float
    """By the convention of the published tables."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def parse_curve(text: str) -> CurveRequest:
    """`steps=1,2,4` as a request.

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
        values = tuple(_value(name, item) for item in items)
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from error
    return CurveRequest(name, values)


def usual_curves(pipe: Pipeline, options: GenerationOptions) -> list[CurveRequest]:
    """The curves of a report: steps for every model, guidance where there are classes, those of a refinement where
    there is one, the others where steps > 1."""
    curves = [CurveRequest("steps", _STEPS)]
    if pipe.classes.count:
        curves.append(CurveRequest("guidance", _GUIDANCE))
    if isinstance(pipe.model, RefinedGenerator):
        curves.append(CurveRequest("refinement_steps", _REFINEMENT_STEPS))
        if pipe.classes.count:
            curves.append(CurveRequest("refinement_guidance", _GUIDANCE))
        curves.append(CurveRequest("solver", tuple(SOLVERS)))
    if pipe.settings(options)["steps"] > 1:
        largest = sigma_to_angle(pipe.model.sigma_max)
        curves.append(CurveRequest("schedule", tuple(SCHEDULES)))
        if pipe.settings(options)["steps"] > 2:
            curves.append(CurveRequest("noise", ("shared", "fresh")))
        curves.append(CurveRequest("angle", tuple(round(largest - less, 6) for less in _BELOW_MAX if largest > less)))
    return curves


def curve_options(pipe: Pipeline, options: GenerationOptions, name: str, value: Any) -> GenerationOptions:
    """The sampler's options at a point of a curve.

    Raises:
        ConfigError: a value that is impossible for this model.
    """
    if name in _PLAIN:
        if name in ("guidance", "refinement_guidance") and value != 1 and not pipe.classes.count:
            raise ConfigError("a model without classes has no guidance; leave the curve over guidance out")
        changed = dataclasses.replace(options, **{name: value})
    elif name == "noise":
        changed = dataclasses.replace(options, share_noise=value == "shared")
    else:
        radius = angle_to_sigma(value) / pipe.model.sigma_max
        changed = dataclasses.replace(options, schedule=[radius] * (pipe.settings(options)["steps"] - 1))
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


def score_curves(
    pipe: Pipeline, options: EvaluationOptions, evaluator: Evaluator, *, repeats: int = 3
) -> list[dict[str, Any]]:
    """The Frechet distance at each point of the asked curves, with measured time and counted operations.

    All processes call it together; points are empty on all but the first. A setting that occurs in two curves is
    measured once. Times of all settings are taken in turns.
    """
    points: dict[str, tuple[GenerationOptions, dict[str, dict[str, float]]]] = {}
    for curve in options.curves:
        for value in curve.values:
            generation = curve_options(pipe, options.generation, curve.name, value)
            key = repr(pipe.settings(generation))
            if key in points:
                continue
            images = GeneratedImages(
                pipe,
                options.curve_count,
                seed=options.seed,
                options=generation,
                rounding=options.rounding,
            )
            points[key] = (generation, evaluator.score(images, metrics=("frechet",)).values)
    if not evaluator.world.is_first or not points:
        return []
    speeds = sampling_speed(pipe, [generation for generation, _ in points.values()], repeats=repeats, singles=0)
    milliseconds = {key: 1000 / speed.images_per_second for key, speed in zip(points, speeds, strict=True)}
    cost = generator_cost(pipe.model)
    answer = []
    for curve in options.curves:
        told = []
        for value in curve.values:
            settings = pipe.settings(curve_options(pipe, options.generation, curve.name, value))
            key = repr(settings)
            point = CurvePoint(
                value=value,
                settings=plain_settings(settings),
                figures=points[key][1],
                ms_per_image=milliseconds[key],
                gflops_per_image=gflops_per_image(cost, settings),
            )
            told.append(point.as_dict())
        answer.append({"name": curve.name, "setting": curve.name, "count": options.curve_count, "points": told})
    return answer


def _value(name: str, text: str) -> Any:
    if name in ("steps", "refinement_steps"):
        return int(text)
    if name == "solver":
        if text not in SOLVERS:
            raise ValueError(f"a solver is one of {', '.join(SOLVERS)}")
        return text
    if name == "noise":
        if text not in ("shared", "fresh"):
            raise ValueError("noise is shared or fresh")
        return text
    if name == "schedule":
        if text not in SCHEDULES:
            raise ValueError(f"a schedule is one of {', '.join(SCHEDULES)}")
        return text
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("give finite numbers")
    if name == "angle" and not 0 <= number < 90:
        raise ValueError("an angle lies in [0, 90) degrees")
    return number
