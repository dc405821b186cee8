"""A generator on a device, and the way of every call through it: settings, noise, labels, batches, outputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from spheregen.batching import images_at_once, in_batches
from spheregen.classes import Classes, Labels
from spheregen.conditioning import Condition
from spheregen.data import ImageOptions
from spheregen.data.inputs import ImageInputs, load_images
from spheregen.devices import choose_device
from spheregen.errors import ConfigError, did_you_mean
from spheregen.family.terms import to_unit
from spheregen.folders.card import ModelInfo
from spheregen.pipeline.options import DEFAULTS, FLOW_DEFAULTS, GenerationOptions, StepCallback, check_types
from spheregen.pipeline.output import PipelineOutput, Steps, join_outputs
from spheregen.progress import default_reporter, watched
from spheregen.protocol import SphereGenerator
from spheregen.sampling.flow import Refinement, refine_samples, refinement_noise
from spheregen.sampling.guidance import Guidance
from spheregen.sampling.loop import Samples, StepNoise
from spheregen.sampling.schedules import generation_angles
from spheregen.sampling.seeds import SeededNoise, seeded_noise
from spheregen.tensors import weights_hash

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
SEED_LIMIT = 2**63

Loop = Callable[[SphereGenerator, slice, Condition], Samples]
"""Runs a generator for a part of the images of a call, under their condition."""


class PipelineCore:
    """A generator on a device, with its class names and defaults; see `Pipeline`."""

    def __init__(
        self,
        model: SphereGenerator,
        info: ModelInfo | None = None,
        *,
        device: str | torch.device = "auto",
        name: str = "",
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.to(device)
        self.info = info or ModelInfo()
        self.name = name
        self.fingerprint = ""
        """Of the model folder that the pipeline was loaded from."""
        self.classes = Classes(model.num_classes, self.info.class_names)
        self.progress = sys.stderr.isatty() if progress is None else progress
        self.batch_size = check_batch_size(batch_size)
        channels, size, _ = model.image_shape
        geometry = {key: value for key, value in self.info.preprocessing.items() if key in ("fit", "background")}
        try:
            if "background" in geometry:
                geometry["background"] = tuple(geometry["background"])
            self.image_options = ImageOptions(image_size=size, channels=channels, **geometry)
        except TypeError as error:
            raise ConfigError(f"the model's preprocessing is broken: {geometry}") from error
        """How images that come in are cropped or padded as in training, and resized; may be replaced."""

    def to(
        self, device: str | torch.device | torch.dtype | None = None, dtype: str | torch.dtype | None = None
    ) -> Self:
        """Move the model to a device, into another type, or both, in place, and return the pipeline.

        Args:
            device: a torch device, its name or `auto`; a dtype is understood here, too, as torch's own `to` does.
            dtype: `float32`, `bfloat16` or `float64`, as text or torch type.

        Raises:
            ConfigError: an unknown device or dtype.
        """
        if isinstance(device, torch.dtype) or device in DTYPES:
            device, dtype = None, device
        if dtype is not None:
            wanted = str(dtype).removeprefix("torch.")
            if wanted not in DTYPES:
                raise ConfigError(f"unknown dtype {wanted!r}{did_you_mean(wanted, DTYPES)}; use {', '.join(DTYPES)}")
            self.model.to(DTYPES[wanted])
        if device is not None:
            self.device = choose_device(device)
            self.model.to(self.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.model.dtype

    @property
    def identity(self) -> str:
        """The fingerprint of the model's folder, else a hash of its weights: tells them from others."""
        return self.fingerprint or weights_hash(self.model.state_dict(), 12)

    @property
    def place(self) -> str:
        """Device and type of the model, in words."""
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')}"

    # settings ---------------------------------------------------------------------------------------------------------

    @property
    def refines(self) -> bool:
        """Whether a flow refines the model's images."""
        return self.model.refiner is not None

    def settings(self, options: GenerationOptions | None = None) -> dict[str, Any]:
        """Return the settings that `generate` uses under these options: as given, else the model's, else the paper's.

        Raises:
            ConfigError: an impossible schedule or number of steps.
        """
        settings = self._settings(vars(options or GenerationOptions()))
        generation_angles(settings["schedule"], settings["steps"])
        return settings

    def refinement_settings(self) -> dict[str, Any]:
        """Return the options of the flow of a model that refines, without guidance; empty for the others."""
        if not self.refines:
            return {}
        settings = self._settings({"edit": "reconstruct", "guidance": 1.0})
        return {name: settings[name] for name in FLOW_DEFAULTS}

    def _settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a loop: as given, else the model's defaults, else the paper's."""
        given = {name: value for name, value in options.items() if value is not None}
        check_types(given)
        if not self.refines:
            for name in FLOW_DEFAULTS.keys() & given.keys():
                raise ConfigError(f"this model has no refiner; leave {name} out, or take a model of kind sphere-flow")
        defaults = {**DEFAULTS, **FLOW_DEFAULTS, "steps": 1} if self.refines else DEFAULTS
        known = {name: value for name, value in self.info.sampling.items() if name in defaults}
        if not self.classes.count:
            known["guidance"] = 1.0  # a recipe's guidance says nothing about a model without classes
            known.pop("refinement_guidance", None)
        settings = {**defaults, **known, **given}
        if self.refines:
            guidance = settings["guidance"]
            unguided = "edit" in given and given.get("guidance") == 1
            if settings["refinement_guidance"] is None or (unguided and "refinement_guidance" not in given):
                settings["refinement_guidance"] = guidance if isinstance(guidance, int | float) else 1.0
            _refinement(settings)  # complains before any work is done
        return settings

    # batches ----------------------------------------------------------------------------------------------------------

    def _batches(
        self,
        seeds: Sequence[int],
        labels: Callable[[slice], Tensor | None],
        settings: Mapping[str, Any],
        loop: Loop,
        *,
        flow_noise: Tensor | None = None,
        trajectory: bool = True,
        batch_size: int | None = None,
    ) -> Iterator[PipelineOutput]:
        """Run a loop on all images batch by batch, and the flow of a model that refines behind it.

        Args:
            labels: gives the ids (B,) or mixtures (B, K+1) of a part of the images; None for the null class.
            flow_noise: (B, C, S, S), the noise that the flow starts from; by default that of the seeds.
        """

        @torch.no_grad()
        def make(part: slice) -> PipelineOutput:
            of, ids = seeds[part], labels(part)
            condition = self.model.condition(ids)
            samples = loop(self.model, part, condition)
            if self.refines:
                noise = refinement_noise(of, self.model.image_shape) if flow_noise is None else flow_noise[part]
                samples = refine_samples(self.model, samples, condition, _refinement(settings), self._here(noise))
            named = None if ids is None or ids.is_floating_point() else tuple(ids.tolist())
            return PipelineOutput(
                tensor=_to_unit(samples.images),
                seeds=tuple(of),
                labels=None if named and self.classes.count in named else named,  # the null class has no name
                settings=settings,
                steps=self._steps(samples) if trajectory else (),
                origin={"model": self.name, "fingerprint": self.fingerprint},
                class_names=self.info.class_names,
            )

        size = batch_size or self._at_once(settings["guidance"])
        return (output for _, output in in_batches(len(seeds), size, make))

    def _joined(self, outputs: Iterator[PipelineOutput], count: int) -> PipelineOutput:
        """All batches of a call as one output; progress is shown if there are several."""
        if self.progress:
            outputs = watched(outputs, count, len, default_reporter)
        return join_outputs(outputs)

    def _steps(self, samples: Samples) -> Steps:
        """The images after every step; where they are not decoded yet, what decodes them once they are asked for."""
        if samples.decoded:
            return tuple(_to_unit(images) for images in samples.trajectory)
        *before, _ = samples.predictions
        waiting, to_image = [each.cpu() for each in before], samples.to_image
        last = tuple(map(_to_unit, samples.last))

        def decode() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (*(_to_unit(to_image(self._here(each))) for each in waiting), *last)

        return decode

    def _loop_options(self, settings: Mapping[str, Any], *names: str, callback: StepCallback | None) -> dict[str, Any]:
        """The named settings and the guidance, as the loops of `sampling` take them."""
        how = {name: settings[name] for name in ("steps", "guidance", "guidance_at", *names)}
        if callback is not None:
            how["callback"] = lambda step, steps, made: callback(step, steps, _to_unit(self.model.to_image(made)))
        return how

    def _at_once(self, guidance: float | Guidance = 1.0) -> int:
        """Images in one pass, by what was asked for or what fits."""
        return self.batch_size or images_at_once(self.model, self.device, guided=guidance != 1)

    # inputs -----------------------------------------------------------------------------------------------------------

    def _to_tensor(self, images: ImageInputs) -> Tensor:
        """Images as (B, C, S, S) in [-1, 1] on the model's device."""
        return self._here(load_images(images, self.image_options) * 2 - 1)

    def _label_tensor(self, labels: Labels, count: int) -> Tensor | None:
        ids = self.classes.of_each(labels, count)
        return None if ids is None else torch.tensor(ids, device=self.device)

    def _drawn(self, seeds: Sequence[int], settings: Mapping[str, Any], noisy_steps: int | None = None) -> SeededNoise:
        """The noise of the start and the noisy steps of these seeds; by default all steps but the first are noisy."""
        steps = settings["steps"] - 1 if noisy_steps is None else noisy_steps
        return seeded_noise(seeds, self.model.latent_shape, steps, share=settings["share_noise"])

    def _step_noise(self, given: StepNoise | None, drawn: StepNoise, part: slice, count: int) -> Tensor | list[Tensor]:
        """The noise of the steps for a part of the samples: as given for all `count`, else as drawn for the part."""
        if given is None:
            return self._here(drawn) if isinstance(drawn, Tensor) else [self._here(noise) for noise in drawn]
        if isinstance(given, Tensor):
            return self._rows(given, part, count)
        return [self._rows(noise, part, count) for noise in given]

    def _rows(self, noise: Tensor, part: slice, count: int) -> Tensor:
        if tuple(noise.shape) != (count, *self.model.latent_shape):
            shape = ", ".join(map(str, (count, *self.model.latent_shape)))
            raise ConfigError(f"noise has shape {tuple(noise.shape)} instead of ({shape})")
        return self._here(noise[part])

    def _here(self, tensor: Tensor) -> Tensor:
        """On the model's device; between the networks all is float32, also where they compute in bfloat16."""
        return tensor.to(self.device, torch.float64 if self.dtype == torch.float64 else torch.float32)


def rows(ids: Tensor | None) -> Callable[[slice], Tensor | None]:
    """Labels (B,) or (B, K+1) as `_batches` takes them."""
    return lambda part: None if ids is None else ids[part]


def seed_range(seed: int, count: int) -> range:
    """The seeds of `count` images from `seed` on."""
    if not isinstance(seed, int):
        raise ConfigError(f"seed is a whole number, not {seed!r}")
    seeds = range(seed, seed + count)
    check_seeds(seeds)
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


def _refinement(settings: Mapping[str, Any]) -> Refinement:
    return Refinement(settings["refinement_steps"], settings["solver"], settings["refinement_guidance"])


def _to_unit(images: Tensor) -> Tensor:
    return to_unit(images).float().cpu()
