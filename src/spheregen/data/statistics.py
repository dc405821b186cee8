"""What a data set holds: counts, sizes, formats, balance, duplicates, bad files, and a sheet to look at."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from spheregen.data.dataset import Progress
from spheregen.data.decoding import BadImage, Work, read_work
from spheregen.data.grids import image_grid
from spheregen.data.images import ImageOptions, decode_bytes, load_image
from spheregen.data.order import Integers
from spheregen.data.pool import ordered_map
from spheregen.data.sources import ImageSource
from spheregen.errors import ConfigError, DataError

_CHUNK = 64  # pictures that are looked at together
_PAIRS = 20  # duplicates that are named
_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
_FEW_CLASSES = 40  # up to so many, each class has its own row of the sheet
_SHEET = 96  # pictures on a sheet, about


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of one number per picture."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class SourceStatistics:
    """What `source_statistics` finds."""

    name: str
    split: str
    fingerprint: str
    count: int  # pictures in the source
    examined: int  # of them looked at; fewer with a limit
    encoded_bytes: int  # of all, as they are stored
    bad: tuple[BadImage, ...]  # those that cannot be read
    width: Spread | None  # pixels; None if no picture can be read
    height: Spread | None  # pixels
    aspect: Spread | None  # width / height
    formats: Mapping[str, int]  # examined pictures by file format, "JPEG" ..., most frequent first
    modes: Mapping[str, int]  # examined pictures by Pillow's mode, "RGB" ..., most frequent first
    grey: int  # examined pictures without colour
    transparent: int  # examined pictures of which a pixel is transparent
    class_names: tuple[str, ...]  # empty = unlabelled
    class_counts: tuple[int, ...]  # pictures of each class, of the whole source
    balance: float | None  # smallest / largest class, 0 .. 1; None = unlabelled
    duplicates: int  # examined files that are, byte for byte, copies of an earlier one
    duplicate_pairs: tuple[tuple[str, str], ...]  # the first 20: original and copy
    image_size: int | None  # a side in pixels that suits nearly all pictures without enlarging them
    channels: int  # 1 if all are grey, else 3

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def source_statistics(
    source: ImageSource, *, limit: int | None = None, workers: int = 0, progress: Progress | None = None
) -> SourceStatistics:
    """Decode the pictures of a source once and count.

    Memory does not grow with the pictures; about 40 bytes are kept of each.

    Args:
        limit: look at this many at most, evenly spread; classes are counted over all in any case.
        workers: processes that decode; 0 = this one.
        progress: called as pictures are done.

    Raises:
        ConfigError: an argument is impossible.
        DataError: the source cannot be read at all; single bad pictures are part of the answer.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; give a number of images from 1 up, or none")
    if workers < 0:
        raise ConfigError(f"workers is {workers}; give 0 (this process) or more")
    total = len(source)
    indices = np.arange(total, dtype=np.int64)
    if limit is not None and limit < total:
        indices = indices[:limit] * total // limit
    sizes = np.zeros((len(indices), 2), dtype=np.int32)
    hashes = np.zeros((len(indices), 2), dtype=np.uint64)
    readable = np.zeros(len(indices), dtype=np.bool_)
    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    bad: list[BadImage] = []
    grey = transparent = done = 0
    works = (read_work(source, indices[start : start + _CHUNK]) for start in range(0, len(indices), _CHUNK))
    with contextlib.closing(ordered_map(_Inspector(source), works, workers=workers)) as seen:
        for part in seen:
            here = slice(done, done + len(part.readable))
            sizes[here], hashes[here], readable[here] = part.sizes, part.hashes, part.readable
            formats.update(part.formats)
            modes.update(part.modes)
            bad.extend(part.bad)
            grey += part.grey
            transparent += part.transparent
            done = here.stop
            if progress is not None:
                progress(done, len(indices))
    source.release()
    good = sizes[readable].astype(np.float64)
    copies = _duplicates(hashes, readable)
    counts: tuple[int, ...] = ()
    if source.labels is not None:
        counts = tuple(torch.bincount(source.labels, minlength=len(source.class_names)).tolist())
    largest = max(counts, default=0)
    return SourceStatistics(
        name=source.name,
        split=source.split,
        fingerprint=source.fingerprint,
        count=total,
        examined=len(indices),
        encoded_bytes=source.encoded_bytes,
        bad=tuple(bad),
        width=_spread(good[:, 0]),
        height=_spread(good[:, 1]),
        aspect=_spread(good[:, 0] / good[:, 1].clip(1)),
        formats=dict(formats.most_common()),
        modes=dict(modes.most_common()),
        grey=grey,
        transparent=transparent,
        class_names=source.class_names,
        class_counts=counts,
        balance=min(counts) / largest if largest else None,
        duplicates=len(copies),
        duplicate_pairs=tuple(
            (source.describe(int(indices[first])), source.describe(int(indices[second])))
            for first, second in copies[:_PAIRS].tolist()
        ),
        image_size=_suitable_size(good),
        channels=1 if len(good) and grey == len(good) else 3,
    )


def contact_sheet(source: ImageSource, *, tile: int = 64, bad: tuple[BadImage, ...] = ()) -> Image.Image:
    """A sheet of whole pictures: for up to 40 classes a row each with 2 to 8 pictures, spread over the class; else
    about 100, spread over the set.

    Args:
        tile: side of a picture on the sheet in pixels.
        bad: leave these out; others that cannot be read are passed over too.

    Raises:
        DataError: none can be read.
    """
    unusable = {image.index for image in bad}
    labels = None if source.labels is None else source.labels.numpy()
    classes = len(source.class_names)
    groups = [np.arange(len(source), dtype=np.int64)]
    columns = None
    share = _SHEET
    if labels is not None and classes <= _FEW_CLASSES:
        groups = [group for number in range(classes) if len(group := np.flatnonzero(labels == number))]
        share = columns = max(2, min(8, _SHEET // classes))
    options = ImageOptions(image_size=tile, fit="pad")
    empty = torch.full(options.shape, 255, dtype=torch.uint8)
    tiles: list[torch.Tensor] = []
    for group in groups:
        row: list[torch.Tensor] = []
        for first in _spread_over(group, share):
            picture = _first_readable(source, first, unusable, options)
            if picture is not None:
                row.append(picture)
        tiles += row + [empty] * (share - len(row) if columns else 0)
    if all(picture is empty for picture in tiles):
        raise DataError(f"none of the images of {source.name} that were tried can be read; see the list of bad files")
    source.release()
    return image_grid(torch.stack(tiles), columns=columns)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was seen in a chunk of n pictures."""

    sizes: npt.NDArray[np.int32]  # (n, 2) width and height
    hashes: npt.NDArray[np.uint64]  # (n, 2) blake2b of the file, 128 bits
    readable: npt.NDArray[np.bool_]  # (n,)
    formats: Counter[str]
    modes: Counter[str]
    bad: list[BadImage]
    grey: int
    transparent: int


class _Inspector:
    """Looks at pictures; worker processes get a copy."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __call__(self, work: Work) -> _Seen:
        count = len(work.indices)
        sizes = np.zeros((count, 2), dtype=np.int32)
        hashes = np.zeros((count, 2), dtype=np.uint64)
        readable = np.zeros(count, dtype=np.bool_)
        formats: Counter[str] = Counter()
        modes: Counter[str] = Counter()
        bad: list[BadImage] = []
        grey = transparent = 0
        for row, index in enumerate(work.indices.tolist()):
            where = self._source.describe(index)
            try:
                data = self._source.read_bytes(index) if work.encoded is None else work.encoded[row]
                if isinstance(data, str):
                    raise DataError(data)
                picture = decode_bytes(data, where)
                grey += _is_grey(picture)
                transparent += _is_transparent(picture)
            except DataError as error:
                bad.append(BadImage(index=index, where=where, reason=str(error)))
                continue
            sizes[row] = picture.size
            hashes[row] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), dtype="<u8")
            readable[row] = True
            formats[picture.format or "unknown"] += 1
            modes[picture.mode] += 1
        return _Seen(
            sizes=sizes, hashes=hashes, readable=readable, formats=formats, modes=modes, bad=bad,
            grey=grey, transparent=transparent,
        )  # fmt: skip


def _is_grey(picture: Image.Image) -> bool:
    if picture.mode in ("1", "L", "LA", "La", "F") or picture.mode.startswith("I"):
        return True
    try:
        small = np.asarray(picture.resize((8, 8), Image.Resampling.NEAREST).convert("RGB"))
        if _equal_channels(small):  # colour nearly always shows in a few pixels
            return _equal_channels(np.asarray(picture.convert("RGB")))
    except (ValueError, OSError):
        pass
    return False


def _equal_channels(pixels: npt.NDArray[np.uint8]) -> bool:
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())


def _is_transparent(picture: Image.Image) -> bool:
    if not picture.has_transparency_data:
        return False
    try:
        lowest = picture.convert("RGBA").getchannel("A").getextrema()[0]
    except (ValueError, OSError):
        return False
    return isinstance(lowest, int | float) and lowest < 255


def _duplicates(hashes: npt.NDArray[np.uint64], readable: npt.NDArray[np.bool_]) -> Integers:
    """(n, 2) places of each copy's original and of the copy, by copy."""
    places = np.flatnonzero(readable)
    order = places[np.lexsort((hashes[places, 0], hashes[places, 1]))]  # stable: an original comes before its copies
    same = np.zeros(len(order), dtype=np.bool_)
    same[1:] = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    firsts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    pairs = np.stack([order[firsts[same]], order[same]], axis=1)
    return pairs[np.argsort(pairs[:, 1], kind="stable")].astype(np.int64)


def _spread(values: npt.NDArray[np.float64]) -> Spread | None:
    if not len(values):
        return None
    return Spread(smallest=float(values.min()), median=float(np.median(values)), largest=float(values.max()))


def _suitable_size(sizes: npt.NDArray[np.float64]) -> int | None:
    """The side of all pictures if they are squares of one size, else a power of two that 9 of 10 reach."""
    if not len(sizes):
        return None
    shorter = sizes.min(axis=1)
    if (sizes == sizes[0, 0]).all():
        return int(sizes[0, 0])
    reached = float(np.quantile(shorter, 0.1))
    return max((size for size in _SIZES if size <= reached), default=int(shorter.min()))


def _spread_over(group: Integers, count: int) -> list[Integers]:
    """The group in `count` parts at most; of each the first that can be read is shown."""
    return [part for part in np.array_split(group, min(count, len(group))) if len(part)]


def _first_readable(
    source: ImageSource, candidates: Integers, unusable: set[int], options: ImageOptions
) -> torch.Tensor | None:
    for index in candidates[:8].tolist():
        if index not in unusable:
            with contextlib.suppress(DataError):
                return load_image(source.read(index), options)
    return None
