"""Sets of images to be measured: real ones, generated ones, reconstructions, files of somebody else.

A set is read in chunks of a fixed size, whatever the number of processes and the memory of the device, so that a figure
is the same to the last digit however the work was shared.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from spheregen.data import ImageOptions, ImageSource, open_source, to_uint8
from spheregen.data.captions import read_captions
from spheregen.data.decoding import decode_chunks, judge
from spheregen.data.grids import Rounding
from spheregen.data.names import UnsplitError
from spheregen.errors import ConfigError, DataError
from spheregen.pipeline import GenerationOptions, Pipeline
from spheregen.sampling.schedules import Angles

HELD_OUT = ("test", "val", "validation")
"""Splits that are taken for held-out images where none is named."""
SURVEYED = 1000
"""Real images whose colours are looked at, evenly spread."""


class ImageSet(Protocol):
    """Numbered 8-bit images of one size."""

    shape: tuple[int, int, int]
    """Of one image, (C, H, W)."""
    labels: Tensor | None
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
    """The images of a source, brought to one size.

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
        self.indices = spread(len(source) if limit is None else limit, len(source))
        self.labels = None if source.labels is None else source.labels[self.indices]
        self.shape = options.shape

    def __len__(self) -> int:
        return len(self.indices)

    def thinned(self, limit: int) -> RealImages:
        """Return so many of them at most, evenly spread."""
        return RealImages(self.source, self.options, limit=limit, workers=self.workers)

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
        chunks = (self.indices[part].numpy() for part in parts)
        with contextlib.closing(decode_chunks(self.source, self.options, chunks, self.workers)) as decoded:
            for chunk in decoded:
                judge(chunk.bad, len(self), "fail")
                yield torch.from_numpy(chunk.images)
        self.source.release()


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Size and colour of the images of a source, as their files say."""

    sizes: Counter[tuple[int, int]]
    """Width and height in pixels, and how many images have them."""
    colours: Counter[bool]
    """Of colour, or grey, and how many images are."""
    examples: Mapping[tuple[int, int] | bool, str]
    """Where the first image of each size and of each kind of colour is."""

    def changes(self, options: ImageOptions) -> Iterator[tuple[str, int, str]]:
        """Yield what is done to images that are not as `options` ask: what, to how many, and an example."""
        size = (options.image_size, options.image_size)
        if other := next((each for each in self.sizes if each != size), None):
            count = self.sizes.total() - self.sizes[size]
            yield f"brought to {options.image_size} px", count, self.examples[other]
        grey = options.channels == 1
        if self.colours[grey]:
            yield "made grey" if grey else "grey taken as colour", self.colours[grey], self.examples[grey]


def survey(source: ImageSource, limit: int | None = None) -> Survey:
    """Look at all images of a source, or at so many of them, evenly spread; only their headers are decoded."""
    sizes: Counter[tuple[int, int]] = Counter()
    colours: Counter[bool] = Counter()
    examples: dict[tuple[int, int] | bool, str] = {}
    for index in spread(len(source) if limit is None else limit, len(source)).tolist():
        data = source.read_bytes(index)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image: Image.Image = Image.open(io.BytesIO(data))
        except Exception:  # our own decoder has the last word, and names the image
            image = source.read(index)
        colour = not (image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"))
        sizes[image.size] += 1
        colours[colour] += 1
        for kind in (image.size, colour):
            examples.setdefault(kind, source.describe(index))
    source.release()
    return Survey(sizes=sizes, colours=colours, examples=examples)


class GivenImages(RealImages):
    """Samples that somebody else made, measured as they are.

    Size and channels are those of most of them, never those of one file. What differs is brought to them, and told.

    Args:
        source: the samples.
        like: the real images that they are compared with, which have a say in the channels: colour if most of either
            set are of colour.
        image_size: side in pixels instead of that of most samples.
        channels: 1 or 3 instead.

    Raises:
        DataError: no size is that of most samples, or it is no square.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        like: ImageSource | None = None,
        image_size: int | None = None,
        channels: int | None = None,
        workers: int = 0,
    ) -> None:
        found = survey(source)
        (width, height), most = found.sizes.most_common(1)[0]
        if image_size is None and most * 2 <= len(source):
            named = ", ".join(f"{w} x {h} ({found.examples[w, h]})" for (w, h), _ in found.sizes.most_common(3))
            raise DataError(f"the images of {source.name} have {len(found.sizes)} sizes: {named}; give --image-size")
        if image_size is None and width != height:
            raise DataError(
                f"{found.examples[width, height]} is {width} x {height}; samples to be scored are square, or give "
                "--image-size to crop them"
            )
        size = image_size or width
        seen = None if like is None else survey(like, SURVEYED)
        if channels is None:
            channels = 3 if any(each and each.colours[True] >= each.colours[False] for each in (found, seen)) else 1
        super().__init__(source, ImageOptions(image_size=size, channels=channels), workers=workers)
        changes = list(found.changes(self.options))
        self.changed = {what: count for what, count, _ in changes}
        """How many samples were not measured as they are, by what was done to them."""
        self.notes = [] if seen is None or like is None else _told(like.name, seen.changes(self.options), seen)
        """What was changed, of the real images too, for people: with an example of each."""
        self.notes += _told(source.name, changes, found)

    def describe(self) -> dict[str, Any]:
        full = super().describe()
        kept = ("split", "fingerprint", "count", "image_size", "channels", "fit", "resize")
        return {"images": full["source"], **{key: full[key] for key in kept}, "changed": self.changed}


class GeneratedImages:
    """Samples of a model: image i has seed `seed + i` and, of K classes, class `(seed + i) mod K`.

    Args:
        pipe: the model.
        count: N.
        seed: of the first image.
        options: steps, schedule, guidance ...; what is None takes the model's default.
        rounding: how [0, 1] becomes 8 bits: `round` as PNG files are written here, `floor` as the paper's figures were
            made (half a level darker on average).
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
        self.shape = pipe.model.image_shape

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
        self.labels, self.shape = images.labels, images.shape

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


def _told(name: str, changes: Iterable[tuple[str, int, str]], found: Survey) -> list[str]:
    total = found.sizes.total()
    return [f"{name}: {count} of {total} images {what}, such as {example}" for what, count, example in changes]


def open_real(
    name: str, split: str, options: ImageOptions, *, workers: int = 0, class_names: Sequence[str] = ()
) -> RealImages:
    """Return the images of a split; their classes are numbered as `class_names` are, where these are the model's."""
    source = open_source(name, split=split)
    if class_names and source.class_names and set(source.class_names) <= set(class_names):
        source = open_source(name, split=split, class_names=tuple(class_names))
    return RealImages(source, options, workers=workers)


def captions_of(pipe: Pipeline, images: RealImages) -> list[str]:
    """Return the first caption of each image as the model was trained on them; empty text where it has none.

    Raises:
        DataError: the images have no captions.
    """
    told = pipe.info.training
    captions = read_captions(images.source, told.get("captions"), told.get("templates") or ("{}",))
    return [next(iter(captions.of(index)), "") for index in images.indices.tolist()]


def prompted_by(pipe: Pipeline, images: RealImages | None) -> None:
    """Let a model that follows texts make, where nobody gives a prompt, what the captions of images say, in turn."""
    if pipe.model.text_width and images is not None:
        pipe.prompts = [text for text in captions_of(pipe, images) if text]


def find_held_out(
    name: str, split: str, options: ImageOptions, class_names: Sequence[str] = (), *, workers: int = 0
) -> RealImages | None:
    """Return the images held out from a split, by the usual names of such splits; None where there are none."""
    for other in HELD_OUT:
        try:
            if split not in (other, "all"):
                return open_real(name, other, options, workers=workers, class_names=class_names)
        except DataError:
            continue
    return None


def open_sets(names: Sequence[str | Path | ImageSource], split: str) -> list[ImageSource]:
    """Open one split of several sets; a set without splits is taken whole where another one has that split.

    Raises:
        DataError: no set has it, or a set has others.
    """
    opened: list[ImageSource] = []
    whole = 0
    for name in names:
        try:
            opened.append(name if isinstance(name, ImageSource) else open_source(name, split=split))
        except UnsplitError:
            if (whole := whole + 1) == len(names):
                raise
            opened.append(open_source(str(name), split="all"))
    return opened


def check_rounding(name: str) -> Rounding:
    """Return the name of a rounding."""
    if name not in ("round", "floor"):
        raise ConfigError(f"samples become 8 bits by round or floor, not {name!r}")
    return "floor" if name == "floor" else "round"


def chunk_of(shape: tuple[int, int, int]) -> int:
    """Return how many images are made and measured together: 256 of up to 64 pixels, fewer of larger ones.

    It depends on nothing else, since the last bits of a feature may depend on its batch.
    """
    return max(8, min(256, (256 * 64 * 64) // (shape[1] * shape[2])))


def parts_of(images: ImageSet, count: int | None = None) -> list[slice]:
    """Return the chunks of the first `count` images, or of all."""
    total, size = min(len(images), count or len(images)), chunk_of(images.shape)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def take(images: ImageSet, count: int) -> Tensor:
    """Return the first images of a set, uint8 (n, C, H, W), n at most `count`."""
    return torch.cat(list(images.stream(parts_of(images, count))))


def spread(count: int, total: int) -> Tensor:
    """Return `count` of the numbers below `total`, evenly spread and ascending; all of them if there are no more."""
    count = min(count, total)
    return torch.arange(count) * total // max(1, count)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON values; objects of the user's own by their names."""

    def plain(value: Any) -> Any:
        if isinstance(value, int | float | str):
            return value
        if isinstance(value, Angles):
            return {"degrees": list(value.degrees)}
        listed = isinstance(value, Sequence)
        return [float(item) for item in value] if listed else getattr(value, "__name__", None) or repr(value)

    return {name: plain(value) for name, value in settings.items()}
