"""The options of sampling: names, types, defaults, and a hint for who writes another name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack, get_args, get_origin, get_type_hints

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, did_you_mean
from spheregen.sampling.flow import Refinement
from spheregen.sampling.loop import Guidance, Start, StepNoise
from spheregen.sampling.schedules import Angles, Schedule
from spheregen.sampling.seeds import check_seeds

MOST_IMAGES = 10**9
"""More in one call is a typing error."""

P = ParamSpec("P")
R = TypeVar("R")

StepCallback = Callable[[int, int, Tensor], None]
"""Called after each step with its number from 1 on, the number of steps, and the images of the batch at hand, (B, C, S,
S) float32 in [0, 1] on the CPU."""


class SamplerOptions(TypedDict, total=False):
    """Options of the few-step loop, and of the flow behind it where the model refines, as arguments of methods; what is
    left out is the model's default. `guidance` is a scale (1: none), or degrees of a model that is guided by rotation
    (0: none). `strength` is the noise of a step as a fraction of what the schedule says: for edits 0 reconstructs, 1
    leaves little of the image, and 0.25 is the default. `prior`, `temperature` and `prior_angle` are of random points,
    see `sampling.Start`; `start_angle` (`angle` there) and `loop_angle` are degrees of a loop that starts from a point,
    see `sampling.sample`; `refinement_guidance` is by default the guidance of the loop. `prompt` is one text for all
    images or one for each, of a model that follows texts, as `labels` is elsewhere; guidance pulls away from
    `negative_prompt`, by default from no text at all."""

    prompt: str | Sequence[str]
    negative_prompt: str
    schedule: Schedule
    guidance: float | Guidance
    guidance_at: str
    share_noise: bool
    strength: float
    prior: str
    temperature: float
    prior_angle: float
    start_angle: float
    loop_angle: float
    refinement_steps: int
    solver: str
    refinement_guidance: float


class EditOptions(SamplerOptions, total=False):
    """Options that all edits share. Guidance acts only with a class."""

    steps: int
    """Pairs of encode and decode, by default 4; decodes in `vary` and `interpolate`, by default 1."""
    seed: int
    """The noise of image i has seed `seed + i`; 0 by default."""
    step_noise: StepNoise
    """Noise in place of the seeds' own: (B, N, d) for all steps, or a list of one for each."""
    callback: StepCallback


class RestoreOptions(TypedDict, total=False):
    """Options of restorations. Defaults of `steps`, `angle`, `schedule` and `scale` are what `spheregen tune
    --restoration` recorded with the model for the task, else those named here. `prompt` and `negative_prompt` are as in
    `SamplerOptions`."""

    prompt: str | Sequence[str]
    negative_prompt: str
    steps: int
    """Prior and data steps, by default 20; each leaves an image that may be used."""
    angle: float
    """Degrees of the noise of the prior's first step, by default 30; 0 is none."""
    schedule: Schedule
    """Of the angles, by default `decay`."""
    lam: float
    """Weight of the model's image against y; by default `scale` times the variance of the noise (on [-1, 1])."""
    scale: float
    """By default 1, for errors of the model as its recorded spectrum has them; higher trusts the model more."""
    stop: float
    """Hold an image once the model's own agrees with y up to this many times the noise; by default never."""
    discrepancy: float
    """How far results end from y, in units of its noise, by default 0.95; 0, or `lam`, leaves it to the weights."""
    samples: int
    """Restorations of each image, by default 1; with more, `spread` of the output says where they differ."""
    tiles: bool
    """Leave images as large as they are, and let them go through the model in tiles that overlap."""
    guidance: float | Guidance
    guidance_at: str
    share_noise: bool
    """One noise for all steps; by default it is fresh in each."""
    refinement_steps: int
    solver: str
    refinement_guidance: float
    seed: int
    """The noise of image i has seed `seed + i`; 0 by default."""
    step_noise: StepNoise
    """Noise in place of the seeds' own, of single samples: (B, N, d) for all steps, or a list of one for each."""
    callback: StepCallback


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to sample; what is None takes the model's default."""

    steps: int | None = None
    schedule: Schedule | None = None
    guidance: float | Guidance | None = None
    guidance_at: str | None = None
    share_noise: bool | None = None
    strength: float | None = None
    prior: str | None = None
    temperature: float | None = None
    prior_angle: float | None = None
    start_angle: float | None = None
    loop_angle: float | None = None
    negative_prompt: str | None = None
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
    "strength": (1.0, ("a number", Real)),
    "prior": ("sphere", _NAME),
    "temperature": (1.0, ("a number", Real)),
    "prior_angle": (0.0, ("a number", Real)),
    "start_angle": (None, ("a number", Real, type(None))),
    "loop_angle": (None, ("a number", Real, type(None))),
    "negative_prompt": (None, ("text", str, type(None))),
}
_FLOW: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "refinement_steps": (4, _INTEGER),
    "solver": ("heun", _NAME),
    "refinement_guidance": (None, ("a number", Real, type(None))),
}
"""The default of each option, and its type for people and for Python."""
START_NAMES = frozenset({"prior", "temperature", "prior_angle"})
"""The options of random points."""
ANGLE_NAMES = ("start_angle", "loop_angle")
NEGATIVE = "negative_prompt"
UNSAID_NAMES = (*ANGLE_NAMES, NEGATIVE)
"""The options that are no part of settings where nobody gave them."""
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
    "refine_steps": "refinement_steps",
    "iterations": "steps",
    "strength": "angle, in degrees",
    "lambda_": "lam",
    "sigma": "noise",
}
"""Names of diffusers, and old ones of ours -> the name here."""


class UnknownArgumentError(ConfigError, TypeError):
    """A call has an argument that it does not take."""


def named(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method of the public refuse arguments of other names and types, by errors that name them.

    Arguments come as their annotations say: numbers of NumPy and tensors without axes as plain numbers, arrays as
    tensors. Inside, torch has its own defaults.

    Raises:
        UnknownArgumentError: an argument that the method has not; it names the one that was meant.
        ConfigError: one of another type.
    """
    signature, hints = inspect.signature(method), get_type_hints(method)
    known, optional = list(signature.parameters), []
    if get_origin(hints.get("options")) is Unpack:
        (options,) = get_args(hints[known.pop()])
        optional = list(options.__annotations__)
        hints |= get_type_hints(options)

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known and name not in optional:
                meant = _OTHER_NAMES.get(name)
                hint = f"; use {meant}" if meant else did_you_mean(name, [*known, *optional])
                raise UnknownArgumentError(f"{method.__name__}() got an unexpected keyword argument {name!r}{hint}")
        bound = signature.bind(*args, **kwargs)
        for given in (bound.arguments, bound.arguments.get("options", {})) if optional else (bound.arguments,):
            for name in given.keys() & hints.keys() - {"options"} if optional else given.keys() & hints.keys():
                left_out = given[name] is None and name in optional and name != "seed"
                given[name] = None if left_out else _as_annotated(name, given[name], hints[name])
        with own_defaults():
            return method(*bound.args, **bound.kwargs)

    return call


_WORDS: Mapping[Any, str] = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"},
    **{Callable: "a function", Iterable: "a list", Image.Image: "an image", np.ndarray: "an array"},
}


def _as_annotated(name: str, value: Any, hint: Any) -> Any:
    """Return an argument as its type hint says it; what lists hold is for others to look at."""
    kinds, fits = _kinds(hint)
    if isinstance(value, np.ndarray | np.generic | Tensor) and not value.ndim and Tensor not in kinds:
        value = value.item()
    if isinstance(value, np.ndarray) and Tensor in kinds and np.ndarray not in kinds:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if Any in kinds or (isinstance(value, fits) and (not isinstance(value, bool) or bool in kinds)):
        return value
    words = [_WORDS.get(kind, f"a {kind.__name__.lower()}") for kind in kinds if kind is not NoneType]
    raise ConfigError(f"{name} is {' or '.join(words)}, not {value!r:.100}")


@functools.cache
def _kinds(hint: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
    """Return the types that a type hint names, and those that values may have."""
    kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else [hint])]
    kinds = [Iterable if kind is Sequence else kind for kind in kinds]
    return kinds, tuple(Real if kind is float else Integral if kind is int else kind for kind in kinds)


def check_types(settings: Mapping[str, Any]) -> None:
    """Raise a ConfigError for an option of sampling among `settings` that is of another type."""
    for name, (_, (words, *kinds)) in (*_LOOP.items(), *_FLOW.items()):
        if name not in settings:
            continue
        value = settings[name]
        if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(f"{name} is {words}, not {value!r}")


def complete(
    options: Mapping[str, Any], own: Mapping[str, Any], *, refines: bool, label_width: int, unguided: float = 1.0
) -> dict[str, Any]:
    """Return the settings of a call: what is given, else the model's `own` defaults, else the paper's.

    Args:
        options: as given.
        own: the model's defaults.
        refines: a flow refines the model's images.
        label_width: of the model; 0 of an unconditional one.
        unguided: the guidance that is none.

    Raises:
        ConfigError: a value of another type, an option of a flow where none refines, or an impossible one.
    """
    given = {name: value for name, value in options.items() if value is not None}
    check_types(given)
    defaults = {**DEFAULTS, "guidance": unguided, **({**FLOW_DEFAULTS, "steps": 1} if refines else {})}
    for name in FLOW_DEFAULTS.keys() & given.keys() - defaults.keys():
        raise ConfigError(f"this model has no refiner; leave {name} out, or take a model of kind sphere-flow")
    known = {name: value for name, value in own.items() if name in defaults}
    check_types(known)
    if not label_width:
        known["guidance"] = unguided  # a recipe's guidance says nothing about a model without classes
        known.pop("refinement_guidance", None)
    if given.get("prior", "fitted") != "fitted":  # the model's own say nothing about other points
        known = {name: value for name, value in known.items() if name not in ("temperature", "prior_angle")}
    settings = {**defaults, **known, **given}
    for name in UNSAID_NAMES:
        if settings[name] is None:
            del settings[name]
        elif name in ANGLE_NAMES and not 0 <= settings[name] <= 90:
            raise ConfigError(f"{name} lies between 0 and 90 degrees, not {settings[name]:g}")
    start_of(settings)  # complains before any work is done
    if refines:
        guidance = settings["guidance"]
        plain = "edit" in given and given.get("guidance") == unguided
        if settings["refinement_guidance"] is None or (plain and "refinement_guidance" not in given):
            scale = isinstance(guidance, int | float) and unguided == 1  # degrees say nothing to a flow
            settings["refinement_guidance"] = guidance if scale else 1.0
        refinement_of(settings)  # complains before any work is done
    return settings


def start_of(settings: Mapping[str, Any]) -> Start:
    """Return the points that settings start from."""
    return Start(**{name: settings[name] for name in START_NAMES})


def refinement_of(settings: Mapping[str, Any]) -> Refinement:
    """Return the flow that settings describe."""
    return Refinement(settings["refinement_steps"], settings["solver"], settings["refinement_guidance"])


def seed_range(seed: int, count: int) -> range:
    """Return the seeds of `count` images from `seed` on.

    Raises:
        ConfigError: there is none, too many, or one that cannot be.
    """
    if not 1 <= count <= MOST_IMAGES:
        raise ConfigError(f"the number of images is at least 1, and at most {MOST_IMAGES}, not {count}")
    check_seeds(seeds := range(seed, seed + count))
    return seeds


def check_batch_size(batch_size: int | None) -> int | None:
    """Return it, if it can be one."""
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ConfigError(f"batch_size is a whole number, at least 1, not {batch_size!r}")
    return batch_size
