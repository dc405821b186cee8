"""A folder of image files; sub-folders are classes, `train` / `test` / `val` folders above them are splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spheregen.data.images import read_image
from spheregen.data.sources import ImageSource, choose_split, digest, require_unsplit
from spheregen.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = frozenset({"train", "test", "val", "validation"})


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
        tops = {path.split("/", 1)[0] for path in found if "/" in path}
        loose = any("/" not in path for path in found)
        divided = not loose and (tops <= SPLITS or ("train" in tops and len(tops & SPLITS) > 1))
        if divided:
            chosen = split if split == "all" else choose_split(split, sorted(tops & SPLITS), folder)
            wanted = tops & SPLITS if chosen == "all" else {chosen}
            classes = _classes(path.split("/", 1)[1] for path in found if path.split("/", 1)[0] in SPLITS)
            found = [path for path in found if path.split("/", 1)[0] in wanted]
            names = [path.split("/", 1)[1] for path in found]
        else:
            require_unsplit(split, folder)
            chosen, classes, names = split, _classes(found), found
        unlabelled = sum("/" not in name for name in names)
        if 0 < unlabelled < len(names):
            first = next(path for path, name in zip(found, names, strict=True) if "/" not in name)
            raise DataError(
                f"{folder} holds both classes (sub-folders) and {unlabelled} images outside of them, such as {first}; "
                "move these into a sub-folder or away"
            )
        self.name = folder.resolve().name
        self.split = chosen
        self.class_names = () if unlabelled else classes
        self.labels = None
        if not unlabelled:
            numbers = {name: number for number, name in enumerate(classes)}
            self.labels = torch.tensor([numbers[name.split("/", 1)[0]] for name in names], dtype=torch.int64)
        self._folder = folder
        self._files = found
        sizes = np.array([_size(folder / path) for path in found], dtype="<i8")
        self.fingerprint = digest(
            *(os.fsencode(path if chosen == "all" else name) for path, name in zip(found, names, strict=True)),
            sizes.tobytes(),
            b"" if self.labels is None else self.labels.numpy().astype("<i8").tobytes(),
            *(os.fsencode(name) for name in self.class_names),
        )

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Image.Image:
        return read_image(self._folder / self._files[index])

    def describe(self, index: int) -> str:
        return str(self._folder / self._files[index])


def _classes(names: Iterator[str] | list[str]) -> tuple[str, ...]:
    return tuple(sorted({name.split("/", 1)[0] for name in names if "/" in name}))


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
            elif Path(entry.name).suffix.lower() in SUFFIXES and (entry.is_file() or entry.is_symlink()):
                yield prefix + entry.name  # a dangling link counts: reading it fails, by name


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # vanished or a dangling link; reading it says so
