"""A whole set of pictures, decoded once into memory; and finding the bad ones beforehand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from spheregen.data.decoding import BadImage, DecodedChunk, decode_chunks
from spheregen.data.images import ImageOptions
from spheregen.data.order import Integers
from spheregen.data.sources import ImageSource, digest
from spheregen.errors import ConfigError, DataError

OnError = Literal["fail", "skip"]
Progress = Callable[[int, int], None]  # (pictures done, pictures in all)

_CHUNK = 256  # pictures decoded together, fewer if they are large
_CHUNK_BYTES = 32 << 20
_NAMED = 5  # bad pictures that an error names


@dataclass(frozen=True, kw_only=True)
class LoadedImages:
    """Pictures in memory."""

    images: torch.Tensor  # (N, C, S, S) uint8, 0..255
    labels: torch.Tensor | None  # (N,) int64, or None
    indices: torch.Tensor  # (N,) int64, the numbers of the pictures in the source, ascending
    class_names: tuple[str, ...]  # empty = unlabelled
    name: str  # of the source
    fingerprint: str  # of the source, and of which of its pictures these are
    skipped: tuple[str, ...]  # one line for each bad picture left out: where it is and what is wrong

    def __len__(self) -> int:
        return len(self.images)


def load_all(
    source: ImageSource,
    options: ImageOptions,
    *,
    on_error: OnError = "fail",
    workers: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> LoadedImages:
    """Decode a source into memory.

    Args:
        on_error: what to do about pictures that cannot be read: "fail" or "skip".
        workers: processes that decode; 0 = this one.
        limit: take this many pictures at most, evenly spread over the source (whose order may follow the classes).
        progress: called as pictures are done.

    Raises:
        DataError: with "fail" a picture is bad (up to five are named, after all were tried, so that the message can say
            how many there are); with "skip" all are.
        ConfigError: an argument is impossible.
    """
    check_reading(on_error, workers)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; give a number of images from 1 up, or none")
    indices = np.arange(len(source), dtype=np.int64)
    if limit is not None and limit < len(indices):
        indices = indices[:limit] * len(source) // limit
    images = torch.empty((len(indices), *options.shape), dtype=torch.uint8)
    kept: list[Integers] = []
    count = 0
    bad: list[BadImage] = []
    for chunk in _scan(source, options, indices, workers, progress):
        good = _good_rows(chunk)
        images[count : count + len(good)] = torch.from_numpy(
            chunk.images if len(good) == len(chunk.images) else chunk.images[good]
        )
        count += len(good)
        kept.append(chunk.indices[good])
        bad.extend(chunk.bad)
    source.release()
    judge(bad, len(indices), on_error)
    chosen = torch.from_numpy(np.concatenate(kept))
    return LoadedImages(
        images=images[:count],
        labels=None if source.labels is None else source.labels[chosen],
        indices=chosen,
        class_names=source.class_names,
        name=source.name,
        fingerprint=part_fingerprint(source, chosen.numpy()),
        skipped=tuple(image.reason for image in bad),
    )


def validate(
    source: ImageSource,
    options: ImageOptions,
    *,
    workers: int = 0,
    progress: Progress | None = None,
    part: tuple[int, int] = (0, 1),
) -> tuple[BadImage, ...]:
    """Decode every picture of a source without keeping any, and return the bad ones.

    Args:
        part: (i, n): look at the i-th of n equal parts only; processes divide the work so.
    """
    check_reading("skip", workers)
    place, parts = part
    indices = np.arange(len(source) * place // parts, len(source) * (place + 1) // parts, dtype=np.int64)
    bad = [image for chunk in _scan(source, options, indices, workers, progress) for image in chunk.bad]
    source.release()
    return tuple(bad)


def usable_indices(source: ImageSource, bad: Sequence[BadImage]) -> Integers:
    """Numbers of the pictures that are not bad.

    Raises:
        DataError: all are.
    """
    judge(bad, len(source), "skip")
    keep = np.ones(len(source), dtype=np.bool_)
    keep[[image.index for image in bad]] = False
    return np.flatnonzero(keep).astype(np.int64)


def part_fingerprint(source: ImageSource, indices: Integers) -> str:
    """The source's fingerprint if `indices` are all of its pictures, else one that also covers which they are."""
    if len(indices) == len(source):
        return source.fingerprint
    return digest(source.fingerprint.encode(), indices.astype("<i8").tobytes())


def _scan(
    source: ImageSource, options: ImageOptions, indices: Integers, workers: int, progress: Progress | None
) -> Iterator[DecodedChunk]:
    done = 0
    size = max(1, min(_CHUNK, _CHUNK_BYTES // options.bytes_per_image))
    chunks = (indices[start : start + size] for start in range(0, len(indices), size))
    with contextlib.closing(decode_chunks(source, options, chunks, workers)) as decoded:
        for chunk in decoded:
            yield chunk
            done += len(chunk.indices)
            if progress is not None:
                progress(done, len(indices))


def _good_rows(chunk: DecodedChunk) -> Integers:
    broken = {image.index for image in chunk.bad}
    return np.array([row for row, index in enumerate(chunk.indices.tolist()) if index not in broken], dtype=np.int64)


def judge(bad: Sequence[BadImage], total: int, on_error: OnError) -> None:
    """Raise if bad pictures are fatal: always if all are bad.

    Raises:
        DataError: names up to five of them, and where to find the rest.
    """
    if not bad:
        return
    if len(bad) == total:
        raise DataError(f"none of the {total} images can be read; the first: {bad[0].reason}")
    if on_error == "fail":
        raise DataError(bad_images_line(bad, total))


def bad_images_line(bad: Sequence[BadImage], total: int) -> str:
    """The first bad picture with its reason, the next four by name, and how many there are."""
    if len(bad) == 1:
        return bad[0].reason
    more = ", ".join(image.where for image in bad[1:_NAMED])
    return f"{bad[0].reason} ({len(bad)} of {total} images are bad; also {more}; `spheregen stats` lists all)"


def check_reading(on_error: str, workers: int) -> None:
    """Refuse impossible values with a ConfigError."""
    if on_error not in get_args(OnError):
        raise ConfigError(f"on_error is {on_error!r}; choose 'fail' or 'skip'")
    if workers < 0:
        raise ConfigError(f"workers is {workers}; give 0 (this process) or more")
