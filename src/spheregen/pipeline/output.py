"""What a pipeline is asked for beside pictures, and what it gives back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from PIL import Image
from torch import Tensor

from spheregen.data import PictureWriter, open_writer, to_pil
from spheregen.metadata import picture_metadata
from spheregen.sampling.guidance import Guidance
from spheregen.sampling.schedules import Schedule

Steps = tuple[Tensor, ...] | Callable[[], tuple[Tensor, ...]]
"""The pictures after every step, or what makes them."""


class SamplerOptions(TypedDict, total=False):
    """How a few-step loop runs, and the flow behind it, if the model refines; what is left out takes the model's
    default. `refinement_guidance` is by default the guidance of the loop."""

    schedule: Schedule
    guidance: float | Guidance
    guidance_at: str
    share_noise: bool
    refinement_steps: int
    solver: str
    refinement_guidance: float


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


@dataclass(frozen=True)
class PipelineOutput:
    """Pictures that a pipeline made."""

    tensor: Tensor
    """(B, C, S, S) float32 in [0, 1], on the CPU."""
    seeds: tuple[int, ...]
    """The seed of each picture."""
    labels: tuple[int, ...] | None
    """The class id of each picture; None for an unconditional model, the null class and mixtures."""
    settings: Mapping[str, Any]
    """steps, schedule, guidance, guidance_at and share_noise as used, those of a refinement and of an edit: with a seed
    they repeat a picture."""
    steps: Steps = field(default=(), repr=False)
    """What `trajectory` is made of."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """What a PNG says of the model: its name, its fingerprint, the version of the library."""
    class_names: tuple[str, ...] = ()
    """The names of all classes of the model."""

    @functools.cached_property
    def trajectory(self) -> tuple[Tensor, ...]:
        """The pictures after every step, each like `tensor`, which is the last; empty where nobody asked for it.

        Those of a model that predicts latents are decoded when this is first read: their output holds on to the model.
        """
        return _made(self.steps)

    @property
    def images(self) -> list[Image.Image]:
        """The pictures as PIL images, mode L or RGB."""
        return to_pil(self.tensor)

    def metadata(self, number: int) -> dict[str, str]:
        """What the PNG of a picture says: model, seed, class and settings, with which it can be made again."""
        label = self.labels[number] if self.labels else None
        return picture_metadata(self.origin, self.settings, self.seeds[number], label, self.class_names)

    def save(self, out: str | Path | PictureWriter) -> None:
        """Write the pictures to a folder, a .zip or a .tar; the PNGs hold `metadata`.

        They are named by their seeds, or by their numbers where a seed occurs twice, as in an interpolation.
        """
        if not isinstance(out, PictureWriter):
            with open_writer(Path(out), class_names=self.class_names) as writer:
                return self.save(writer)
        keys = self.seeds if len(set(self.seeds)) == len(self.seeds) else range(len(self.seeds))
        for number, (image, key) in enumerate(zip(self.images, keys, strict=True)):
            label = self.labels[number] if self.labels else None
            out.add(f"{key:06d}", image, self.metadata(number), label)
        return None


def join_outputs(parts: Iterable[PipelineOutput]) -> PipelineOutput:
    """The pictures of several batches of one call as one."""
    outputs = list(parts)
    first = outputs[0]
    if len(outputs) == 1:
        return first
    labels = None if first.labels is None else tuple(label for part in outputs for label in part.labels or ())
    steps = [part.steps for part in outputs]

    def joined() -> tuple[Tensor, ...]:
        return tuple(map(torch.cat, zip(*map(_made, steps), strict=True)))

    return dataclasses.replace(
        first,
        tensor=torch.cat([part.tensor for part in outputs]),
        seeds=tuple(seed for part in outputs for seed in part.seeds),
        labels=labels,
        steps=joined if any(map(callable, steps)) else joined(),
    )


def _made(steps: Steps) -> tuple[Tensor, ...]:
    return steps() if callable(steps) else steps
