"""Restoring images: any known degradation, missing regions, small images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from spheregen import sampling
from spheregen.classes import Labels
from spheregen.conditioning import Condition
from spheregen.data.inputs import (
    ImageInput,
    ImageInputs,
    deciding_side,
    load_images,
    load_mask,
    load_whole,
    open_images,
)
from spheregen.errors import ConfigError
from spheregen.pipeline.editing import Editing
from spheregen.pipeline.options import RestoreOptions, named, seed_range
from spheregen.pipeline.output import PipelineOutput, RestorationOutput
from spheregen.pipeline.prompts import Prompts
from spheregen.sampling import restoration
from spheregen.sampling.loop import Samples, StepNoise
from spheregen.sampling.restoration import Linear, Mask, Operator
from spheregen.sampling.restoration.solver import ANGLE, DISCREPANCY, SCHEDULE, STEPS
from spheregen.sampling.seeds import derived_seed

_OWN = ("angle", "lam", "scale", "stop", "discrepancy", "samples", "tiles")
"""The options that no other loop has."""
RECORDED = ("steps", "angle", "schedule", "scale")
"""The options whose best values for a task are recorded with a model, in `restoration.tasks`."""
_KEPT = ("seed", "step_noise", "callback")
_RANGE = 10.0
"""Times the largest value that y of an image may have: beyond it is another scale."""


class Restoring(Editing):
    """The ways of a pipeline from degraded images to whole ones."""

    @named
    def restore(
        self,
        y: ImageInputs,
        operator: Operator,
        *,
        noise: float | str | Tensor = 0.0,
        labels: Labels = None,
        **options: Unpack[RestoreOptions],
    ) -> RestorationOutput:
        """Restore images from what a known degradation left of them: y = operator.A(x) + noise.

        Args:
            y: observations: images, or a tensor (B, ...) as `operator.A` gives it of images in [0, 1], of any float
                range. Images are brought to the size that the model's would be degraded to, or with `tiles` stay as
                large as they are; a tensor of larger images than the model's goes through it in tiles.
            operator: the degradation, see `spheregen.restoration`; its tensors hold one value for all images, or one
                for each.
            noise: deviation of the noise in y, on the scale of images in [0, 1] (the literature often has twice that,
                for [-1, 1]): a number, one for each image, or `auto` to estimate it.
            labels: the class, one for all or one for each; None is the null class.
            options: see `RestoreOptions`.

        Raises:
            DataError, ConfigError: images, an operator or options that are impossible.
        """
        operator = operator.to(self.device)
        x = self._observed(y, operator, tiles=bool(options.get("tiles")))
        return self._restored("restore", x, operator, noise, labels, options)

    @named
    def inpaint(
        self, images: ImageInputs, mask: ImageInput, *, labels: Labels = None, **options: Unpack[RestoreOptions]
    ) -> RestorationOutput:
        """Fill in a region; the known pixels stay as they are. `restore` with a mask, without noise.

        Args:
            images: images of any size.
            mask: white where the image is missing, of the images' size or the model's; grey mixes.
            labels, options: as in `restore`.
        """
        missing = self._here(load_mask(mask, images, self.image_options))
        operator = restoration.SoftMask(1 - missing)
        return self._restored("inpaint", operator.A(self._to_tensor(images)), operator, 0.0, labels, options)

    @named
    def upscale(
        self,
        images: ImageInputs,
        factor: int | None = None,
        *,
        labels: Labels = None,
        **options: Unpack[RestoreOptions],
    ) -> RestorationOutput:
        """Enlarge small images to the model's size; averaged back, the result is the small image again. `restore` with
        the mean of blocks, without noise.

        Args:
            images: small images. With a `factor`, images of any size, which are first reduced to S / factor.
            factor: how many pixels become of one, along each side; by default S over the shorter side of the images
                (the longer one of a model that pads), which must divide S.
            labels, options: as in `restore`.
        """
        size = self.image_options.image_size
        opened = open_images(images)
        if factor is None:
            side, *others = sorted({deciding_side(image, self.image_options) for image in opened})
            if others:
                raise ConfigError(f"the images have sides of {side} and {others[-1]} px; give a factor for all")
            if size % side:
                raise ConfigError(f"a side of {side} px does not divide the model's {size} px; give a factor")
            factor = size // side
        check_factor(factor, size)
        small = load_images(opened, dataclasses.replace(self.image_options, image_size=size // factor))
        operator = restoration.BlockMean(factor)
        return self._restored("upscale", self._here(small * 2 - 1), operator, 0.0, labels, options, factor=factor)

    def _observed(self, y: ImageInputs, operator: Operator, *, tiles: bool) -> Tensor:
        """Observations as those of images in [-1, 1], on the model's device."""
        if isinstance(y, Tensor) and y.ndim >= 3 and (y.is_complex() or y.is_floating_point()):
            given = y.to(self.device, (y.dtype if y.is_complex() else self._here(torch.zeros(1)).dtype))
        elif tiles:
            # a mask is as large as the images are, so that it fits none of the model's size
            channels = self.model.image_shape[0] if isinstance(operator, Mask) else self._shape_of_y(operator)[1]
            given = self._here(load_whole(y, dataclasses.replace(self.image_options, channels=channels)))
        else:
            *_, height, width = shape = self._shape_of_y(operator)
            makes_images = operator.image_like or isinstance(operator, Linear)
            if not makes_images or len(shape) != 4 or height != width or shape[1] not in (1, 3):
                raise ConfigError(f"{type(operator).__name__} does not make images; give y as a tensor (B, ...)")
            options = dataclasses.replace(self.image_options, image_size=height, channels=shape[1])
            given = self._here(load_images(y, options))
        try:
            ones = operator.A(torch.ones_like(operator.A_adjoint(given[:1]))) if operator.linear else None
        except RuntimeError as error:
            raise ConfigError(f"y of shape {tuple(given.shape)} is no observation: {error}") from error
        most = _RANGE * (1.0 if ones is None else max(1.0, float(ones.abs().max())))
        if not bool((given.abs() <= most).all()):  # also true for NaN
            raise ConfigError(
                f"y has values up to {float(given.abs().max()):g}: it is that of images in [0, 1]; divide 8 bits by 255"
            )
        moved = 2 * given - (1 if ones is None else ones)
        return moved * (operator.known > 0) if isinstance(operator, Mask) else moved

    def _shape_of_y(self, operator: Operator) -> tuple[int, ...]:
        return tuple(operator.A(self._here(torch.zeros(1, *self.model.image_shape))).shape)

    def _restored(
        self,
        name: str,
        y: Tensor,
        operator: Operator,
        noise: float | str | Tensor,
        labels: Labels,
        options: Mapping[str, Any],
        **own: Any,
    ) -> RestorationOutput:
        """Restore observations (B, ...) of images in [-1, 1]."""
        options = dict(options)
        if name != "restore" and options.get("tiles"):
            task = {"inpaint": "inpaint", "upscale": "superres"}[name]
            raise ConfigError(f"tiles is of restore: use it, with the task {task}")
        labels = self._prompted(labels, options)
        settings = self._restore_settings(name, operator.task, options) | own
        shape = restoration.image_shape_of(operator, y)
        samples, deviation = settings["samples"], _deviation(noise, y, operator)
        seeds = [
            seed if number == 0 else derived_seed(seed, "sample", number)
            for seed in seed_range(options.get("seed", 0), len(y))
            for number in range(samples)
        ]
        ids = self._ids(labels, len(y))
        # a row for each sample, those of an image together
        rows = y.repeat_interleave(samples, 0)
        under = ids.repeated(samples) if isinstance(ids, Prompts) else ids
        if isinstance(under, Tensor):
            under = under.repeat_interleave(samples, 0)
        each = operator.each(lambda tensor: tensor if len(tensor) == 1 else tensor.repeat_interleave(samples, 0))
        deviations = deviation.repeat_interleave(samples)
        tiles = self._tiles(shape)
        spectrum = self.info.restoration.get("spectrum", restoration.GENERIC)
        how = {name: settings[name] for name in ("steps", "schedule", "guidance", "guidance_at", "angle")}
        how |= {name: settings[name] for name in ("lam", "scale", "stop") if settings.get(name) is not None}
        how["discrepancy"] = settings["discrepancy"] or None
        callback = options.get("callback")
        if callback is not None:
            how["callback"] = lambda step, steps, made: callback(step, steps, ((made + 1) / 2).float().cpu())

        own_noise = options.get("step_noise")
        if own_noise is not None and samples * tiles > 1:
            raise ConfigError("step_noise is of one sample of each image, without tiles; leave it out")

        def noise_of(part: slice) -> StepNoise:
            if own_noise is not None:
                return self._step_noise(own_noise, part, len(rows))
            # one tile has the noise of an image alone
            step_shape = (tiles, *self.model.latent_shape) if tiles > 1 else self.model.latent_shape
            drawn = sampling.seeded_noise(seeds[part], step_shape, settings["steps"], share=settings["share_noise"])
            each = [drawn.steps] if isinstance(drawn.steps, Tensor) else drawn.steps
            flat = [self._here(of).flatten(0, 1) if tiles > 1 else self._here(of) for of in each]
            return flat[0] if isinstance(drawn.steps, Tensor) else flat

        def loop(part: slice, condition: Condition) -> Samples:
            return restoration.restore(
                self.model,
                rows[part],
                each[part],
                condition,
                noise=deviations[part],
                spectrum=spectrum,
                step_noise=noise_of(part),
                **how,
            )

        settings["noise"] = noise if isinstance(noise, float | int) else [round(v, 5) for v in (deviation / 2).tolist()]
        made = self._joined(self._batches(seeds, under, settings, loop), len(rows))
        return _gathered(made, operator, y, samples, len(y))

    def _tiles(self, shape: Sequence[int]) -> int:
        side = self.model.image_shape[-1]
        rows, columns = (len(sampling.restoration.tiles.tile_starts(max(length, side), side)) for length in shape[1:])
        return rows * columns

    def _recorded(self, task: str) -> dict[str, Any]:
        """Return the settings that were measured to be best for a task, see `RECORDED`."""
        tasks = self.info.restoration.get("tasks", {})
        own = tasks.get(task, {}) if isinstance(tasks, Mapping) else None
        if not isinstance(own, Mapping) or not all(
            isinstance(value, str if name == "schedule" else int | float) and name in RECORDED
            for name, value in own.items()
        ):
            raise ConfigError(f"config.json records impossible settings of {task}; measure them by spheregen tune")
        return dict(own)

    def _restore_settings(self, name: str, task: str, options: Mapping[str, Any]) -> dict[str, Any]:
        given = self._recorded(task) | {key: value for key, value in options.items() if value is not None}
        own = {"angle": ANGLE, "samples": 1, "discrepancy": 0.0 if "lam" in given else DISCREPANCY}
        own |= {key: given.pop(key) for key in _OWN if key in given}
        for key in _KEPT:
            given.pop(key, None)
        loop = {"edit": name, "schedule": SCHEDULE, "share_noise": False, "strength": 1.0, "prior": "sphere"}
        loop |= {"guidance": self.model.unguided, "guidance_at": "both", "steps": STEPS}
        settings = self._settings({**loop, **given}) | own
        if not 1 <= settings["samples"] <= 1000:
            raise ConfigError(f"samples is a whole number from 1 to 1000, not {settings['samples']}")
        if not 0 <= settings["angle"] <= 90:
            raise ConfigError(f"angle lies between 0 and 90 degrees, not {settings['angle']:g}")
        sampling.edit_angles(settings["schedule"], settings["steps"], 1.0)  # complains before any work is done
        return settings


def check_factor(factor: int, size: int) -> None:
    """Refuse a factor of an enlargement to `size` pixels that does not divide it."""
    if factor < 1 or size % factor:
        raise ConfigError(f"the factor must divide the model's {size} px, and {factor} does not")


def _deviation(noise: float | str | Tensor, y: Tensor, operator: Operator) -> Tensor:
    """Return the deviation of the noise of each observation of images in [-1, 1], (B,)."""
    if isinstance(noise, str):
        if noise != "auto":
            raise ConfigError(f"noise is a number, or auto to estimate it, not {noise!r}")
        return restoration.estimate_noise(y, operator)
    each = 2 * torch.as_tensor(noise, dtype=y.real.dtype, device=y.device)
    if each.ndim and each.shape != (len(y),):
        raise ConfigError(f"noise is one number, or one for each of {len(y)} images, not {tuple(each.shape)}")
    if not bool(((each >= 0) & each.isfinite()).all()):
        raise ConfigError(f"noise is a deviation from 0 up, on the scale of images in [0, 1], not {noise}")
    return each.expand(len(y))


def _gathered(made: PipelineOutput, operator: Operator, y: Tensor, samples: int, count: int) -> RestorationOutput:
    """Return the first sample of each image, the spread of all, and how far they are from y."""
    images = made.tensor.unflatten(0, (count, samples))
    first = slice(None, None, samples)
    chosen = made[first]
    x = (2 * chosen.tensor - 1).to(y.device, y.real.dtype)
    start = operator.bounded(operator.init(y), y)
    apart = operator.residual(x, y) / 2
    values = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(PipelineOutput)}
    return RestorationOutput(
        **values,
        start=((start + 1) / 2).clamp(0, 1).float().cpu(),
        residual=tuple(apart.double().tolist()),
        spread=images.std(1) if samples > 1 else None,
    )
