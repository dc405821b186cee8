"""A whole set of images, decoded once into memory; and finding the bad ones beforehand."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from spheregen.data.decoding import BadImage, DecodedChunk, decode_chunks
from spheregen.data.images import ImageOptions
from spheregen.data.order import Integers
from spheregen.data.source import ImageSource, digest
from spheregen.errors import ConfigError, DataError
from spheregen.files import write_json

OnError = Literal["fail", "skip"]
Progress = Callable[[int, int], None]  # (images done, images in all)
Gather = Callable[[object], list[Any]]  # all-gathers a picklable object over ranks, in rank order

_CHUNK = 256  # images decoded together, fewer if they are large
_CHUNK_BYTES = 32 << 20
_NAMED = 5  # bad images that an error names
_REMEMBERED_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LoadedImages:
    """Images in memory."""

    images: torch.Tensor  # (N, C, S, S) uint8, 0..255
    labels: torch.Tensor | None  # (N,) int64, or None
    indices: torch.Tensor  # (N,) int64, the numbers of the images in the source, ascending
    fingerprint: str  # of the source, and of which of its images these are
    skipped: tuple[str, ...]  # one line for each bad image left out: where it is and what is wrong

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
        on_error: what to do about images that cannot be read: "fail" or "skip".
        workers: processes that decode; 0 = this one.
        limit: take this many images at most, evenly spread over the source (whose order may follow the classes).
        progress: called as images are done.

    Raises:
        DataError: with "fail" an image is bad (up to five are named, after all were tried, so that the message can say
            how many there are); with "skip" all are.
        ConfigError: an argument is impossible.
    """
    check_reading(on_error, workers)
    indices = spread_indices(len(source), limit)
    images = torch.empty((len(indices), *options.shape), dtype=torch.uint8)
    kept: list[Integers] = []
    count = 0
    bad: list[BadImage] = []
    for chunk in _scan(source, options, indices, workers, progress):
        good = ~np.isin(chunk.indices, [image.index for image in chunk.bad])
        kept.append(chunk.indices[good])
        images[count : count + len(kept[-1])] = torch.from_numpy(chunk.images if good.all() else chunk.images[good])
        count += len(kept[-1])
        bad.extend(chunk.bad)
    source.release()
    judge(bad, len(indices), on_error)
    chosen = torch.from_numpy(np.concatenate(kept))
    return LoadedImages(
        images=images[:count],
        labels=None if source.labels is None else source.labels[chosen],
        indices=chosen,
        fingerprint=part_fingerprint(source, chosen.numpy()),
        skipped=tuple(image.reason for image in bad),
    )


def find_bad(
    source: ImageSource,
    options: ImageOptions,
    *,
    on_error: OnError = "skip",
    workers: int = 0,
    progress: Progress | None = None,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather | None = None,
    remembered: Path | None = None,
) -> tuple[BadImage, ...]:
    """Decode every image of a source without keeping any, and return the bad ones by number.

    Args:
        gather: all-gathers a picklable object over ranks, which then share the work.
        remembered: a JSON file of the outcome; if it tells of the same data, nothing is decoded.

    Raises:
        DataError: they are fatal, see `judge`; or a rank cannot read the source.
    """
    check_reading(on_error, workers)
    together: Gather = gather or (lambda value: [value])
    values = json.loads(json.dumps(asdict(options)))
    about = {"version": _REMEMBERED_VERSION, "data": source.fingerprint, "options": values}
    known = next((known for known in together(_recall(remembered, about)) if known is not None), None)
    if known is None:
        place, parts = (rank, world_size) if gather else (0, 1)
        indices = np.arange(len(source) * place // parts, len(source) * (place + 1) // parts, dtype=np.int64)
        mine: list[BadImage] | str  # an error, which the other ranks, who wait, must hear of
        try:
            mine = [image for chunk in _scan(source, options, indices, workers, progress) for image in chunk.bad]
        except DataError as error:
            mine = str(error)
        source.release()
        found = together(mine)
        if failed := [problem for problem in found if isinstance(problem, str)]:
            raise DataError(failed[0])
        known = [(image.index, image.reason) for image in itertools.chain(*found)]
        if remembered is not None and rank == 0 and (on_error == "skip" or not known):
            write_json(remembered, about | {"bad": known})
    bad = tuple(BadImage(index=index, where=source.describe(index), reason=reason) for index, reason in known)
    judge(bad, len(source), on_error)
    return bad


def _recall(remembered: Path | None, about: dict[str, Any]) -> list[tuple[int, str]] | None:
    """Return the numbers and reasons that an earlier run wrote of the same data; None if there was none."""
    try:
        values = json.loads(remembered.read_text(encoding="utf-8")) if remembered else {}
        same = {key: values[key] for key in about} == about
        return [(int(index), str(reason)) for index, reason in values["bad"]] if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def spread_indices(count: int, limit: int | None) -> Integers:
    """Return the numbers 0 .. count-1, or `limit` of them, evenly spread.

    Raises:
        ConfigError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; give a number of images from 1 up, or none")
    indices = np.arange(count if limit is None else min(count, limit), dtype=np.int64)
    return indices * count // max(1, len(indices))


def part_fingerprint(source: ImageSource, indices: Integers) -> str:
    """Return the source's fingerprint if `indices` are all of its images, else one that also covers which they are."""
    if len(indices) == len(source):
        return source.fingerprint
    return digest(source.fingerprint.encode(), indices.astype("<i8").tobytes())


def judge(bad: Sequence[BadImage], total: int, on_error: OnError) -> None:
    """Raise if bad images are fatal: always if all are bad.

    Raises:
        DataError: names up to five of them, and where to find the rest.
    """
    if not bad:
        return
    if len(bad) == total:
        raise DataError(f"none of the {total} images can be read; the first: {bad[0].reason}")
    if on_error == "fail":
        more = ", ".join(image.where for image in bad[1:_NAMED])
        others = f" ({len(bad)} of {total} images are bad; also {more}; `spheregen stats` lists all)" if more else ""
        raise DataError(bad[0].reason + others)


def check_reading(on_error: str, workers: int) -> None:
    """Refuse impossible values with a ConfigError."""
    if on_error not in get_args(OnError):
        raise ConfigError(f"on_error is {on_error!r}; choose 'fail' or 'skip'")
    if workers < 0:
        raise ConfigError(f"workers is {workers}; give 0 (this process) or more")


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
