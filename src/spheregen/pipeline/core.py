"""What all that a pipeline does is built of: model and device, pictures in, noise, labels, settings, batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spheregen.batching import images_at_once, in_batches
from spheregen.classes import Classes, Labels
from spheregen.data import ImageOptions
from spheregen.data.inputs import Pictures, load_pictures
from spheregen.devices import choose_device
from spheregen.errors import ConfigError
from spheregen.losses.reconstruction import to_unit
from spheregen.model_folder import ModelInfo, weights_hash
from spheregen.models.flow_refiner import RefinedGenerator
from spheregen.models.protocol import GeneratorModule, SphereGenerator
from spheregen.pipeline.output import GenerationOptions, PipelineOutput, Steps
from spheregen.progress import default_reporter, watched
from spheregen.sampling.guidance import Guidance
from spheregen.sampling.loop import Samples, StepNoise
from spheregen.sampling.refinement import Refinement, Rough, refine_samples, refinement_noise
from spheregen.sampling.schedules import refinement_radii

SEED_LIMIT = 2**63
DEFAULTS: Mapping[str, Any] = {
    "steps": 4,
    "schedule": "fixed",
    "guidance": 1.0,
    "guidance_at": "both",
    "share_noise": True,
}
"""The paper's settings, for models that bring none."""
REFINED_DEFAULTS: Mapping[str, Any] = {"steps": 1, "refinement_steps": 4, "solver": "heun", "refinement_guidance": None}
"""The same for models that refine, beside those above; without a guidance of its own the flow has the loop's."""


class PipelineCore:
    """A generator on a device, with its class names and defaults.

    Args:
        model: a generator; it is put into evaluation mode, its gradients are turned off.
        info: class names, preprocessing and sampling defaults.
        device: a torch device or `auto`.
        name: what the metadata of pictures calls the model.
        batch_size: pictures in one pass through the network; by default what fits into memory. It does not change them.
        progress: show a bar during long calls; by default on a terminal.
    """

    def __init__(
        self,
        model: GeneratorModule,
        info: ModelInfo | None = None,
        *,
        device: str | torch.device = "auto",
        name: str = "",
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, not {batch_size}")
        self.device = choose_device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.info = info or ModelInfo()
        self.name = name
        self.fingerprint = ""
        """Of the model folder that the pipeline was loaded from."""
        self.classes = Classes(model.num_classes, self.info.class_names)
        self.progress = sys.stderr.isatty() if progress is None else progress
        self.batch_size = batch_size
        preprocessing = {key: value for key, value in self.info.preprocessing.items() if key in ("fit", "background")}
        if "background" in preprocessing:
            background = preprocessing["background"]
            if not isinstance(background, list | tuple) or not all(isinstance(value, int) for value in background):
                raise ConfigError(f"the model's background is {background!r}; give red, green and blue from 0 to 255")
            preprocessing["background"] = tuple(background)
        channels, size, _ = model.image_shape
        self.image_options = ImageOptions(image_size=size, channels=channels, **preprocessing)
        """How pictures that come in are cropped or padded as in training, and resized the ADM way; may be replaced."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.model.dtype

    @property
    def identity(self) -> str:
        """Tells the model's weights from others: the fingerprint of its folder, else a hash of the weights."""
        return self.fingerprint or weights_hash(self.model.state_dict(), 12)

    @property
    def place(self) -> str:
        """Where and in which type the model runs, in words."""
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')}"

    def settings(self, options: GenerationOptions | None = None) -> dict[str, Any]:
        """The settings that `generate` uses under these options: as given, else the model's, else the paper's.

        Raises:
            ConfigError: an impossible schedule or number of steps.
        """
        settings = self._settings(vars(options or GenerationOptions()))
        refinement_radii(settings["schedule"], settings["steps"])
        return settings

    def _settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a loop: as given, else the model's defaults, else the paper's."""
        given = {name: value for name, value in options.items() if value is not None}
        if not self.refines:
            for name in REFINED_DEFAULTS.keys() - DEFAULTS.keys() & given.keys():
                raise ConfigError(f"this model has no refiner; leave {name} out, or take a model of kind sphere-flow")
        defaults = {**DEFAULTS, **REFINED_DEFAULTS} if self.refines else DEFAULTS
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

    @property
    def refines(self) -> bool:
        """Whether a flow refines the model's images."""
        return isinstance(self.model, RefinedGenerator)

    def refinement_settings(self) -> dict[str, Any]:
        """How a model that refines does it unless it is told, without guidance; empty for the others."""
        if not self.refines:
            return {}
        settings = self._settings({"edit": "reconstruct", "guidance": 1.0})
        return {name: settings[name] for name in REFINED_DEFAULTS if name != "steps"}

    def _run(
        self,
        loop: Callable[[SphereGenerator], Samples],
        labels: Tensor | None,
        seeds: Sequence[int],
        settings: Mapping[str, Any],
        *,
        model: SphereGenerator | None = None,
        noise: Tensor | None = None,
    ) -> Samples:
        """What a loop makes of the model, or of a wrapper of it; of a model that refines, refined.

        Args:
            labels, seeds: of these samples; the seeds give the noise of the flow.
            noise: that noise itself, (B, C, S, S).
        """
        if not isinstance(self.model, RefinedGenerator):
            return loop(model or self.model)
        rough = Rough(self.model, model)
        samples = loop(rough)
        noise = refinement_noise(seeds, self.model.image_shape) if noise is None else noise
        return refine_samples(rough, samples, labels, _refinement(settings), self._here(noise))

    def _output(
        self,
        samples: Samples,
        seeds: tuple[int, ...],
        labels: Sequence[int] | None,
        settings: Mapping[str, Any],
        *,
        trajectory: bool,
    ) -> PipelineOutput:
        if labels is not None and any(label == self.classes.count for label in labels):
            labels = None  # the null class has no name
        return PipelineOutput(
            tensor=_to_unit(samples.images),
            seeds=seeds,
            labels=None if labels is None else tuple(labels),
            settings=settings,
            steps=self._steps(samples) if trajectory else (),
            origin={"model": self.name, "fingerprint": self.fingerprint},
            class_names=self.info.class_names,
        )

    def _steps(self, samples: Samples) -> Steps:
        """The pictures after every step; where they are not decoded yet, what decodes them once they are asked for."""
        if samples.decoded:
            return tuple(_to_unit(images) for images in samples.trajectory)
        *before, _ = samples.predictions
        waiting, to_image = [each.cpu() for each in before], samples.to_image
        last = tuple(map(_to_unit, samples.last))

        def decode() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (*(_to_unit(to_image(self._here(each))) for each in waiting), *last)

        return decode

    def _mapped(self, x: Tensor, labels: Labels, call: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """A call on inputs (B, ...) under labels, in batches."""
        ids = self._label_tensor(labels, len(x))

        def run(part: slice) -> Tensor:
            return call(x[part], None if ids is None else ids[part])

        return torch.cat([result for _, result in in_batches(len(x), self._at_once(), run)])

    def _label_tensor(self, labels: Labels, count: int) -> Tensor | None:
        chosen = self.classes.one_or_each(labels, count)
        if chosen is None:
            return None
        ids = [chosen] * count if isinstance(chosen, int) else [self.classes.id(label) for label in chosen]
        return torch.tensor(ids, device=self.device)

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

    def _to_tensor(self, images: Pictures) -> Tensor:
        """Pictures as (B, C, S, S) in [-1, 1] on the model's device."""
        return self._here(load_pictures(images, self.image_options) * 2 - 1)

    def _at_once(self, guidance: float | Guidance = 1.0) -> int:
        """Pictures in one pass, by what was asked for or what fits."""
        return self.batch_size or images_at_once(self.model, self.device, guided=guidance != 1)

    def _watched(self, parts: Iterator[PipelineOutput], count: int) -> Iterator[PipelineOutput]:
        """Pass on batches and show progress, if there are several."""
        if not self.progress:
            return parts
        return watched(parts, count, lambda part: len(part.seeds), default_reporter)


def check_seeds(seeds: Sequence[int]) -> None:
    if not len(seeds):
        raise ConfigError("no seeds: the number of pictures is at least 1")
    for edge in (seeds[0], seeds[-1]) if isinstance(seeds, range) else seeds:
        if not 0 <= edge < SEED_LIMIT:
            raise ConfigError(f"a seed lies between 0 and 2^63 - 1, not {edge}")


def _refinement(settings: Mapping[str, Any]) -> Refinement:
    return Refinement(settings["refinement_steps"], settings["solver"], settings["refinement_guidance"])


def _to_unit(images: Tensor) -> Tensor:
    return to_unit(images).float().cpu()
