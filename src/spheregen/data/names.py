"""Names of images and files, read as splits and classes in the one way that all sources share."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spheregen.errors import DataError, did_you_mean
from spheregen.files import parse_json
from spheregen.pixels import image_suffixes

ARCHIVES = (".parquet", ".tar", ".zip")
"""Files that hold many images."""
LABEL_NAMES = ("label", "fine_label", "labels", "target", "class")
"""Names of a column or field of labels, in any case; the first one that is there counts."""

_MEANINGS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
SPLITS = frozenset(_MEANINGS)
"""Usual names of splits, in any case."""

_MORE = re.compile(r"[-_ ]?(?:set|data|images?|imgs|(?:19|20)\d\d)$")  # test_set, train2017
_SYSTEM = frozenset({
    *("__MACOSX", "@eaDir", "@tmp", "@Recycle", "@Recently-Snapshot", "@__thumb", "#recycle", "#snapshot"),
    *("$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__", "Thumbs.db", "desktop.ini"),
})  # fmt: skip
_MISSING = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pip install pillow-heif to read it"),
    ".jxl": "pip install pillow-jxl-plugin to read it",
    **dict.fromkeys((*ARCHIVES, ".gz", ".tgz", ".7z", ".rar"), "an archive beside images; name it to read it"),
}
HIDDEN = "hidden file or folder, or thumbnails"
_EXAMPLES = 3

_SHARD = re.compile(r"(?P<split>.+?)-\d+(?:-of-\d+)?")
_KNOWN = re.compile(rf"(?P<split>{'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![A-Za-z])", re.IGNORECASE)


class UnsplitError(DataError):
    """A split was asked for of a source that has none at all."""


@dataclass(frozen=True, kw_only=True)
class SortedNames:
    """Which images belong to a split, and their classes."""

    split: str  # its proper name
    rows: npt.NDArray[np.int64]  # (n,) places of its images in the list that was given
    names: list[str]  # (n,) their names; below the split's folder unless the split is "all"
    class_names: tuple[str, ...]  # over all splits together, sorted; empty = unlabelled
    labels: torch.Tensor | None  # (n,) int64


def sort_names(
    found: Sequence[str],
    split: str,
    where: str | Path,
    *,
    told: Mapping[str, str] | None = None,
    ignored: IgnoredFiles | None = None,
) -> SortedNames:
    """Tell splits and classes from relative names with "/".

    - Images without a folder are unlabelled; otherwise the first folder is the class. Names that differ only in how an
      accent is composed (NFC, NFD) are one class.
    - If all first folders are names of splits (`SPLITS`), or one means "train" and another one is a split as well, they
      are splits, and the folders below them are the classes. So they are if one folder holds them all, or if they lie
      in each class.

    Args:
        told: the class of each image by its name, where a table tells it; folders are no classes then.
        ignored: hears of images outside the splits.

    Raises:
        DataError: loose images lie beside classes, or there is no such split.
    """
    parts = split_names(found, split, where, ignored)
    classes: tuple[str, ...] = ()
    labels = None
    if told is not None:
        classes = sort_classes({told[found[row]] for row in parts.everything})
        values = [told[found[row]] for row in parts.rows]
        labels, _ = number_labels(values, classes)
    else:
        outside = [row for row in parts.rows if "/" not in parts.names[row]]
        if 0 < len(outside) < len(parts.rows):
            raise DataError(
                f"{where} holds classes (sub-folders) and beside them {found[outside[0]]}; move it into one"
            )
        if not outside:
            classes = sort_classes({_class_of(parts.names[r]) for r in parts.everything if "/" in parts.names[r]})
            labels, _ = number_labels([_class_of(parts.names[row]) for row in parts.rows], classes)
    return SortedNames(
        split=parts.split,
        rows=np.array(parts.rows, dtype=np.int64),
        names=[found[row] if parts.split == "all" else parts.names[row] for row in parts.rows],
        class_names=classes,
        labels=labels,
    )


@dataclass(frozen=True, kw_only=True)
class SplitNames:
    """Which of some names belong to a split."""

    split: str  # its proper name
    rows: list[int]  # places of its names
    everything: list[int]  # places of the names of all splits together
    names: list[str]  # all, those in a split without its folder
    divided: bool  # there are splits


def split_names(found: Sequence[str], split: str, where: str | Path, ignored: IgnoredFiles | None = None) -> SplitNames:
    """Tell the splits of relative names; see `sort_names`."""
    parted = [name.split("/") for name in found]
    for place, above in (
        (0, 0),
        (1, 1),
        (1, 0),
    ):  # split/..., the one folder that was packed/split/..., class/split/...
        if not all(len(parts) > place + 1 for parts in parted) or (above and len({p[0] for p in parted}) > 1):
            continue
        tops = {parts[place] for parts in parted}
        splits = {top for top in tops if meaning_of(top)}
        has_train = any(meaning_of(top) == "train" for top in splits)
        if (tops == splits and place == 0) or (
            has_train and len(splits) > 1 and (above or not place or tops == splits)
        ):
            break
    else:
        require_unsplit(split, where)
        every = list(range(len(found)))
        return SplitNames(split=split, rows=every, everything=every, names=list(found), divided=False)
    chosen = split if split == "all" else choose_split(split, sorted(splits), where)
    every = [row for row, parts in enumerate(parted) if parts[place] in splits]
    if ignored is not None:
        for row in sorted({*range(len(found))} - {*every}):
            ignored.add(f"image outside the splits {', '.join(sorted(splits))}", found[row])
    return SplitNames(
        split=chosen,
        rows=[row for row in every if chosen == "all" or parted[row][place] == chosen],
        everything=every,
        names=["/".join(parts[:place] * (not above) + parts[place + 1 :]) for parts in parted],
        divided=True,
    )


def meaning_of(name: str) -> str | None:
    """Return train, test or validation for the usual names of splits, such as Valid or train2017; else None."""
    return _MEANINGS.get(_MORE.sub("", name.lower()))


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of classes in order: numbers by their value, so that class 2 is called "2"; else by letters."""
    found = sorted({*names})
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in found):
        found.sort(key=int)
    return tuple(found)


def check_class_names(names: Iterable[str], where: str | Path) -> None:
    """Refuse names that are no text, or that no terminal shows in one line."""
    for name in names:
        if not is_plain(name):
            raise DataError(f"{where}: the class {name!a} has a name that is no UTF-8 text of one line; rename it")


def choose_split(wanted: str, present: Sequence[str], where: str | Path) -> str:
    """Return the one of `present` that `wanted` names; "val", "valid" and "validation" are the same."""
    meaning = meaning_of(wanted)
    same = [name for name in present if meaning is not None and meaning_of(name) == meaning]
    if wanted in present or len(same) == 1:
        return wanted if wanted in present else same[0]
    hint = did_you_mean(wanted, present)
    raise DataError(f"{where} has no split {wanted!r}; choose one of {', '.join([*sorted(present), 'all'])}{hint}")


def require_unsplit(wanted: str, where: str | Path) -> None:
    """Let a source without splits answer to "train" and "all" alone."""
    if wanted not in ("train", "all"):
        raise UnsplitError(f"{where} has no split {wanted!r}, nor any other; use 'train' or 'all', or another path")


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
    return torch.tensor(labels, dtype=torch.int64, device="cpu"), labels.index(-1) if -1 in labels else None


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """Files that are not read, for one reason."""

    reason: str
    count: int
    examples: tuple[str, ...]  # the first three, as `printable` shows them

    def __str__(self) -> str:
        more = " ..." if self.count > len(self.examples) else ""
        return f"{self.count} x {self.reason}: {', '.join(self.examples)}{more}"


_CAPTION_REASONS = (".txt", ".caption", ".json", "table without", "column that is not read")


def without_captions(ignored: Iterable[Ignored]) -> list[Ignored]:
    """Return what is still not read where captions are: they may come from such files, tables and columns."""
    return [one for one in ignored if not one.reason.startswith(_CAPTION_REASONS)]


class IgnoredFiles:
    """Counts files that are not read, by reason."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, tuple[str, ...]]] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        before, examples = self._found.get(reason, (0, ()))
        shown = (*examples, printable(name)) if len(examples) < _EXAMPLES else examples
        self._found[reason] = (before + count, shown)

    def add_all(self, others: Iterable[Ignored]) -> None:
        for other in others:
            for place, name in enumerate(other.examples):
                self.add(other.reason, name, 1 if place else other.count - len(other.examples) + 1)

    def listed(self) -> tuple[Ignored, ...]:
        return tuple(Ignored(reason=r, count=n, examples=e) for r, (n, e) in self._found.items())


def sift(names: Sequence[str], ignored: IgnoredFiles, *, tables: bool = True) -> list[int]:
    """Return the places of images among the relative names of all files; the others are counted, by reason.

    Folders that SphereGen wrote (runs, models, latent caches, reports) hold no images that are meant. Where the top
    folder is one itself, only its previews and samples are left out.

    Args:
        tables: `metadata.csv` and the like are read as labels and so are not ignored.
    """
    ours = _written_by_us(names)
    rows = []
    for row, name in enumerate(names):
        *folders, base = name.split("/")
        above = next((path for end in range(len(folders)) if (path := "/".join(folders[: end + 1])) in ours), None)
        if above is not None:
            if is_image_name(base):
                ignored.add("image in a folder that SphereGen wrote", name)
        elif any(map(is_hidden, folders)) or is_hidden(base):
            if is_image_name(base) and not base.startswith("._"):
                ignored.add(HIDDEN, name)
        elif is_image_name(base):
            rows.append(row)
        elif not (tables and base in LABEL_TABLES):
            suffix = PurePosixPath(base.lower()).suffix
            ignored.add(f"{suffix or 'file without suffix'} ({_MISSING.get(suffix, 'no image')})", name)
    return rows


LABEL_TABLES = ("metadata.csv", "metadata.jsonl", "dataset.json")
"""Files beside images that tell their labels; see `read_tables`."""


def read_tables(
    tables: Mapping[str, bytes], found: Sequence[str], where: str | Path, ignored: IgnoredFiles
) -> dict[str, str] | None:
    """Return the class of each image, as tables beside the images tell it; None where none does.

    - `metadata.csv` and `metadata.jsonl` as `datasets` reads them: a column file_name, below the table's folder, and a
      column of labels (`LABEL_NAMES`);
    - `dataset.json` of NVIDIA: {"labels": [["00000/img1.png", 6], ...]}.

    Raises:
        DataError: a table is broken, or tells the labels of some images only.
    """
    told: dict[str, str] = {}
    for table, data in tables.items():
        folder = table.rpartition("/")[0]
        try:
            rows = table_rows(table, data.decode("utf-8-sig"), LABEL_NAMES)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, csv.Error) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{where}: {table} cannot be read ({reason}); correct or remove it") from error
        if not rows:
            ignored.add("table without file names and labels (a column named label, say)", table)
        for name, label in rows:
            value = "" if label is None or isinstance(label, list | dict | float) else str(label).strip()
            if not value:
                wrong = f"the label {label!r} of {name}"
                raise DataError(f"{where}: {table}: {wrong} is neither an integer nor a name; correct or remove it")
            plain = posixpath.normpath(posixpath.join(folder, str(name).replace("\\", "/")))
            told[unicodedata.normalize("NFC", plain)] = unicodedata.normalize("NFC", value)
    if not told:
        return None
    named = {name: told.pop(plain) for name in found if (plain := unicodedata.normalize("NFC", name)) in told}
    for name in told:
        ignored.add("row of a table of labels without an image", name)
    if not named:
        return None
    if missing := [name for name in found if name not in named]:
        raise DataError(
            f"{where}: {', '.join(tables)} has labels, but none of {printable(missing[0])} ({len(missing)} of "
            f"{len(found)} images); add rows, or remove the table"
        )
    return named


def table_rows(table: str, text: str, columns: Sequence[str]) -> list[tuple[Any, Any]]:
    """Return file names, and the values of the first of these columns that is there, of a table of this name.

    None where it has no such column; of a `dataset.json` of NVIDIA its labels.
    """
    rows: list[Any]
    if table.endswith(".json"):
        listed = parse_json(text).get("labels") or []
        return list(listed.items()) if isinstance(listed, dict) else [(name, label) for name, label in listed]
    if table.endswith(".jsonl"):
        rows = [parse_json(line) for line in text.splitlines() if line.strip()]
    else:
        head = text.partition("\n")[0]
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count)))
    keys = {str(key).strip().lower(): key for row in rows[:1] for key in row}
    name = next((keys[key] for key in ("file_name", "filename", "file", "path", "image") if key in keys), None)
    label = next((keys[key] for key in columns if key in keys), None)
    return [] if name is None or label is None else [(row[name], row[label]) for row in rows]


def _written_by_us(names: Sequence[str]) -> set[str]:
    """Return the folders, of files with these relative names, that SphereGen wrote, and `runs` that hold such."""
    inside: dict[str, set[str]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        if base in _MARKS or base.endswith(".safetensors"):
            inside.setdefault(folder, set()).add("shard" if base.startswith("shard-") else base)
        parts = folder.split("/")
        for place, part in enumerate(parts):
            if part in ("state", "previews"):
                inside.setdefault("/".join(parts[:place]), set()).add(part)
    ours = {folder for folder, bases in inside.items() if any(kind <= bases for kind in _OURS)}
    for folder in list(ours):
        parts = folder.split("/")
        ours |= {"/".join(parts[: place + 1]) for place, part in enumerate(parts) if part == "runs"}
    if "" in ours:
        ours |= {"state", "previews", "samples.png"}
    return ours - {""}


_OURS = tuple(map(frozenset, (
    *(("config.json", "model.safetensors"), ("index.json", "shard"), ("evaluation.json",), ("ablation.json",)),
    *(("report.json", "report.md"), *(("recipe.json", other) for other in ("log.jsonl", "state", "previews"))),
)))  # fmt: skip
_MARKS = frozenset().union(*_OURS)


def is_image_name(name: str) -> bool:
    return name.lower().endswith(image_suffixes())


def is_hidden(part: str) -> bool:
    """True for files and folders that nobody means: hidden ones, those of systems, and thumbnails of NAS and macOS."""
    return part.startswith(".") or part in _SYSTEM


def member_name(raw: str) -> str:
    """Return the name of an archive's member as a plain relative one.

    Names only label images, nothing is ever written under them, so "/x" and "../x" are simply "x".
    """
    return "/".join(part for part in raw.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def printable(name: str) -> str:
    """Return a name in one line that can be written anywhere: bytes that are no UTF-8 and control characters are
    written as Python does."""
    return name if name.isprintable() else "".join(ascii(c)[1:-1] if _is_strange(c) else c for c in name)


def is_plain(name: str) -> bool:
    """True of UTF-8 text of one line."""
    return name.isprintable() or not any(map(_is_strange, name))


def _is_strange(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cs", "Cc")


def without_common_folder(names: list[str]) -> list[str]:
    """Leave out the one folder that was packed, where that is plain: flowers/rose/1.png, flowers/lily/2.png ..."""
    top = names[0].split("/", 1)[0] + "/" if names and "/" in names[0] else ""
    if not top or meaning_of(top[:-1]) or not all(n.startswith(top) and n.count("/") > 1 for n in names):
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
