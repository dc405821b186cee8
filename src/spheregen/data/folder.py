"""A folder of image files; sub-folders are classes, `train` / `test` / `val` folders above them are splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from spheregen.data.captions import Captions, captions_beside
from spheregen.data.names import (
    HIDDEN,
    LABEL_TABLES,
    IgnoredFiles,
    is_hidden,
    is_image_name,
    pack,
    printable,
    read_tables,
    sift,
    sort_names,
    unpack,
)
from spheregen.data.source import FITS_IN_MEMORY, ImageSource, content_digest, digest, label_bytes
from spheregen.errors import DataError


class FolderSource(ImageSource):
    """Image files under a folder, sorted by their relative path, with the splits and classes of `sort_names`.

    Images directly in the folder are unlabelled; images in sub-folders (however deep) have the name of the first
    sub-folder as their class, unless a table beside them tells their classes (`read_tables`). Classes are numbered over
    all splits together, so that a split that lacks a class still agrees. Other files, hidden ones and what SphereGen
    wrote are ignored, and counted; symbolic links are followed.

    Raises:
        DataError: there are no images, loose images lie beside classes, or there is no such split.
    """

    def __init__(self, folder: Path, split: str = "train") -> None:
        ignored = IgnoredFiles()
        names = sorted(all_files(folder, ignored), key=lambda path: path.split("/"))
        found = [names[row] for row in sift(names, ignored)]
        if not found:
            seen = "".join(f"; {other}" for other in ignored.listed()[:3])
            raise DataError(
                f"no images in {folder} or below: looked for .png .jpg and all else that Pillow reads{seen}"
            )
        tables = {name: _read(folder, name) for name in names if name.rpartition("/")[2] in LABEL_TABLES}
        told = read_tables(tables, found, folder, ignored)
        chosen = sort_names(found, split, folder, told=told, ignored=ignored)
        files = [found[row] for row in chosen.rows.tolist()]
        self.name, self.split = printable(folder.resolve().name), chosen.split
        self.class_names, self.labels = chosen.class_names, chosen.labels
        self.ignored = ignored.listed()
        self._folder, self._files, self._names = folder, pack(files), pack(chosen.names)
        self._sizes = np.array([_size(folder / path) for path in files], dtype="<i8")
        self.encoded_bytes = int(self._sizes.clip(0).sum())

    @cached_property
    def fingerprint(self) -> str:
        pieces = 0 if self.encoded_bytes <= FITS_IN_MEMORY else 2
        with ThreadPoolExecutor(max_workers=8) as threads:
            found = threads.map(lambda i: content_digest(self._path(i), pieces), range(len(self)))
            contents = digest(*found)
        return digest(*self._identity(), contents.encode())

    @cached_property
    def earlier_fingerprint(self) -> str:
        return digest(*self._identity())

    def _identity(self) -> list[bytes]:
        names = [*self._names.to_pylist(), self._sizes.tobytes(), label_bytes(self.labels)]
        return [*names, *map(os.fsencode, self.class_names)]

    def __len__(self) -> int:
        return len(self._files)

    def read_bytes(self, index: int) -> bytes:
        path = self._path(index)
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - a Path for each image costs as much as reading it
                return file.read()
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{self.describe(index)}: cannot be read ({reason}); check the path") from error

    def describe(self, index: int) -> str:
        return printable(self._path(index))

    def captions(self, column: str | None = None) -> Captions | None:
        files, names = set(all_files(self._folder)), [os.fsdecode(name) for name in self._files.to_pylist()]
        return captions_beside(names, files, partial(_read, self._folder), self._folder, column)

    def _path(self, index: int) -> str:
        self.check_index(index)
        return str(self._folder / unpack(self._files, index))


def all_files(folder: Path, ignored: IgnoredFiles | None = None) -> Iterator[str]:
    """Yield the relative paths, with "/", of all files under a folder, in no particular order; those in folders of
    systems and hidden folders are left out."""
    pending = [(folder, "", frozenset({folder.resolve()}))]
    while pending:
        current, prefix, above = pending.pop()
        try:
            with os.scandir(current) as listing:
                entries = list(listing)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"the folder {current} cannot be read ({reason}); check its permissions") from error
        for entry in entries:
            if is_hidden(entry.name):
                if (
                    ignored is not None
                    and not entry.name.startswith("._")
                    and (entry.is_dir() or is_image_name(entry.name))
                ):
                    ignored.add(HIDDEN, prefix + entry.name)
            elif entry.is_dir():
                inner = current / entry.name
                real = inner.resolve()
                if real not in above:  # a link to a folder above would never end
                    pending.append((inner, f"{prefix}{entry.name}/", above | {real}))
            elif entry.is_file() or entry.is_symlink():
                yield prefix + entry.name  # a dangling link counts: reading it fails, by name


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise DataError(f"{folder / name}: cannot be read ({error.strerror or error}); check the path") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # vanished or a dangling link; reading it says so
