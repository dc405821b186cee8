"""Where pictures come from: the common face of all sources, and the one door that opens them."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from spheregen.errors import ConfigError, DataError, did_you_mean

_ALIASES = {"val": "validation", "validation": "val"}


class ImageSource(ABC):
    """A numbered, perhaps labelled, set of pictures. Opening one reads names and labels, not pixels."""

    name: str  # for people: "digits", or the name of the folder or file
    split: str  # the part that was opened: "train", "test", "all" ...
    class_names: tuple[str, ...]  # name of class i at place i; empty = unlabelled
    labels: torch.Tensor | None  # (N,) int64 in [0, len(class_names)); None = unlabelled
    fingerprint: (
        str  # sha256, in hexadecimal, of names, sizes and labels: changes when the data set does, not when it moves
    )
    native_size: int | None = None  # side in pixels where all pictures are squares of one known size
    flips_allowed: bool = True  # False where a mirror image means something else (handwriting)

    @abstractmethod
    def __len__(self) -> int:
        """N, the number of pictures."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """Picture `index` (0 .. N-1), completely decoded, in whatever mode it was stored.

        Raises:
            DataError: it is missing, empty, truncated or no picture; the message names it as `describe` does.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """Where picture `index` is: a path, or "file.parquet row 17" (rows count from 0)."""

    def release(self) -> None:
        """Give back memory held for reading; what is needed again is read again. Sources that hold none do nothing."""
        return


def open_source(source: str | Path, *, split: str = "train", class_names: Sequence[str] | None = None) -> ImageSource:
    """Open a set of pictures.

    Args:
        source: "digits" (embedded; "./digits" is a folder of that name), a folder of images (sub-folders are classes),
            a parquet file or a folder of them.
        split: "train", "test", "val" ... as the source offers them, or "all". A source without splits is "train".
        class_names: number the classes as in this list (that of a trained model) instead of by the source's own.

    Raises:
        DataError: there is no such source or split, it is empty or broken, or it has a class that `class_names` lacks.
    """
    opened = _open(source, split)
    return opened if class_names is None else _renumbered(opened, tuple(class_names))


def _open(source: str | Path, split: str) -> ImageSource:
    from spheregen.data.digits import DigitsSource
    from spheregen.data.folders import FolderSource
    from spheregen.data.parquet import ParquetSource, parquet_files

    if str(source) == "digits":
        return DigitsSource(split)
    if str(source) == "":
        raise DataError("the name of the data is empty; give 'digits', a folder of images or a .parquet file")
    path = Path(source).expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # no permission on a folder above, a name that is too long
        raise DataError(
            f"{path} cannot be looked at ({error.strerror or error}); check path and permissions"
        ) from error
    if is_file:
        if path.suffix.lower() == ".parquet":
            return ParquetSource(path, [path], split)
        raise DataError(f"{path} is a file of an unknown kind; give 'digits', a folder of images or a .parquet file")
    if not is_folder:
        hint = did_you_mean(str(source), ["digits"])
        raise DataError(f"no data at {path}: neither a folder nor a file nor 'digits'{hint or '; check the path'}")
    files = parquet_files(path)
    return ParquetSource(path, files, split) if files else FolderSource(path, split)


def choose_split(wanted: str, present: Sequence[str], where: Path) -> str:
    """The one of `present` that `wanted` names ("val" and "validation" are the same).

    Raises:
        DataError: there is no such split.
    """
    if wanted in present:
        return wanted
    if _ALIASES.get(wanted) in present:
        return _ALIASES[wanted]
    hint = did_you_mean(wanted, present)
    raise DataError(f"{where} has no split {wanted!r}; choose one of {', '.join([*sorted(present), 'all'])}{hint}")


def require_unsplit(wanted: str, where: Path) -> None:
    """A source without splits answers to "train" and "all" alone.

    Raises:
        DataError: another split was asked for.
    """
    if wanted not in ("train", "all"):
        raise DataError(
            f"{where} has no split {wanted!r}: it is not divided into splits; use 'train' or 'all', or open the data "
            "of that split by its own path"
        )


def digest(*parts: bytes) -> str:
    """sha256 of the parts, each preceded by its length so that no two lists of parts run together."""
    result = hashlib.sha256()
    for part in parts:
        result.update(len(part).to_bytes(8, "little"))
        result.update(part)
    return result.hexdigest()


def _renumbered(source: ImageSource, class_names: tuple[str, ...]) -> ImageSource:
    if source.labels is None or source.class_names == class_names:
        return source
    if len(set(class_names)) != len(class_names):
        raise ConfigError("class_names holds a name twice; names of classes must differ")
    missing = [name for name in source.class_names if name not in class_names]
    if missing:
        raise DataError(
            f"{source.name} has the class {missing[0]!r}, which is not among the {len(class_names)} classes asked for"
            f"{did_you_mean(missing[0], class_names) or '; rename or remove it'}"
        )
    table = torch.tensor([class_names.index(name) for name in source.class_names], dtype=torch.int64)
    result = copy.copy(source)
    result.class_names = class_names
    result.labels = table[source.labels]
    result.fingerprint = digest(source.fingerprint.encode(), "\0".join(class_names).encode())
    return result
