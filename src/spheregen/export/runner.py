"""A generator in numpy and onnxruntime, without torch: an exported folder makes, changes and joins images by itself.

The same seeds, classes and settings make the images that `Pipeline` makes. Of the method only the loop and its sums are
here; networks and geometry are in the graphs of the folder, see `spheregen.export.graphs`.

Legend: B images, C channels, S pixels, T steps; latents, points and noise (B, N, d) float32; angles in radians inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spheregen.classes import Classes
from spheregen.errors import ConfigError, did_you_mean
from spheregen.export.loop import Loop, Made, refined
from spheregen.export.manifest import read_manifest
from spheregen.export.noise import Array, gaussians, refinement_noise
from spheregen.export.prompts import NEGATIVE
from spheregen.export.sessions import Sessions
from spheregen.export.sums import blend, check_settings, filled, positions, slerp, step_angles
from spheregen.pixels import ImageOptions, load_array, read_image

ImageInput = Any
"""A PIL image, a path, or an array (H, W) or (H, W, C) of uint8 or of floats in [0, 1]."""
Classed = int | str | Sequence[int | str] | None
"""Class ids or names: one for all images, or one for each; prompts of a model that follows texts."""
EDIT_STRENGTH = 0.25
FAMILIAR = 0.4
"""See `Runner.kept`."""
_BATCH = 16  # images in one pass
_FLAT = 2.5e-4  # variance of an image in [0, 1] that has nothing on it


@dataclass(frozen=True)
class RunnerOutput:
    """Images that a runner made."""

    array: Array
    """(B, C, S, S) in [0, 1]."""
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    """The class id of each; None for the null class and for mixtures, and of a model that follows texts."""
    settings: Mapping[str, Any]
    """As used: with a seed they repeat an image."""
    prompts: tuple[str, ...] | None = None
    """The prompt of each."""

    def __len__(self) -> int:
        return len(self.array)

    @property
    def images(self) -> list[Image.Image]:
        """As PIL images, mode L or RGB."""
        whole = np.rint(self.array * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in whole]


class Runner:
    """A generator from a folder that `spheregen export MODEL --to onnx` or `--to web` wrote.

    Args:
        folder: with `manifest.json` and the graphs beside it.
        providers: of onnxruntime, such as ["CUDAExecutionProvider"]; by default the CPU.
        threads: of one image; by default those of onnxruntime, or OMP_NUM_THREADS.

    Raises:
        ModelFileError: a missing or foreign folder, or a file that is not as it was written.
        SphereGenError: onnxruntime is missing.
    """

    def __init__(
        self, folder: str | Path, *, providers: Sequence[str] | None = None, threads: int | None = None
    ) -> None:
        self.folder = Path(folder)
        self.manifest = manifest = read_manifest(self.folder)
        self.image_shape: tuple[int, ...] = tuple(manifest["image_shape"])
        self.latent_shape: tuple[int, ...] = tuple(manifest["latent_shape"])
        self._graphs = Sessions(self.folder, manifest, providers, threads)
        classes = Classes(manifest["num_classes"], tuple(manifest["class_names"]))
        self.classes: Any = classes if self._graphs.texts is None else self._graphs.texts
        """`Classes`, or `Texts` of a model that follows texts."""
        self.defaults: Mapping[str, Any] = manifest["sampling"]
        """The settings of `generate`, where nothing else is given."""
        channels, size, _ = self.image_shape
        geometry = manifest["preprocessing"]
        self.image_options = ImageOptions(
            image_size=size, channels=channels, fit=geometry["fit"], background=tuple(geometry["background"])
        )

    # making images ----------------------------------------------------------------------------------------------------

    def generate(
        self,
        count: int | None = None,
        *,
        labels: Classed = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> RunnerOutput:
        """Make images, as `Pipeline.generate` does.

        Args:
            count: how many; by default as many as `labels` or `seeds` holds, else 1.
            labels: None spreads the images over the classes: that of seed s gets class s modulo their number.
            seed: image i has seed `seed + i`.
            seeds: the seeds themselves.
            options: steps, schedule, guidance, guidance_at, share_noise, strength, prior, temperature, prior_angle,
                start_angle, loop_angle; of a model that follows texts prompt, in place of labels, and negative_prompt;
                of a model that refines refinement_steps, solver, refinement_guidance.

        Raises:
            ConfigError: an unknown class or option, or numbers that do not fit together.
        """
        labels = self._prompted(labels, options)
        if labels is None and self._graphs.texts is not None and options.get("guidance") is None:
            options["guidance"] = self.manifest["unguided"]
        settings = self._settings(options)
        many = isinstance(labels, Sequence) and not isinstance(labels, str)
        if seeds is None:
            number = count if count is not None else len(labels) if many else 1  # type: ignore[arg-type]
            if number < 1:
                raise ConfigError(f"the number of images is at least 1, not {number}")
            seeds = range(seed, seed + number)
        ids = self.classes.of_each(labels, len(seeds))
        if ids is None and self.classes.count:
            ids = [each % self.classes.count for each in seeds]
        noises = self._noises(seeds, settings, settings["steps"] - 1)
        reuses = self.manifest["reuses_noise"] and settings["share_noise"]

        def make(part: slice) -> Made:
            weights = self._graphs.weights(ids, len(seeds))[part]
            start, *steps = (each[part] for each in noises)
            latents, turn, told = self._start(start, weights, settings)
            here = [start] if reuses else steps
            return self._sample(latents, turn, told, start, weights, ids is not None, here, settings)

        return self._run(make, seeds, ids, settings)

    def encode(self, images: ImageInput | Sequence[ImageInput], labels: Classed = None) -> Array:
        """Return the points on the sphere (B, N, d) of images; `labels=None` is the null class."""
        x = self._load(images)
        weights = self._graphs.weights(self.classes.of_each(labels, len(x)), len(x))
        return self._points(x, weights)

    def decode(self, latents: Array, labels: Classed = None, *, seed: int = 0, **options: Any) -> Array:
        """Return the images (B, C, S, S) in [0, 1] of points (B, N, d), which are put on the sphere first."""
        if latents.shape[1:] != self.latent_shape:
            raise ConfigError(f"latents have shape {latents.shape}; this model takes (B, *{self.latent_shape})")
        return self._unlooped(np.asarray(latents, np.float32), labels, seed, options, lambda x, _: x)

    def reconstruct(
        self, images: ImageInput | Sequence[ImageInput], labels: Classed = None, *, seed: int = 0, **options: Any
    ) -> Array:
        """Return images there and back, (B, C, S, S) in [0, 1]; `labels=None` is the null class."""
        return self._unlooped(self._load(images), labels, seed, options, self._graphs.encoded)

    def kept(self, images: ImageInput | Sequence[ImageInput], labels: Classed = None) -> Array:
        """Return the share of each image's variance that comes back from there and back, (B,), 1 at most.

        An image of which less than `FAMILIAR` comes back is far from what the model knows.
        """
        x = (self._load(images) + 1) / 2
        error = np.square(x - self.reconstruct(images, labels)).mean(axis=(1, 2, 3))
        share: Array = 1 - error / (x.var(axis=(1, 2, 3)) + _FLAT)
        return share

    def edit(
        self, images: ImageInput | Sequence[ImageInput], labels: Classed = None, *, seed: int = 0, **options: Any
    ) -> RunnerOutput:
        """Pull images towards a class and keep what they have beside it, as `Pipeline.edit` does."""
        x, labels = self._load(images), self._prompted(labels, options)
        ids, seeds = self.classes.of_each(labels, len(x)), range(seed, seed + len(x))
        given = {name: value for name, value in options.items() if value is not None}
        weights, guided = self._graphs.weights(ids, len(x)), ids is not None
        if given.keys() & {"start_angle", "loop_angle"}:
            settings = self._edit_settings(given, guided=guided, decodes=False)
            angle = settings.get("start_angle") or settings.get("loop_angle", 0.0)
            settings["start_angle"] = angle
            settings["schedule"], settings["strength"] = "fixed", 1.0
            return self._from_points(self._graphs.encoded(x, weights), ids, weights, seeds, settings)
        if ids is not None and self._fitted(given):
            settings = self._edit_settings({**given, "prior": "fitted"}, guided=True, decodes=True)
            null = self._graphs.weights(None, len(x))
            noise = self._graphs.call("undraw", latents=self._points(x, null), weights=null)
            moved = self._graphs.draw(noise, weights, settings["temperature"])
            return self._from_points(moved, ids, weights, seeds, settings)
        settings = self._edit_settings(given, guided=guided, decodes=False)
        angles = step_angles(settings, self.manifest["alpha_max"], clean=0)
        noises = self._noises(seeds, settings, settings["steps"])[1:]

        def make(part: slice) -> Made:
            loop = Loop(self._graphs, weights[part], guided, settings)
            start = x[part] if self._graphs.predicts_images else self._graphs.encoded(x[part], weights[part])
            return loop.run(np.concatenate([start] * loop.streams), angles, [each[part] for each in noises])

        return self._run(make, seeds, ids, settings)

    def vary(
        self,
        image: ImageInput,
        count: int = 8,
        *,
        angle: float = 30.0,
        labels: Classed = None,
        seed: int = 0,
        **options: Any,
    ) -> RunnerOutput:
        """Make variations of one image, at `angle` degrees from its code, as `Pipeline.vary` does."""
        if not 0 <= angle <= 180:
            raise ConfigError(f"the angle of a variation lies between 0 and 180 degrees, not {angle:g}")
        x, labels = self._load(image), self._prompted(labels, options)
        given = {name: value for name, value in options.items() if value is not None}
        ids, seeds = self.classes.of_each(labels, count), range(seed, seed + count)
        weights, turn = self._graphs.weights(ids, count), math.radians(angle)
        fitted = self._fitted(given)
        given["prior"] = "fitted" if fitted else "sphere"
        settings = self._edit_settings(given, guided=ids is not None, decodes=True) | {"angle": angle}
        (noise,) = self._noises(seeds, settings, 0)
        v = np.repeat(self._points(x, weights[:1]), count, axis=0)
        if fitted:
            turned = math.cos(turn) * self._graphs.call("undraw", latents=v, weights=weights) + math.sin(turn) * noise
            start = self._graphs.draw(turned.astype(np.float32), weights, 1.0)
        else:
            start = self._graphs.call("vary", points=v, towards=noise, angle=filled(turn, count))
        return self._from_points(start, ids, weights, seeds, settings)

    def interpolate(
        self, ends: Sequence[ImageInput | int], frames: int = 16, *, labels: Classed = None, **options: Any
    ) -> RunnerOutput:
        """Make the images on the way between two ends, or over the square between four, as `Pipeline.interpolate` does.

        Args:
            ends: two, or four corners (upper left, upper right, lower left, lower right): seeds or images.
            frames: along each side, the ends included.
            labels: one class, or one for each end, which are mixed; by default photos are under the null class, seeds
                under their own. The way between two prompts is that of `class_path="lerp"`.
            options: as of `edit`; `seed` is of the refinement noise of photos.
        """
        items, own, labels = list(ends), int(options.pop("seed", 0)), self._prompted(labels, options)
        if len(items) not in (2, 4) or not 2 <= frames <= 10_000:
            raise ConfigError(
                f"interpolation goes between 2 or 4 ends, in 2 to 10000 frames, not {len(items)}, {frames}"
            )
        is_seed = [isinstance(end, int | np.integer) for end in items]
        seeds = [int(end) if seeded else own for end, seeded in zip(items, is_seed, strict=True)]
        null = self.classes.count
        ids = self.classes.of_each(labels, len(items))
        if ids is None and null:
            ids = [seed % null if seeded else null for seed, seeded in zip(seeds, is_seed, strict=True)]
        guided = ids is not None and any(label != null for label in ids)
        given = {name: value for name, value in options.items() if value is not None}
        if all(is_seed):
            given.setdefault("strength", self.defaults["strength"])
            if given.get("steps", 1) != 1:
                given.setdefault("schedule", self.defaults["schedule"])
        settings = self._edit_settings(given, guided=guided, decodes=True, interpolates=True)
        weights = self._graphs.weights(ids, len(items))
        noises = self._noises(seeds, settings, settings["steps"] - 1)
        latents, turn, _ = self._start(noises[0], weights, settings)
        points = self._graphs.place(latents, noises[0], turn)
        for place in [place for place, seeded in enumerate(is_seed) if not seeded]:
            points[place] = self._points(self._load(items[place]), weights[place : place + 1])[0]
        start = self._between(points, frames)
        mixed = blend(weights, frames) if guided else self._graphs.weights(None, len(start))
        steps = [self._between(each, frames, noise=True) for each in noises[1:]]
        if all(is_seed) and self.manifest["reuses_noise"] and settings["share_noise"] and settings["prior"] == "sphere":
            steps = [start]
        flow = None
        if "refiner" in self._graphs:
            flow = self._between(refinement_noise(seeds, self.image_shape), frames, noise=True)
        of = ids[:1] * len(start) if guided and ids is not None and len(set(ids)) == 1 else None
        told = [seeds[0]] * len(start)
        return self._from_points(start, of, mixed, told, settings, guided=guided, noises=steps, flow=flow)

    # the loop ---------------------------------------------------------------------------------------------------------

    def _sample(
        self,
        latents: Array,
        turn: float,
        told: float,
        noise: Array,
        weights: Array,
        guided: bool,
        steps: Sequence[Array],
        settings: Mapping[str, Any],
    ) -> Made:
        """Predict from raw latents moved by noise, then refine that T-1 times."""
        manifest = self.manifest
        start, loop_angle = settings.get("start_angle"), settings.get("loop_angle")
        largest = manifest["alpha_max"]
        if (given := start if loop_angle is None else loop_angle) is not None:
            largest = min(given, manifest["max_angle"])
        if start is not None:
            told = math.radians(min(start, manifest["max_angle"]))
        angles = step_angles(settings, largest, clean=1)
        loop = Loop(self._graphs, weights, guided, settings)
        streams = loop.streams if angles else 1
        wide, noises = (np.concatenate([each] * streams) for each in (latents, noise))
        prediction, context = loop.predict(wide, noises, turn, told)
        return loop.run(prediction, angles, steps, context)

    def _from_points(
        self,
        points: Array,
        ids: list[int] | None,
        weights: Array,
        seeds: Sequence[int],
        settings: Mapping[str, Any],
        *,
        guided: bool | None = None,
        noises: Sequence[Array] | None = None,
        flow: Array | None = None,
    ) -> RunnerOutput:
        steps = self._noises(seeds, settings, settings["steps"] - 1)[1:] if noises is None else noises
        told = math.radians(self.manifest["start_angle"])

        def make(part: slice) -> Made:
            of = points[part]
            here = [each[part] for each in steps]
            classed = ids is not None if guided is None else guided
            return self._sample(of, 0.0, told, np.zeros_like(of), weights[part], classed, here, settings)

        return self._run(make, seeds, ids, settings, flow)

    def _run(
        self,
        make: Callable[[slice], Made],
        seeds: Sequence[int],
        ids: Sequence[int] | None,
        settings: Mapping[str, Any],
        flow: Array | None = None,
    ) -> RunnerOutput:
        """Run a loop batch by batch, and the flow of a model that refines behind it."""
        found = []
        for first in range(0, len(seeds), _BATCH):
            part = slice(first, first + _BATCH)
            made = make(part)
            images = made.images(self._graphs)
            if "refiner" in self._graphs and settings["refinement_steps"]:
                noise = refinement_noise(seeds[part], self.image_shape) if flow is None else flow[part]
                images = refined(self._graphs, images, made, noise, settings)
            found.append(images)
        named: Any = None if ids is None or self.classes.count in ids else tuple(ids)
        unit = (np.clip(np.concatenate(found), -1, 1) + 1) / 2
        labels, prompts = (named, None) if self._graphs.texts is None else (None, named)
        return RunnerOutput(unit.astype(np.float32), tuple(map(int, seeds)), labels, dict(settings), prompts)

    def _unlooped(
        self,
        x: Array,
        labels: Classed,
        seed: int,
        options: Mapping[str, Any],
        latents: Callable[[Array, Array], Array],
    ) -> Array:
        given = dict(options)
        ids = self.classes.of_each(self._prompted(labels, given), len(x))
        unguided = self.manifest["unguided"]
        settings = self._settings({**({} if ids is not None else {"guidance": unguided}), **given}, edit=True)
        weights = self._graphs.weights(ids, len(x))

        def make(part: slice) -> Made:
            loop = Loop(self._graphs, weights[part], ids is not None, {**settings, "guidance": unguided})
            of = latents(x[part], weights[part])
            return loop.run(*loop.predict(of, np.zeros_like(of), 0.0, 0.0)[:1], [], [], loop.context)

        return self._run(make, range(seed, seed + len(x)), ids, settings).array

    # settings ---------------------------------------------------------------------------------------------------------

    def _settings(self, options: Mapping[str, Any], *, edit: bool = False) -> dict[str, Any]:
        """Return the settings of a call: what is given, else the model's; see `pipeline.options.complete`."""
        given = {name: value for name, value in options.items() if value is not None}
        texts = self._graphs.texts is not None
        known = [*self.defaults, "start_angle", "loop_angle", *([NEGATIVE] if texts else [])]
        for name in given.keys() - set(known):
            raise ConfigError(f"unknown option {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
        settings = {**self.defaults, **given}
        unguided = self.manifest["unguided"]
        if given.get("prior", "fitted") != "fitted":
            settings |= {name: given.get(name, value) for name, value in (("temperature", 1.0), ("prior_angle", 0.0))}
        check_settings(settings)
        if settings["prior"] == "fitted" and "draw" not in self._graphs:
            raise ConfigError("this model has no fitted prior; leave prior out")
        if not self.classes.count and not texts and settings["guidance"] != unguided:
            raise ConfigError(f"guidance steers towards a class, and this model has none; give guidance {unguided:g}")
        if "refinement_steps" in settings:
            plain = edit and given.get("guidance") == unguided
            if settings["refinement_guidance"] is None or (plain and "refinement_guidance" not in given):
                settings["refinement_guidance"] = settings["guidance"] if unguided == 1 else 1.0
        return settings

    def _edit_settings(
        self, given: Mapping[str, Any], *, guided: bool, decodes: bool, interpolates: bool = False
    ) -> dict[str, Any]:
        own: dict[str, Any] = {"schedule": "fixed", "steps": 1 if decodes else 4, "strength": EDIT_STRENGTH}
        if not guided or (not interpolates and self.defaults["prior_angle"]):
            own["guidance"] = self.manifest["unguided"]
        if not interpolates:
            own["prior"] = "sphere"
        return self._settings({**own, **given}, edit=True)

    def _fitted(self, given: Mapping[str, Any]) -> bool:
        prior: str = self._settings({name: given[name] for name in ("prior",) if name in given})["prior"]
        return prior == "fitted"

    # arrays -----------------------------------------------------------------------------------------------------------

    def _points(self, x: Array, weights: Array) -> Array:
        return self._graphs.place(self._graphs.encoded(x, weights))

    def _start(self, noise: Array, weights: Array, settings: Mapping[str, Any]) -> tuple[Array, float, float]:
        """Return raw latents, the angle by which noise moves them, and the one that the network is told."""
        if settings["prior"] != "fitted":
            return noise, 0.0, math.radians(self.manifest["start_angle"])
        turn = math.radians(settings["prior_angle"])
        return self._graphs.draw(noise, weights, settings["temperature"]), turn, turn

    def _between(self, ends: Array, frames: int, *, noise: bool = False) -> Array:
        across, down = positions(len(ends), frames)

        def join(a: Array, b: Array, t: Array) -> Array:
            wide = [np.repeat(each[None], len(t), axis=0) if each.ndim == ends.ndim - 1 else each for each in (a, b)]
            first, second = wide
            return slerp(first, second, t) if noise else self._graphs.call("between", a=first, b=second, t=t)

        upper = join(ends[0], ends[1], across)
        return upper if len(ends) == 2 else join(upper, join(ends[2], ends[3], across), down)

    def _prompted(self, labels: Classed, options: dict[str, Any]) -> Classed:
        """Take the prompt out of the options of a call, and return the labels that are meant."""
        prompt: Classed = options.pop("prompt", None)
        if prompt is not None and labels is not None:
            raise ConfigError("give a prompt or labels, not both")
        if prompt is not None and self._graphs.texts is None:
            raise ConfigError("this model follows classes, not texts: give labels, not a prompt")
        return labels if prompt is None else prompt

    def _noises(self, seeds: Sequence[int], settings: Mapping[str, Any], noisy: int) -> list[Array]:
        """Return the noise of the start, then that of the noisy steps, one for all where they share it."""
        count = 1 + (min(noisy, 1) if settings["share_noise"] else noisy)
        drawn = [gaussians(int(seed), self.latent_shape, count) for seed in seeds]
        return [np.stack(each) for each in zip(*drawn, strict=True)]

    def _load(self, images: ImageInput | Sequence[ImageInput]) -> Array:
        """Return images as (B, C, S, S) in [-1, 1]."""
        if isinstance(images, Image.Image | str | Path) or (isinstance(images, np.ndarray) and images.ndim < 4):
            images = [images]
        loaded = [self._pixels(image) for image in images]
        if not loaded:
            raise ConfigError("no images were given")
        return np.stack(loaded) * 2 - 1

    def _pixels(self, image: ImageInput) -> Array:
        if isinstance(image, np.ndarray):
            pixels = image[..., None] if image.ndim == 2 else image
            if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or pixels.dtype.kind not in "uf":
                raise ConfigError(f"an image of shape {image.shape} and {image.dtype}; give (H, W, C) uint8 or floats")
            if pixels.dtype.kind == "f":
                if not (pixels.min() >= -1e-3 and pixels.max() <= 1.001):
                    raise ConfigError("an image of floats has values in [0, 1]; divide it, or give uint8")
                if pixels.transpose(2, 0, 1).shape == self.image_shape:
                    return pixels.transpose(2, 0, 1).astype(np.float32)
                pixels = np.rint(pixels * 255)
            whole = pixels.astype(np.uint8)
            image = Image.fromarray(whole[..., 0] if whole.shape[-1] == 1 else whole)
        opened = read_image(image) if isinstance(image, str | Path) else image
        pixels = load_array(opened, self.image_options)
        return pixels.astype(np.float32) / np.float32(255)
