"""Parquet files with an image column and perhaps a label column, as Hugging Face datasets writes them.

pyarrow is imported where a file is opened, so that nobody else pays for it.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spheregen.data.captions import Captions, are_file_names, clean, column_of_captions
from spheregen.data.files import Files, cause_of
from spheregen.data.names import LABEL_NAMES, IgnoredFiles, choose_files, number_labels, sort_classes
from spheregen.data.source import Blocks, BlockSource
from spheregen.errors import DataError
from spheregen.files import parse_json

IMAGE_COLUMNS = ("image", "img")


class ParquetSource(BlockSource):
    """Rows of one or several parquet files, in the order in which they are given.

    - The image column is called image or img: a struct with `bytes`, or plain binary.
    - The label column, if any, is called label, fine_label, labels, target or class: integers or strings. Classes are
      named by the Hugging Face metadata where there is some, else they are the distinct values, sorted, over all splits
      together.
    - Splits are told by the file names; files without one belong to "all" only, unless no file has one.

    Blocks are row groups: the main process reads them, so that no image is in memory once for each worker.
    """

    central = True

    def __init__(self, name: str, files: Files, split: str = "train", *, chosen: bool = False) -> None:
        super().__init__()
        self.name = name
        self.remote = files.remote
        base_names = [files.base_name(file) for file in range(len(files))]
        self.split, places = choose_files(base_names, split, name, chosen=chosen)
        self._files = files.only(places)
        self._heads = [_read_head(files, file) for file in places]
        if len({head.label_column for head in self._heads}) > 1:
            raise DataError(f"the parquet files of {name} do not have the same label column; make them agree")
        counts = [head.metadata.num_rows for head in self._heads]
        self._file_starts: list[int] = [0, *itertools.accumulate(counts)]
        if len(self) == 0:
            raise DataError(f"no images in {name}: its parquet files have 0 rows")
        groups = [(file, *group) for file, head in enumerate(self._heads) for group in head.groups()]
        self._groups = [(file, group) for file, group, _, _ in groups]
        rows, sizes = (np.array([group[column] for group in groups], dtype=np.int64) for column in (2, 3))
        self._blocks = Blocks(starts=np.cumsum(rows) - rows, sizes=sizes)
        self.encoded_bytes = int(sizes.sum())
        self.class_names, self.labels = self._read_labels(files.only(sorted({*range(len(files))} - {*places})))
        heads = [f"{base_names[p]}\0{files.size(p)}\0{n}".encode() for p, n in zip(places, counts, strict=True)]
        self._identity = heads
        ignored = IgnoredFiles()
        for name in self._heads[0].unread:
            ignored.add("column that is not read", name)
        self.ignored = ignored.listed()

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

        file, group = self._groups[block]
        column = _read_column(self._files, file, self._heads[file].image_leaf, self._heads[file].metadata, group)
        return _Values(pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column)

    def captions(self, column: str | None = None) -> Captions | None:
        head = self._heads[0]
        texts = [name for name in head.unread if _is_text(head.kinds[name])]
        found = column_of_captions(texts, column, self.name)
        if found is None:
            return None
        columns = (_read_column(self._files, file, found, one.metadata) for file, one in enumerate(self._heads))
        values = itertools.chain(*(column.to_pylist() for column in columns))
        captions = [clean(value, lambda row=row: self.describe(row)) for row, value in enumerate(values)]  # type: ignore[misc]
        return None if column is None and are_file_names(captions) else Captions(captions)

    def _read_labels(self, others: Files) -> tuple[tuple[str, ...], torch.Tensor | None]:
        """Return class names, and labels (N,) int64; `others` are the files of other splits."""
        import pyarrow as pa

        head = self._heads[0]
        if head.label_column is None:
            return (), None
        columns = [_label_column(self._files, file, one) for file, one in enumerate(self._heads)]
        if len({one.class_names for one in self._heads}) > 1 or len({column.type for column in columns}) > 1:
            raise DataError(f"the parquet files of {self.name} name or type their classes differently; make them agree")
        column = pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)
        if column.null_count:
            where = self.describe(column.is_null().index(True).as_py())
            raise DataError(f"{where}: the label is null ({column.null_count} rows in all); remove rows or column")
        values = [*map(_composed, column.to_pylist())]
        known: Sequence[int | str]  # value of class i in the column, at place i
        if head.class_names is None:
            more = [_labels_or_none(others, file) for file in range(len(others))]
            found = {
                *values,
                *itertools.chain(*(map(_composed, o.to_pylist()) for o in more if o and o.type == column.type)),
            }
            known = sorted(found) if pa.types.is_integer(column.type) else sort_classes(found)
        else:
            known = range(len(head.class_names)) if pa.types.is_integer(column.type) else head.class_names
        labels, wrong = number_labels(values, known)
        if wrong is not None:
            label = values[wrong]
            raise DataError(f"{self.describe(wrong)}: the label {label!r} is no class of {len(known)}; correct it")
        return head.class_names or tuple(map(str, known)), labels


def _composed(value: Any) -> Any:
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


class _Values(Sequence[bytes]):
    """An arrow column of encoded images; an image is copied when it is asked for. Null is an empty image."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any, /) -> Any:
        return self._column[row].as_py() or b""


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The footer of a parquet file."""

    metadata: Any  # pyarrow's
    image_leaf: str  # of the column of encoded images
    label_column: str | None
    class_names: tuple[str, ...] | None  # None = not told
    unread: tuple[str, ...]  # other columns
    kinds: Mapping[str, Any]  # their types

    def groups(self) -> list[tuple[int, int, int]]:
        """Return number, rows and bytes of images, unpacked, of each row group that has rows."""
        found = []
        for number in range(self.metadata.num_row_groups):
            group = self.metadata.row_group(number)
            columns = (group.column(place) for place in range(group.num_columns))
            size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == self.image_leaf)
            found += [(number, group.num_rows, size)] if group.num_rows else []
        return found


def _read_head(files: Files, file: int) -> _Head:
    import pyarrow as pa

    def is_binary(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    schema, metadata = _read(files, file, None, lambda opened: (opened.schema_arrow, opened.metadata))
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    kind = schema.field(image).type if image else pa.null()
    nested = pa.types.is_struct(kind) and any(field.name == "bytes" and is_binary(field.type) for field in kind)
    if image is None or not (nested or is_binary(kind)):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(f"{files.names[file]} has no 'image', binary or a struct with 'bytes'; it has {columns}")
    spelled = {name.lower(): name for name in reversed(schema.names)}
    there = [spelled[name] for name in LABEL_NAMES if name in spelled]
    # "target" may be another image, say
    there = [name for name in there if name.lower() in LABEL_NAMES[:2] or _is_label(schema.field(name).type)]
    label, class_names = there[0] if there else None, None
    with contextlib.suppress(KeyError, TypeError, ValueError):
        names = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
        class_names = tuple(_composed(str(name)) for name in names) if isinstance(names, list) and names else None
    leaf = f"{image}.bytes" if nested else image
    unread = tuple(name for name in schema.names if name not in (image, label))
    kinds = {name: schema.field(name).type for name in unread}
    return _Head(
        metadata=metadata, image_leaf=leaf, label_column=label, class_names=class_names, unread=unread, kinds=kinds
    )


def _is_text(kind: Any) -> bool:
    """Return whether a column holds texts, or lists of them."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _label_column(files: Files, file: int, head: _Head) -> Any:
    """Return the label column as int64 or strings, perhaps with nulls."""
    import pyarrow as pa

    column = _read_column(files, file, head.label_column or "", head.metadata)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not _is_label(column.type):
        raise DataError(
            f"{files.names[file]}: labels are integers or strings, not {column.type} as {head.label_column!r} is"
        )
    return column.cast(pa.int64() if pa.types.is_integer(column.type) else pa.large_string())


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _labels_or_none(files: Files, file: int) -> Any | None:
    """Return the labels of a file of another split; if that file is broken, this split can do without."""
    with contextlib.suppress(DataError):
        head = _read_head(files, file)
        return None if head.label_column is None else _label_column(files, file, head).drop_null()
    return None


def _read_column(files: Files, file: int, leaf: str, metadata: Any, group: int | None = None) -> Any:
    """Read a column of one row group, or of all."""
    groups = range(metadata.num_row_groups) if group is None else [group]

    def read(opened: Any) -> Any:
        return opened.read_row_groups(groups, columns=[leaf], use_threads=False).column(0)

    return _read(files, file, metadata, read)


def _read(files: Files, file: int, metadata: Any, action: Callable[[Any], Any]) -> Any:
    """Do something with a file, which is opened for this alone, so that nobody shares a position in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def attempt() -> Any:
        system = files.system if files.remote else None
        try:
            with pq.ParquetFile(files.paths[file], metadata=metadata, filesystem=system) as opened:
                return action(opened)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (files.remote or error.errno):
                raise  # the network, or the file system
            raise DataError(f"{files.names[file]}: not a readable parquet file ({cause_of(error)})") from error

    return files.retried(attempt, file)
