"""Names of pictures: kept small in memory, and read as splits and classes in the one way that all sources share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from spheregen.data.sources import choose_split, require_unsplit
from spheregen.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = frozenset({"train", "test", "val", "validation"})


class PackedStrings:
    """Many strings in one array of bytes.

    A list of a million Python strings takes 100 MB, and forked worker processes copy it page by page merely by
    counting references; two numpy arrays stay shared.
    """

    def __init__(self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        self.data = data  # all strings one behind the other, in the file system's encoding
        self.offsets = offsets  # (N + 1,) int64: string i is data[offsets[i] : offsets[i + 1]]

    @classmethod
    def of(cls, strings: Iterable[str]) -> PackedStrings:
        """Pack strings."""
        data = bytearray()
        offsets = [0]
        for string in strings:
            data += os.fsencode(string)
            offsets.append(len(data))
        return cls(np.frombuffer(bytes(data), dtype=np.uint8), np.array(offsets, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int, /) -> str:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return os.fsdecode(self.data[self.offsets[place] : self.offsets[place + 1]].tobytes())

    def digest_parts(self) -> tuple[bytes, bytes]:
        """What a fingerprint needs: the bytes and where each string ends."""
        return self.data.tobytes(), self.offsets.astype("<i8").tobytes()


@dataclass(frozen=True, kw_only=True)
class SortedNames:
    """Which pictures belong to a split, and their classes."""

    split: str  # its proper name
    rows: npt.NDArray[np.int64]  # (n,) places of its pictures in the list that was given
    names: list[str]  # (n,) their names; below the split's folder unless the split is "all"
    class_names: tuple[str, ...]  # over all splits together, sorted; empty = unlabelled
    labels: torch.Tensor | None  # (n,) int64


def sort_names(found: Sequence[str], split: str, where: str | Path) -> SortedNames:
    """Tell splits and classes from relative names with "/".

    - Pictures without a folder are unlabelled; otherwise the first folder is the class.
    - If all first folders are called train, test, val or validation, or train and one of the others are there, they
      are splits, and the folders below them are the classes.

    Raises:
        DataError: loose pictures lie beside classes, or there is no such split.
    """
    tops = {name.split("/", 1)[0] for name in found if "/" in name}
    loose = any("/" not in name for name in found)
    divided = not loose and (tops <= SPLITS or ("train" in tops and len(tops & SPLITS) > 1))
    rows = list(range(len(found)))
    if divided:
        chosen = split if split == "all" else choose_split(split, sorted(tops & SPLITS), where)
        wanted = tops & SPLITS if chosen == "all" else {chosen}
        classes = _classes(name.split("/", 1)[1] for name in found if name.split("/", 1)[0] in SPLITS)
        rows = [row for row in rows if found[row].split("/", 1)[0] in wanted]
        names = [found[row].split("/", 1)[1] for row in rows]
    else:
        require_unsplit(split, where)
        chosen, classes, names = split, _classes(found), list(found)
    unlabelled = sum("/" not in name for name in names)
    if 0 < unlabelled < len(names):
        first = next(found[row] for row, name in zip(rows, names, strict=True) if "/" not in name)
        raise DataError(
            f"{where} holds both classes (sub-folders) and {unlabelled} images outside of them, such as {first}; "
            "move these into a sub-folder or away"
        )
    labels = None
    if not unlabelled:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = torch.tensor([numbers[name.split("/", 1)[0]] for name in names], dtype=torch.int64)
    return SortedNames(
        split=chosen,
        rows=np.array(rows, dtype=np.int64),
        names=[found[row] for row in rows] if chosen == "all" else names,
        class_names=() if unlabelled else classes,
        labels=labels,
    )


def member_name(raw: str) -> str | None:
    """The name of an archive's member as a plain relative one; None for hidden files and folders.

    Names only label pictures, nothing is ever written under them, so "/x" and "../x" are simply "x".
    """
    parts = [part for part in raw.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if not parts or any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    return "/".join(parts)


def is_image_name(name: str) -> bool:
    """Whether the name ends like a picture's."""
    dot = name.rfind(".")
    return dot >= 0 and name[dot:].lower() in SUFFIXES


def without_common_folder(names: list[str]) -> list[str]:
    """Names without the one folder that was packed, where that is plain: flowers/rose/1.png, flowers/lily/2.png ..."""
    top = names[0].split("/", 1)[0] + "/" if names and "/" in names[0] else ""
    if not top or top[:-1] in SPLITS or not all(name.startswith(top) and name.count("/") > 1 for name in names):
        return names
    return [name[len(top) :] for name in names]


def _classes(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name.split("/", 1)[0] for name in names if "/" in name}))
