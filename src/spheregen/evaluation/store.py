"""Features of many images on disk: written chunk by chunk, by several processes, continued after an interruption.

A store is a folder: `plan.json` says what it holds, one raw little-endian file an array, and `done` with eight bytes a
chunk. A chunk counts once its bytes agree with the checksum in `done`, so neither a killed process nor a power cut
leaves half a chunk behind that is taken for a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spheregen.errors import SphereGenError
from spheregen.files import write_json

PLAN, DONE = "plan.json", "done"
_DTYPES = {"float32": torch.float32, "uint8": torch.uint8}
_MARK = 1 << 32  # set in the record of a chunk that is done: a checksum may be 0


@dataclass(frozen=True)
class Column:
    """One array of a store."""

    width: int
    """Numbers of an image."""
    dtype: str = "float32"
    """`float32` or `uint8`."""
    rows: int | None = None
    """Images that it holds, the first ones; None: all."""


class StoredRows:
    """An array of a store as `Rows`: a slice of it is read from disk."""

    def __init__(self, path: Path, count: int, column: Column) -> None:
        self.path, self.column = path, column
        self.shape = (count, column.width)

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, step = part.indices(self.shape[0])
        if step != 1:
            raise IndexError("rows are read in one piece")
        dtype = np.dtype(self.column.dtype)
        with self.path.open("rb") as file:
            file.seek(start * self.shape[1] * dtype.itemsize)
            values = np.fromfile(file, dtype=dtype.newbyteorder("<"), count=(stop - start) * self.shape[1])
        return torch.from_numpy(values.astype(dtype, copy=False)).view(stop - start, self.shape[1])


class FeatureStore:
    """Arrays over N images in chunks.

    Args:
        folder: holds stores; each plan gets a folder of its own in it.
        plan: all that decides the numbers, as JSON values.
        count: N.
        chunk: images of a chunk.
        columns: the arrays, by name.
    """

    def __init__(
        self, folder: Path, plan: Mapping[str, Any], *, count: int, chunk: int, columns: Mapping[str, Column]
    ) -> None:
        self.count, self.chunk, self.columns = count, chunk, dict(columns)
        whole = {**plan, "count": count, "chunk": chunk, "columns": {name: vars(c) for name, c in columns.items()}}
        text = json.dumps(whole, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._plan = whole

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.count // self.chunk)

    def part(self, chunk: int) -> slice:
        """The images of a chunk."""
        return slice(chunk * self.chunk, min((chunk + 1) * self.chunk, self.count))

    def create(self) -> None:
        """Make the files, unless they are there. One process calls it before the others go on.

        Raises:
            SphereGenError: the folder cannot be written to, or the disk is too small.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path, size in self._sizes():
                with path.open("ab") as file:
                    if os.fstat(file.fileno()).st_size != size:
                        file.truncate(size)
        except OSError as error:
            raise self._failure(error) from error
        if not (self.folder / PLAN).is_file():
            write_json(self.folder / PLAN, self._plan)

    def missing(self) -> list[int]:
        """Chunks that are not there yet, or whose bytes are not those that were written."""
        records = np.fromfile(self.folder / DONE, dtype="<u8")
        return [k for k in range(self.chunks) if int(records[k]) != self._checksum(k)]

    def write(self, chunk: int, arrays: Mapping[str, Tensor]) -> None:
        """Put down a chunk; its arrays are complete before it counts as done.

        Raises:
            SphereGenError: the disk is full.
        """
        try:
            for name, column in self.columns.items():
                if rows := self._rows(chunk, column):
                    values = arrays[name][: len(rows)].detach().cpu().to(_DTYPES[column.dtype]).contiguous().numpy()
                    assert values.size == len(rows) * column.width
                    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
                    self._put(self._path(name), rows.start * column.width * values.itemsize, little.tobytes())
            record = np.array([self._checksum(chunk)], dtype="<u8")
            self._put(self.folder / DONE, 8 * chunk, record.tobytes())
        except OSError as error:
            raise self._failure(error) from error

    def rows(self, name: str) -> StoredRows:
        """An array, to be read by slices."""
        column = self.columns[name]
        return StoredRows(self._path(name), min(self.count, column.rows or self.count), column)

    def _checksum(self, chunk: int) -> int:
        found = 0
        for name, column in self.columns.items():
            if rows := self._rows(chunk, column):
                size = column.width * np.dtype(column.dtype).itemsize
                with self._path(name).open("rb") as file:
                    file.seek(rows.start * size)
                    found = zlib.crc32(file.read(len(rows) * size), found)
        return _MARK | found

    def _rows(self, chunk: int, column: Column) -> range:
        """Images of a chunk that an array holds."""
        part = self.part(chunk)
        return range(part.start, min(part.stop, column.rows or self.count))

    def _sizes(self) -> list[tuple[Path, int]]:
        sizes = [
            (self._path(name), min(self.count, c.rows or self.count) * c.width * np.dtype(c.dtype).itemsize)
            for name, c in self.columns.items()
        ]
        return [*sizes, (self.folder / DONE, 8 * self.chunks)]

    def _path(self, name: str) -> Path:
        return self.folder / f"{list(self.columns).index(name)}.raw"

    def _put(self, path: Path, place: int, data: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(data)

    def _failure(self, error: OSError) -> SphereGenError:
        return SphereGenError(
            f"cannot write features to {self.folder}: {error.strerror or error}; free space or choose another place"
        )
