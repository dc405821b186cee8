"""Images from seeds and classes, and images there and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from spheregen import sampling
from spheregen.batching import in_batches
from spheregen.classes import Labels
from spheregen.conditioning import Condition
from spheregen.data.inputs import ImageInputs
from spheregen.errors import ConfigError
from spheregen.pipeline.core import PipelineCore, check_batch_size, check_seeds, rows, seed_range
from spheregen.pipeline.options import DEFAULTS, GenerationOptions, SamplerOptions, StepCallback, named
from spheregen.pipeline.output import PipelineOutput
from spheregen.protocol import SphereGenerator
from spheregen.sampling.loop import Samples, StepNoise


class Generation(PipelineCore):
    """The ways of a pipeline from seeds to images, from images to points on the sphere, and back."""

    @named
    def generate(
        self,
        count: int | None = None,
        *,
        labels: Labels = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
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
                seed s gets class s modulo their number.
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
        if noise is not None and noise.ndim > 0 and count is None and seeds is None:
            count = len(noise)
        if seeds is None:
            many = isinstance(labels, Sequence | np.ndarray | Tensor) and not isinstance(labels, str)
            total = count if count is not None else len(labels) if many else 1  # type: ignore[arg-type]
            if total < 1:
                raise ConfigError(f"the number of images is at least 1, not {total}")
            seeds = seed_range(seed, total)
        elif count not in (None, len(seeds)):
            raise ConfigError(f"{len(seeds)} seeds for {count} images; leave one of them out")
        parts = self.stream(
            seeds,
            labels=labels,
            options=GenerationOptions(steps=steps, **options),
            batch_size=batch_size,
            noise=noise,
            step_noise=step_noise,
            trajectory=trajectory,
            callback=callback,
        )
        return self._joined(parts, len(seeds))

    __call__ = generate

    @named
    def stream(
        self,
        seeds: Sequence[int],
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
        settings = self.settings(options)  # complains before any work is done
        check_batch_size(batch_size)
        check_seeds(seeds)
        classes, count = self.classes.count, len(seeds)
        chosen = self.classes.one_or_each(labels, count)

        def ids(part: slice) -> Tensor | None:
            if isinstance(chosen, int):
                of = [chosen] * len(seeds[part])
            elif chosen is not None:
                of = [self.classes.id(label) for label in chosen[part]]
            else:
                of = [seed % classes for seed in seeds[part]] if classes else []
            return torch.tensor(of, device=self.device) if of else None

        def loop(model: SphereGenerator, part: slice, condition: Condition) -> Samples:
            drawn = self._drawn(seeds[part], settings)
            start = self._here(drawn.initial) if noise is None else self._rows(noise, part, count)
            each = self._step_noise(step_noise, drawn.steps, part, count)
            how = self._loop_options(settings, "schedule", callback=callback)
            return sampling.sample(model, start, condition, step_noise=each, **how)

        return self._batches(
            seeds,
            ids,
            # noise that the seeds did not make is not in the record of an image
            settings if noise is None and step_noise is None else settings | {"noise": "given"},
            loop,
            trajectory=trajectory,
            batch_size=batch_size,
        )

    @named
    @torch.no_grad()
    def encode(self, images: ImageInputs, labels: Labels = None) -> Tensor:
        """Return the points on the sphere (B, N, d) of images; `labels=None` is the null class."""
        x = self._to_tensor(images)
        ids = rows(self._label_tensor(labels, len(x)))
        parts = in_batches(len(x), self._at_once(), lambda part: self.model.encode(x[part], ids(part)))
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
        return self._unlooped("decode", points, labels, sampling.decode, seed, options).tensor

    @named
    def reconstruct(
        self, images: ImageInputs, labels: Labels = None, *, seed: int = 0, **options: Unpack[SamplerOptions]
    ) -> Tensor:
        """Return images there and back, (B, C, S, S) in [0, 1] on the CPU; `labels=None` is the null class.

        `seed` and `options` are those of a model that refines, as in `decode`.
        """
        x = self._to_tensor(images)

        def there_and_back(model: SphereGenerator, x: Tensor, condition: Condition) -> Samples:
            return sampling.decode(model, model.encode(x, condition), condition)

        return self._unlooped("reconstruct", x, labels, there_and_back, seed, options).tensor

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
        x = self._to_tensor(images)
        return self._unlooped("refine", x, labels, lambda _model, x, _condition: Samples(x, (x,)), seed, options)

    def _unlooped(
        self, name: str, x: Tensor, labels: Labels, call: Call, seed: int, options: SamplerOptions
    ) -> PipelineOutput:
        """A call without a few-step loop, behind which a flow may refine; without a class unguided."""
        given: dict[str, Any] = {**({} if labels is not None else {"guidance": 1.0}), **options}
        settings = self._settings({"edit": name, **given})
        settings = {key: value for key, value in settings.items() if key in ("edit", "guidance") or key not in DEFAULTS}

        def loop(model: SphereGenerator, part: slice, condition: Condition) -> Samples:
            return call(model, x[part], condition)

        ids = rows(self._label_tensor(labels, len(x)))
        return self._joined(self._batches(seed_range(seed, len(x)), ids, settings, loop), len(x))


Call = Callable[[SphereGenerator, Tensor, Condition], Samples]
"""Makes images of inputs (B, ...) under a condition."""
