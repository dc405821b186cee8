"""Pictures from seeds and classes, and pictures there and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from spheregen import sampling
from spheregen.batching import in_batches
from spheregen.classes import Labels
from spheregen.data.inputs import Pictures
from spheregen.errors import ConfigError
from spheregen.losses.reconstruction import to_unit
from spheregen.models.protocol import SphereGenerator
from spheregen.pipeline.core import DEFAULTS, PipelineCore, check_seeds
from spheregen.pipeline.output import GenerationOptions, PipelineOutput, SamplerOptions, join_outputs
from spheregen.sampling.loop import Samples, StepNoise
from spheregen.sampling.remembered import RememberedConditions

REMEMBERED_CLASSES = 64  # classes whose conditions are kept for a whole call


class Generation(PipelineCore):
    """A pipeline's ways from seeds to pictures, from pictures to points on the sphere, and back."""

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
        **options: Unpack[SamplerOptions],
    ) -> PipelineOutput:
        """Make pictures. A picture depends on its seed, class and settings alone, not on how many are made together.

        Args:
            count: how many; by default as many as `labels`, `seeds` or `noise` holds, else 1.
            labels: class ids or names, one for all or one for each; None spreads them over the classes: the picture of
                seed s gets class s modulo their number.
            seed: picture i has seed `seed + i`.
            seeds: the seeds themselves, instead of `seed`.
            steps: passes of the generating network; 1 is one step.
            noise: (B, N, d) Gaussian to start from, instead of the seeds' own.
            step_noise: noise of the refinement steps, (B, N, d) for all steps or a list of steps-1 of them.
            trajectory: keep the pictures after every step.
            batch_size: as in the class.
            options: see `SamplerOptions`.

        Raises:
            ConfigError: an unknown class or option, or numbers that do not fit together.
        """
        if noise is not None and noise.ndim > 0 and count is None and seeds is None:
            count = len(noise)
        if seeds is None:
            total = 1 if labels is None or isinstance(labels, int | str | np.integer) else len(labels)
            total = total if count is None else count
            if total < 1:
                raise ConfigError(f"the number of pictures is at least 1, not {total}")
            seeds = range(seed, seed + total)
        elif count not in (None, len(seeds)):
            raise ConfigError(f"{len(seeds)} seeds for {count} pictures; leave one of them out")
        parts = self.stream(
            seeds,
            labels=labels,
            options=GenerationOptions(steps=steps, **options),
            batch_size=batch_size,
            noise=noise,
            step_noise=step_noise,
            trajectory=trajectory,
        )
        return join_outputs(self._watched(parts, len(seeds)))

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
    ) -> Iterator[PipelineOutput]:
        """Make the pictures of `seeds` batch by batch, in constant memory. Arguments as in `generate`."""
        settings = self.settings(options)  # complains before any work is done
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, not {batch_size}")
        check_seeds(seeds)
        classes = self.classes.count
        chosen = self.classes.one_or_each(labels, len(seeds))
        asked = range(classes) if chosen is None else [chosen] if isinstance(chosen, int) else set(chosen)
        model = self._remembering([self.classes.id(label) for label in asked])

        def make(part: slice) -> PipelineOutput:
            of = tuple(seeds[part])
            if isinstance(chosen, int):
                ids: list[int] | None = [chosen] * len(of)
            elif chosen is not None:
                ids = [self.classes.id(label) for label in chosen[part]]
            else:
                ids = [seed % classes for seed in of] if classes else None
            drawn = sampling.seeded_noise(
                of, self.model.latent_shape, settings["steps"] - 1, share=settings["share_noise"]
            )
            start = self._here(drawn.initial) if noise is None else self._rows(noise, part, len(seeds))
            given = None if ids is None else torch.tensor(ids, device=self.device)
            each = self._step_noise(step_noise, drawn.steps, part, len(seeds))
            how = {name: settings[name] for name in ("steps", "schedule", "guidance", "guidance_at")}
            samples = self._run(
                lambda model: sampling.sample(model, start, given, step_noise=each, **how),
                given,
                of,
                settings,
                model=model,
            )
            # noise that the seeds did not make is not in the record of a picture
            told = settings if noise is None and step_noise is None else settings | {"noise": "given"}
            return self._output(samples, of, ids, told, trajectory=trajectory)

        for _, output in in_batches(len(seeds), batch_size or self._at_once(settings["guidance"]), make):
            yield output

    @torch.no_grad()
    def encode(self, images: Pictures, labels: Labels = None) -> Tensor:
        """Pictures to points on the sphere (B, N, d); `labels=None` is the null class."""
        return self._mapped(self._to_tensor(images), labels, self.model.encode)

    @torch.no_grad()
    def decode(
        self, latents: Tensor, labels: Labels = None, *, seed: int = 0, **options: Unpack[SamplerOptions]
    ) -> Tensor:
        """Points (B, N, d), put on the sphere first, to pictures (B, C, S, S) in [0, 1].

        `labels=None` is the null class. A model of another prior than the sphere takes points as they are. A model that
        refines takes the noise of picture i from seed `seed + i`, and its `options`; unguided by default.
        """
        if tuple(latents.shape[1:]) != self.model.latent_shape:
            shape = ", ".join(map(str, self.model.latent_shape))
            raise ConfigError(f"latents have shape {tuple(latents.shape)}; this model takes (B, {shape})")
        points = self.model.prior.project(self._here(latents))
        return self._made(points, labels, lambda model, x, ids: model.decode(x, ids), seed, options)

    def reconstruct(
        self, images: Pictures, labels: Labels = None, *, seed: int = 0, **options: Unpack[SamplerOptions]
    ) -> Tensor:
        """Pictures there and back, (B, C, S, S) in [0, 1] on the CPU; `labels=None` is the null class.

        `seed` and `options` are those of a model that refines, as in `decode`.
        """
        return self._made(self._to_tensor(images), labels, sampling.reconstruct, seed, options).float().cpu()

    @torch.no_grad()
    def refine(
        self, images: Pictures, labels: Labels = None, *, seed: int = 0, **options: Unpack[SamplerOptions]
    ) -> PipelineOutput:
        """Refine rough pictures of any origin, without a loop before it.

        Args:
            images: pictures of any size.
            labels: the class, one for all or one for each; None is the null class, without guidance.
            seed: the noise of picture i has seed `seed + i`.
            options: `refinement_steps`, `solver` and `refinement_guidance`, see `SamplerOptions`.

        Raises:
            ConfigError: the model has no refiner.
        """
        if not self.refines:
            raise ConfigError("this model has no refiner; take a model of kind sphere-flow")
        x = self._to_tensor(images)
        settings = self._unlooped("refine", labels, options)
        seeds = range(seed, seed + len(x))
        check_seeds(seeds)
        ids = self._label_tensor(labels, len(x))

        def make(part: slice) -> PipelineOutput:
            of = None if ids is None else ids[part]
            samples = self._run(lambda model: Samples.of([x[part]], lambda same: same), of, seeds[part], settings)
            listed = None if of is None else of.tolist()
            return self._output(samples, tuple(seeds[part]), listed, settings, trajectory=True)

        outputs = (output for _, output in in_batches(len(x), self._at_once(settings["guidance"]), make))
        return join_outputs(self._watched(outputs, len(x)))

    def _unlooped(self, name: str, labels: Labels, options: SamplerOptions) -> dict[str, Any]:
        """The settings of what has no few-step loop, where a flow may refine; without a class unguided."""
        unknown = options.keys() - SamplerOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"{name}() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        guided = labels is not None
        settings = self._settings({"edit": name, **({} if guided else {"guidance": 1.0}), **options})
        return {name: value for name, value in settings.items() if name == "edit" or name not in DEFAULTS} | {
            "guidance": settings["guidance"]
        }

    def _made(
        self,
        x: Tensor,
        labels: Labels,
        call: Callable[[SphereGenerator, Tensor, Tensor | None], Tensor],
        seed: int,
        options: SamplerOptions,
    ) -> Tensor:
        """A call of the model on inputs (B, ...) under labels, in batches; images (B, C, S, S) in [0, 1]."""
        settings = self._unlooped("decode", labels, options)
        seeds = range(seed, seed + len(x))
        ids = self._label_tensor(labels, len(x))

        def run(part: slice) -> Tensor:
            of = None if ids is None else ids[part]

            def loop(model: SphereGenerator) -> Samples:
                with torch.no_grad():
                    return Samples.of([call(model, x[part], of)], lambda images: images)

            return to_unit(self._run(loop, of, seeds[part], settings).images)

        return torch.cat([result for _, result in in_batches(len(x), self._at_once(), run)])

    def _remembering(self, classes: Sequence[int]) -> SphereGenerator:
        """The model, with the conditions of these classes computed once where they are few."""
        if not classes or len(classes) > REMEMBERED_CLASSES:
            return self.model
        with torch.no_grad():
            return RememberedConditions(self.model, classes, self.device)
