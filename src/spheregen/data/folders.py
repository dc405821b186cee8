"""A folder of image files; sub-folders are classes, `train` / `test` / `val` folders above them are splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spheregen.data.names import SUFFIXES, PackedStrings, is_image_name, sort_names
from spheregen.data.sources import ImageSource, digest
from spheregen.errors import DataError


class FolderSource(ImageSource):
    """Image files under a folder, sorted by their relative path.

    - Images directly in the folder are unlabelled; images in sub-folders (however deep) have the name of the first
      sub-folder as their class, and classes are numbered in sorted order.
    - If all sub-folders are called train, test, val or validation, or train and one of the others are there, they are
      splits. Classes are then numbered over all splits together, so that a split that lacks a class still agrees.
    - Hidden files and folders and files without a known image suffix are ignored; symbolic links are followed.

    Raises:
        DataError: there are no images, loose images lie beside classes, or there is no such split.
    """

    def __init__(self, folder: Path, split: str = "train") -> None:
        found = sorted(_scan(folder), key=lambda path: path.split("/"))
        if not found:
            raise DataError(
                f"no images in {folder}: looked for files that end in {' '.join(SUFFIXES)}, also in sub-folders"
            )
        chosen = sort_names(found, split, folder)
        files = [found[row] for row in chosen.rows.tolist()]
        self.name = folder.resolve().name
        self.split = chosen.split
        self.class_names = chosen.class_names
        self.labels = chosen.labels
        self._folder = folder
        self._files = PackedStrings.of(files)
        sizes = np.array([_size(folder / path) for path in files], dtype="<i8")
        self.encoded_bytes = int(sizes.clip(0).sum())
        self.fingerprint = digest(
            *(os.fsencode(name) for name in chosen.names),
            sizes.tobytes(),
            b"" if self.labels is None else self.labels.numpy().astype("<i8").tobytes(),
            *(os.fsencode(name) for name in self.class_names),
        )

    def __len__(self) -> int:
        return len(self._files)

    def read_bytes(self, index: int) -> bytes:
        path = self.describe(index)
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - a Path for each picture costs as much as reading it
                return file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error

    def describe(self, index: int) -> str:
        return str(self._folder / self._files[index])


def _scan(folder: Path) -> Iterator[str]:
    """Relative paths, with "/", of all image files under `folder`, in no particular order."""
    pending = [(folder, "", frozenset({folder.resolve()}))]
    while pending:
        current, prefix, above = pending.pop()
        try:
            with os.scandir(current) as listing:
                entries = list(listing)
        except OSError as error:
            raise DataError(
                f"the folder {current} cannot be read ({error.strerror or error}); check its permissions"
            ) from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
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
