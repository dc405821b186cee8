"""The options of sampling: names, types, defaults, and a hint for who writes another name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

import numpy as np
from torch import Tensor

from spheregen.errors import ConfigError, did_you_mean
from spheregen.sampling.flow import Refinement
from spheregen.sampling.loop import Guidance, StepNoise
from spheregen.sampling.schedules import Angles, Schedule

SEED_LIMIT = 2**63

P = ParamSpec("P")
R = TypeVar("R")

StepCallback = Callable[[int, int, Tensor], None]
"""Called after each step with its number from 1 on, the number of steps, and the images of the batch at hand, (B, C, S,
S) float32 in [0, 1] on the CPU."""


class SamplerOptions(TypedDict, total=False):
    """Options of the few-step loop, and of the flow behind it where the model refines, as arguments of methods; what is
    left out is the model's default. `refinement_guidance` is by default the guidance of the loop."""

    schedule: Schedule
    guidance: float | Guidance
    guidance_at: str
    share_noise: bool
    refinement_steps: int
    solver: str
    refinement_guidance: float


class EditOptions(SamplerOptions, total=False):
    """Options that all edits share. Guidance acts only with a class."""

    strength: float
    """Noise of a step as a fraction of the training noise: 0 reconstructs, 1 leaves little of the image; 0.25 by
    default."""
    steps: int
    """Pairs of encode and decode, by default 4; decodes in `vary` and `interpolate`, by default 1."""
    seed: int
    """The noise of image i has seed `seed + i`; 0 by default."""
    step_noise: StepNoise
    """Noise in place of the seeds' own: (B, N, d) for all steps, or a list of one for each."""
    callback: StepCallback


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to sample; what is None takes the model's default."""

    steps: int | None = None
    schedule: Schedule | None = None
    guidance: float | Guidance | None = None
    guidance_at: str | None = None
    share_noise: bool | None = None
    refinement_steps: int | None = None
    solver: str | None = None
    refinement_guidance: float | None = None


_INTEGER, _NAME = ("a whole number", Integral), ("a name", str)
_SCHEDULE = ("a name, a list of numbers, a function or Angles", str, Sequence, np.ndarray, Callable, Angles)
_LOOP: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "steps": (4, _INTEGER),
    "schedule": ("fixed", _SCHEDULE),
    "guidance": (1.0, ("a number", Real, Callable)),
    "guidance_at": ("both", _NAME),
    "share_noise": (True, ("true or false", bool)),
}
_FLOW: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "refinement_steps": (4, _INTEGER),
    "solver": ("heun", _NAME),
    "refinement_guidance": (None, ("a number", Real, type(None))),
}
"""The default of each option, and its type for people and for Python."""
DEFAULTS = {name: default for name, (default, _) in _LOOP.items()}
"""The paper's settings, for models that bring none."""
FLOW_DEFAULTS = {name: default for name, (default, _) in _FLOW.items()}
"""The same for the flow of models that refine; without a guidance of its own it has the loop's."""
_OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("label", "class_label", "class_labels", "classes", "class_id", "prompt", "y"), "labels"),
    **dict.fromkeys(("guidance_scale", "cfg_scale", "cfg"), "guidance"),
    **dict.fromkeys(("num_inference_steps", "num_steps", "sampling_steps"), "steps"),
    **dict.fromkeys(("num_images_per_prompt", "num_images", "num_samples", "n"), "count"),
    **dict.fromkeys(("generator", "manual_seed"), "seed, or seeds for one each"),
    **dict.fromkeys(("callback_on_step_end", "callback_steps"), "callback"),
    **dict.fromkeys(("image", "x"), "images"),
    **dict.fromkeys(("torch_dtype", "precision"), "dtype"),
    **dict.fromkeys(("output_type", "return_dict"), "`.images` or `.tensor` of the result"),
    "mask_image": "mask",
    "latents": "noise, Gaussian (B, N, d)",
    "num_frames": "frames",
    "scale": "factor",
    "device_map": "device",
    "negative_prompt": "guidance, which pulls away from the null class",
    "refine_steps": "refinement_steps",
}
"""Names of diffusers, and old ones of ours -> the name here."""


class UnknownArgumentError(ConfigError, TypeError):
    """A call has an argument that it does not take."""


def named(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method refuse arguments of other names, by an UnknownArgumentError with the name that was meant."""
    known = list(inspect.signature(method).parameters)
    if "options" in known and known[-1] == "options" and "Unpack" in str(method.__annotations__["options"]):
        (options,) = get_args(get_type_hints(method)[known.pop()])
        known += options.__annotations__

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                meant = _OTHER_NAMES.get(name)
                hint = f"; use {meant}" if meant else did_you_mean(name, known)
                raise UnknownArgumentError(f"{method.__name__}() got an unexpected keyword argument {name!r}{hint}")
        return method(*args, **kwargs)

    return call


def check_types(settings: Mapping[str, Any]) -> None:
    """Raise a ConfigError for an option of sampling among `settings` that is of another type."""
    for name, (_, (words, *kinds)) in (*_LOOP.items(), *_FLOW.items()):
        value = settings.get(name)
        fits = isinstance(value, tuple(kinds)) and (not isinstance(value, bool) or bool in kinds)
        if name in settings and not fits:
            raise ConfigError(f"{name} is {words}, not {value!r}")


def complete(options: Mapping[str, Any], own: Mapping[str, Any], *, refines: bool, classes: int) -> dict[str, Any]:
    """Return the settings of a call: what is given, else the model's `own` defaults, else the paper's.

    Raises:
        ConfigError: a value of another type, an option of a flow where none refines, or an impossible one.
    """
    given = {name: value for name, value in options.items() if value is not None}
    check_types(given)
    defaults = {**DEFAULTS, **FLOW_DEFAULTS, "steps": 1} if refines else DEFAULTS
    for name in FLOW_DEFAULTS.keys() & given.keys() - defaults.keys():
        raise ConfigError(f"this model has no refiner; leave {name} out, or take a model of kind sphere-flow")
    known = {name: value for name, value in own.items() if name in defaults}
    if not classes:
        known["guidance"] = 1.0  # a recipe's guidance says nothing about a model without classes
        known.pop("refinement_guidance", None)
    settings = {**defaults, **known, **given}
    if refines:
        guidance = settings["guidance"]
        unguided = "edit" in given and given.get("guidance") == 1
        if settings["refinement_guidance"] is None or (unguided and "refinement_guidance" not in given):
            settings["refinement_guidance"] = guidance if isinstance(guidance, int | float) else 1.0
        refinement_of(settings)  # complains before any work is done
    return settings


def refinement_of(settings: Mapping[str, Any]) -> Refinement:
    """Return the flow that settings describe."""
    return Refinement(settings["refinement_steps"], settings["solver"], settings["refinement_guidance"])


def seed_range(seed: int, count: int) -> range:
    """Return the seeds of `count` images from `seed` on.

    Raises:
        ConfigError: there is none, or one that cannot be.
    """
    if not isinstance(seed, int):
        raise ConfigError(f"seed is a whole number, not {seed!r}")
    if count < 1:
        raise ConfigError(f"the number of images is at least 1, not {count}")
    check_seeds(seeds := range(seed, seed + count))
    return seeds


def check_seeds(seeds: Sequence[int]) -> None:
    """Check that there is a seed, and that all are between 0 and 2^63 - 1."""
    if not len(seeds):
        raise ConfigError("no seeds: the number of images is at least 1, not 0")
    for edge in (seeds[0], seeds[-1]) if isinstance(seeds, range) else seeds:
        if not 0 <= edge < SEED_LIMIT:
            raise ConfigError(f"a seed lies between 0 and 2^63 - 1, not {edge}")


def check_batch_size(batch_size: int | None) -> int | None:
    """Return it, if it can be one."""
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is at least 1, not {batch_size}")
    return batch_size
