"""Parquet files with an image column and perhaps a label column, as Hugging Face datasets writes them.

pyarrow is imported where a file is opened, so that nobody else pays for it.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from spheregen.data.images import decode_bytes
from spheregen.data.sources import ImageSource, choose_split, digest, require_unsplit
from spheregen.errors import DataError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")

_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+")
_KNOWN = re.compile(r"(?P<split>train|test|validation|val)(?![A-Za-z])")
_HELD_BYTES = 4 << 30  # encoded images kept in memory at most; beyond that the row groups used last


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files directly in a folder, or in its `data` sub-folder (the layout of Hub repositories), sorted."""
    for place in (folder, folder / "data"):
        files = sorted(path for path in place.glob("*.parquet") if path.is_file() and not path.name.startswith("."))
        if files:
            return files
    return []


def split_of(path: Path) -> str | None:
    """The split that a file's name tells: "train-00000-of-00002.parquet" and "train.parquet" are "train"."""
    match = _SHARD.fullmatch(path.stem) or _KNOWN.match(path.stem)
    return match["split"] if match else None


class ParquetSource(ImageSource):
    """Rows of one or several parquet files, in the order of the file names.

    - The image column is called image or img: a struct with `bytes`, or plain binary.
    - The label column, if any, is called label or fine_label: integers or strings. Classes are named by the Hugging
      Face metadata where there is some, else they are the distinct values, sorted, over all splits together.
    - Splits are told by the file names; files without one belong to "all" only, unless no file has one.

    Encoded images stay in memory up to 4 GiB. Beyond that single row groups are read again and again, which is slow in
    random order: unpack such data into a folder.

    Raises:
        DataError: a file is corrupt, a column is missing or of another type, a label is null or out of range, the files
            disagree, or there is no such split.
    """

    def __init__(self, where: Path, files: Sequence[Path], split: str = "train") -> None:
        self.name = where.resolve().name if where.is_dir() else where.stem
        self.split, chosen = _choose(where, files, split)
        self._files = list(chosen)
        heads = [_Head(path) for path in chosen]
        if len({head.label_column for head in heads}) > 1:
            raise DataError(f"the parquet files of {where} do not have the same label column; make them agree")
        self._image_columns = [head.image_leaf for head in heads]
        self._group_starts, self._group_places = _group_table(heads)
        self._file_starts = [0, *itertools.accumulate(head.rows for head in heads)]
        if len(self) == 0:
            raise DataError(f"no images in {where}: its parquet files have 0 rows")
        self.class_names, self.labels = _read_labels(heads, [path for path in files if path not in chosen])
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._held_bytes = 0
        self._readers: dict[tuple[int, int], Any] = {}
        self.fingerprint = digest(
            *(f"{head.path.name}\0{head.path.stat().st_size}\0{head.rows}".encode() for head in heads),
            b"" if self.labels is None else self.labels.numpy().astype("<i8").tobytes(),
            *(name.encode() for name in self.class_names),
        )

    def __len__(self) -> int:
        return self._file_starts[-1]

    def read(self, index: int) -> Image.Image:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect.bisect_right(self._group_starts, index) - 1
        data = self._group(group)[index - self._group_starts[group]].as_py()
        return decode_bytes(data or b"", self.describe(index))

    def describe(self, index: int) -> str:
        file = bisect.bisect_right(self._file_starts, index) - 1
        return f"{self._files[file]} row {index - self._file_starts[file]}"

    def release(self) -> None:
        self._held.clear()
        self._held_bytes = 0
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def __getstate__(self) -> dict[str, Any]:  # copies, and worker processes, open the files themselves
        return self.__dict__ | {"_held": OrderedDict(), "_held_bytes": 0, "_readers": {}}

    def _group(self, group: int) -> Any:
        """The encoded images of one row group, as a pyarrow array of binary values."""
        if group in self._held:
            self._held.move_to_end(group)
            return self._held[group]
        import pyarrow as pa
        import pyarrow.compute as pc

        file, place = self._group_places[group]
        with _named(self._files[file]):
            table = self._reader(file).read_row_group(place, columns=[self._image_columns[file]], use_threads=False)
            column = table.column(0)
            if pa.types.is_struct(column.type):
                column = pc.struct_field(column, "bytes")
            values = column.cast(pa.large_binary()).combine_chunks()
        self._held[group] = values
        self._held_bytes += values.nbytes
        while self._held_bytes > _HELD_BYTES and len(self._held) > 1:
            self._held_bytes -= self._held.popitem(last=False)[1].nbytes
        return values

    def _reader(self, file: int) -> Any:
        import pyarrow.parquet as pq

        key = (os.getpid(), file)  # processes must not share the position in an open file
        if key not in self._readers:
            self._readers[key] = pq.ParquetFile(self._files[file])
        return self._readers[key]


class _Head:
    """What the footer of a parquet file says."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        with _named(path), pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            metadata = file.metadata
            self.rows: int = metadata.num_rows
            self.groups: list[int] = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
        if image is None:
            raise DataError(f"{path} has no image column; it has {', '.join(schema.names)}: rename one to 'image'")
        kind = schema.field(image).type
        if pa.types.is_struct(kind) and any(field.name == "bytes" and _is_binary(field.type) for field in kind):
            self.image_leaf = f"{image}.bytes"
        elif _is_binary(kind):
            self.image_leaf = image
        else:
            raise DataError(f"the column {image!r} of {path} is {kind}; it must be binary or a struct with 'bytes'")
        self.label_column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
        self.names: tuple[str, ...] | None = None
        if self.label_column is not None:
            self.names = _metadata_names(schema.metadata, self.label_column)

    def labels(self) -> Any:
        """The label column as int64 or strings, without nulls.

        Raises:
            DataError: it holds nulls or is of another type.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        with _named(self.path), pq.ParquetFile(self.path) as file:
            column = file.read(columns=[self.label_column], use_threads=False).column(0)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise DataError(
                f"{self.path} row {row}: the label is null ({column.null_count} rows in all); "
                "remove these rows or the label column"
            )
        if pa.types.is_integer(column.type):
            return column.cast(pa.int64())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return column.cast(pa.large_string())
        raise DataError(
            f"the column {self.label_column!r} of {self.path} is {column.type}; labels are integers or strings"
        )


def _choose(where: Path, files: Sequence[Path], split: str) -> tuple[str, list[Path]]:
    """The split's proper name and its files."""
    splits = {path: split_of(path) for path in files}
    present = sorted({name for name in splits.values() if name is not None})
    if split == "all":
        return split, list(files)
    if not present:
        require_unsplit(split, where)
        return split, list(files)
    if where.is_file() and split == "train":
        return present[0], list(files)  # naming one file is choosing it; "train" is only the default
    chosen = choose_split(split, present, where)
    return chosen, [path for path in files if splits[path] == chosen]


def _group_table(heads: Sequence[_Head]) -> tuple[list[int], list[tuple[int, int]]]:
    """First row of each row group, and its (file, place in the file)."""
    places = [(file, group) for file, head in enumerate(heads) for group in range(len(head.groups))]
    sizes = [size for head in heads for size in head.groups]
    return [0, *itertools.accumulate(sizes[:-1])], places


def _read_labels(heads: Sequence[_Head], others: Sequence[Path]) -> tuple[tuple[str, ...], torch.Tensor | None]:
    """Class names, and labels (N,) int64 of the rows of `heads`; `others` are the files of other splits."""
    import pyarrow as pa

    if heads[0].label_column is None:
        return (), None
    columns = [head.labels() for head in heads]
    if len({head.names for head in heads}) > 1 or len({column.type for column in columns}) > 1:
        raise DataError(
            f"the parquet files in {heads[0].path.parent} name or type their classes differently; make them agree"
        )
    names = heads[0].names
    values: Sequence[int | str]  # value of class i in the column, at place i
    if names is None:
        columns_of_others = [column for column in map(_labels_or_none, others) if column is not None]
        comparable = [column for column in columns_of_others if column.type == columns[0].type]
        values = sorted({value for column in (*columns, *comparable) for value in column.unique().to_pylist()})
        names = tuple(str(value) for value in values)
    else:
        values = range(len(names)) if pa.types.is_integer(columns[0].type) else names
    numbers = {value: number for number, value in enumerate(values)}
    labels = [_numbered(head, column, numbers) for head, column in zip(heads, columns, strict=True)]
    return names, torch.from_numpy(np.concatenate(labels))


def _numbered(head: _Head, column: Any, numbers: Mapping[int | str, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Values of a label column -> class numbers."""
    coded = column.combine_chunks().dictionary_encode()
    distinct = coded.dictionary.to_pylist()
    unknown = [value for value in distinct if value not in numbers]
    if unknown:
        row = column.index(unknown[0]).as_py()
        raise DataError(
            f"{head.path} row {row}: the label {unknown[0]!r} is not one of the {len(numbers)} classes that the file's "
            "metadata names (integers count them from 0); correct the label or the metadata"
        )
    table = np.array([numbers[value] for value in distinct], dtype=np.int64)
    result: np.ndarray[Any, np.dtype[np.int64]] = table[coded.indices.to_numpy(zero_copy_only=False)]
    return result


def _labels_or_none(path: Path) -> Any | None:
    """The labels of a file of another split; if that file is broken, this split can do without."""
    try:
        head = _Head(path)
        return None if head.label_column is None else head.labels()
    except DataError:
        return None


def _metadata_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """Class names from the `huggingface` entry of the schema's metadata."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors into one line that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable parquet file ({cause}); fetch or write it again") from error
