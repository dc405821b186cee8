"""A folder of image files; sub-folders are classes, `train` / `test` / `val` folders above them are splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spheregen.data.names import SUFFIXES, is_hidden, is_image_name, pack, sort_names, unpack
from spheregen.data.source import ImageSource, digest, label_bytes
from spheregen.errors import DataError


class FolderSource(ImageSource):
    """Image files under a folder, sorted by their relative path, with the splits and classes of `sort_names`.

    Images directly in the folder are unlabelled; images in sub-folders (however deep) have the name of the first
    sub-folder as their class. Classes are numbered over all splits together, so that a split that lacks a class still
    agrees. Hidden files and folders and files without a known image suffix are ignored; symbolic links are followed.

    Raises:
        DataError: there are no images, loose images lie beside classes, or there is no such split.
    """

    def __init__(self, folder: Path, split: str = "train") -> None:
        found = sorted(image_files(folder), key=lambda path: path.split("/"))
        if not found:
            raise DataError(f"no images in {folder} or below: looked for files that end in {' '.join(SUFFIXES)}")
        chosen = sort_names(found, split, folder)
        files = [found[row] for row in chosen.rows.tolist()]
        self.name, self.split = folder.resolve().name, chosen.split
        self.class_names, self.labels = chosen.class_names, chosen.labels
        self._folder, self._files = folder, pack(files)
        sizes = np.array([_size(folder / path) for path in files], dtype="<i8")
        self.encoded_bytes = int(sizes.clip(0).sum())
        names = [*map(os.fsencode, chosen.names), sizes.tobytes(), label_bytes(self.labels)]
        self.fingerprint = digest(*names, *map(os.fsencode, self.class_names))

    def __len__(self) -> int:
        return len(self._files)

    def read_bytes(self, index: int) -> bytes:
        path = self.describe(index)
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - a Path for each image costs as much as reading it
                return file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error

    def describe(self, index: int) -> str:
        self.check_index(index)
        return str(self._folder / unpack(self._files, index))


def image_files(folder: Path) -> Iterator[str]:
    """Yield the relative paths, with "/", of all image files under a folder, in no particular order."""
    pending = [(folder, "", frozenset({folder.resolve()}))]
    while pending:
        current, prefix, above = pending.pop()
        try:
            with os.scandir(current) as listing:
                entries = [entry for entry in listing if not is_hidden(entry.name)]
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"the folder {current} cannot be read ({reason}); check its permissions") from error
        for entry in entries:
            if entry.is_dir():
                inner = current / entry.name
                real = inner.resolve()
                if real not in above:  # a link to a folder above would never end
                    pending.append((inner, f"{prefix}{entry.name}/", above | {real}))
            elif is_image_name(entry.name) and (entry.is_file() or entry.is_symlink()):
                yield prefix + entry.name  # a dangling link counts: reading it fails, by name


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # vanished or a dangling link; reading it says so
