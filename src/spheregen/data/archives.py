"""Archives of images, read in place: zip files, and WebDataset shards (tar).

The directories of zipfile and tarfile say where each image is; it is then read by offset, so that nothing is unpacked
to disk, any image can be had at once, and nothing stays open that processes would have to share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import posixpath
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch

from spheregen.data.captions import CAPTION_FILES, Captions, captions_beside
from spheregen.data.files import Files
from spheregen.data.names import (
    LABEL_NAMES,
    LABEL_TABLES,
    Ignored,
    IgnoredFiles,
    choose_files,
    is_hidden,
    member_name,
    number_labels,
    pack,
    printable,
    read_tables,
    sift,
    sort_classes,
    sort_names,
    split_names,
    split_of,
    unpack,
    without_common_folder,
)
from spheregen.data.source import Blocks, BlockSource, ImageSource, digest, label_bytes
from spheregen.errors import DataError, SphereGenError
from spheregen.files import atomic_path, cache_folder, parse_json

_LARGEST = 256 << 20  # bytes of one image in a zip; more is a mistake or an attack
_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field (APPNOTE.TXT, 4.3.7)

_BLOCK_BYTES = 4 << 20  # of a tar; a window of the training order mixes about sixteen of these
_SCAN_BYTES = 4 << 20  # of one request, while a shard is read through over a network
_LARGEST_TEXT = 1 << 20  # bytes of a label member
_NONE, _INTEGER, _TEXT = 0, 1, 2  # kinds of label
_ABSENT = -1  # the offset of a label whose image is not in its shard
_INDEX_VERSION = 3

_Label = tuple[int, str]  # kind and text


class ZipSource(ImageSource):
    """Images in a zip, sorted by name, with the splits and classes of a folder that has the same names.

    Where all of them lie two or more folders deep under one folder, that folder is left out: it is the one that was
    packed. `files` is exactly one.
    """

    def __init__(self, files: Files, split: str = "train") -> None:
        where, self._files = files.names[0], files
        self.central = self.remote = files.remote
        self.name = PurePosixPath(files.base_name(0)).stem
        try:
            with files.open(0) as file, zipfile.ZipFile(file) as archive:
                found = [(member_name(member.filename), member) for member in archive.infolist() if not member.is_dir()]
                names, ignored = [name for name, _ in found], IgnoredFiles()
                members = [found[row] for row in sift(names, ignored)]
                tables = {
                    name: archive.read(member)
                    for name, member in found
                    if posixpath.basename(name) in LABEL_TABLES and member.file_size <= _LARGEST
                }
        except (
            zipfile.BadZipFile,
            OSError,
            EOFError,
            ValueError,
            NotImplementedError,
            RuntimeError,
            zlib.error,
        ) as error:
            raise DataError(f"{where}: not a readable zip ({error}); fetch or write it again") from error
        if not members:
            seen = "".join(f"; {other}" for other in ignored.listed()[:3])
            raise DataError(f"no images in {where}: looked for .png .jpg and all else that Pillow reads{seen}")
        members.sort(key=lambda pair: pair[0].split("/"))
        for name, member in members:
            if member.flag_bits & _ENCRYPTED:
                raise DataError(f"{where}: {name} is encrypted; pack the images again without a password")
        names = [name for name, _ in members]
        told = read_tables(tables, names, where, ignored)
        plain = without_common_folder(names)
        if told is not None:
            told = {short: told[name] for short, name in zip(plain, names, strict=True)}
        chosen = sort_names(plain, split, where, told=told, ignored=ignored)
        self.ignored = ignored.listed()
        members = [members[row] for row in chosen.rows.tolist()]
        self.split, self.class_names, self.labels = chosen.split, chosen.class_names, chosen.labels
        self._names = pack(name for name, _ in members)
        columns = [(m.header_offset, m.file_size, m.compress_size, m.compress_type, m.CRC) for _, m in members]
        self._table = np.array(columns, dtype=np.int64).reshape(-1, 5)  # one row for each image
        sizes, sums = self._table[:, 1], self._table[:, 4]
        self.encoded_bytes = int(sizes.sum())
        self._identity = [*map(os.fsencode, chosen.names), sizes.astype("<i8").tobytes(), sums.astype("<u4").tobytes()]

    @cached_property
    def fingerprint(self) -> str:  # with the checksums of the zip
        return digest(*self._identity, label_bytes(self.labels), *map(os.fsencode, self.class_names))

    @cached_property
    def earlier_fingerprint(self) -> str:
        return self.fingerprint

    def __len__(self) -> int:
        return len(self._names)

    def describe(self, index: int) -> str:
        return f"{self._files.names[0]} {printable(unpack(self._names, index))}"

    def captions(self, column: str | None = None) -> Captions | None:
        names = [os.fsdecode(name) for name in self._names.to_pylist()]
        with self._files.open(0) as file, zipfile.ZipFile(file) as archive:
            members = {member_name(member.filename): member for member in archive.infolist() if not member.is_dir()}

            def read(name: str) -> bytes:
                if members[name].file_size > _LARGEST:
                    raise DataError(f"{self._files.names[0]}: {printable(name)} is larger than {_LARGEST} bytes")
                return archive.read(members[name])

            return captions_beside(names, members, read, self._files.names[0], column)

    def read_bytes(self, index: int) -> bytes:
        self.check_index(index)
        start, size, packed, method, checksum = self._table[index].tolist()
        if max(size, packed) > _LARGEST or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = f"{size} bytes packed by method {method}, beyond the limit of {_LARGEST}, stored or deflated"
            raise DataError(f"{self.describe(index)}: {problem}; pack it again")
        try:
            signature, *lengths = _LOCAL_HEADER.unpack(self._files.read(0, start, _LOCAL_HEADER.size))
            data = self._files.read(0, start + _LOCAL_HEADER.size + sum(lengths), packed)
            if method == zipfile.ZIP_DEFLATED:  # not more than was declared, whatever comes out of it
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            if signature != b"PK\x03\x04" or len(data) != size or zlib.crc32(data) != checksum:
                raise zlib.error("header, length or checksum is wrong")
        except zlib.error as error:
            raise DataError(f"{self.describe(index)}: corrupt in the zip ({error}); pack it again") from error
        return data


class TarSource(BlockSource):
    """The images of WebDataset shards, in the order in which they are stored.

    - Members with the same name up to the first dot of the last part are one sample: one image, perhaps a label,
      anything else is ignored. Hard and symbolic links to images are images.
    - The label is a `.cls` file (an integer or a name) or a `.json` file with "label", "class" ... Integers count
      the classes from 0: they are named by `classes.txt` (one name a line) or `dataset_info.json` beside the shards if
      there is one, else "0", "1" ... up to the largest. Other labels are sorted, over all splits on this machine.
    - Without label members the first folder in the names is the class, as in a folder of images.
    - Splits are told by the file names (train-000000.tar), or by the folders inside if there are no label members.
    """

    def __init__(self, name: str, files: Files, split: str = "train", *, chosen: bool = False) -> None:
        super().__init__()
        import pyarrow as pa

        base_names = [files.base_name(file) for file in range(len(files))]
        where = files.names[0] if len(files) == 1 else name
        by_files = any(split_of(base, numbered=False) for base in base_names)
        self.split, places = split, list(range(len(files)))
        if by_files:
            self.split, places = choose_files(base_names, split, where, chosen=chosen, numbered=False)
        self.name = name
        self.central = self.remote = files.remote
        self._files = files.only(places)
        shards = [_shard_index(files, file) for file in places]
        ignored = IgnoredFiles()
        for shard in shards:
            ignored.add_all(Ignored(**one) for one in parse_json(shard.schema.metadata[b"ignored"]))
        index, self._shards = (
            pa.concat_tables(shards).combine_chunks(),
            np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard) for shard in shards]),
        )
        index, images = _join_labels(index, where, ignored)
        self._shards = self._shards[images]
        counts = np.bincount(self._shards, minlength=len(shards)).tolist()
        if not len(index):
            raise DataError(f"no images in {', '.join(self._files.names[:3])}; a shard holds members like 000001.jpg")
        names = [os.fsdecode(name) for name in index["name"].to_pylist()]
        plain = without_common_folder(names)
        if (index["kind"].to_numpy() != _NONE).any():
            others = [] if files.remote else sorted({*range(len(files))} - {*places})
            self.class_names, self.labels = self._read_labels(index, [_shard_index(files, file) for file in others])
            if not by_files:
                parts = split_names(plain, split, where, ignored)
                self.split = parts.split
                index, self._shards, self.labels = (
                    index.take(pa.array(parts.rows)), self._shards[parts.rows], self.labels[parts.rows]
                )  # fmt: skip
        else:
            chosen_names = sort_names(plain, "all" if by_files else split, where, ignored=ignored)
            self.class_names, self.labels = chosen_names.class_names, chosen_names.labels
            self.split = self.split if by_files else chosen_names.split
            index, self._shards = index.take(chosen_names.rows), self._shards[chosen_names.rows]
        self.ignored = ignored.listed()
        self._names = index["name"].combine_chunks()
        self._offsets, self._sizes = index["offset"].to_numpy(), index["size"].to_numpy()
        self.encoded_bytes = int(self._sizes.sum())
        cells = self._offsets // _BLOCK_BYTES
        new = (np.diff(cells, prepend=-1) != 0) | (np.diff(self._shards, prepend=-1) != 0)
        starts = np.flatnonzero(new).astype(np.int64)
        self._blocks = Blocks(starts=starts, sizes=np.add.reduceat(self._sizes, starts))
        kept = self._names.to_pylist()
        content = hashlib.sha256(b"".join(kept))
        content.update(np.cumsum([0, *map(len, kept)]).astype("<i8").tobytes())
        identity = [f"{self._files.base_name(f)}\0{counts[f]}".encode() for f in range(len(shards))]
        self._identity = [*identity, content.digest(), self._sizes.astype("<i8").tobytes()]

    def __len__(self) -> int:
        return len(self._offsets)

    def describe(self, index: int) -> str:
        return f"{self._files.names[int(self._shards[index])]} {printable(unpack(self._names, index))}"

    def captions(self, column: str | None = None) -> Captions | None:
        found: list[tuple[str, ...]] = [()] * len(self)
        for shard, where in enumerate(self._files.names):
            rows = np.flatnonzero(self._shards == shard).tolist()
            with (
                self._files.open(shard, _SCAN_BYTES) as file,
                tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive,
            ):
                places = {
                    member_name(member.name): (member.offset_data, member.size)
                    for member in archive
                    if member.isreg() and member.name.lower().endswith(CAPTION_FILES)
                }

            def read(name: str, shard: int = shard, places: dict[str, tuple[int, int]] = places) -> bytes:
                return self._files.read(shard, *places[name])

            names = [unpack(self._names, row) for row in rows]
            part = captions_beside(names, places, read, where, column, stem=lambda name: _sample_of(name)[0])
            for row, texts in zip(rows, part or (), strict=part is not None):
                found[row] = texts
        return Captions(found) if any(found) else None

    def read_bytes(self, index: int) -> bytes:
        if self.central:
            return super().read_bytes(index)
        self.check_index(index)
        return self._files.read(int(self._shards[index]), int(self._offsets[index]), int(self._sizes[index]))

    def blocks(self) -> Blocks:
        return self._blocks

    def read_block(self, block: int) -> Sequence[bytes]:
        first = int(self._blocks.starts[block])
        last = int(self._blocks.starts[block + 1]) if block + 1 < len(self._blocks.starts) else len(self)
        starts, sizes = self._offsets[first:last], self._sizes[first:last]
        begin, end = int(starts.min()), int((starts + sizes).max())
        data = self._files.read(int(self._shards[first]), begin, end - begin)
        return [data[start : start + size] for start, size in zip(starts - begin, sizes, strict=True)]

    def _read_labels(self, index: Any, others: Sequence[Any]) -> tuple[tuple[str, ...], torch.Tensor]:
        """Return class names, and labels (N,); `others` are the indices of other splits."""
        kinds, texts = index["kind"].to_pylist(), index["label"].to_pylist()
        found = set(kinds)
        if len(found) > 1:
            row = kinds.index(_NONE if _NONE in found else _TEXT)
            problem = "a name for its label" if kinds[row] else "no label"
            raise DataError(f"{self._sample(index, row)} has {problem}, unlike others; label all alike, or none")
        same = [other["label"].to_pylist() for other in others if {*other["kind"].to_pylist()} - {_NONE} == found]
        values, classes = {*texts, *itertools.chain(*same)}, _listed_classes(self._files)
        if found == {_INTEGER}:
            classes = classes or tuple(map(str, range(max(map(int, values)) + 1)))
        classes = classes or sort_classes(values - {""})
        labels, wrong = number_labels(texts, [*map(str, range(len(classes)))] if found == {_INTEGER} else classes)
        if wrong is not None:
            sample, label = self._sample(index, wrong), texts[wrong]
            raise DataError(f"{sample} has the label {label!r}, not one of the {len(classes)} classes; correct it")
        return classes, labels

    def _sample(self, index: Any, row: int) -> str:
        return f"{self._files.names[int(self._shards[row])]}: {printable(unpack(index['name'], row))}"


def _shard_index(files: Files, file: int) -> Any:
    """Return the images of a tar as an arrow table; that of a remote shard, which must be read for it, is kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def scan() -> Any:
        with files.open(file, _SCAN_BYTES) as opened:
            return _scan_shard(opened, files.size(file), files.names[file])

    if not files.remote:
        return scan()
    key = hashlib.sha256(f"{_INDEX_VERSION}\0{files.stamp(file)}".encode()).hexdigest()
    path = cache_folder() / "shards" / f"{key}.parquet"
    with contextlib.suppress(OSError, pa.ArrowException):  # not there, or damaged: it is made again
        return pq.read_table(path)
    index = files.retried(scan, file)
    with contextlib.suppress(SphereGenError), atomic_path(path, durable=False) as temporary:
        pq.write_table(index, temporary)  # where there is no place to keep it the next start reads the shard again
    return index


def _scan_shard(file: BinaryIO, size: int, where: str) -> Any:
    """Find the images and labels of a tar file of `size` bytes."""
    import pyarrow as pa

    told: dict[str, _Label] = {}  # kind and text of a sample's label
    places: dict[str, tuple[int, int]] = {}  # first byte and length of each file, as they are stored
    links: dict[str, str] = {}  # what they are links to
    ignored = IgnoredFiles()

    def read_label(name: str) -> None:
        start, length = places[name]
        key, extension = _sample_of(name)
        if extension in ("cls", "json") and length <= _LARGEST_TEXT and not any(map(is_hidden, name.split("/"))):
            file.seek(start)
            if label := _label(extension, file.read(length), f"{where} {name}"):
                told[key] = label
                labels.add(name)

    labels: set[str] = set()  # names of members with labels
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                name = member_name(member.name)
                if member.isreg() and member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends inside {member.name}")
                if not name or not (member.isreg() or member.islnk() or member.issym()):
                    continue
                links.pop(name, None)  # a later member of the same name replaces the earlier one
                places[name] = (member.offset_data, member.size)
                if member.isreg():
                    read_label(name)
                else:
                    folder = "" if member.islnk() else name.rpartition("/")[0]
                    links[name] = member_name(posixpath.normpath(posixpath.join(folder, member.linkname)))
            end = archive.offset
            for name, target in links.items():
                for _ in range(len(links)):  # a link may lead to a link, or in a circle
                    if target not in links:
                        break
                    target = links[target]
                places[name] = (0, 0) if target in links else places.get(target, (0, 0))  # to nothing: empty
                read_label(name)
            file.seek(end)  # tarfile stops in silence where a header cannot be read
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no header and no end mark at byte {end}")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{where}: no tar file, truncated or damaged ({error}); fetch or write it again") from error
    names = [name for name in places if name not in labels]
    samples: dict[str, list[str]] = {}  # names of the images of members that belong together
    for row in sift(names, ignored, tables=False):
        samples.setdefault(_sample_of(names[row])[0], []).append(names[row])
    found: dict[str, _Label] = {}
    for key, images in samples.items():
        chosen = _images_of(images, where, labelled=key in told)
        found |= dict.fromkeys(chosen, told.get(key, (_NONE, "")))
        for name in images[:0] if len(chosen) == len(images) else images:
            if name not in chosen:
                ignored.add("second image of a sample", name)
    rows = [(os.fsencode(name), *place, *found[name]) for name, place in places.items() if name in found]
    rows += [(os.fsencode(key), _ABSENT, 0, *label) for key, label in told.items() if key not in samples]
    schema = pa.schema(
        [("name", pa.large_binary()), ("offset", pa.int64()), ("size", pa.int64()), ("kind", pa.int8()),
         ("label", pa.large_string())],
        {"ignored": json.dumps([dataclasses.asdict(one) for one in ignored.listed()])},
    )  # fmt: skip
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[]] * 5, schema=schema)


def _sample_of(name: str) -> tuple[str, str]:
    """Return the name that the members of a sample share, and the rest in small letters."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _join_labels(index: Any, where: str, ignored: IgnoredFiles) -> tuple[Any, Any]:
    """Give labels that lie in shards of their own to their images; return the images, and their rows in `index`."""
    import pyarrow as pa

    absent = index["offset"].to_numpy() == _ABSENT
    if not absent.any():
        return index, np.arange(len(index))
    images = np.flatnonzero(~absent)
    labels = index.take(np.flatnonzero(absent)).to_pylist()
    loose = {os.fsdecode(row["name"]): (row["kind"], row["label"]) for row in labels}
    index = index.take(images)
    keys = [_sample_of(os.fsdecode(name))[0] for name in index["name"].to_pylist()]
    if len(loose) < len(labels) or len({*keys} & {*loose}) < sum(key in loose for key in keys):
        twice = next(iter({*keys} & {*loose}), next(iter(loose)))
        raise DataError(f"{where}: labels lie apart from images, and several are called {twice}; put them side by side")
    given = [(kind, label) if kind else loose.pop(key, (_NONE, "")) for key, kind, label in zip(
        keys, index["kind"].to_pylist(), index["label"].to_pylist(), strict=True
    )]  # fmt: skip
    for key in loose:
        ignored.add("label without an image", key)
    for column, values, kind in (
        (3, [kind for kind, _ in given], pa.int8()),
        (4, [label for _, label in given], pa.large_string()),
    ):
        index = index.set_column(column, index.schema.field(column).name, pa.array(values, kind))
    return index.combine_chunks(), images


def _images_of(images: list[str], where: str, *, labelled: bool) -> list[str]:
    """Return the image of a sample; several where nothing but names that hold dots makes them one sample."""
    plain = [name for name in images if name.rsplit("/", 1)[-1].count(".") == 1]
    if len(images) < 2 or (not plain and not labelled):
        return images
    if len(plain) == 1:
        return plain  # 7.jpg beside 7.mask.png: the plain one is the image
    raise DataError(f"{where}: the sample {images[0]} has {len(images)} images; name all but one like 7.mask.png")


def _label(extension: str, data: bytes, where: str) -> _Label | None:
    """Return kind and text of a label member; None if it tells none."""
    value: Any
    try:
        text = data.decode("utf-8").strip()
        if extension == "cls":
            value = int(text) if text.lstrip("-").isdecimal() else text
        else:
            fields = parse_json(text)
            there = {str(key).lower(): value for key, value in fields.items()} if isinstance(fields, dict) else {}
            value = next((there[key] for key in (*LABEL_NAMES, "cls") if there.get(key) is not None), None)
            if value is None:
                return None
    except ValueError:
        value = data[:100]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return _INTEGER, str(value)
    if isinstance(value, str) and value:
        return _TEXT, unicodedata.normalize("NFC", value)
    raise DataError(f"{where}: the label {value!r} is neither an integer from 0 up nor a name; correct or remove it")


def _listed_classes(files: Files) -> tuple[str, ...] | None:
    """Return the class names that lie beside the shards, if any."""
    try:
        lines = (files.beside("classes.txt") or b"").decode("utf-8").splitlines()
    except ValueError:
        raise DataError(f"classes.txt beside {files.names[0]} is not UTF-8 text; write one name a line") from None
    if names := tuple(unicodedata.normalize("NFC", line.strip()) for line in lines if line.strip()):
        return names
    try:
        listed = parse_json(files.beside("dataset_info.json") or b"{}")["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, listed)) if isinstance(listed, list) and listed else None
