"""Reading many pictures, in this process or in worker processes, with the same result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from spheregen.data.images import ImageOptions, Pixels, load_array
from spheregen.data.order import Integers
from spheregen.data.sources import ImageSource
from spheregen.errors import DataError


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """A picture that cannot be read."""

    index: int  # its number in the source
    where: str  # path, or file and row
    reason: str  # one line that names it, the cause and the cure


@dataclass(frozen=True, kw_only=True)
class DecodedChunk:
    """Pictures read together."""

    indices: Integers  # (n,) numbers in the source
    images: Pixels  # (n, C, S, S) uint8; zeros where bad
    bad: tuple[BadImage, ...]


class Chunks(Protocol):
    """Lists of picture numbers, by chunk number."""

    def __len__(self) -> int: ...
    def __getitem__(self, chunk: int, /) -> Integers: ...


def decode(source: ImageSource, options: ImageOptions, indices: Integers) -> DecodedChunk:
    """Read the pictures with these numbers; bad ones are reported, not raised."""
    images = np.zeros((len(indices), *options.shape), dtype=np.uint8)
    bad: list[BadImage] = []
    for row, index in enumerate(indices.tolist()):
        try:
            picture = source.read(index)
        except DataError as error:
            bad.append(BadImage(index=index, where=source.describe(index), reason=str(error)))
            continue
        try:
            images[row] = load_array(picture, options)
        except DataError as error:
            where = source.describe(index)
            bad.append(BadImage(index=index, where=where, reason=f"{where}: {error}"))
    return DecodedChunk(indices=indices, images=images, bad=tuple(bad))


def decode_chunks(source: ImageSource, options: ImageOptions, chunks: Chunks, workers: int) -> Iterator[DecodedChunk]:
    """Read chunk after chunk, in order; `workers` processes read ahead (0: this process, when asked)."""
    if workers == 0:
        for number in range(len(chunks)):
            yield decode(source, options, chunks[number])
        return
    loader = DataLoader(
        _ChunkDataset(source, options, chunks),
        batch_size=None,  # a chunk is a batch already
        collate_fn=_unchanged,  # numpy arrays through pipes: tensors would need /dev/shm, which containers keep small
        num_workers=workers,
        generator=torch.Generator(),  # else the loader draws from, and so disturbs, torch's global generator
    )
    yield from loader


class _ChunkDataset(Dataset[DecodedChunk]):
    def __init__(self, source: ImageSource, options: ImageOptions, chunks: Chunks) -> None:
        self._source = source
        self._options = options
        self._chunks = chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, number: int) -> DecodedChunk:
        return decode(self._source, self._options, self._chunks[number])


def _unchanged(chunk: Any) -> Any:
    return chunk
