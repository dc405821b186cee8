"""Names of images and files, read as splits and classes in the one way that all sources share."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spheregen.errors import DataError, did_you_mean

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".avif", ".jfif", ".jpe", ".jp2", ".tga"),
)
ARCHIVES = (".parquet", ".tar", ".zip")
"""Files that hold many images."""

_MEANINGS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
SPLITS = frozenset(_MEANINGS)
"""Usual names of splits, in any case."""

_SHARD = re.compile(r"(?P<split>.+?)-\d+(?:-of-\d+)?")
_KNOWN = re.compile(rf"(?P<split>{'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![A-Za-z])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SortedNames:
    """Which images belong to a split, and their classes."""

    split: str  # its proper name
    rows: npt.NDArray[np.int64]  # (n,) places of its images in the list that was given
    names: list[str]  # (n,) their names; below the split's folder unless the split is "all"
    class_names: tuple[str, ...]  # over all splits together, sorted; empty = unlabelled
    labels: torch.Tensor | None  # (n,) int64


def sort_names(found: Sequence[str], split: str, where: str | Path) -> SortedNames:
    """Tell splits and classes from relative names with "/".

    - Images without a folder are unlabelled; otherwise the first folder is the class. Names that differ only in how an
      accent is composed (NFC, NFD) are one class.
    - If all first folders are names of splits (`SPLITS`), or one means "train" and another one is a split as well, they
      are splits, and the folders below them are the classes.

    Raises:
        DataError: loose images lie beside classes, a class's name is no text, or there is no such split.
    """
    tops = {name.split("/", 1)[0] for name in found if "/" in name}
    splits = {top for top in tops if top.lower() in SPLITS}
    loose = any("/" not in name for name in found)
    has_train = any(_MEANINGS[top.lower()] == "train" for top in splits)
    rows = list(range(len(found)))
    if not loose and (tops == splits or (has_train and len(splits) > 1)):
        chosen = split if split == "all" else choose_split(split, sorted(splits), where)
        wanted = splits if chosen == "all" else {chosen}
        classes = _classes((name.split("/", 1)[1] for name in found if name.split("/", 1)[0] in splits), where)
        rows = [row for row in rows if found[row].split("/", 1)[0] in wanted]
        names = [found[row].split("/", 1)[1] for row in rows]
    else:
        require_unsplit(split, where)
        chosen, classes, names = split, _classes(found, where), list(found)
    outside = [row for row, name in zip(rows, names, strict=True) if "/" not in name]
    unlabelled, labels = len(outside), None
    if 0 < unlabelled < len(names):
        raise DataError(f"{where} holds classes (sub-folders) and beside them {found[outside[0]]}; move it into one")
    if not unlabelled:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = torch.tensor([numbers[_class_of(name)] for name in names], dtype=torch.int64)
    return SortedNames(
        split=chosen,
        rows=np.array(rows, dtype=np.int64),
        names=[found[row] for row in rows] if chosen == "all" else names,
        class_names=() if unlabelled else classes,
        labels=labels,
    )


def choose_split(wanted: str, present: Sequence[str], where: str | Path) -> str:
    """Return the one of `present` that `wanted` names; "val", "valid" and "validation" are the same."""
    meaning = _MEANINGS.get(wanted.lower())
    same = [name for name in present if meaning is not None and _MEANINGS.get(name.lower()) == meaning]
    if wanted in present or len(same) == 1:
        return wanted if wanted in present else same[0]
    hint = did_you_mean(wanted, present)
    raise DataError(f"{where} has no split {wanted!r}; choose one of {', '.join([*sorted(present), 'all'])}{hint}")


def require_unsplit(wanted: str, where: str | Path) -> None:
    """Let a source without splits answer to "train" and "all" alone."""
    if wanted not in ("train", "all"):
        raise DataError(f"{where} has no split {wanted!r}, nor any other; use 'train' or 'all', or another path")


def split_of(name: str, *, numbered: bool) -> str | None:
    """Return the split that a file's name tells: "train-00000-of-00002.parquet" and "train.tar" are "train".

    With `numbered`, "cats-00001" is a split called cats; else only names that begin with a usual split count.
    """
    stem = Path(name).stem
    match = _KNOWN.match(stem) or (_SHARD.fullmatch(stem) if numbered else None)
    return match["split"] if match else None


def choose_files(
    names: Sequence[str], split: str, where: str, *, chosen: bool, numbered: bool = True
) -> tuple[str, list[int]]:
    """Return the split's proper name and the places of its files in `names` (base names).

    If the user named these files (`chosen`), "train", which is only the default, takes them if they are all of one
    other split.
    """
    everything = list(range(len(names)))
    splits = [split_of(name, numbered=numbered) for name in names]
    present = sorted({name for name in splits if name is not None})
    if split == "all" or not present:
        require_unsplit("all" if present else split, where)
        return split, everything
    if chosen and split == "train" and len(present) == 1 and None not in splits:
        return present[0], everything
    proper = choose_split(split, present, where)
    return proper, [place for place in everything if splits[place] == proper]


def number_labels(values: Sequence[int | str], known: Sequence[int | str]) -> tuple[torch.Tensor, int | None]:
    """Return labels (N,) int64, places of the values in `known`; and the first row whose value is not there, if any."""
    numbers = {value: number for number, value in enumerate(known)}
    labels = [numbers.get(value, -1) for value in values]
    return torch.tensor(labels, dtype=torch.int64), labels.index(-1) if -1 in labels else None


def is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def is_hidden(part: str) -> bool:
    """True for files and folders that nobody means: hidden ones, and those of macOS archives and NAS thumbnails."""
    return part.startswith(".") or part in ("__MACOSX", "@eaDir")


def member_name(raw: str) -> str | None:
    """Return the name of an archive's member as a plain relative one; None for hidden files and folders.

    Names only label images, nothing is ever written under them, so "/x" and "../x" are simply "x".
    """
    parts = [part for part in raw.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return None if not parts or any(map(is_hidden, parts)) else "/".join(parts)


def without_common_folder(names: list[str]) -> list[str]:
    """Leave out the one folder that was packed, where that is plain: flowers/rose/1.png, flowers/lily/2.png ..."""
    top = names[0].split("/", 1)[0] + "/" if names and "/" in names[0] else ""
    if not top or top[:-1].lower() in SPLITS or not all(n.startswith(top) and n.count("/") > 1 for n in names):
        return names
    return [name[len(top) :] for name in names]


def pack(names: Iterable[str]) -> Any:
    """Return names as an arrow array of bytes: a million Python strings would take 100 MB in each forked worker."""
    import pyarrow as pa

    return pa.array([os.fsencode(name) for name in names], type=pa.large_binary())


def unpack(packed: Any, place: int) -> str:
    """Return one of packed names."""
    return os.fsdecode(packed[place].as_py())


def _class_of(name: str) -> str:
    return unicodedata.normalize("NFC", name.split("/", 1)[0])


def _classes(names: Iterable[str], where: str | Path) -> tuple[str, ...]:
    classes = tuple(sorted({_class_of(name) for name in names if "/" in name}))
    for name in classes:
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # bytes that are no text
            raise DataError(f"{where}: the folder {name!a} has a name that is no UTF-8; rename it")
    return classes
