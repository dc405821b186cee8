"""Reading many pictures, in this process or in worker processes, with the same result."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from spheregen.data.images import ImageOptions, Pixels, decode_bytes, load_array
from spheregen.data.order import Integers
from spheregen.data.pool import ordered_map
from spheregen.data.sources import ImageSource
from spheregen.errors import DataError


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """A picture that cannot be read."""

    index: int  # its number in the source
    where: str  # path, or file and row
    reason: str  # one line that names it, the cause and the cure


@dataclass(frozen=True, kw_only=True)
class Work:
    """Pictures to decode together, as they are handed to whoever does it."""

    indices: Integers  # (n,) numbers in the source
    encoded: list[bytes | str] | None = None  # (n,) their bytes, or why they cannot be had; None = read them yourself


@dataclass(frozen=True, kw_only=True)
class DecodedChunk:
    """Pictures read together."""

    indices: Integers  # (n,) numbers in the source
    images: Pixels  # (n, C, S, S) uint8; zeros where bad
    bad: tuple[BadImage, ...]


def read_work(source: ImageSource, indices: Integers) -> Work:
    """The pictures with these numbers, their bytes with them where the source wants them read here, in one place."""
    if not source.central:
        return Work(indices=indices)
    encoded: list[bytes | str] = []
    for index in indices.tolist():
        try:
            encoded.append(source.read_bytes(index))
        except DataError as error:
            encoded.append(str(error))
    return Work(indices=indices, encoded=encoded)


class Decoder:
    """Turns work into pixels; worker processes get a copy."""

    def __init__(self, source: ImageSource, options: ImageOptions) -> None:
        self._source = source
        self._options = options

    def __call__(self, work: Work) -> DecodedChunk:
        """Decode; bad pictures are reported, not raised."""
        images = np.zeros((len(work.indices), *self._options.shape), dtype=np.uint8)
        bad: list[BadImage] = []
        for row, index in enumerate(work.indices.tolist()):
            try:
                if work.encoded is None:
                    picture = self._source.read(index)
                else:
                    data = work.encoded[row]
                    if isinstance(data, str):
                        raise DataError(data)
                    picture = decode_bytes(data, lambda index=index: self._source.describe(index))  # type: ignore[misc]
            except DataError as error:
                bad.append(BadImage(index=index, where=self._source.describe(index), reason=str(error)))
                continue
            try:
                images[row] = load_array(picture, self._options)
            except DataError as error:
                where = self._source.describe(index)
                bad.append(BadImage(index=index, where=where, reason=f"{where}: {error}"))
        return DecodedChunk(indices=work.indices, images=images, bad=tuple(bad))


def decode_chunks(
    source: ImageSource,
    options: ImageOptions,
    chunks: Iterable[Integers],
    workers: int,
    *,
    prefetch: int = 2,
    context: Any = None,
) -> Generator[DecodedChunk, None, None]:
    """Read chunk after chunk, in order; `workers` processes read ahead (0: this process, when asked).

    Args:
        chunks: numbers of the pictures of each chunk.
        prefetch: chunks that each worker has in hand.
        context: a multiprocessing context; None = the platform's own.
    """
    works = (read_work(source, chunk) for chunk in chunks)
    return ordered_map(Decoder(source, options), works, workers=workers, prefetch=prefetch, context=context)
