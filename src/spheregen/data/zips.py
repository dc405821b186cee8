"""A zip of pictures, read in place: the archive's directory says where each one is, and nothing is unpacked to disk."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import PurePosixPath

import numpy as np

from spheregen.data.names import SUFFIXES, PackedStrings, is_image_name, member_name, sort_names, without_common_folder
from spheregen.data.ranges import RangeFiles
from spheregen.data.sources import ImageSource, digest
from spheregen.errors import DataError

_LARGEST = 256 << 20  # bytes of one picture; more is a mistake or an attack
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_ENCRYPTED = 0x1
_LOCAL_HEADER = 30  # bytes before name and extra field
_EXTRA_GUESS = 64  # usual length of an extra field, so that one read suffices


class ZipSource(ImageSource):
    """Pictures in a zip, sorted by name, with the splits and classes of a folder that has the same names.

    Where all of them lie two or more folders deep under one folder, that folder is left out: it is the one that was
    packed.

    Args:
        files: exactly one file.

    Raises:
        DataError: it is no zip or truncated, it is encrypted, there are no images or no such split.
    """

    def __init__(self, files: RangeFiles, split: str = "train") -> None:
        where = files.names[0]
        self._files = files
        self._where = where
        self.central = self.remote = files.remote
        self.name = PurePosixPath(files.base_name(0)).stem
        try:
            with files.open(0) as file, zipfile.ZipFile(file) as archive:
                members = [
                    (name, member)
                    for member in archive.infolist()
                    if not member.is_dir() and (name := member_name(member.filename)) and is_image_name(name)
                ]
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
            raise DataError(f"{where}: not a readable zip ({error}); fetch or write it again") from error
        if not members:
            raise DataError(f"no images in {where}: looked for files that end in {' '.join(SUFFIXES)}")
        members.sort(key=lambda pair: pair[0].split("/"))
        for name, member in members:
            if member.flag_bits & _ENCRYPTED:
                raise DataError(f"{where}: {name} is encrypted; pack the images again without a password")
        chosen = sort_names(without_common_folder([name for name, _ in members]), split, where)
        members = [members[row] for row in chosen.rows.tolist()]
        self.split = chosen.split
        self.class_names = chosen.class_names
        self.labels = chosen.labels
        self._names = PackedStrings.of(name for name, _ in members)
        self._headers = np.array([member.header_offset for _, member in members], dtype=np.int64)
        self._packed = np.array([member.compress_size for _, member in members], dtype=np.int64)
        self._sizes = np.array([member.file_size for _, member in members], dtype=np.int64)
        self._methods = np.array([member.compress_type for _, member in members], dtype=np.int16)
        self._sums = np.array([member.CRC for _, member in members], dtype=np.uint32)
        self._end = files.size(0)
        self.encoded_bytes = int(self._sizes.sum())
        self.fingerprint = digest(
            *(os.fsencode(name) for name in chosen.names),
            self._sizes.astype("<i8").tobytes(),
            self._sums.astype("<u4").tobytes(),
            b"" if self.labels is None else self.labels.numpy().astype("<i8").tobytes(),
            *(os.fsencode(name) for name in self.class_names),
        )

    def __len__(self) -> int:
        return len(self._names)

    def describe(self, index: int) -> str:
        return f"{self._where} {self._names[index]}"

    def read_bytes(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        size, packed, method = (int(array[index]) for array in (self._sizes, self._packed, self._methods))
        if max(size, packed) > _LARGEST:
            raise DataError(
                f"{self.describe(index)}: the image would take {size >> 20} MiB, more than the limit of "
                f"{_LARGEST >> 20} MiB for one; remove it, or in training skip it with data.on_error=skip"
            )
        if method not in (_STORED, _DEFLATED):
            raise DataError(
                f"{self.describe(index)}: packed by method {method}, which is not supported; pack the images again "
                "with the usual method (deflate) or without compression"
            )
        data = self._member(index, packed)
        try:
            if method == _DEFLATED:
                unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
                data = unpacker.decompress(data, size + 1)  # not more than was declared, whatever comes out of it
        except zlib.error as error:
            raise self._corrupt(index, str(error)) from error
        if len(data) != size or zlib.crc32(data) != int(self._sums[index]):
            raise self._corrupt(index, "length or checksum is wrong")
        return data

    def _member(self, index: int, packed: int) -> bytes:
        """The bytes of a member as they are in the archive."""
        start = int(self._headers[index])
        length = min(_LOCAL_HEADER + len(self._names[index].encode()) + _EXTRA_GUESS + packed, self._end - start)
        data = self._files.read(0, start, length) if length >= _LOCAL_HEADER else b""
        if data[:4] != b"PK\x03\x04":
            raise self._corrupt(index, "there is no member where the directory says")
        first = _LOCAL_HEADER + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
        if start + first + packed > self._end:
            raise self._corrupt(index, "truncated")
        missing = first + packed - len(data)
        if missing > 0:
            data += self._files.read(0, start + len(data), missing)
        return data[first : first + packed]

    def _corrupt(self, index: int, cause: str) -> DataError:
        return DataError(
            f"{self.describe(index)}: corrupt in the zip ({cause}); pack it again, or in training skip it with "
            "data.on_error=skip"
        )
