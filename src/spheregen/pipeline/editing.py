"""What people use: load a generator, make pictures, reconstruct photos, save it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spheregen.data import ImageOptions, load_image, read_image, to_model_range, to_pil
from spheregen.devices import choose_device
from spheregen.errors import ConfigError, did_you_mean
from spheregen.losses.reconstruction import to_unit
from spheregen.model_folder import ModelInfo, load_model, save_model
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.sampling import reconstruct, sample, seeded_noise
from spheregen.sampling.schedules import Schedule, refinement_radii
from spheregen.sphere import spherify

BATCH_SIZE = 64
Labels = int | str | Sequence[int | str] | Tensor | None
"""Class ids or names: one for all pictures, or one for each."""
SEED_LIMIT = 2**63
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

Images = Tensor | Image.Image | str | Path | Sequence[Image.Image | str | Path]
"""Pictures in: a tensor (B, C, S, S) of the model's size, in [0, 1] or uint8, or PIL images or paths of any size."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to sample; what is None takes the model's default."""

    steps: int | None = None
    schedule: Schedule | None = None
    guidance: float | None = None
    guidance_at: str | None = None
    share_noise: bool | None = None


@dataclass(frozen=True)
class PipelineOutput:
    """Generated pictures."""

    tensor: Tensor
    """(B, C, S, S) float32 in [0, 1], on the CPU."""
    seeds: tuple[int, ...]
    """The seed of each picture."""
    labels: tuple[int, ...] | None
    """The class id of each picture; None for an unconditional model."""
    settings: Mapping[str, Any]
    """steps, schedule, guidance, guidance_at and share_noise as used: with a seed they repeat a picture."""

    @property
    def images(self) -> list[Image.Image]:
        """The pictures as PIL images, mode L or RGB."""
        return to_pil(self.tensor)


class Pipeline:
    """A generator with everything around it: device, class names, sampling defaults, pictures in and out.

    Args:
        model: a generator; it is put into evaluation mode, its gradients are turned off.
        info: class names and sampling defaults.
        device: a torch device or `auto`.
    """

    def __init__(self, model: SphereAutoencoder, info: ModelInfo | None = None, *, device: str = "auto") -> None:
        self.device = choose_device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.info = info or ModelInfo()

    @classmethod
    def from_pretrained(cls, model: str | Path, *, device: str = "auto", dtype: str | None = None) -> Pipeline:
        """Load a model folder.

        Args:
            model: the folder.
            device: a torch device or `auto`.
            dtype: `float32`, `bfloat16` or `float64`; by default the type that the weights were saved in.

        Raises:
            ModelFileError: a missing, broken or foreign folder.
            ConfigError: an unknown device or dtype.
        """
        loaded = load_model(model)
        network = loaded.model
        if dtype is not None:
            if dtype not in DTYPES:
                raise ConfigError(f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; use {', '.join(DTYPES)}")
            network = network.to(DTYPES[dtype])
        return cls(network, loaded.info, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder that `from_pretrained` reads."""
        save_model(Path(folder), self.model, self.info)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def image_options(self) -> ImageOptions:
        """How pictures that come in are cropped and resized: the ADM centre crop."""
        config = self.model.config
        return ImageOptions(image_size=config.image_size, channels=config.image_channels)

    def generate(
        self,
        count: int | None = None,
        *,
        labels: Labels = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        guidance: float | None = None,
        guidance_at: str | None = None,
        share_noise: bool | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> PipelineOutput:
        """Make pictures. A picture depends on its seed, class and settings alone, not on how many are made together.

        Args:
            count: how many; by default as many as `labels` or `seeds` holds, else 1.
            labels: class ids or names, one for all or one for each; None spreads them over the classes: the picture of
                seed s gets class s modulo their number.
            seed: picture i has seed `seed + i`.
            seeds: the seeds themselves, instead of `seed`.
            steps, schedule, guidance, guidance_at, share_noise: see `spheregen.sampling.sample`; None takes the model's
                default.
            batch_size: pictures in one pass through the network.

        Raises:
            ConfigError: an unknown class, or numbers that do not fit together.
        """
        options = GenerationOptions(
            steps=steps, schedule=schedule, guidance=guidance, guidance_at=guidance_at, share_noise=share_noise
        )
        if seeds is None:
            total = 1 if labels is None or isinstance(labels, int | str | np.integer) else len(labels)
            total = total if count is None else count
            if total < 1:
                raise ConfigError(f"the number of pictures is at least 1, not {total}")
            seeds = range(seed, seed + total)
        elif count not in (None, len(seeds)):
            raise ConfigError(f"{len(seeds)} seeds for {count} pictures; leave one of them out")
        parts = list(self.stream(seeds, labels=labels, options=options, batch_size=batch_size))
        return PipelineOutput(
            tensor=torch.cat([part.tensor for part in parts]),
            seeds=tuple(seeds),
            labels=tuple(label for part in parts for label in part.labels or ()) if self.model.num_classes else None,
            settings=parts[0].settings,
        )

    def stream(
        self,
        seeds: Sequence[int],
        *,
        labels: Labels = None,
        options: GenerationOptions | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Iterator[PipelineOutput]:
        """Make the pictures of `seeds` batch by batch, in constant memory. Arguments as in `generate`."""
        settings = self._settings(options or GenerationOptions())
        refinement_radii(settings["schedule"], settings["steps"])  # complain before any work is done
        if not len(seeds):
            raise ConfigError("no seeds: the number of pictures is at least 1")
        if batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, not {batch_size}")
        for edge in (seeds[0], seeds[-1]) if isinstance(seeds, range) else seeds:
            if not 0 <= edge < SEED_LIMIT:
                raise ConfigError(f"a seed lies between 0 and 2^63 - 1, not {edge}")
        ids, classes = self._label_ids(labels, len(seeds)), self.model.num_classes
        for start in range(0, len(seeds), batch_size):
            part = seeds[start : start + batch_size]
            if isinstance(ids, list):
                part_ids: list[int] | None = ids[start : start + batch_size]
            elif ids is not None:
                part_ids = [ids] * len(part)
            else:
                part_ids = [seed % classes for seed in part] if classes else None
            yield self._generate_batch(part, part_ids, settings)

    def encode(self, images: Images, labels: Labels = None) -> Tensor:
        """Pictures to points on the sphere (B, N, d); `labels=None` is the null class."""
        x = self._to_tensor(images)
        ids = self._label_tensor(labels, x.shape[0])
        return torch.cat([self.model.encode(*part) for part in _batches(x, ids)])

    def decode(self, latents: Tensor, labels: Labels = None) -> Tensor:
        """Points (B, N, d), spherified first, to pictures (B, C, S, S) in [0, 1]; `labels=None` is the null class."""
        if tuple(latents.shape[1:]) != self.model.latent_shape:
            shape = ", ".join(map(str, self.model.latent_shape))
            raise ConfigError(f"latents have shape {tuple(latents.shape)}; this model takes (B, {shape})")
        v = spherify(latents.to(self.device, self.dtype))
        ids = self._label_tensor(labels, v.shape[0])
        return torch.cat([to_unit(self.model.decode(*part)) for part in _batches(v, ids)])

    def reconstruct(self, images: Images, labels: Labels = None) -> Tensor:
        """Pictures there and back, (B, C, S, S) in [0, 1] on the CPU; `labels=None` is the null class."""
        x = self._to_tensor(images)
        ids = self._label_tensor(labels, x.shape[0])
        return torch.cat([to_unit(reconstruct(self.model, *part)).cpu() for part in _batches(x, ids)])

    def label_id(self, label: int | str) -> int:
        """A class id from an id, its digits or a class name.

        Raises:
            ConfigError: the model is unconditional, or has no such class.
        """
        count, names = self.model.num_classes, self.info.class_names
        if not count:
            raise ConfigError("this model is unconditional and has no classes; leave the label out")
        if isinstance(label, str):
            if label in names:
                return names.index(label)
            if label.isdecimal():
                return self.label_id(int(label))
            hint = did_you_mean(label, names)
            raise ConfigError(f"unknown class {label!r}{hint}{';' if hint else ''} the classes are {self._classes()}")
        number = index(label)
        if not 0 <= number < count:
            raise ConfigError(f"label {number} is outside the {count} classes 0 to {count - 1}: {self._classes()}")
        return number

    def _classes(self) -> str:
        names = self.info.class_names or tuple(map(str, range(self.model.num_classes)))
        return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")

    def _settings(self, options: GenerationOptions) -> dict[str, Any]:
        defaults = {"steps": 4, "schedule": "fixed", "guidance": 1.0, "guidance_at": "both", "share_noise": True}
        known = {name: value for name, value in self.info.sampling.items() if name in defaults}
        if not self.model.num_classes:
            known["guidance"] = 1.0  # a recipe's guidance says nothing about a model without classes
        given = {name: value for name, value in vars(options).items() if value is not None}
        return {**defaults, **known, **given}

    def _label_ids(self, labels: Labels, count: int) -> int | list[int] | None:
        """Labels as one id for all, one for each of `count` pictures, or None."""
        if labels is None:
            return None
        if isinstance(labels, Tensor):
            labels = labels.tolist()
        if isinstance(labels, int | str | np.integer):
            return self.label_id(labels)
        if len(labels) != count:
            raise ConfigError(f"{len(labels)} labels for {count} pictures; give one for each, or one for all")
        return [self.label_id(label) for label in labels]

    def _label_tensor(self, labels: Labels, count: int) -> Tensor | None:
        ids = self._label_ids(labels, count)
        if ids is None:
            return None
        return torch.tensor([ids] * count if isinstance(ids, int) else ids, device=self.device)

    def _generate_batch(
        self, seeds: Sequence[int], ids: Sequence[int] | None, settings: dict[str, Any]
    ) -> PipelineOutput:
        noise = seeded_noise(seeds, self.model.latent_shape, settings["steps"] - 1, share=settings["share_noise"])
        shared = isinstance(noise.steps, Tensor)
        steps = [noise.steps] if isinstance(noise.steps, Tensor) else list(noise.steps)
        steps = [step.to(self.device, self.dtype) for step in steps]
        samples = sample(
            self.model,
            noise.initial.to(self.device, self.dtype),
            None if ids is None else torch.tensor(ids, device=self.device),
            step_noise=steps[0] if shared else steps,
            **{name: value for name, value in settings.items() if name != "share_noise"},
        )
        return PipelineOutput(
            tensor=to_unit(samples.images).float().cpu(),
            seeds=tuple(seeds),
            labels=None if ids is None else tuple(ids),
            settings=settings,
        )

    def _to_tensor(self, images: Images) -> Tensor:
        """Pictures as (B, C, S, S) in [-1, 1] on the model's device."""
        config = self.model.config
        if isinstance(images, Tensor):
            shape = (config.image_channels, config.image_size, config.image_size)
            if images.ndim != 4 or tuple(images.shape[1:]) != shape:
                raise ConfigError(
                    f"images have shape {tuple(images.shape)}; this model takes (B, {', '.join(map(str, shape))})"
                )
            x = images * 2 - 1 if images.is_floating_point() else to_model_range(images)
        else:
            pictures = [images] if isinstance(images, Image.Image | str | Path) else list(images)
            if not pictures:
                raise ConfigError("no images were given")
            opened = [item if isinstance(item, Image.Image) else read_image(Path(item)) for item in pictures]
            x = to_model_range(torch.stack([load_image(picture, self.image_options) for picture in opened]))
        return x.to(self.device, self.dtype)


def _batches(inputs: Tensor, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Inputs (B, ...) and labels (B,) in parts of at most BATCH_SIZE."""
    for start in range(0, inputs.shape[0], BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        yield inputs[part], None if labels is None else labels[part]


def load(model: str | Path, *, device: str = "auto") -> SphereAutoencoder:
    """The bare network of a model folder, in evaluation mode."""
    return load_model(model).model.to(choose_device(device))
