"""WebDataset shards: tar files whose members belong together where their names agree up to the first dot.

Members are found by stepping from header to header (POSIX.1-2001 ustar and pax, GNU long names); pictures are then read
by offset, so nothing is unpacked and any picture can be had at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from spheregen.data.names import PackedStrings, is_image_name, member_name, sort_names, without_common_folder
from spheregen.data.patterns import choose_files, tells_split
from spheregen.data.ranges import RangeFiles
from spheregen.data.sources import Blocks, BlockSource, digest, require_unsplit
from spheregen.errors import DataError

_HEADER = 512
_ZEROS = bytes(_HEADER)
_BLOCK_BYTES = 4 << 20  # a window of the training order mixes about sixteen of these
_LARGEST_TEXT = 1 << 20  # bytes of a label member
_NONE, _INTEGER, _TEXT = 0, 1, 2  # kinds of label


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where the pictures of one shard are."""

    offsets: npt.NDArray[np.int64]  # (n,) first byte
    sizes: npt.NDArray[np.int64]  # (n,) bytes
    names: PackedStrings  # (n,) names of the members
    kinds: npt.NDArray[np.int8]  # (n,) kind of label
    labels: PackedStrings  # (n,) the label as text; empty where there is none


class TarSource(BlockSource):
    """The pictures of WebDataset shards, in the order in which they are stored.

    - Members with the same name up to the first dot of the last part, one behind the other, are one sample: one image,
      perhaps a label, anything else is ignored.
    - The label is a `.cls` file (an integer or a name) or a `.json` file with "label", "class" or "cls". Integers count
      the classes from 0: they are named by `classes.txt` (one name a line) or `dataset_info.json` beside the shards if
      there is one, else "0", "1" ... up to the largest. Other labels are sorted, over all splits on this machine.
    - Without label members the first folder in the names is the class, as in a folder of images.
    - Splits are told by the file names (train-000000.tar), or by the folders inside if there are no label members.

    Raises:
        DataError: a shard is truncated or no tar, a label is missing or impossible, there are no images or there is no
            such split.
    """

    def __init__(self, name: str, files: RangeFiles, split: str = "train", *, chosen: bool = False) -> None:
        super().__init__()
        from spheregen.data.remote import cached_index

        base_names = [files.base_name(file) for file in range(len(files))]
        where = files.names[0] if len(files) == 1 else name
        by_files = any(map(tells_split, base_names))
        self.split, places = split, list(range(len(files)))
        if by_files:
            self.split, places = choose_files(base_names, split, where, chosen=chosen, numbered_splits=False)
        self.name = name
        self.central = self.remote = files.remote
        self._files = files.only(places)

        def scan(of: RangeFiles, file: int) -> ShardIndex:
            if of.remote:
                return cached_index(of, file, scan_shard)
            with of.open(file) as opened:
                return scan_shard(opened, of.size(file), of.names[file])

        shards = [scan(self._files, file) for file in range(len(self._files))]
        counts = [len(shard.offsets) for shard in shards]
        if not sum(counts):
            raise DataError(f"no images in {', '.join(self._files.names[:3])}; a shard holds members like 000001.jpg")
        self._shards = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
        self._offsets = np.concatenate([shard.offsets for shard in shards])
        self._sizes = np.concatenate([shard.sizes for shard in shards])
        kinds = np.concatenate([shard.kinds for shard in shards])
        names = [shard.names[i] for shard in shards for i in range(len(shard.names))]
        if kinds.any():
            if not by_files:
                require_unsplit(split, where)
            others = [] if files.remote else [file for file in range(len(files)) if file not in places]
            more = [scan(files, file) for file in others]
            self.class_names, self.labels = self._read_labels(shards, more, kinds, names)
        else:
            sorted_names = sort_names(without_common_folder(names), "all" if by_files else split, where)
            rows = sorted_names.rows
            self.class_names, self.labels = sorted_names.class_names, sorted_names.labels
            self.split = self.split if by_files else sorted_names.split
            self._shards, self._offsets, self._sizes = self._shards[rows], self._offsets[rows], self._sizes[rows]
            names = [names[row] for row in rows.tolist()]
        self._names = PackedStrings.of(names)
        self.encoded_bytes = int(self._sizes.sum())
        self._blocks = self._find_blocks()
        content = hashlib.sha256()
        for part in self._names.digest_parts():
            content.update(part)
        self.fingerprint = digest(
            *(f"{self._files.base_name(f)}\0{counts[f]}".encode() for f in range(len(shards))),
            content.digest(),
            self._sizes.astype("<i8").tobytes(),
            b"" if self.labels is None else self.labels.numpy().astype("<i8").tobytes(),
            *(class_name.encode() for class_name in self.class_names),
        )

    def __len__(self) -> int:
        return len(self._offsets)

    def describe(self, index: int) -> str:
        return f"{self._files.names[int(self._shards[index])]} {self._names[index]}"

    def read_bytes(self, index: int) -> bytes:
        if self.central:
            return super().read_bytes(index)
        return self._files.read(int(self._shards[index]), int(self._offsets[index]), int(self._sizes[index]))

    def blocks(self) -> Blocks:
        return self._blocks

    def read_block(self, block: int) -> Sequence[bytes]:
        first = int(self._blocks.starts[block])
        last = int(self._blocks.starts[block + 1]) if block + 1 < len(self._blocks.starts) else len(self)
        begin = int(self._offsets[first])
        end = int(self._offsets[last - 1] + self._sizes[last - 1])
        data = self._files.read(int(self._shards[first]), begin, end - begin)
        starts = (self._offsets[first:last] - begin).tolist()
        sizes = self._sizes[first:last].tolist()
        return [data[start : start + size] for start, size in zip(starts, sizes, strict=True)]

    def _find_blocks(self) -> Blocks:
        cells = self._offsets // _BLOCK_BYTES
        new = np.ones(len(cells), dtype=np.bool_)
        new[1:] = (cells[1:] != cells[:-1]) | (self._shards[1:] != self._shards[:-1])
        starts = np.flatnonzero(new).astype(np.int64)
        return Blocks(starts=starts, sizes=np.add.reduceat(self._sizes, starts))

    def _read_labels(
        self, shards: Sequence[ShardIndex], others: Sequence[ShardIndex], kinds: npt.NDArray[np.int8], names: list[str]
    ) -> tuple[tuple[str, ...], torch.Tensor]:
        """Class names, and labels (N,)."""
        found = set(kinds.tolist())
        if len(found) > 1:
            odd = _NONE if _NONE in found else _TEXT
            row = int(np.flatnonzero(kinds == odd)[0])
            problem = "has no label" if odd == _NONE else "has a name for its label"
            raise DataError(
                f"{self._files.names[int(self._shards[row])]}: the sample {names[row]} {problem}, unlike others; "
                "label all samples alike, or none"
            )
        texts = [shard.labels[i] for shard in shards for i in range(len(shard.labels))]
        listed = _listed_classes(self._files)
        if found == {_INTEGER}:
            values = [int(text) for text in texts]
            others_of_kind = [s for s in others if s.kinds.size and (s.kinds == _INTEGER).all()]
            largest = max([*values, *(int(s.labels[i]) for s in others_of_kind for i in range(len(s.labels)))])
            classes = listed or tuple(str(number) for number in range(largest + 1))
            wrong = next((row for row, value in enumerate(values) if not 0 <= value < len(classes)), None)
            labels = values
        else:
            everything = {s.labels[i] for s in others for i in range(len(s.labels)) if s.kinds[i] == _TEXT}
            classes = listed or tuple(sorted(everything.union(texts)))
            numbers = {name: number for number, name in enumerate(classes)}
            labels = [numbers.get(text, -1) for text in texts]
            wrong = next((row for row, number in enumerate(labels) if number < 0), None)
        if wrong is not None:
            raise DataError(
                f"{self._files.names[int(self._shards[wrong])]}: the label {texts[wrong]!r} of {names[wrong]} is not "
                f"one of the {len(classes)} classes (integers count from 0); correct the label or the list of classes"
            )
        return classes, torch.tensor(labels, dtype=torch.int64)


def scan_shard(file: BinaryIO, size: int, where: str) -> ShardIndex:
    """Find the pictures and labels of a tar file of `size` bytes.

    Raises:
        DataError: it is truncated or damaged, or a sample has two images. Names `where`.
    """
    offsets: list[int] = []
    sizes: list[int] = []
    names: list[str] = []
    kinds: list[int] = []
    labels: list[str] = []

    def finish(images: list[tuple[str, int, int]], label: tuple[int, str] | None) -> None:
        if len(images) > 1:
            plain = [image for image in images if image[0].rsplit("/", 1)[-1].count(".") == 1]
            if len(plain) == 1:
                images = plain  # 7.jpg beside 7.mask.png: the plain one is the picture
            elif label is not None or plain:
                raise DataError(
                    f"{where}: the sample {images[0][0]} has {len(images)} images, such as {images[1][0]}; keep one of "
                    "them, or give the others an extension in front, such as 7.mask.png"
                )
        for name, offset, length in images:
            offsets.append(offset)
            sizes.append(length)
            names.append(name)
            kinds.append(label[0] if label else _NONE)
            labels.append(label[1] if label else "")

    key: str | None = None
    images: list[tuple[str, int, int]] = []
    label: tuple[int, str] | None = None
    for raw, offset, length in _members(file, size, where):
        name = member_name(raw)
        if name is None:
            continue
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        if folder + slash + stem != key:
            finish(images, label)
            key, images, label = folder + slash + stem, [], None
        extension = extension.lower()
        if is_image_name(base):
            images.append((name, offset, length))
        elif extension in ("cls", "json") and length <= _LARGEST_TEXT:
            file.seek(offset)
            found = _label(extension, file.read(length), f"{where} {name}")
            label = found if found is not None else label
    finish(images, label)
    return ShardIndex(
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        names=PackedStrings.of(names),
        kinds=np.array(kinds, dtype=np.int8),
        labels=PackedStrings.of(labels),
    )


def _members(file: BinaryIO, size: int, where: str) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and length of each regular file in a tar."""
    place = 0
    long_name: str | None = None
    long_size: int | None = None
    while True:
        file.seek(place)
        header = file.read(_HEADER)
        if len(header) < _HEADER:
            raise DataError(f"{where}: truncated after {place} bytes, its end mark is missing; fetch or write it again")
        if header == _ZEROS:
            return
        try:
            total = sum(header) - sum(header[148:156]) + 8 * 32
            if total != _number(header[148:156]):
                raise ValueError
            length = _number(header[124:136])
        except ValueError:
            what = "damaged" if place else "not a tar file, or damaged"
            raise DataError(f"{where}: {what} (no member header at byte {place}); fetch or write it again") from None
        kind = header[156:157]
        data = place + _HEADER
        if kind in (b"0", b"\0", b"7") and long_size is not None:
            length = long_size
        if length < 0 or data + length > size:
            raise DataError(f"{where}: truncated inside the member at byte {place}; fetch or write it again")
        if kind in (b"L", b"x"):  # a name, or a pax record, for the member that follows
            file.seek(data)
            record = file.read(length)
            if kind == b"L":
                long_name = _text(record)
            else:
                values = _pax(record, where)
                long_name = values.get(b"path", b"").decode("utf-8", "surrogateescape") or long_name
                long_size = int(values[b"size"]) if values.get(b"size", b"").isdigit() else long_size
        elif kind not in (b"g", b"K"):
            if kind in (b"0", b"\0", b"7"):
                name = long_name
                if name is None:
                    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
                    name = f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])
                yield name, data, length
            long_name = long_size = None
        place = data + -(-length // _HEADER) * _HEADER


def _number(field: bytes) -> int:
    """A number in a header: octal digits, or base 256 where the first bit is set (GNU)."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax(record: bytes, where: str) -> dict[bytes, bytes]:
    """`length key=value` lines."""
    values = {}
    while record:
        length, space, _ = record.partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(record):
            raise DataError(f"{where}: damaged (a pax record cannot be read); fetch or write it again")
        key, _, value = record[len(length) + 1 : int(length)].partition(b"=")
        values[key] = value.removesuffix(b"\n")
        record = record[int(length) :]
    return values


def _label(extension: str, data: bytes, where: str) -> tuple[int, str] | None:
    """Kind and text of a label member; None if it tells none."""
    value: Any
    try:
        text = data.decode("utf-8").strip()
        if extension == "cls":
            value = int(text) if text.lstrip("-").isdecimal() else text
        else:
            fields = json.loads(text)
            found = [key for key in ("label", "class", "cls") if isinstance(fields, dict) and key in fields]
            if not found or fields[found[0]] is None:
                return None
            value = fields[found[0]]
    except ValueError as error:
        raise DataError(f"{where}: not readable as a label ({error}); correct or remove it") from error
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return _INTEGER, str(value)
    if isinstance(value, str) and value:
        return _TEXT, value
    raise DataError(f"{where}: the label {value!r} is neither an integer from 0 up nor a name; correct it")


def _listed_classes(files: RangeFiles) -> tuple[str, ...] | None:
    """The class names that lie beside the shards, if any."""
    readers: tuple[tuple[str, Callable[[bytes], Any]], ...] = (
        ("classes.txt", lambda data: [line.strip() for line in data.decode("utf-8").splitlines() if line.strip()]),
        ("dataset_info.json", lambda data: json.loads(data)["features"]["label"]["names"]),
    )
    for name, reader in readers:
        data = files.beside(name)
        if data is None:
            continue
        try:
            names = reader(data)
        except (ValueError, KeyError, TypeError):
            if name == "classes.txt":
                raise DataError(f"{name} beside {files.names[0]} is not UTF-8 text; write one name a line") from None
            continue
        if isinstance(names, list) and names:
            return tuple(str(value) for value in names)
    return None
