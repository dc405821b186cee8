"""Statistics of a data set: counts, sizes, formats, balance, duplicates, bad files; a look at its pixels; a sheet."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from spheregen.data.captions import CaptionStatistics, caption_statistics
from spheregen.data.decoding import BadImage, Progress, check_reading, ordered_map, spread_indices
from spheregen.data.grids import image_grid, labelled_sheet
from spheregen.data.images import load_image
from spheregen.data.names import Ignored
from spheregen.data.order import Integers
from spheregen.data.source import ImageSource
from spheregen.errors import DataError
from spheregen.pixels import ImageOptions, check_convertible, decode_bytes, load_array

Colour = tuple[int, int, int]

TORN = 0.25  # share of images of which a square crop loses more than half, from which they are padded
ONE_BORDER = 0.5  # share of images whose borders must agree to give the background
LIGHT = 0.7 * 255  # mean brightness from which drawings on transparency get a dark background
FEW_IMAGES = 1000  # fewer than this are learnt by heart
FEW_OF_A_CLASS = 20
UNBALANCED = 0.1  # smallest by largest class
MANY_COPIES = 0.05  # share of exact duplicates

_PAIRS = 20  # duplicates that are named
_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
_FEW_CLASSES = 40  # up to so many, each class has its own row of the sheet
_SHEET = 96  # images on a sheet, about
_TOGETHER = 64  # images that a worker looks at before it tells of them
_FACTS = np.dtype([("index", "<i8"), ("width", "<i4"), ("height", "<i4"), ("hash", "S16")])  # S16: blake2b of the file
_SIDE = 64  # pixels; colours are looked at in squares of this size, whatever the image's shape


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of one number per image."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class SourceStatistics:
    """The findings of `source_statistics`."""

    name: str
    split: str
    fingerprint: str
    count: int  # images in the source
    examined: int  # of them looked at; fewer with a limit
    encoded_bytes: int  # of all, as they are stored
    ignored: tuple[Ignored, ...]  # files beside the images that are not read, by reason
    bad: tuple[BadImage, ...]  # those that cannot be read
    width: Spread | None  # pixels; None if no image can be read
    height: Spread | None  # pixels
    aspect: Spread | None  # width / height
    formats: Mapping[str, int]  # examined images by file format, "JPEG" ..., most frequent first
    modes: Mapping[str, int]  # examined images by Pillow's mode, "RGB" ..., most frequent first
    grey: int  # examined images without colour
    transparent: int  # examined images of which a pixel is transparent
    class_names: tuple[str, ...]  # empty = unlabelled
    class_counts: tuple[int, ...]  # images of each class, of the whole source
    captions: CaptionStatistics | None  # of the whole source; None where there are none
    caption_problem: str  # why they cannot be read; empty where they can
    balance: float | None  # smallest / largest class, 0 .. 1; None = unlabelled
    duplicates: int  # examined files that are, byte for byte, copies of an earlier one
    duplicate_pairs: tuple[tuple[str, str], ...]  # the first 20: original and copy
    image_size: int | None  # a side in pixels that suits nearly all images without enlarging them
    channels: int  # 1 if all are grey, else 3

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self)


def source_statistics(
    source: ImageSource,
    *,
    limit: int | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    captions: str | None = None,
) -> SourceStatistics:
    """Decode the images of a source once and count; about 30 bytes are kept of each.

    Args:
        captions: the column of captions, or a table of them; None: those that there are.
        limit: look at this many at most, evenly spread; classes are counted over all in any case.
        workers: processes that decode; 0 = this one. Remote images are read in this one.
        progress: called as images are done.

    Raises:
        ConfigError: an argument is impossible.
        DataError: the source cannot be read at all; single bad images are part of the answer.
    """
    check_reading("skip", workers)
    indices = spread_indices(len(source), limit)
    chunks = (indices[start : start + _TOGETHER] for start in range(0, len(indices), _TOGETHER))
    facts = [np.zeros(0, dtype=_FACTS)]
    counts: Counter[tuple[str, object]] = Counter()
    bad: list[BadImage] = []
    done = 0
    for seen, traits, broken in ordered_map(partial(_inspect, source), chunks, workers=0 if source.remote else workers):
        facts.append(seen)
        counts.update(traits)
        bad += broken
        done += len(seen) + len(broken)
        if progress is not None:
            progress(done, len(indices))
    source.release()
    good = np.concatenate(facts)
    width, height = good["width"].astype(np.float64), good["height"].astype(np.float64)
    _, firsts, which = np.unique(good["hash"], return_index=True, return_inverse=True)
    originals = firsts[which]
    copies = np.flatnonzero(originals != np.arange(len(originals)))
    classes: tuple[int, ...] = ()
    if source.labels is not None:
        classes = tuple(torch.bincount(source.labels, minlength=len(source.class_names)).tolist())
    told, problem = _captions_of(source, captions)
    formats, modes = (
        {str(value): number for (kind, value), number in counts.most_common() if kind == wanted}
        for wanted in ("format", "mode")
    )
    grey = counts["grey", True]
    return SourceStatistics(
        name=source.name,
        split=source.split,
        fingerprint=source.fingerprint,
        count=len(source),
        examined=len(indices),
        encoded_bytes=source.encoded_bytes,
        ignored=source.ignored,
        bad=tuple(bad),
        width=_spread(width),
        height=_spread(height),
        aspect=_spread(width / height.clip(1)),
        formats=formats,
        modes=modes,
        grey=grey,
        transparent=counts["transparent", True],
        class_names=source.class_names,
        class_counts=classes,
        captions=told,
        caption_problem=problem,
        balance=min(classes) / max(classes) if any(classes) else None,
        duplicates=len(copies),
        duplicate_pairs=tuple(
            (source.describe(int(good["index"][originals[copy]])), source.describe(int(good["index"][copy])))
            for copy in copies[:_PAIRS]
        ),
        image_size=_suitable_size(np.stack([width, height], axis=1)),
        channels=1 if len(good) and grey == len(good) else 3,
    )


def _captions_of(source: ImageSource, column: str | None) -> tuple[CaptionStatistics | None, str]:
    """Return what captions are like, or why they cannot be read, which matters only to who wants them."""
    try:
        found = source.captions(column)
    except DataError as error:
        if column is not None:
            raise
        return None, str(error)
    if found is None and column is not None:
        raise DataError(f"{source.name} has no captions called {column!r}; leave captions out to see what there is")
    return None if found is None else caption_statistics(found), ""


def contact_sheet(source: ImageSource, *, tile: int = 64, bad: tuple[BadImage, ...] = ()) -> Image.Image:
    """Lay out whole images: for up to 40 classes a row each, named, of 2 to 8 images; else about 100, spread over all.

    Args:
        tile: side of an image on the sheet in pixels.
        bad: leave these out; others that cannot be read are passed over too.

    Raises:
        DataError: none can be read.
    """
    unusable = {image.index for image in bad}
    groups, share, columns = [np.arange(len(source))], _SHEET, 0
    names: list[str] = []
    if source.labels is not None and (classes := len(source.class_names)) <= _FEW_CLASSES:
        labels = source.labels.numpy()
        groups = [group for number in range(classes) if len(group := np.flatnonzero(labels == number))]
        names = [source.class_names[labels[group[0]]] for group in groups]
        share = columns = max(2, min(8, _SHEET // classes))
    options = ImageOptions(image_size=tile, fit="pad")
    empty = torch.full(options.shape, 255, dtype=torch.uint8, device="cpu")
    tiles: list[torch.Tensor] = []
    for group in groups:
        row: list[torch.Tensor] = []
        for part in np.array_split(group, min(share, len(group))):  # of each the first that can be read is shown
            for index in [index for index in part[:8].tolist() if index not in unusable]:
                with contextlib.suppress(DataError):
                    row.append(load_image(source.read(index), options))
                    break
        tiles += row + [empty] * (share - len(row) if columns else 0)
    source.release()
    if all(tile is empty for tile in tiles):
        raise DataError(f"none of the images of {source.name} that were tried can be read; see the list of bad files")
    if columns:
        rows = [[image[None] for image in tiles[start : start + columns]] for start in range(0, len(tiles), columns)]
        return labelled_sheet(rows, names, [""] * columns)
    return image_grid(torch.stack(tiles))


_Trait = tuple[str, object]


def _inspect(source: ImageSource, indices: Integers) -> tuple[npt.NDArray[np.void], list[_Trait], list[BadImage]]:
    """Look at images, in a worker process; return facts of those that can be read, their traits, and the others."""
    facts: list[tuple[int, int, int, bytes]] = []
    traits: list[_Trait] = []
    bad: list[BadImage] = []
    for index in indices.tolist():
        where, image = source.describe(index), None
        try:
            data = source.read_bytes(index)
            image = decode_bytes(data, where)
            check_convertible(image)
        except DataError as error:
            reason = str(error) if image is None else f"{where}: {error}"
            bad.append(BadImage(index=index, where=where, reason=reason))
            continue
        facts.append((index, *image.size, hashlib.blake2b(data, digest_size=16).digest()))
        traits += [("format", image.format or "unknown"), ("mode", image.mode)]
        traits += [("grey", _is_grey(image)), ("transparent", _is_transparent(image))]
    return np.array(facts, dtype=_FACTS), traits, bad


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"):
        return True
    with contextlib.suppress(ValueError, OSError):
        small = np.asarray(image.resize((8, 8), Image.Resampling.NEAREST).convert("RGB"))
        if not np.ptp(small, axis=2).any():  # colour nearly always shows in a few pixels
            return not np.ptp(np.asarray(image.convert("RGB")), axis=2).any()
    return False


def _is_transparent(image: Image.Image) -> bool:
    with contextlib.suppress(ValueError, OSError):
        return image.has_transparency_data and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)
    return False


def _spread(values: npt.NDArray[np.float64]) -> Spread | None:
    if not len(values):
        return None
    return Spread(smallest=float(values.min()), median=float(np.median(values)), largest=float(values.max()))


def _suitable_size(sizes: npt.NDArray[np.float64]) -> int | None:
    """Return the side of all images if they are squares of one size, else a power of two that 9 of 10 reach."""
    if not len(sizes):
        return None
    shorter = sizes.min(axis=1)
    if (sizes == sizes[0, 0]).all():
        return int(sizes[0, 0])
    reached = float(np.quantile(shorter, 0.1))
    return max((size for size in _SIZES if size <= reached), default=int(shorter.min()))


@dataclass(frozen=True, kw_only=True)
class Look:
    """Pixels of a sample of the images, which a recipe for them rests on. Shares are 0 to 1."""

    flips_allowed: bool  # false where the source itself says that its mirror images mean something else
    saturated: float  # share of opaque pixels that are pure black or white, within 2 of 255
    two_toned: float  # share of opaque pixels that are nearly black or white, within 40 of 255
    clear: float  # share of transparent pixels
    brightness: float  # mean of the opaque pixels of images with transparency, 0 to 255; 0 where there are none
    lost: float  # share of an image that a centre crop loses, on average; padding to a square adds as much
    torn: float  # share of images of which a centre crop loses more than half
    border: Colour  # the median colour along the edges
    one_border: float  # share of images with edges of that one colour

    @property
    def padded(self) -> bool:
        """A square crop would lose too much."""
        return self.torn > TORN

    def background(self, transparent: int) -> tuple[Colour, str] | None:
        """Return the colour behind padding and so many transparent images, and why; None where neither shows."""
        if not transparent and not self.padded:
            return None
        if self.one_border > ONE_BORDER:
            return self.border, f"{self.one_border:.0%} of the pictures have this colour along their edges"
        if not transparent:
            return self.border, "the median colour along the edges"
        why = f"what is drawn on them has a brightness of {self.brightness / 255:.0%}, so this sets it off"
        return ((0, 0, 0) if self.brightness > LIGHT else (255, 255, 255)), why

    def saturated_on(self, background: Colour | None) -> float:
        """Return the share of pure black and white pixels of what a model sees."""
        filled = (1 - self.clear) * (1 - self.lost if self.padded else 1)
        return filled * self.saturated + (1 - filled) * (background in ((0, 0, 0), (255, 255, 255)))


def look_at(source: ImageSource, limit: int = 200) -> Look:
    """Look at the pixels of some images, evenly spread; those that cannot be read are passed over."""
    seen: list[npt.NDArray[np.uint8]] = []
    losses: list[float] = []
    for index in spread_indices(len(source), limit).tolist():
        with contextlib.suppress(DataError):
            image = source.read(index)
            small = image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            small.info.pop("exif", None)  # which way is up does not matter here
            options = (ImageOptions(image_size=_SIDE, background=(tone, tone, tone)) for tone in (0, 255))
            seen.append(np.stack([load_array(small, option) for option in options]))
            losses.append(1 - min(image.size) / max(image.size))
    source.release()
    if not seen:
        raise DataError(f"none of the images of {source.name} that were tried can be read; see spheregen stats")
    colours, on_white = np.stack(seen, axis=2).astype(np.int16)  # (3, n, side, side) each, the first on black
    opaque = (on_white - colours).max(axis=0) < 128  # they differ where an image is transparent
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
    """Return the number of classes that a model can learn; 0 if only one, or about one image a class."""
    count = len(found.class_counts)
    return count if count > 1 and count * 2 <= found.count else 0


def follows_texts(found: SourceStatistics) -> bool:
    """Return whether a model should follow captions: most images have one, and there are no classes to learn."""
    told = found.captions
    return told is not None and told.different > 1 and told.without * 2 <= found.count and not learnt_classes(found)


def data_warnings(found: SourceStatistics) -> Iterator[str]:
    """Yield what the user should know of the data before a run, a line each."""
    if found.bad:
        yield f"{len(found.bad)} files cannot be read and are left out, such as {found.bad[0].reason}"
    if found.count < FEW_IMAGES:
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


def _mean(values: npt.NDArray[np.generic]) -> float:
    return float(values.astype(np.float64).mean()) if values.size else 0.0
