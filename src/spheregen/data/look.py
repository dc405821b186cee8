"""A closer look at a data set: what a recipe for it rests on beyond counts, and what speaks against training on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from spheregen.data.images import ImageOptions, load_array
from spheregen.data.sources import ImageSource
from spheregen.data.statistics import SourceStatistics
from spheregen.errors import ConfigError, DataError

Colour = tuple[int, int, int]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
TORN = 0.25  # share of pictures of which a square crop loses more than half, from which they are padded
ONE_BORDER = 0.5  # share of pictures whose borders must agree to give the background
LIGHT = 0.7 * 255  # mean brightness from which drawings on transparency get a dark background
FEW_PICTURES = 1000  # fewer than this are learnt by heart
FEW_OF_A_CLASS = 20
UNBALANCED = 0.1  # smallest by largest class
MANY_COPIES = 0.05  # share of exact duplicates

_SIDE = 64  # pixels; pictures are looked at as squares of this size, whatever their shape


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a sample of the pictures shows. Shares are 0 to 1."""

    flips_allowed: bool  # false where the source itself says that its mirror images mean something else
    saturated: float  # share of opaque pixels that are pure black or white, within 2 of 255
    two_toned: float  # share of opaque pixels that are nearly black or white, within 40 of 255
    clear: float  # share of transparent pixels
    brightness: float  # mean of the opaque pixels of pictures with transparency, 0 to 255; 0 where there are none
    lost: float  # what a centre crop loses of a picture, on average; padding to a square adds as much
    torn: float  # share of pictures of which a centre crop loses more than half
    border: Colour  # the median colour along the edges
    one_border: float  # share of pictures with edges of that one colour

    @property
    def padded(self) -> bool:
        """A square crop would lose too much."""
        return self.torn > TORN

    def background(self, transparent: int) -> tuple[Colour, str] | None:
        """The colour behind padding and so many transparent pictures, and why; None where neither shows."""
        if not transparent and not self.padded:
            return None
        if self.one_border > ONE_BORDER:
            return self.border, f"{self.one_border:.0%} of the pictures have this colour along their edges"
        if not transparent:
            return self.border, "the median colour along the edges"
        why = f"what is drawn on them has a brightness of {self.brightness / 255:.0%}, so this sets it off"
        return (BLACK if self.brightness > LIGHT else WHITE), why

    def saturated_on(self, background: Colour | None) -> float:
        """Share of pure black and white pixels of what a model sees."""
        filled = (1 - self.clear) * (1 - self.lost if self.padded else 1)
        return filled * self.saturated + (1 - filled) * (background in (BLACK, WHITE))


def look_at(source: ImageSource, limit: int = 200) -> Look:
    """Look at some pictures, evenly spread; those that cannot be read are passed over.

    Raises:
        DataError: none can be read.
        ConfigError: limit is below 1.
    """
    if limit < 1:
        raise ConfigError(f"limit is {limit}; give a number of images from 1 up")
    count = min(limit, len(source))
    seen: list[npt.NDArray[np.uint8]] = []
    losses: list[float] = []
    for place in range(count):
        with contextlib.suppress(DataError):
            picture = source.read(place * len(source) // count)
            seen.append(_small(picture))
            losses.append(1 - min(picture.size) / max(picture.size))
    source.release()
    if not seen:
        raise DataError(f"none of the {count} images of {source.name} that were tried can be read; see spheregen stats")
    colours, on_white = np.stack(seen, axis=2).astype(np.int16)  # (3, n, side, side) each, the first on black
    opaque = (on_white - colours).max(axis=0) < 128
    drawn = opaque & ~opaque.all(axis=(1, 2), keepdims=True)

    edge = opaque.copy()
    edge[:, 1:-1, 1:-1] = False
    border = np.median(colours[:, edge], axis=1).astype(np.int16) if edge.any() else np.full(3, 255, np.int16)
    near = (np.abs(colours - border[:, None, None, None]) <= 16).all(axis=0) & edge
    edges, alike = edge.sum(axis=(1, 2)), near.sum(axis=(1, 2))
    red, green, blue = border.tolist()
    shown = colours[:, opaque]
    return Look(
        flips_allowed=source.flips_allowed,
        saturated=_mean((shown.max(axis=0) <= 2) | (shown.min(axis=0) >= 253)),
        two_toned=_mean((shown.max(axis=0) <= 40) | (shown.min(axis=0) >= 215)),
        clear=1 - _mean(opaque),
        brightness=_mean(colours[:, drawn]),
        lost=float(np.mean(losses)),
        torn=float(np.mean([lost > 0.5 for lost in losses])),
        border=(red, green, blue),
        one_border=_mean(alike[edges > 0] > 0.75 * edges[edges > 0]),
    )


def learnt_classes(found: SourceStatistics) -> int:
    """Classes that a model can learn; 0 where there are none, only one, or about one picture a class."""
    count = len(found.class_counts)
    return count if count > 1 and count * 2 <= found.count else 0


def data_warnings(found: SourceStatistics) -> Iterator[str]:
    """What the user should know of the data before a run, a line each."""
    if found.bad:
        yield f"{len(found.bad)} files cannot be read and are left out, such as {found.bad[0].reason}"
    if found.count < FEW_PICTURES:
        yield (
            f"{found.count} pictures are few: the model will repeat them more than invent new ones; add more pictures, "
            "or compare samples with their nearest neighbours"
        )
    if found.duplicates > MANY_COPIES * found.examined:
        yield f"{found.duplicates} of {found.examined} files are exact copies; spheregen stats names them"
    if learnt_classes(found):
        counts = sorted(zip(found.class_counts, found.class_names, strict=True))
        few = [f"{name} ({number})" for number, name in counts if number < FEW_OF_A_CLASS]
        if few:
            named = ", ".join(few[:3]) + (f" and {len(few) - 3} more" if len(few) > 3 else "")
            yield f"classes with fewer than {FEW_OF_A_CLASS} pictures will look alike or be copies: {named}"
        low, high = counts[0][0], counts[-1][0]
        if low < UNBALANCED * high:
            yield f"the classes are unbalanced ({low} to {high} pictures): small ones will be learnt late"
    elif len(found.class_names) > 1:
        yield "there is about one picture a class, so the labels are not used; group them into fewer classes"


def _small(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """(2, 3, side, side): the picture on black and on white; they differ where it is transparent."""
    small = picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    small.info.pop("exif", None)  # which way is up does not matter here
    tones = (0, 255)
    return np.stack(
        [load_array(small, ImageOptions(image_size=_SIDE, background=(tone, tone, tone))) for tone in tones]
    )


def _mean(values: npt.NDArray[np.generic]) -> float:
    return float(values.astype(np.float64).mean()) if values.size else 0.0
