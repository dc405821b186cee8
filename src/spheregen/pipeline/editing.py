"""Changing, joining and varying images through the sphere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from spheregen import sampling
from spheregen.classes import Labels
from spheregen.conditioning import Condition, mixture
from spheregen.data.inputs import ImageInput, ImageInputs, load_mask, open_images
from spheregen.errors import ConfigError
from spheregen.fitted import FittedPrior
from spheregen.pipeline.generation import Generation
from spheregen.pipeline.options import ANGLE_NAMES, START_NAMES, EditOptions, named, seed_range, start_of
from spheregen.pipeline.output import PipelineOutput
from spheregen.pipeline.prompts import Prompts
from spheregen.protocol import PRIOR, SphereGenerator
from spheregen.sampling.loop import Samples, StepNoise
from spheregen.sampling.seeds import check_seeds

EDIT_STRENGTH = 0.25  # the published one
ENDS_OF_A_LINE = 2


def _revise(
    model: SphereGenerator, part: Tensor, of: Condition, *, steps: int, step_noise: StepNoise, **how: Any
) -> Samples:
    """The loop of an edit that was given an angle; schedule and strength are of the other one."""
    angle = how.pop("angle", None) or how.get("loop_angle", 0.0)
    own = {name: value for name, value in how.items() if name in ("loop_angle", "guidance", "callback")}
    return sampling.revise(model, part, of, steps, angle, step_noise=step_noise, **own)


class Editing(Generation):
    """The ways of a pipeline from images to changed images. Each encodes an image once to find it on the sphere."""

    @named
    def edit(self, images: ImageInputs, labels: Labels = None, **options: Unpack[EditOptions]) -> PipelineOutput:
        """Pull images towards a class, and keep what they have beside it.

        A model that draws its random points from a fitted prior moves the codes: out of the density of all codes into
        that of the class, to the place that they have there. One decode shows the result; further steps refine
        it. Other models, and `prior="sphere"`, encode with noise and decode, under the class, `steps` times. With an
        `start_angle`, the code is decoded as if noise had turned it by so much, see `sampling.revise`.

        Args:
            images: images of any size.
            labels: the class to pull towards, one for all or one for each; None is the null class. Of a model that
                follows texts, prompts, here and in all other edits.
            options: see `EditOptions`; `prior`, and with a fitted one `temperature`, below 1 nearer to the mean of the
                class. `trajectory` of the output holds the images after each step.

        Raises:
            DataError, ConfigError: images, classes or options that are impossible.
        """
        x, labels = self._to_tensor(images), self._prompted(labels, options)
        given, fitted = self._prior_of(options)
        if given.keys() & set(ANGLE_NAMES):
            return self._edited("edit", x, labels, _revise, given)
        if labels is None or fitted is None:
            return self._edited("edit", x, labels, sampling.edit, given)
        settings = self._edit_settings("edit", {**given, "prior": "fitted"}, guided=True, decodes=True)
        ids = self._ids(labels, len(x))
        assert ids is not None
        noise = fitted.noise_of(self.encode(images), fitted.embed_labels(None)[-1:])
        moved = fitted.draw(noise, self._of_prior(ids[:]), settings["temperature"])
        seeds = seed_range(given.get("seed", 0), len(x))
        drawn = self._drawn(seeds, settings)
        return self._run(sampling.sample, self.model.prior.project(moved), ids, drawn.steps, seeds, settings, given)

    @named
    def crossover(
        self,
        a: ImageInputs,
        b: ImageInputs,
        *,
        mask: str | ImageInput = "left-right",
        swap: bool = False,
        labels: Labels = None,
        **options: Unpack[EditOptions],
    ) -> PipelineOutput:
        """Join parts of two images and let a few steps heal the seam.

        Args:
            a, b: images of any size, as many of one as of the other.
            mask: where `a` is taken: `left-right` (its left half), `top-bottom` (its upper half), `diagonal` or
                `antidiagonal` (its part above them), or an image, white for `a` and black for `b`, of the size of the
                images or of the model.
            swap: exchange the two.
            labels, options: as in `edit`.
        """
        labels = self._prompted(labels, options)
        first, second = self._to_tensor(a), self._to_tensor(b)
        if len(first) != len(second):
            raise ConfigError(
                f"a crossover joins as many images as it has partners, not {len(first)} and {len(second)}"
            )
        if isinstance(mask, str) and (mask in sampling.MASKS or not Path(mask).is_file()):
            shape, shown = sampling.crossover_mask(mask, self.image_options.image_size), mask
        else:
            shape = load_mask(mask, [*open_images(a), *open_images(b)], self.image_options)
            shown = str(mask) if isinstance(mask, str | Path) else "image"
        pairs, taken = torch.stack([second, first] if swap else [first, second], dim=1), self._here(shape)

        def heal(model: SphereGenerator, part: Tensor, labels: Condition, **how: Any) -> Samples:
            return sampling.edit(model, sampling.Joined(part[:, 0], part[:, 1], taken), labels, **how)

        return self._edited("crossover", pairs, labels, heal, options, mask=shown, swap=swap)

    @named
    def vary(
        self,
        image: ImageInputs,
        count: int = 8,
        *,
        angle: float = 30.0,
        labels: Labels = None,
        **options: Unpack[EditOptions],
    ) -> PipelineOutput:
        """Variations of an image: decode points around its code.

        They lie at exactly `angle` degrees from it. A model that draws its random points from a fitted prior turns what
        the prior has drawn the code from instead, so that variations lie where codes are; `prior="sphere"` does not.

        Args:
            image: one image of any size.
            count: how many variations; number i goes in the direction of seed `seed + i`.
            angle: degrees, 0 to 180; 0 is the reconstruction, at 90 nothing is left of the image.
            labels: the class under which it is encoded and decoded; None is the null class.
            options: see `EditOptions`, and `prior`; steps after the first refine, as `edit` does.
        """
        if len(open_images(image)) != 1:
            raise ConfigError("variations are made of one image at a time")
        seeds, labels = seed_range(options.get("seed", 0), count), self._prompted(labels, options)
        v, (given, fitted) = self.encode(image, labels), self._prior_of(options)
        if fitted is not None:
            given["prior"] = "fitted"
        settings = self._edit_settings("vary", given, guided=labels is not None, decodes=True) | {"angle": angle}
        drawn = self._drawn(seeds, settings)
        ids, noise = self._ids(labels, count), self._here(drawn.initial)
        if fitted is None:
            start = sampling.vary(v.expand(count, *v.shape[1:]), noise, angle)
        else:
            turn = math.radians(angle)
            of = fitted.embed_labels(None)[-1:] if ids is None else self._of_prior(ids[:1])
            turned = math.cos(turn) * fitted.noise_of(v, of) + math.sin(turn) * noise
            start = self.model.prior.project(fitted.draw(turned, of))
        return self._run(sampling.sample, start, ids, drawn.steps, seeds, settings, given)

    @named
    def interpolate(
        self,
        ends: Sequence[ImageInput | int] | Tensor,
        frames: int = 16,
        *,
        path: str = "slerp",
        class_path: str | None = None,
        labels: Labels = None,
        **options: Unpack[EditOptions],
    ) -> PipelineOutput:
        """Images on the way between two ends, or over the square between four.

        Args:
            ends: two ends, or four corners (upper left, upper right, lower left, lower right). An image stands for its
                code, an integer for the random point of that seed; both may be mixed.
            frames: images along each side, ends included: F for two ends, F*F row by row for four.
            path: `slerp` (constant angular speed) or `lerp` (straight, then back onto the sphere).
            class_path: the way between the conditions of two ends with classes of their own: `lerp`, `slerp`, or `hard`
                (a switch in the middle); by default lerp, and slerp between texts. Four corners take `lerp`.
            labels: the class, or one for each end, between which the condition is mixed; the same seed twice with two
                labels goes from class to class. By default photos are under the null class and seeds under their own
                class (seed modulo classes), so that a seed's end is what `generate` makes of it.
            options: see `EditOptions`; steps after the first refine each frame, by default with strength 1 between
                seeds, and `seed` is of the refinement noise of photos.

        Raises:
            DataError, ConfigError: ends, classes or options that are impossible.
        """
        labels = self._prompted(labels, options)
        if isinstance(ends, str) or not isinstance(ends, Iterable):
            raise ConfigError(f"ends are two or four images or seeds, not {ends!r:.100}")
        items: list[Any] = [end.item() if isinstance(end, Tensor) and not end.ndim else end for end in ends]
        sampling.interpolation.positions(len(items), frames)
        is_seed = [isinstance(end, int | np.integer) for end in items]
        own = options.get("seed", 0)
        seeds = [int(end) if seeded else own for end, seeded in zip(items, is_seed, strict=True)]
        check_seeds(seeds)
        of_ends = self._end_labels(labels, seeds, is_seed)
        null = self.model.condition(None) if of_ends is None else self.model.condition(of_ends)
        guided = of_ends is not None and bool((mixture(of_ends, self.model.label_width)[:, -1] < 1).any())
        differ = of_ends is not None and bool((of_ends != of_ends[:1]).any())
        given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        if all(is_seed):
            given.setdefault("strength", self._settings({})["strength"])
            if given.get("steps", 1) != 1:  # as `generate` goes; a single step has no schedule
                given.setdefault("schedule", self._settings({})["schedule"])
        settings = self._edit_settings("interpolate", given, guided=guided, decodes=True)
        settings |= {"path": path, "frames": frames}
        if class_path is None:
            class_path = "slerp" if self.model.text_width and len(items) == ENDS_OF_A_LINE else "lerp"
        if class_path not in sampling.CLASS_PATHS or (class_path != "lerp" and len(items) != 2):
            raise ConfigError(
                f"class_path is {', '.join(sampling.CLASS_PATHS[:-1])} or {sampling.CLASS_PATHS[-1]} between two ends, "
                f"and lerp between four, not {class_path!r}"
            )
        if class_path != "lerp":
            settings["class_path"] = class_path
        drawn = self._drawn(seeds, settings)
        points, _ = start_of(settings).points(self.model, self._here(drawn.initial), null)
        photos = [number for number, seeded in enumerate(is_seed) if not seeded]
        if photos:
            of_photos = None if of_ends is None else of_ends[photos]
            with torch.no_grad():
                points[photos] = self.model.encode(self._to_tensor([items[number] for number in photos]), of_photos)
        start = sampling.interpolate(points, frames, path, prior=self.model.prior)
        mixed = None  # the null class for all
        if guided and of_ends is not None:
            if not differ:  # nothing to mix, and guidance knows a class
                mixed = of_ends[:1].expand(len(start), *of_ends.shape[1:])
            else:
                mixed = sampling.blend(mixture(of_ends, self.model.label_width).cpu(), frames).to(self.device)
        noise: StepNoise = (
            sampling.interpolate(drawn.steps, frames)
            if isinstance(drawn.steps, Tensor)
            else [sampling.interpolate(each, frames) for each in drawn.steps]
        )
        flow_noise = None
        if self.refines:  # the same way between the noises of the ends, so that a seed's end is its own image
            flow_noise = sampling.interpolate(sampling.refinement_noise(seeds, self.model.image_shape), frames)
        if all(is_seed) and self.model.reuses_noise and settings["share_noise"] and settings["prior"] == "sphere":
            noise = start  # each frame's own, as `generate` goes
        own_seeds = [seeds[0]] * len(start)
        between = None
        if class_path != "lerp" and mixed is not None and of_ends is not None and differ:
            shares, _ = sampling.interpolation.positions(2, frames)
            with torch.no_grad():
                first, second = (self.model.condition(end.expand(frames, *end.shape)) for end in of_ends)
                between = sampling.mix_conditions(first, second, shares, class_path)
                if (negative := self._negative(settings)) is not None:
                    between = between.against(negative)
        return self._run(sampling.sample, start, mixed, noise, own_seeds, settings, options, flow_noise, between)

    # the ways that edits share ----------------------------------------------------------------------------------------

    def _prior_of(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], FittedPrior | None]:
        """Return the options that are given, without `prior="sphere"`, and the fitted prior if it is to be used."""
        given = {key: value for key, value in options.items() if value is not None}
        prior = self._settings({name: given[name] for name in ("prior",) if name in given})["prior"]
        if given.get("prior") == "sphere":
            given.pop("prior")
        return given, self.model.fitted if prior == "fitted" else None

    def _edited(
        self,
        name: str,
        x: Tensor,
        labels: Labels,
        call: Callable[..., Samples],
        options: Mapping[str, Any],
        **own: Any,
    ) -> PipelineOutput:
        """A loop that starts from images in [-1, 1], (B, ...), and adds noise at each of its steps.

        Args:
            call: a loop of `spheregen.sampling`: takes the model, a part of `x`, its labels and the options.
            own: further settings that tell how the images were made.
        """
        settings = self._edit_settings(name, options, guided=labels is not None) | own
        seeds = seed_range(options.get("seed", 0), len(x))
        ids = self._ids(labels, len(x))
        drawn = self._drawn(seeds, settings, settings["steps"])
        return self._run(call, x, ids, drawn.steps, seeds, settings, options)

    def _run(
        self,
        call: Callable[..., Samples],
        x: Tensor,
        ids: Tensor | Prompts | None,
        drawn: StepNoise,
        seeds: Sequence[int],
        settings: Mapping[str, Any],
        options: Mapping[str, Any],
        flow_noise: Tensor | None = None,
        conditions: Condition | None = None,
    ) -> PipelineOutput:
        """Run a loop from images or points (B, ...) under ids or mixtures, with this noise unless one is given.

        Args:
            conditions: in place of those of the ids.
            flow_noise: (B, C, S, S) of the flow of a model that refines; by default that of the seeds.
        """
        how = self._loop_options(settings, options.get("callback"))
        given = options.get("step_noise")
        noise = drawn if given is None else given

        def loop(part: slice, of: Condition) -> Samples:
            under = of if conditions is None else conditions[part]
            return call(self.model, x[part], under, step_noise=self._step_noise(noise, part, len(x)), **how)

        return self._joined(self._batches(seeds, ids, settings, loop, flow_noise=flow_noise), len(x))

    def _end_labels(self, labels: Labels, seeds: Sequence[int], is_seed: Sequence[bool]) -> Tensor | None:
        """The labels of the ends of an interpolation; a photo without a class has the null class."""
        chosen, null = self._ids(labels, len(seeds)), self.classes.count
        if chosen is not None or not null:
            return None if chosen is None else chosen[:]
        of = [seed % null if seeded else null for seed, seeded in zip(seeds, is_seed, strict=True)]
        return torch.tensor(of, device=self.device)

    @torch.no_grad()
    def _of_prior(self, labels: Tensor) -> Tensor:
        """The weights that labels have in the fitted prior, on the CPU."""
        told = self.model.condition(labels).of(PRIOR)
        assert told is not None
        return told.embedding.cpu()

    def _edit_settings(
        self, name: str, options: Mapping[str, Any], *, guided: bool, decodes: bool = False
    ) -> dict[str, Any]:
        """The options of an edit, checked. The model's schedule is meant for generation, as is guidance that goes with
        points turned away from the codes; guidance wants a class.

        Args:
            decodes: the first step decodes a point, by default the only one.
        """
        own: dict[str, Any] = {"edit": name, "schedule": "fixed", "steps": 1 if decodes else 4}
        if not guided or (name != "interpolate" and self._settings({})["prior_angle"]):
            own["guidance"] = self.model.unguided
        given = {key: value for key, value in options.items() if value is not None}
        strength = given.pop("strength", EDIT_STRENGTH)
        for key in ("seed", "step_noise", "callback"):
            given.pop(key, None)
        if not decodes and name != "edit":
            for key in set(ANGLE_NAMES) & given.keys():
                raise ConfigError(f"{name} has no {key}; give its strength instead")
        edit = {"prior", "temperature"} if decodes else set()
        takes = {"interpolate": START_NAMES, "edit": edit, "vary": {"prior"}}.get(name, set())
        for key in (START_NAMES & given.keys()) - takes:
            raise ConfigError(f"{name} starts from images, not from random points; leave {key} out")
        if name != "interpolate":
            own["prior"] = "sphere"
        settings = {**self._settings({**own, **given}), "strength": strength}
        check = sampling.generation_angles if decodes else sampling.edit_angles
        check(settings["schedule"], settings["steps"], strength=strength)  # complains before any work is done
        return settings
