"""A generator on a device: images from seeds and classes, points on the sphere, and the way of every call through it:
settings, noise, labels, batches, outputs."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, Unpack, cast

import numpy.typing as npt
import torch
from torch import Tensor

from spheregen import sampling
from spheregen.batching import images_at_once, in_batches
from spheregen.classes import Classes, Labels, plain_labels
from spheregen.conditioning import Condition
from spheregen.data import ImageOptions
from spheregen.data.inputs import ImageInputs, load_images
from spheregen.devices import choose_device, own_defaults
from spheregen.errors import ConfigError, did_you_mean
from spheregen.family.terms import to_unit
from spheregen.folders.card import ModelInfo
from spheregen.networks.text import TextEncoder, reopen_text_encoder
from spheregen.pipeline.options import (
    ANGLE_NAMES,
    DEFAULTS,
    FLOW_DEFAULTS,
    NEGATIVE,
    START_NAMES,
    GenerationOptions,
    SamplerOptions,
    StepCallback,
    check_batch_size,
    complete,
    named,
    refinement_of,
    seed_range,
    start_of,
)
from spheregen.pipeline.output import PipelineOutput, Steps, join_outputs
from spheregen.pipeline.prompts import Prompts, encode_prompts
from spheregen.progress import default_reporter, watched
from spheregen.protocol import SphereGenerator
from spheregen.sampling import Samples, SeededNoise
from spheregen.sampling.loop import StepNoise
from spheregen.sampling.seeds import check_seeds
from spheregen.tensors import weights_hash

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
LOOP_SETTINGS = ("steps", "schedule", "guidance", "guidance_at", "strength", *ANGLE_NAMES)

Ids = Tensor | Prompts | Callable[[slice], Tensor | None] | None
"""Class ids (B,), mixtures (B, K+1) or prompts, or what gives those of a part of the images; None is the null class."""
Loop = Callable[[slice, Condition], Samples]
"""Makes a part of the images of a call, under their condition."""


class Generation:
    """The ways of a pipeline from seeds to images, from images to points on the sphere, and back."""

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
        self.prompts: Sequence[str] = ()
        """Of a model that follows texts, prompts in turn for images without one, as classes are elsewhere."""
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

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        """The text encoder of a model that follows texts, opened when it is first needed.

        Raises:
            SphereGenError: it is missing, or another one than in training; or the model follows no texts.
        """
        if not self.model.text_width:
            raise ConfigError("this model follows classes, not texts: give labels, not prompts")
        return reopen_text_encoder(self.info.text)

    @named
    @torch.no_grad()
    def text_labels(self, texts: Sequence[str]) -> Tensor:
        """Return texts as labels (B, D + 1), as the networks of a model that follows texts take them."""
        return self._told(texts, len(texts))[:]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.model.dtype

    @property
    def identity(self) -> str:
        """The fingerprint of the model's folder, else a hash of its weights: tells them from others; and of its fitted
        prior, if it has one."""
        own = self.fingerprint or weights_hash(self.model.state_dict(), 12)
        fitted = self.model.fitted
        return own if fitted is None else f"{own}-{weights_hash(vars(fitted), 12)}"

    @property
    def place(self) -> str:
        """Device and type of the model, in words."""
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')}"

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
        sampling.generation_angles(settings["schedule"], settings["steps"], strength=settings["strength"])
        return settings

    def refinement_settings(self) -> dict[str, Any]:
        """Return the options of the flow of a model that refines, without guidance; empty for the others."""
        if not self.refines:
            return {}
        settings = self._settings({"edit": "reconstruct", "guidance": self.model.unguided})
        return {name: settings[name] for name in FLOW_DEFAULTS}

    # images from seeds ------------------------------------------------------------------------------------------------

    @named
    def generate(
        self,
        count: int | None = None,
        *,
        labels: Labels = None,
        seed: int = 0,
        seeds: Sequence[int] | npt.NDArray[Any] | Tensor | None = None,
        steps: int | None = None,
        noise: Tensor | None = None,
        step_noise: StepNoise | None = None,
        trajectory: bool = False,
        batch_size: int | None = None,
        callback: StepCallback | None = None,
        **options: Unpack[SamplerOptions],
    ) -> PipelineOutput:
        """Make images. An image depends on its seed, class and settings alone, not on how many are made together.

        Args:
            count: how many; by default as many as `labels`, `seeds` or `noise` holds, else 1.
            labels: class ids or names, one for all or one for each; None spreads them over the classes: the image of
                seed s gets class s modulo their number. Of a model that follows texts, prompts.
            seed: image i has seed `seed + i`.
            seeds: the seeds themselves, instead of `seed`.
            steps: passes of the generating network; 1 is one step.
            noise: (B, N, d) Gaussian to start from, instead of the seeds' own.
            step_noise: noise of the later steps, (B, N, d) for all steps or a list of steps-1 of them.
            trajectory: keep the images after every step.
            batch_size: as in the class.
            callback: called after each step, see `StepCallback`.
            options: see `SamplerOptions`.

        Raises:
            ConfigError: an unknown class or option, or numbers that do not fit together.
        """
        labels = plain_labels(self._prompted(labels, options))
        if noise is not None and noise.ndim > 0 and count is None and seeds is None:
            count = len(noise)
        if seeds is None:
            many = isinstance(labels, Sequence) and not isinstance(labels, str)
            chosen: Sequence[int] = seed_range(seed, count if count is not None else len(labels) if many else 1)  # type: ignore[arg-type]
        elif count not in (None, len(chosen := check_seeds(seeds))):
            raise ConfigError(f"{len(chosen)} seeds for {count} images; leave one of them out")
        parts = self.stream(
            chosen,
            labels=labels,
            options=GenerationOptions(steps=steps, **cast("dict[str, Any]", options)),
            batch_size=batch_size,
            noise=noise,
            step_noise=step_noise,
            trajectory=trajectory,
            callback=callback,
        )
        return self._joined(parts, len(chosen))

    __call__ = generate

    @named
    def stream(
        self,
        seeds: Sequence[int] | npt.NDArray[Any] | Tensor,
        *,
        labels: Labels = None,
        options: GenerationOptions | None = None,
        batch_size: int | None = None,
        noise: Tensor | None = None,
        step_noise: StepNoise | None = None,
        trajectory: bool = False,
        callback: StepCallback | None = None,
    ) -> Iterator[PipelineOutput]:
        """Make the images of `seeds` batch by batch, in constant memory. Arguments as in `generate`."""
        numbers = check_seeds(seeds)
        if self.model.text_width and labels is None and self.prompts:
            labels = [self.prompts[seed % len(self.prompts)] for seed in numbers]
        if self.model.text_width and labels is None and (options is None or options.guidance is None):
            options = dataclasses.replace(options or GenerationOptions(), guidance=self.model.unguided)
        settings = self.settings(options)  # complains before any work is done
        check_batch_size(batch_size)
        classes, count = self.classes.count, len(numbers)
        prompts = self._ids(labels, count) if self.model.text_width else None
        chosen = None if self.model.text_width else self.classes.one_or_each(labels, count)
        how, begin = self._loop_options(settings, callback), start_of(settings)

        def ids(part: slice) -> Tensor | None:
            if isinstance(chosen, int):
                of = [chosen] * len(numbers[part])
            elif chosen is not None:
                of = [self.classes.id(label) for label in chosen[part]]
            else:
                of = [seed % classes for seed in numbers[part]] if classes else []
            return torch.tensor(of, device=self.device) if of else None

        def loop(part: slice, condition: Condition) -> Samples:
            drawn = self._drawn(numbers[part], settings)
            start = self._here(drawn.initial) if noise is None else self._rows(noise, part, count)
            each: StepNoise | None
            if step_noise is None and settings["share_noise"] and self.model.reuses_noise:
                each = None
            elif step_noise is None:
                each = self._step_noise(drawn.steps, slice(None), len(start))
            else:
                each = self._step_noise(step_noise, part, count)
            return sampling.sample(self.model, start, condition, step_noise=each, start=begin, **how)

        if noise is not None or step_noise is not None:
            settings["noise"] = "given"  # noise that the seeds did not make is not in the record of an image
        told = ids if prompts is None else prompts
        return self._batches(numbers, told, settings, loop, trajectory=trajectory, batch_size=batch_size)

    # images there and back --------------------------------------------------------------------------------------------

    @named
    @torch.no_grad()
    def encode(self, images: ImageInputs, labels: Labels = None) -> Tensor:
        """Return the points on the sphere (B, N, d) of images; `labels=None` is the null class.

        `labels` of a model that follows texts are prompts.
        """
        x = self._to_tensor(images)
        ids = self._ids(labels, len(x))
        size = self.batch_size or images_at_once(self.model, self.device)
        parts = in_batches(len(x), size, lambda part: self.model.encode(x[part], None if ids is None else ids[part]))
        return torch.cat([points for _, points in parts])

    @named
    def decode(
        self, latents: Tensor, labels: Labels = None, *, seed: int = 0, **options: Unpack[SamplerOptions]
    ) -> Tensor:
        """Return the images (B, C, S, S) in [0, 1], on the CPU, of points (B, N, d), which are put on the sphere first.

        `labels=None` is the null class. A model of another prior than the sphere takes points as they are. A model that
        refines takes the noise of image i from seed `seed + i`, and its `options`; unguided by default.

        Raises:
            ConfigError: points of another shape, an unknown class, or an option of the flow for a model without one.
        """
        if tuple(latents.shape[1:]) != self.model.latent_shape:
            shape = ", ".join(map(str, self.model.latent_shape))
            raise ConfigError(f"latents have shape {tuple(latents.shape)}; this model takes (B, {shape})")
        points = self.model.prior.project(self._here(latents))
        labels = self._prompted(labels, options)
        return self._unlooped("decode", points, labels, sampling.decode, seed, options).tensor

    @named
    def reconstruct(
        self, images: ImageInputs, labels: Labels = None, *, seed: int = 0, **options: Unpack[SamplerOptions]
    ) -> Tensor:
        """Return images there and back, (B, C, S, S) in [0, 1] on the CPU; `labels=None` is the null class.

        `seed` and `options` are those of a model that refines, as in `decode`.
        """

        def there_and_back(model: SphereGenerator, x: Tensor, condition: Condition) -> Samples:
            return sampling.decode(model, model.encode(x, condition), condition)

        labels = self._prompted(labels, options)
        return self._unlooped("reconstruct", self._to_tensor(images), labels, there_and_back, seed, options).tensor

    @named
    def refine(
        self, images: ImageInputs, labels: Labels = None, *, seed: int = 0, **options: Unpack[SamplerOptions]
    ) -> PipelineOutput:
        """Refine rough images of any origin, without a loop before it.

        Args:
            images: images of any size.
            labels: the class, one for all or one for each; None is the null class, without guidance.
            seed: the noise of image i has seed `seed + i`.
            options: `refinement_steps`, `solver` and `refinement_guidance`, see `SamplerOptions`.

        Raises:
            ConfigError: the model has no refiner.
        """
        if not self.refines:
            raise ConfigError("this model has no refiner; take a model of kind sphere-flow")
        x, labels = self._to_tensor(images), self._prompted(labels, options)
        return self._unlooped("refine", x, labels, lambda _model, x, _condition: Samples(x, (x,)), seed, options)

    def _unlooped(
        self,
        name: str,
        x: Tensor,
        labels: Labels,
        call: Callable[[SphereGenerator, Tensor, Condition], Samples],
        seed: int,
        options: SamplerOptions,
    ) -> PipelineOutput:
        """A call without a few-step loop, behind which a flow may refine; without a class unguided."""
        given: dict[str, Any] = {**({} if labels is not None else {"guidance": self.model.unguided}), **options}
        settings = self._settings({"edit": name, **given})
        settings = {key: value for key, value in settings.items() if key in ("edit", "guidance") or key not in DEFAULTS}
        ids = self._ids(labels, len(x))
        seeds = seed_range(seed, len(x))
        outputs = self._batches(seeds, ids, settings, lambda part, condition: call(self.model, x[part], condition))
        return self._joined(outputs, len(x))

    # the way of every call --------------------------------------------------------------------------------------------

    def _settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        own = self.info.sampling
        if self.model.fitted is None:  # as in a run that is not complete: uniform points are all there are
            own = {name: value for name, value in own.items() if name not in START_NAMES}
        unguided, width = self.model.unguided, self.model.label_width
        settings = complete(options, own, refines=self.refines, label_width=width, unguided=unguided)
        if NEGATIVE in settings and not self.model.text_width:
            raise ConfigError("this model follows classes, not texts: leave negative_prompt out")
        if self.model.text_width and settings["guidance"] != unguided and self.info.training.get("label_dropout") == 0:
            raise ConfigError(
                "this model was trained without caption dropout and knows no null to be guided away from; give "
                f"guidance={unguided:g}, or train it with loss.label_dropout=0.1"
            )
        return settings

    def _prompted(self, labels: Labels, options: Any) -> Labels:
        """Take the prompt out of the options of a call, and return the labels that are meant.

        Raises:
            ConfigError: both are given, or the model follows classes.
        """
        prompt = options.pop("prompt", None)
        if prompt is None:
            return labels
        if labels is not None:
            raise ConfigError("give a prompt or labels, not both")
        if not self.model.text_width:
            raise ConfigError("this model follows classes, not texts: give labels, not a prompt")
        return cast("Labels", prompt)

    def _loop_options(self, settings: Mapping[str, Any], callback: StepCallback | None) -> dict[str, Any]:
        """The settings as the loops of `sampling` take them."""
        how = {name: settings[name] for name in LOOP_SETTINGS if name in settings}
        if "start_angle" in how:
            how["angle"] = how.pop("start_angle")
        if callback is not None:
            how["callback"] = lambda step, steps, made: callback(step, steps, _to_unit(self.model.to_image(made)))
        return how

    def _batches(
        self,
        seeds: Sequence[int],
        ids: Ids,
        settings: Mapping[str, Any],
        loop: Loop,
        *,
        flow_noise: Tensor | None = None,
        trajectory: bool = True,
        batch_size: int | None = None,
    ) -> Iterator[PipelineOutput]:
        """Run a loop on all images batch by batch, and the flow of a model that refines behind it.

        Args:
            flow_noise: (B, C, S, S), the noise that the flow starts from; by default that of the seeds.
        """

        negative = self._negative(settings)

        @own_defaults()
        @torch.no_grad()
        def make(part: slice) -> PipelineOutput:
            of, labels = seeds[part], ids(part) if callable(ids) else ids if ids is None else ids[part]
            condition = self.model.condition(labels)
            condition = condition if negative is None else condition.against(negative)
            samples = loop(part, condition)
            if self.refines:
                shape = self.model.image_shape
                noise = sampling.refinement_noise(of, shape) if flow_noise is None else flow_noise[part]
                flow = refinement_of(settings)
                samples = sampling.refine_samples(self.model, samples, condition, flow, self._here(noise))
            named = None if labels is None or labels.is_floating_point() else tuple(labels.tolist())
            return PipelineOutput(
                tensor=_to_unit(samples.images),
                seeds=tuple(of),
                labels=None if named and self.classes.count in named else named,  # the null class has no name
                settings=settings,
                steps=self._steps(samples) if trajectory else (),
                origin={"model": self.name, "fingerprint": self.fingerprint},
                class_names=self.info.class_names,
                prompts=ids.of(part) if isinstance(ids, Prompts) else None,
            )

        guided = settings["guidance"] != self.model.unguided
        size = batch_size or self.batch_size or images_at_once(self.model, self.device, guided=guided)
        return (output for _, output in in_batches(len(seeds), size, make))

    def _joined(self, outputs: Iterator[PipelineOutput], count: int) -> PipelineOutput:
        """All batches of a call as one output; progress is shown if there are several."""
        return join_outputs(watched(outputs, count, len, default_reporter) if self.progress else outputs)

    def _steps(self, samples: Samples) -> Steps:
        """The images after every step; where they are not decoded yet, what decodes them once they are asked for."""
        if samples.decoded:
            return tuple(_to_unit(images) for images in samples.trajectory)
        *before, _ = samples.predictions
        waiting, to_image = [each.cpu() for each in before], samples.to_image
        last = tuple(map(_to_unit, samples.last))

        @own_defaults()
        def decode() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (*(_to_unit(to_image(self._here(each))) for each in waiting), *last)

        return decode

    def _to_tensor(self, images: ImageInputs) -> Tensor:
        """Images as (B, C, S, S) in [-1, 1] on the model's device."""
        return self._here(load_images(images, self.image_options) * 2 - 1)

    @torch.no_grad()
    def _negative(self, settings: Mapping[str, Any]) -> Condition | None:
        """Return the condition of the negative prompt, of one sample; None where there is none."""
        text = settings.get(NEGATIVE, "")
        return None if not text.strip() else self.model.condition(self._told(text, 1)[:])

    def _told(self, prompts: Any, count: int) -> Prompts:
        return encode_prompts(prompts, count, self.text_encoder, self.device)

    def _ids(self, labels: Labels, count: int) -> Tensor | Prompts | None:
        if self.model.text_width:
            return None if labels is None else self._told(plain_labels(labels), count)
        ids = self.classes.of_each(labels, count)
        return None if ids is None else torch.tensor(ids, device=self.device)

    def _drawn(self, seeds: Sequence[int], settings: Mapping[str, Any], noisy_steps: int | None = None) -> SeededNoise:
        """The noise of the start and the noisy steps of these seeds; by default all steps but the first are noisy."""
        steps = settings["steps"] - 1 if noisy_steps is None else noisy_steps
        return sampling.seeded_noise(seeds, self.model.latent_shape, steps, share=settings["share_noise"])

    def _step_noise(self, noise: StepNoise, part: slice, count: int) -> Tensor | list[Tensor]:
        """The noise of the steps for a part of `count` samples."""
        if isinstance(noise, Tensor):
            return self._rows(noise, part, count)
        if not isinstance(noise, Sequence) or not all(isinstance(each, Tensor) for each in noise):
            raise ConfigError(f"step_noise is a tensor, or a list of one for each step, not {noise!r:.100}")
        return [self._rows(each, part, count) for each in noise]

    def _rows(self, noise: Tensor, part: slice, count: int) -> Tensor:
        if tuple(noise.shape) != (count, *self.model.latent_shape):
            shape = ", ".join(map(str, (count, *self.model.latent_shape)))
            raise ConfigError(f"noise has shape {tuple(noise.shape)} instead of ({shape})")
        return self._here(noise[part])

    def _here(self, tensor: Tensor) -> Tensor:
        """On the model's device; between the networks all is float32, also where they compute in bfloat16."""
        return tensor.to(self.device, torch.float64 if self.dtype == torch.float64 else torch.float32)


def _to_unit(images: Tensor) -> Tensor:
    return to_unit(images).float().cpu()
