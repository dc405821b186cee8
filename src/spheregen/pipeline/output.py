"""What a pipeline gives back: images with the seeds, classes and settings that make them again; the record in a PNG."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

import spheregen
from spheregen.data import (
    ImageWriter,
    encode_png,
    image_grid,
    open_writer,
    read_metadata,
    save_png,
    to_pil,
)
from spheregen.errors import DataError
from spheregen.files import parse_json
from spheregen.pipeline.options import DEFAULTS, FLOW_DEFAULTS, START_NAMES, UNSAID_NAMES, check_types, named

Steps = tuple[Tensor, ...] | Callable[[], tuple[Tensor, ...]]
"""The images after every step, or what makes them."""
_SHOWN = 64  # images in the view of a notebook
_SMALL = 96  # pixels to which images of that view and of grids are enlarged
_LARGEST_RECORD = 100_000  # characters of settings that are read


@dataclass(frozen=True)
class PipelineOutput:
    """Images that a pipeline made. It has a length and slices; an integer index and a loop give PIL images."""

    tensor: Tensor
    """(B, C, S, S) float32 in [0, 1], on the CPU."""
    seeds: tuple[int, ...]
    """The seed of each image."""
    labels: tuple[int, ...] | None
    """The class id of each image; None for an unconditional model, the null class and mixtures."""
    settings: Mapping[str, Any]
    """steps, schedule, guidance, guidance_at, share_noise and the prior as used, those of a refinement and of an edit:
    with a seed they repeat an image."""
    steps: Steps = field(default=(), repr=False)
    """What `trajectory` is made of."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """What a PNG says of the model: its name and its fingerprint."""
    class_names: tuple[str, ...] = ()
    """The names of all classes of the model."""
    prompts: tuple[str, ...] | None = None
    """The prompt of each image of a model that follows texts; empty where there was none."""

    def __len__(self) -> int:
        return len(self.seeds)

    @overload
    def __getitem__(self, place: int) -> Image.Image: ...
    @overload
    def __getitem__(self, place: slice) -> PipelineOutput: ...
    def __getitem__(self, place: int | slice) -> Image.Image | PipelineOutput:
        if isinstance(place, int):
            return to_pil(self.tensor[place][None])[0]
        return dataclasses.replace(
            self,
            tensor=self.tensor[place],
            seeds=self.seeds[place],
            labels=None if self.labels is None else self.labels[place],
            prompts=None if self.prompts is None else self.prompts[place],
            steps=lambda: tuple(images[place] for images in self.trajectory),
        )

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.images)

    @functools.cached_property
    def trajectory(self) -> tuple[Tensor, ...]:
        """The images after every step, each like `tensor`, which is the last; empty where nobody asked for it.

        Those of a model that predicts latents are decoded when this is first read: their output holds on to the model.
        """
        return _made(self.steps)

    @property
    def images(self) -> list[Image.Image]:
        """The images as PIL images, mode L or RGB."""
        return to_pil(self.tensor)

    def grid(self, columns: int | None = None, *, scale: int | None = None) -> Image.Image:
        """Return all images on one sheet.

        Args:
            columns: images in a row; by default the sheet is about square.
            scale: each pixel becomes scale x scale; by default small images are enlarged.
        """
        return image_grid(self.tensor, columns=columns, scale=scale or max(1, _SMALL // self.tensor.shape[-1]))

    def metadata(self, number: int) -> dict[str, str]:
        """Return the text of an image's PNG: model, seed, class and settings, with which it can be made again."""
        text = {"Software": f"spheregen {spheregen.__version__}", **{k: v for k, v in self.origin.items() if v}}
        text["seed"] = str(self.seeds[number])
        if self.labels is not None:
            text |= {"label": str(self.labels[number]), "class": self.class_name(number)}
        if self.prompts is not None:
            text["prompt"] = self.prompts[number]
        text |= {name: str(value) for name, value in self.settings.items()}  # for people, and once more for programs
        return text | {"settings": json.dumps(dict(self.settings), default=repr)}

    def class_name(self, number: int) -> str:
        """Return the name of an image's class, or its id; nothing for an image without one."""
        label = "" if self.labels is None else self.labels[number]
        return self.class_names[label] if self.class_names and isinstance(label, int) else str(label)

    @named
    def save(self, out: str | Path | ImageWriter) -> None:
        """Write the images to a folder, a .zip or a .tar, or to a .png: a sheet of them, or the only one itself.

        Each PNG holds `metadata`. In folders and archives they are named by their seeds, or by their numbers where a
        seed occurs twice, as in an interpolation.

        Raises:
            SphereGenError: it cannot be written there.
        """
        if not isinstance(out, ImageWriter):
            path = Path(out)
            if path.suffix.lower() == ".png":
                return save_png(self[0] if len(self) == 1 else self.grid(), path, self.metadata(0))
            with open_writer(path, class_names=self.class_names) as writer:
                return self.save(writer)
        keys = self.seeds if len(set(self.seeds)) == len(self.seeds) else range(len(self.seeds))
        for number, (image, key) in enumerate(zip(self.images, keys, strict=True)):
            out.add(f"{key:06d}", image, self.metadata(number), self.labels[number] if self.labels else None)
        return None

    def _repr_png_(self) -> bytes:
        """A sheet of the first images, for notebooks."""
        return encode_png(self[:_SHOWN].grid())


@dataclass(frozen=True)
class RestorationOutput(PipelineOutput):
    """Restored images. `trajectory` has them after every step."""

    start: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    """The images that the loop started from, like `tensor`."""
    residual: tuple[float, ...] = ()
    """The root mean square of A x - y of each image, on the scale of images in [0, 1], as noise is."""
    spread: Tensor | None = field(default=None, repr=False)
    """The deviation of several samples of each image from one another, pixel by pixel, like `tensor`; None of one."""

    @overload
    def __getitem__(self, place: int) -> Image.Image: ...
    @overload
    def __getitem__(self, place: slice) -> RestorationOutput: ...
    def __getitem__(self, place: int | slice) -> Image.Image | PipelineOutput:
        part = super().__getitem__(place)
        if not isinstance(part, RestorationOutput) or isinstance(place, int):
            return part
        spread = None if self.spread is None else self.spread[place]
        return dataclasses.replace(part, start=self.start[place], residual=self.residual[place], spread=spread)


def join_outputs(parts: Iterable[PipelineOutput]) -> PipelineOutput:
    """Return the images of several batches of one call as one output."""
    first, *others = outputs = list(parts)
    if not others:
        return first
    steps = [part.steps for part in outputs]

    def joined() -> tuple[Tensor, ...]:
        return tuple(map(torch.cat, zip(*map(_made, steps), strict=True)))

    return dataclasses.replace(
        first,
        tensor=torch.cat([part.tensor for part in outputs]),
        seeds=tuple(seed for part in outputs for seed in part.seeds),
        labels=None if first.labels is None else tuple(label for part in outputs for label in part.labels or ()),
        prompts=None if first.prompts is None else tuple(text for part in outputs for text in part.prompts or ()),
        steps=joined if any(map(callable, steps)) else joined(),
    )


def _made(steps: Steps) -> tuple[Tensor, ...]:
    return steps() if callable(steps) else steps


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """How a generated image was made, as its PNG says."""

    model: str
    """The name or folder of the model, as its user wrote it."""
    fingerprint: str
    """Of the model's weights; empty if it is not known."""
    seed: int
    label: int | None
    prompt: str | None
    settings: Mapping[str, Any]
    """The fields of `GenerationOptions`; those of a flow only where one refined the image."""


def read_record(path: Path) -> ImageRecord:
    """Read how an image was made that `Pipeline.generate` and `PipelineOutput.save` wrote.

    Raises:
        DataError: the file is missing or no image, or it does not say how a plain sample was made.
    """
    text = read_metadata(path)
    if "seed" not in text or "settings" not in text:
        raise DataError(
            f"{path} does not say how it was made; only single PNGs that `spheregen sample` or PipelineOutput.save "
            "wrote do, as long as no other program saved them again"
        )
    try:
        settings = parse_json(text["settings"][:_LARGEST_RECORD])
        label = int(text["label"]) if "label" in text else None
        seed = int(text["seed"])
        if "edit" in settings or "noise" in settings:
            raise DataError(f"{path} was made of other images or of given noise, which it does not hold")
        if isinstance(settings["schedule"], list):
            settings["schedule"] = [float(r) for r in settings["schedule"]]
        names = DEFAULTS if "refinement_steps" not in settings else {**DEFAULTS, **FLOW_DEFAULTS}
        before = {name: DEFAULTS[name] for name in {*START_NAMES, "strength"}}  # images of a version without them
        told = {**before, **settings}
        settings = {name: told[name] for name in names if name in told or name not in UNSAID_NAMES}
        check_types(settings)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path} has a damaged record of how it was made ({error}); it cannot be repeated") from error
    origin = {name: text.get(name, "") for name in ("model", "fingerprint")}
    return ImageRecord(**origin, seed=seed, label=label, prompt=text.get("prompt"), settings=settings)
