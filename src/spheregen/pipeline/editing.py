"""Changing, joining, varying and restoring pictures through the sphere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from spheregen import sampling
from spheregen.batching import in_batches
from spheregen.classes import Labels
from spheregen.conditioning import mixture
from spheregen.data.inputs import Picture, Pictures, deciding_side, load_mask, load_pictures, open_pictures
from spheregen.errors import ConfigError
from spheregen.pipeline.core import check_seeds
from spheregen.pipeline.generation import Generation
from spheregen.pipeline.output import PipelineOutput, SamplerOptions, join_outputs
from spheregen.sampling.loop import Samples, StepNoise
from spheregen.sampling.schedules import edit_radii, refinement_radii

EDIT_STRENGTH = 0.25  # the published one


class Editing(Generation):
    """A pipeline's ways from pictures to changed pictures. Each encodes a picture once to find it on the sphere."""

    def edit(
        self,
        images: Pictures,
        label: Labels = None,
        *,
        strength: float = EDIT_STRENGTH,
        steps: int = 4,
        seed: int = 0,
        step_noise: StepNoise | None = None,
        **options: Unpack[SamplerOptions],
    ) -> PipelineOutput:
        """Pull pictures towards a class: encode with noise and decode, under the class, `steps` times.

        Args:
            images: pictures of any size.
            label: the class to pull towards, one for all or one for each; None is the null class.
            strength: noise of a step as a fraction of the training noise: 0 reconstructs under the class, 1 leaves
                little of the picture.
            steps: pairs of encode and decode; `trajectory` holds the pictures after each.
            seed: the noise of picture i has seed `seed + i`.
            step_noise: the noise itself, (B, N, d) for all steps or a list of `steps` of them.
            options: see `SamplerOptions`; guidance acts only with a label.

        Raises:
            DataError, ConfigError: pictures, classes or options that are impossible.
        """
        x = self._to_tensor(images)
        settings = self._edit_settings("edit", options, steps, strength, guided=label is not None)
        return self._refined(x, label, seed, step_noise, settings, sampling.edit)

    def crossover(
        self,
        a: Pictures,
        b: Pictures,
        *,
        mask: str | Picture = "left-right",
        swap: bool = False,
        label: Labels = None,
        strength: float = EDIT_STRENGTH,
        steps: int = 4,
        seed: int = 0,
        step_noise: StepNoise | None = None,
        **options: Unpack[SamplerOptions],
    ) -> PipelineOutput:
        """Join parts of two pictures and let a few steps heal the seam.

        Args:
            a, b: pictures of any size, as many of one as of the other.
            mask: where `a` is taken: `left-right` (its left half), `top-bottom` (its upper half), `diagonal` or
                `antidiagonal` (its part above them), or a picture, white for `a` and black for `b`, of the size of the
                pictures or of the model.
            swap: exchange the two.
            label, strength, steps, seed, step_noise, options: as in `edit`.
        """
        first, second = self._to_tensor(a), self._to_tensor(b)
        if len(first) != len(second):
            raise ConfigError(
                f"a crossover joins as many pictures as it has partners, not {len(first)} and {len(second)}"
            )
        size = self.image_options.image_size
        if isinstance(mask, str) and (mask in sampling.MASKS or not Path(mask).is_file()):
            shape, shown = sampling.crossover_mask(mask, size), mask
        else:
            shape = load_mask(mask, [*open_pictures(a), *open_pictures(b)], self.image_options)
            shown = str(mask) if isinstance(mask, str | Path) else "picture"
        if swap:
            first, second = second, first
        pairs, taken = torch.stack([first, second], dim=1), self._here(shape)
        settings = self._edit_settings("crossover", options, steps, strength, guided=label is not None)

        def heal(model: Any, part: Tensor, labels: Tensor | None, **how: Any) -> Samples:
            one, other = part.unbind(1)
            return sampling.edit(model, sampling.Joined(one, other, taken), labels, **how)

        return self._refined(pairs, label, seed, step_noise, settings | {"mask": shown, "swap": swap}, heal)

    def vary(
        self,
        image: Pictures,
        count: int = 8,
        *,
        angle: float = 30.0,
        label: Labels = None,
        steps: int = 1,
        strength: float = EDIT_STRENGTH,
        seed: int = 0,
        **options: Unpack[SamplerOptions],
    ) -> PipelineOutput:
        """Variations of a picture: decode points at exactly `angle` degrees around its code.

        Args:
            image: one picture of any size.
            count: how many variations; number i goes in the direction of seed `seed + i`.
            angle: degrees on the sphere, 0 to 180; 0 is the reconstruction, at 90 nothing is left of the picture.
            label: the class under which it is encoded and decoded; None is the null class.
            steps: decodes; those after the first refine with noise of `strength`, as `edit` does.
        """
        if len(open_pictures(image)) != 1:
            raise ConfigError("variations are made of one picture at a time")
        if count < 1:
            raise ConfigError(f"the number of pictures is at least 1, not {count}")
        seeds = range(seed, seed + count)
        check_seeds(seeds)
        v = self.encode(image, label)
        settings = self._decode_settings("vary", options, steps, strength, guided=label is not None)
        drawn = sampling.seeded_noise(seeds, self.model.latent_shape, steps - 1, share=settings["share_noise"])
        start = sampling.vary(v.expand(count, *v.shape[1:]), self._here(drawn.initial), angle)
        labels = self._label_tensor(label, count)
        return self._decoded(start, labels, drawn.steps, seeds, settings | {"angle": angle})

    def interpolate(
        self,
        ends: Sequence[Picture | int] | Tensor,
        frames: int = 16,
        *,
        path: str = "slerp",
        labels: Labels = None,
        steps: int = 1,
        strength: float | None = None,
        seed: int = 0,
        **options: Unpack[SamplerOptions],
    ) -> PipelineOutput:
        """Pictures on the way between two ends, or over the square between four.

        Args:
            ends: two ends, or four corners (upper left, upper right, lower left, lower right). A picture stands for its
                code, an integer for the random point of that seed; both may be mixed.
            frames: pictures along each side, ends included: F for two ends, F*F row by row for four.
            path: `slerp` (constant angular speed) or `lerp` (straight, then back onto the sphere).
            labels: the class, or one for each end, between which the condition is mixed; the same seed twice with two
                labels goes from class to class. By default photos are under the null class and seeds under their own
                class (seed modulo classes), so that a seed's end is what `generate` makes of it.
            steps: decodes; those after the first refine each frame.
            strength: noise of the refinements as a fraction of the training noise; by default 1 between seeds, 0.25
                where a photo takes part.
            seed: of the refinement noise of photos.

        Raises:
            DataError, ConfigError: ends, classes or options that are impossible.
        """
        items: list[Any] = list(ends)
        sampling.interpolation.positions(len(items), frames)
        is_seed = [isinstance(end, int | np.integer) for end in items]
        if strength is None:
            strength = 1.0 if all(is_seed) else EDIT_STRENGTH
        seeds = [int(end) if seeded else seed for end, seeded in zip(items, is_seed, strict=True)]
        check_seeds(seeds)
        ids = self._end_labels(labels, seeds, is_seed)
        guided = ids is not None and any(label != self.classes.count for label in ids)
        # between seeds as `generate` goes; a single step has no schedule
        own = {"schedule": self._settings({})["schedule"]} if all(is_seed) and steps > 1 else {}
        settings = self._decode_settings("interpolate", {**own, **options}, steps, strength, guided=guided)
        drawn = sampling.seeded_noise(seeds, self.model.latent_shape, steps - 1, share=settings["share_noise"])
        prior = self.model.prior
        points = prior.project(self._here(drawn.initial))
        photos = [number for number, seeded in enumerate(is_seed) if not seeded]
        if photos:
            given = None if ids is None else torch.tensor([ids[number] for number in photos], device=self.device)
            with torch.no_grad():
                points[photos] = self.model.encode(self._to_tensor([items[number] for number in photos]), given)
        start = sampling.interpolate(points, frames, path, prior=prior)
        noises = [drawn.steps] if isinstance(drawn.steps, Tensor) else drawn.steps
        directions = [sampling.interpolate(noise, frames) for noise in noises]
        step_noise = directions[0] if isinstance(drawn.steps, Tensor) else directions
        mixed = None if ids is None else torch.tensor(ids)
        if not guided:
            mixed = None  # the null class for all
        elif mixed is not None and len(set(mixed.tolist())) == 1:
            mixed = mixed[:1].expand(len(start))  # nothing to mix, and guidance knows a class
        elif mixed is not None:
            mixed = sampling.blend(mixture(mixed, self.classes.count), frames)
        settings |= {"path": path, "frames": frames}
        labelled = None if mixed is None else mixed.to(self.device)
        flow = None
        if self.refines:  # the same way between the noises of the ends, so that a seed's end is its own picture
            ends_noise = sampling.refinement.refinement_noise(seeds, self.model.image_shape)
            flow = sampling.interpolate(ends_noise, frames)
        return self._decoded(start, labelled, step_noise, [seeds[0]] * len(start), settings, refinement_noise=flow)

    # restoration ------------------------------------------------------------------------------------------------------

    def inpaint(
        self,
        images: Pictures,
        mask: Picture,
        *,
        label: Labels = None,
        strength: float = EDIT_STRENGTH,
        steps: int = 4,
        seed: int = 0,
        step_noise: StepNoise | None = None,
        **options: Unpack[SamplerOptions],
    ) -> PipelineOutput:
        """Fill in a region; the known pixels stay as they are.

        Args:
            images: pictures of any size.
            mask: white where the picture is missing, of the pictures' size or the model's.
            strength: noise of the first step as a fraction of the training noise; it decays.
            steps: prior and data steps; `trajectory` holds the pictures after each.
            label, seed, step_noise, options: as in `edit`.

        Source: SP3 (arXiv 2606.16396).
        """
        x = self._to_tensor(images)
        missing = self._here(load_mask(mask, images, self.image_options))
        settings = self._edit_settings(
            "inpaint", {"schedule": "decay", **options}, steps, strength, guided=label is not None
        )

        def restore(model: Any, part: Tensor, labels: Tensor | None, **how: Any) -> Samples:
            return sampling.restore(model, sampling.Masked(part, missing), labels, **how)

        return self._refined(x, label, seed, step_noise, settings, restore)

    def upscale(
        self,
        images: Pictures,
        factor: int | None = None,
        *,
        label: Labels = None,
        strength: float = EDIT_STRENGTH,
        steps: int = 4,
        seed: int = 0,
        step_noise: StepNoise | None = None,
        **options: Unpack[SamplerOptions],
    ) -> PipelineOutput:
        """Enlarge small pictures to the model's size; averaged back, the result is the small picture again.

        Args:
            images: small pictures. With a `factor`, pictures of any size, which are first reduced to S / factor.
            factor: how many pixels become of one, along each side; by default S over the shorter side of the pictures
                (the longer one of a model that pads), which must divide S.
            label, strength, steps, seed, step_noise, options: as in `inpaint`.

        Source: SP3 (arXiv 2606.16396).
        """
        size = self.image_options.image_size
        opened = open_pictures(images)
        if factor is None:
            side, *others = sorted({deciding_side(picture, self.image_options) for picture in opened})
            if others:
                raise ConfigError(f"the pictures have sides of {side} and {others[-1]} px; give a factor for all")
            if size % side:
                raise ConfigError(f"a side of {side} px does not divide the model's {size} px; give a factor")
            factor = size // side
        if factor < 1 or size % factor:
            raise ConfigError(f"the factor must divide the model's {size} px, and {factor} does not")
        small_options = dataclasses.replace(self.image_options, image_size=size // factor)
        small = self._here(load_pictures(opened, small_options) * 2 - 1)
        settings = self._edit_settings(
            "upscale", {"schedule": "decay", **options}, steps, strength, guided=label is not None
        )

        def restore(model: Any, part: Tensor, labels: Tensor | None, **how: Any) -> Samples:
            return sampling.restore(model, sampling.Reduced(part, factor), labels, **how)

        return self._refined(small, label, seed, step_noise, settings | {"factor": factor}, restore)

    def _refined(
        self,
        x: Tensor,
        labels: Labels,
        seed: int,
        step_noise: StepNoise | None,
        settings: dict[str, Any],
        loop: Callable[..., Samples],
    ) -> PipelineOutput:
        """A loop that starts from images in [-1, 1], (B, ...), and adds noise at each of its steps."""
        count, steps = len(x), settings["steps"]
        edit_radii(settings["schedule"], steps, settings["strength"])  # complain before any work is done
        seeds = range(seed, seed + count)
        check_seeds(seeds)
        ids = self._label_tensor(labels, count)
        how = {name: settings[name] for name in ("steps", "strength", "schedule", "guidance", "guidance_at")}

        def make(part: slice) -> PipelineOutput:
            drawn = sampling.seeded_noise(seeds[part], self.model.latent_shape, steps, share=settings["share_noise"])
            noise = self._step_noise(step_noise, drawn.steps, part, count)
            of = None if ids is None else ids[part]
            samples = self._run(
                lambda model: loop(model, x[part], of, step_noise=noise, **how), of, seeds[part], settings
            )
            listed = None if of is None else of.tolist()
            return self._output(samples, tuple(seeds[part]), listed, settings, trajectory=True)

        outputs = (output for _, output in in_batches(count, self._at_once(settings["guidance"]), make))
        return join_outputs(self._watched(outputs, count))

    def _decoded(
        self,
        start: Tensor,
        labels: Tensor | None,
        step_noise: StepNoise,
        seeds: Sequence[int],
        settings: dict[str, Any],
        *,
        refinement_noise: Tensor | None = None,
    ) -> PipelineOutput:
        """Decode points (B, N, d) under ids or mixtures, and refine them.

        Args:
            refinement_noise: (B, C, S, S) of the flow of a model that refines; by default that of the seeds.
        """
        radii = refinement_radii(settings["schedule"], settings["steps"], self.model.sigma_max)
        schedule = [settings["strength"] * radius for radius in radii]
        how = {name: settings[name] for name in ("steps", "guidance", "guidance_at")}

        def make(part: slice) -> PipelineOutput:
            of = None if labels is None else labels[part]
            noise = self._step_noise(step_noise, (), part, len(start))
            samples = self._run(
                lambda model: sampling.sample(model, start[part], of, schedule=schedule, step_noise=noise, **how),
                of,
                seeds[part],
                settings,
                noise=None if refinement_noise is None else refinement_noise[part],
            )
            listed = None if of is None or of.is_floating_point() else of.tolist()
            return self._output(samples, tuple(seeds[part]), listed, settings, trajectory=True)

        outputs = (output for _, output in in_batches(len(start), self._at_once(settings["guidance"]), make))
        return join_outputs(self._watched(outputs, len(start)))

    def _end_labels(self, labels: Labels, seeds: Sequence[int], is_seed: Sequence[bool]) -> list[int] | None:
        """The class of each end of an interpolation; a photo without one has the null class."""
        chosen = self.classes.one_or_each(labels, len(seeds))
        if not self.classes.count:
            return None
        if isinstance(chosen, int):
            return [chosen] * len(seeds)
        if chosen is not None:
            return [self.classes.id(label) for label in chosen]
        null = self.classes.count
        return [seed % null if seeded else null for seed, seeded in zip(seeds, is_seed, strict=True)]

    def _edit_settings(
        self, name: str, options: Mapping[str, Any], steps: int, strength: float, *, guided: bool
    ) -> dict[str, Any]:
        """The options of an edit. The model's default schedule is meant for generation; guidance wants a class."""
        unknown = options.keys() - SamplerOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"{name}() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        own = {"schedule": "fixed"} | ({} if guided else {"guidance": 1.0})
        given = {name: value for name, value in options.items() if value is not None}
        settings = self._settings({"edit": name, **own, **given, "steps": steps})
        return {**settings, "strength": strength}

    def _decode_settings(
        self, name: str, options: Mapping[str, Any], steps: int, strength: float, *, guided: bool
    ) -> dict[str, Any]:
        settings = self._edit_settings(name, options, steps, strength, guided=guided)
        refinement_radii(settings["schedule"], steps)  # complain before any work is done
        edit_radii("fixed", 1, strength)
        return settings
