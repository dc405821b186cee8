"""The options of sampling: names, types, defaults, and what is said to somebody who writes another name."""

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
from spheregen.sampling.guidance import Guidance
from spheregen.sampling.loop import StepNoise
from spheregen.sampling.schedules import Angles, Schedule

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


DEFAULTS: Mapping[str, Any] = {
    "steps": 4,
    "schedule": "fixed",
    "guidance": 1.0,
    "guidance_at": "both",
    "share_noise": True,
}
"""The paper's settings, for models that bring none."""
FLOW_DEFAULTS: Mapping[str, Any] = {"refinement_steps": 4, "solver": "heun", "refinement_guidance": None}
"""The same for the flow of models that refine; without a guidance of its own it has the loop's."""

_INTEGER, _NAME = ("a whole number", Integral), ("a name", str)
_KINDS: Mapping[str, tuple[Any, ...]] = {
    "steps": _INTEGER,
    "schedule": ("a name, a list of numbers, a function or Angles", str, Sequence, np.ndarray, Callable, Angles),
    "guidance": ("a number", Real, Callable),
    "guidance_at": _NAME,
    "share_noise": ("true or false", bool),
    "refinement_steps": _INTEGER,
    "solver": _NAME,
    "refinement_guidance": ("a number", Real, type(None)),
}
"""The type of each option, for people and for Python."""
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
    """Refuse arguments of other names before the call, with the name that was probably meant.

    Raises:
        UnknownArgumentError: from the method that is returned.
    """
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
    """Check the type of each option of sampling among `settings`.

    Raises:
        ConfigError: a value of another type.
    """
    for name in _KINDS.keys() & settings.keys():
        (words, *kinds), value = _KINDS[name], settings[name]
        if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(f"{name} is {words}, not {value!r}")
