"""Parquet files with an image column and perhaps a label column, as Hugging Face datasets writes them.

pyarrow is imported where a file is opened, so that nobody else pays for it.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from spheregen.data.patterns import choose_files
from spheregen.data.ranges import LocalFiles, RangeFiles, RangeReader
from spheregen.data.sources import Blocks, BlockSource, digest
from spheregen.errors import DataError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
_OPEN_FILES = 16


class ParquetSource(BlockSource):
    """Rows of one or several parquet files, in the order in which they are given.

    - The image column is called image or img: a struct with `bytes`, or plain binary.
    - The label column, if any, is called label or fine_label: integers or strings. Classes are named by the Hugging
      Face metadata where there is some, else they are the distinct values, sorted, over all splits together.
    - Splits are told by the file names; files without one belong to "all" only, unless no file has one.

    Blocks are row groups: the main process reads them, so that no picture is in memory once for each worker.

    Raises:
        DataError: a file is corrupt, a column is missing or of another type, a label is null or out of range, the files
            disagree, or there is no such split.
    """

    central = True

    def __init__(self, name: str, files: RangeFiles, split: str = "train", *, chosen: bool = False) -> None:
        super().__init__()
        self.name = name
        self.remote = files.remote
        base_names = [files.base_name(file) for file in range(len(files))]
        self.split, places = choose_files(base_names, split, name, chosen=chosen)
        self._files = files.only(places)
        heads = [_Head(self._files, file) for file in range(len(places))]
        if len({head.label_column for head in heads}) > 1:
            raise DataError(f"the parquet files of {name} do not have the same label column; make them agree")
        self._image_columns = [head.image_leaf for head in heads]
        self._file_starts = [0, *itertools.accumulate(head.rows for head in heads)]
        if len(self) == 0:
            raise DataError(f"no images in {name}: its parquet files have 0 rows")
        self._group_places, self._blocks = _group_table(heads)
        self.encoded_bytes = int(self._blocks.sizes.sum())
        others = [file for file in range(len(files)) if file not in places]
        self.class_names, self.labels = _read_labels(heads, files.only(others) if others else None)
        self._readers: dict[tuple[int, int, int], Any] = {}
        self.fingerprint = digest(
            *(
                f"{base_names[place]}\0{files.size(place)}\0{head.rows}".encode()
                for place, head in zip(places, heads, strict=True)
            ),
            b"" if self.labels is None else self.labels.numpy().astype("<i8").tobytes(),
            *(class_name.encode() for class_name in self.class_names),
        )

    def __len__(self) -> int:
        return self._file_starts[-1]

    def describe(self, index: int) -> str:
        file = bisect.bisect_right(self._file_starts, index) - 1
        return f"{self._files.names[file]} row {index - self._file_starts[file]}"

    def blocks(self) -> Blocks:
        return self._blocks

    def read_block(self, block: int) -> Sequence[bytes]:
        import pyarrow as pa
        import pyarrow.compute as pc

        file, place = self._group_places[block]
        with _named(self._files.names[file]):
            reader = self._reader(file)
            table = reader.read_row_group(place, columns=[self._image_columns[file]], use_threads=False)
            column = table.column(0)
            if pa.types.is_struct(column.type):
                column = pc.struct_field(column, "bytes")
            return _Values(column)

    def release(self) -> None:
        super().release()
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_readers": {}}

    def _reader(self, file: int) -> Any:
        me = (os.getpid(), threading.get_ident())  # nobody shares the position in an open file
        key = (*me, file)
        if key not in self._readers:
            threads = {(os.getpid(), thread.ident) for thread in threading.enumerate()}
            mine = [other for other in list(self._readers) if other[:2] == me]
            over = mine[: max(0, len(mine) + 1 - _OPEN_FILES)]
            for other in [*over, *(other for other in list(self._readers) if other[:2] not in threads)]:
                self._readers.pop(other).close()
            self._readers[key] = _open(self._files, file)
        return self._readers[key]


class _Values(Sequence[bytes]):
    """An arrow column of encoded pictures; a picture is copied when it is asked for. Null is an empty picture."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any, /) -> Any:
        return self._column[row].as_py() or b""


def _open(files: RangeFiles, file: int) -> Any:
    """A parquet reader; closing it closes the file."""
    import pyarrow.parquet as pq

    if isinstance(files, LocalFiles):
        return pq.ParquetFile(files.paths[file])
    return pq.ParquetFile(RangeReader(files, file))


class _Head:
    """What the footer of a parquet file says."""

    def __init__(self, files: RangeFiles, file: int) -> None:
        import pyarrow as pa

        self.files, self.file = files, file
        self.path = path = files.names[file]
        with _named(path), _open(files, file) as opened:
            schema = opened.schema_arrow
            metadata = opened.metadata
            self.rows: int = metadata.num_rows
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            self.groups: list[int] = [group.num_rows for group in groups]
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
        self.group_bytes: list[int] = [_column_bytes(group, self.image_leaf) for group in groups]
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

        with _named(self.path), _open(self.files, self.file) as file:
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


def _column_bytes(group: Any, leaf: str) -> int:
    """Size of one column of a row group, unpacked."""
    columns = (group.column(i) for i in range(group.num_columns))
    return next((int(column.total_uncompressed_size) for column in columns if column.path_in_schema == leaf), 0)


def _group_table(heads: Sequence[_Head]) -> tuple[list[tuple[int, int]], Blocks]:
    """(file, place in the file) of each row group that has rows, and where it starts."""
    places = [(file, group) for file, head in enumerate(heads) for group, rows in enumerate(head.groups) if rows]
    rows = np.array([heads[file].groups[group] for file, group in places], dtype=np.int64)
    sizes = np.array([heads[file].group_bytes[group] for file, group in places], dtype=np.int64)
    return places, Blocks(starts=np.cumsum(rows) - rows, sizes=sizes)


def _read_labels(heads: Sequence[_Head], others: RangeFiles | None) -> tuple[tuple[str, ...], torch.Tensor | None]:
    """Class names, and labels (N,) int64 of the rows of `heads`; `others` are the files of other splits."""
    import pyarrow as pa

    if heads[0].label_column is None:
        return (), None
    columns = [head.labels() for head in heads]
    if len({head.names for head in heads}) > 1 or len({column.type for column in columns}) > 1:
        raise DataError(
            f"{heads[0].path} and the files beside it name or type their classes differently; make them agree"
        )
    names = heads[0].names
    values: Sequence[int | str]  # value of class i in the column, at place i
    if names is None:
        found = [_labels_or_none(others, file) for file in range(len(others))] if others else []
        columns_of_others = [column for column in found if column is not None]
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


def _labels_or_none(files: RangeFiles, file: int) -> Any | None:
    """The labels of a file of another split; if that file is broken, this split can do without."""
    try:
        head = _Head(files, file)
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
def _named(path: str) -> Iterator[None]:
    """Turn pyarrow's errors into one line that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable parquet file ({cause}); fetch or write it again") from error
