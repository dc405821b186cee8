"""Files that are read piece by piece: the same face for files on this machine and elsewhere."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from spheregen.errors import DataError


class RangeFiles(ABC):
    """A numbered list of files, read by ranges of bytes. Nothing stays open, so processes and threads may share one."""

    names: Sequence[str]  # paths or URLs, for people
    remote: bool  # elsewhere: requests are slow, long ones pay

    def __len__(self) -> int:
        return len(self.names)

    def base_name(self, file: int) -> str:
        """The last part of the name: what the file is called wherever it lies."""
        return self.names[file].replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]

    @abstractmethod
    def size(self, file: int) -> int:
        """Length in bytes."""

    @abstractmethod
    def read(self, file: int, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on.

        Raises:
            DataError: the file is gone, shorter than that, or cannot be read.
        """

    @abstractmethod
    def open(self, file: int) -> BinaryIO:
        """The file as an object that can seek, buffered for steps through it."""

    @abstractmethod
    def only(self, chosen: Sequence[int]) -> RangeFiles:
        """Some of the files."""

    def beside(self, name: str) -> bytes | None:
        """The contents of a small file in the folder of the first file; None if there is none."""
        return None


class LocalFiles(RangeFiles):
    """Files on this machine."""

    remote = False

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.names = [str(path) for path in paths]

    def size(self, file: int) -> int:
        try:
            return self.paths[file].stat().st_size
        except OSError as error:
            raise _unreadable(self.names[file], error) from error

    def read(self, file: int, offset: int, length: int) -> bytes:
        try:
            with self.paths[file].open("rb", buffering=0) as handle:
                handle.seek(offset)
                data = handle.read(length)
                while data and len(data) < length and (more := handle.read(length - len(data))):
                    data += more  # the system may give less than was asked for
        except OSError as error:
            raise _unreadable(self.names[file], error) from error
        if len(data) != length:
            raise DataError(f"{self.names[file]}: shorter than it was; fetch or write it again")
        return data

    def open(self, file: int) -> BinaryIO:
        try:
            return self.paths[file].open("rb", buffering=1 << 15)
        except OSError as error:
            raise _unreadable(self.names[file], error) from error

    def only(self, chosen: Sequence[int]) -> LocalFiles:
        return LocalFiles([self.paths[file] for file in chosen])

    def beside(self, name: str) -> bytes | None:
        path = self.paths[0].parent / name
        try:
            return path.read_bytes() if path.is_file() else None
        except OSError as error:
            raise _unreadable(str(path), error) from error


class RangeReader(io.RawIOBase):
    """One of several files as a raw file object; give it a buffer where small steps are taken."""

    def __init__(self, files: RangeFiles, file: int) -> None:
        super().__init__()
        self._files = files
        self._file = file
        self._size = files.size(file)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        length = max(0, min(len(buffer), self._size - self._place))
        if length:
            buffer[:length] = self._files.read(self._file, self._place, length)
            self._place += length
        return length


def _unreadable(name: str, error: OSError) -> DataError:
    return DataError(f"{name}: cannot be read ({error.strerror or error}); check path and permissions")
