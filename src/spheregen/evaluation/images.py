"""Sets of images that an evaluation measures: real ones, generated ones, reconstructions.

A set is read in chunks of a fixed size, whatever the number of processes and the memory of the device, so that a figure
is the same to the last digit however the work was shared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spheregen.data import ImageOptions, ImageSource, load_image, to_uint8
from spheregen.data.dataset import judge
from spheregen.data.decoding import decode_chunks
from spheregen.data.grids import Rounding
from spheregen.errors import ConfigError, DataError
from spheregen.pipeline import GenerationOptions, Pipeline


class ImageSet(Protocol):
    """Numbered 8-bit images of one size."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64 class ids; None where there are no classes."""

    def __len__(self) -> int:
        """N."""

    def describe(self) -> dict[str, Any]:
        """All that decides what the images are, as JSON values: two sets with the same description are the same."""

    def stream(self, parts: Sequence[slice]) -> Iterator[Tensor]:
        """The images of each part, uint8 (n, C, H, W), in order.

        Raises:
            DataError: an image cannot be read.
        """


class RealImages:
    """The pictures of a source, brought to one size.

    Args:
        source: where they come from.
        options: size, channels and how they are cropped.
        limit: take this many at most, evenly spread over the source.
        workers: processes that decode; 0 is this one.
    """

    def __init__(
        self, source: ImageSource, options: ImageOptions, *, limit: int | None = None, workers: int = 0
    ) -> None:
        self.source, self.options, self.workers = source, options, workers
        self.indices = np.arange(len(source), dtype=np.int64)
        if limit is not None and limit < len(source):
            self.indices = self.indices[:limit] * len(source) // limit
        self.labels = None if source.labels is None else source.labels[torch.from_numpy(self.indices)]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.options.shape

    def __len__(self) -> int:
        return len(self.indices)

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.source.name,
            "split": self.source.split,
            "fingerprint": self.source.fingerprint,
            "count": len(self),
            "of": len(self.source),
            "image_size": self.options.image_size,
            "channels": self.options.channels,
            "fit": self.options.fit,
            "resize": self.options.resize,
            "background": list(self.options.background),
        }

    def stream(self, parts: Sequence[slice]) -> Iterator[Tensor]:
        chunks = (self.indices[part] for part in parts)
        with contextlib.closing(decode_chunks(self.source, self.options, chunks, self.workers)) as decoded:
            for chunk in decoded:
                judge(chunk.bad, len(self), "fail")
                yield torch.from_numpy(chunk.images)
        self.source.release()


class ImagesAsTheyAre:
    """Samples that somebody else made: all of one size, which is not changed.

    Args:
        source: where they are.

    Raises:
        DataError: the first one cannot be read, or is not square.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source, self.labels = source, source.labels
        first = source.read(0)
        width, height = first.size
        if width != height:
            raise DataError(f"{source.describe(0)} is {width} x {height}; samples to be scored are square")
        self.options = ImageOptions(image_size=width, channels=1 if first.mode in ("1", "L") else 3)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.options.shape

    def __len__(self) -> int:
        return len(self.source)

    def describe(self) -> dict[str, Any]:
        return {
            "images": self.source.name,
            "split": self.source.split,
            "fingerprint": self.source.fingerprint,
            "count": len(self),
            "image_size": self.options.image_size,
            "channels": self.options.channels,
        }

    def stream(self, parts: Sequence[slice]) -> Iterator[Tensor]:
        size = self.options.image_size
        for part in parts:
            batch = torch.empty(part.stop - part.start, *self.shape, dtype=torch.uint8)
            for row, index in enumerate(range(part.start, part.stop)):
                picture = self.source.read(index)
                if picture.size != (size, size):
                    raise DataError(
                        f"{self.source.describe(index)} is {picture.width} x {picture.height}, the first of the "
                        f"samples {size} x {size}; score samples of one size, as they were made"
                    )
                batch[row] = load_image(picture, self.options)
            yield batch
        self.source.release()


class GeneratedImages:
    """Samples of a model: image i has seed `seed + i` and, of K classes, class `(seed + i) mod K`.

    Args:
        pipe: the model.
        count: N.
        seed: of the first image.
        options: steps, schedule, guidance ...; what is None takes the model's default.
        rounding: how [0, 1] becomes 8 bits: `round` as PNG files are written here, `floor` as the paper's figures were
            made (half a level darker on average).

    Raises:
        ConfigError: an impossible count or setting.
    """

    def __init__(
        self,
        pipe: Pipeline,
        count: int,
        *,
        seed: int = 0,
        options: GenerationOptions | None = None,
        rounding: Rounding = "round",
    ) -> None:
        if count < 1:
            raise ConfigError(f"the number of samples is at least 1, not {count}")
        check_rounding(rounding)
        self.pipe, self.count, self.seed, self.rounding = pipe, count, seed, rounding
        self.options = options or GenerationOptions()
        self.settings = pipe.settings(self.options)
        classes = pipe.classes.count
        self.labels = torch.arange(seed, seed + count) % classes if classes else None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.pipe.model.image_shape

    def __len__(self) -> int:
        return self.count

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.pipe.identity,
            "count": self.count,
            "seed": self.seed,
            "labels": "balanced" if self.labels is not None else "none",
            **plain_settings(self.settings),
            "quantise": self.rounding,
            "dtype": str(self.pipe.dtype).removeprefix("torch."),
        }

    def stream(self, parts: Sequence[slice]) -> Iterator[Tensor]:
        for part in parts:
            seeds = range(self.seed + part.start, self.seed + part.stop)
            made = [output.tensor for output in self.pipe.stream(seeds, options=self.options)]
            yield to_uint8(torch.cat(made), rounding=self.rounding)


class Reconstructions:
    """What a model makes of real images, there and back, under the null class."""

    def __init__(self, pipe: Pipeline, images: RealImages, *, rounding: Rounding = "round") -> None:
        self.pipe, self.images, self.rounding = pipe, images, rounding
        self.labels = images.labels

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape

    def __len__(self) -> int:
        return len(self.images)

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.pipe.identity,
            "images": self.images.describe(),
            **self.pipe.refinement_settings(),
            "quantise": self.rounding,
            "dtype": str(self.pipe.dtype).removeprefix("torch."),
        }

    def stream(self, parts: Sequence[slice]) -> Iterator[Tensor]:
        for part, images in zip(parts, self.images.stream(parts), strict=True):
            made = self.pipe.reconstruct(images.float() / 255, seed=part.start)  # of models that refine
            yield to_uint8(made, rounding=self.rounding)


def check_rounding(name: str) -> Rounding:
    """The name of a rounding.

    Raises:
        ConfigError: there is no such rounding.
    """
    if name not in ("round", "floor"):
        raise ConfigError(f"samples become 8 bits by round or floor, not {name!r}")
    return "floor" if name == "floor" else "round"


def chunk_of(shape: tuple[int, int, int]) -> int:
    """Images that are made and measured together: 256 of up to 64 pixels, fewer of larger ones. It depends on nothing
    else, since the last bits of a feature may depend on its batch."""
    return max(8, min(256, (256 * 64 * 64) // (shape[1] * shape[2])))


def take(images: ImageSet, count: int) -> Tensor:
    """The first images of a set, uint8 (n, C, H, W), n at most `count`."""
    total, size = min(count, len(images)), chunk_of(images.shape)
    parts = [slice(start, min(start + size, total)) for start in range(0, total, size)]
    return torch.cat(list(images.stream(parts)))


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON values; objects of the user's own say who they are."""
    return {
        name: value if isinstance(value, int | float | str | bool) else _listed(value)
        for name, value in settings.items()
    }


def _listed(value: Any) -> Any:
    if isinstance(value, Sequence):
        return [float(item) for item in value]
    return getattr(value, "__name__", None) or repr(value)
