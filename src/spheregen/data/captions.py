"""Captions: the texts of images, from side-cars, tables, columns and shards, or made of the names of classes.

An image has any number of captions, or none. One is drawn each time that an image is, by the seed of the run, the epoch
and the image alone, so that a run that is continued sees the same ones.
"""

from __future__ import annotations

import csv
import functools
import itertools
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spheregen.conditioning import text_labels
from spheregen.data.names import is_image_name, printable, table_rows
from spheregen.data.order import Integers, OrderedBatch, caption_draws
from spheregen.data.source import ImageSource, digest
from spheregen.errors import ConfigError, DataError, did_you_mean
from spheregen.files import parse_json
from spheregen.networks.text import TextEncoder
from spheregen.texts import MOST_CHARACTERS, plain_text

CLASSES = "classes"
"""In place of a column: captions are made of the names of classes."""
CAPTION_NAMES = ("caption", "captions", "text", "texts", "prompt", "description", "sentences", "name")
"""Names of a column or field of captions, in any case; the first one that is there counts."""
TABLES = (".csv", ".tsv", ".jsonl")
CAPTION_FILES = (".txt", ".caption", ".json", "metadata.csv", "metadata.jsonl")
"""Ends of files beside images that may hold captions."""
_OBJECT = "_cap.json"  # an object whose values are all captions
_LARGEST = 1 << 20  # bytes of a side-car; a table may be larger
_LABELS_BYTES = 64 << 20  # of vectors that are kept in memory
_PARTS = ("letters", "ends", "starts")  # of captions in a file
_SCRIPTS = 1000  # texts whose letters are looked at


class Captions:
    """The captions of N images, in the order of their source.

    Args:
        texts: those of each image, without empty ones.
    """

    of_classes = False
    """They are the names of classes because there were no others."""

    def __init__(self, texts: Iterable[Sequence[str]]) -> None:
        counts, pieces = [], list[bytes]()
        for each in texts:
            counts.append(len(each))
            pieces += [text.encode() for text in each]
        self._starts = np.cumsum([0, *counts], dtype=np.int64)
        self._ends = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        self._bytes = b"".join(pieces)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them as tensors, for a file."""
        letters = np.frombuffer(self._bytes, dtype=np.uint8).copy()
        return {
            name: torch.from_numpy(of) for name, of in zip(_PARTS, (letters, self._ends, self._starts), strict=True)
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Captions:
        """Make captions of what `tensors` gave."""
        found = cls(())
        letters, found._ends, found._starts = (tensors[name].numpy() for name in _PARTS)
        found._bytes = letters.tobytes()
        return found

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def texts(self) -> int:
        """Captions of all images together."""
        return len(self._ends) - 1

    @property
    def counts(self) -> Integers:
        """(N,) captions of each image."""
        return np.diff(self._starts)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256, hexadecimal, of all captions in their order."""
        return digest(self._bytes, self._ends.astype("<i8").tobytes(), self._starts.astype("<i8").tobytes())

    def text(self, number: int) -> str:
        """Return a caption by its number, 0 to `texts` - 1."""
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode()

    def of(self, image: int) -> tuple[str, ...]:
        """Return the captions of an image."""
        return tuple(map(self.text, range(self._starts[image], self._starts[image + 1])))

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return map(self.of, range(len(self)))

    def draw(self, seed: int, batch: OrderedBatch) -> Integers:
        """Draw the number of one caption for each sample of a batch, (B,); -1 of an image that has none."""
        counts = self.counts[batch.indices]
        drawn = caption_draws(seed, batch, counts.clip(1))
        return np.where(counts > 0, self._starts[batch.indices] + drawn, -1)


class CaptionLabels:
    """The labels of training batches of a model that follows texts.

    Args:
        captions: of the source that the batches are of.
        vectors: makes vectors (n, D) of captions, given by their numbers (n,).
        seed: of the run.
    """

    def __init__(self, captions: Captions, vectors: Callable[[Integers], Tensor], seed: int) -> None:
        self.captions, self._vectors, self.seed = captions, vectors, seed

    def __call__(self, batch: OrderedBatch) -> Tensor:
        """Return the labels (B, D + 1) of a batch, see `conditioning.text_labels`."""
        drawn = self.captions.draw(self.seed, batch)
        return text_labels(self._vectors(drawn.clip(0)), torch.from_numpy(drawn >= 0))

    def texts(self, batch: OrderedBatch) -> tuple[str, ...]:
        """Return the captions that were drawn; empty text where an image has none."""
        drawn = self.captions.draw(self.seed, batch).tolist()
        return tuple(self.captions.text(number) if number >= 0 else "" for number in drawn)


def vectors_as_needed(captions: Captions, encoder: TextEncoder) -> Callable[[Integers], Tensor]:
    """Return what encodes captions when they are asked for, and keeps some: for an encoder that is fast."""

    @functools.lru_cache(maxsize=max(1, _LABELS_BYTES // (4 * encoder.width)))
    def vector(text: str) -> Tensor:
        return encoder.encode([text])[0]

    return lambda numbers: torch.stack([vector(captions.text(number)) for number in numbers.tolist()])


# where captions come from ---------------------------------------------------------------------------------------------


def read_captions(source: ImageSource, column: str | None = None, templates: Sequence[str] = ("{}",)) -> Captions:
    """Read the captions of a source.

    Args:
        column: the name of a column or field; a table of file names and captions (.csv, .tsv, .jsonl); `classes` for
            captions made of the names of classes; None: the captions that the source has, else those of its classes.
        templates: an image's captions of its class, one for each of them, with {} for the name.

    Raises:
        DataError: there are none, or one cannot be read.
        ConfigError: a template without {}.
    """
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise ConfigError(f"the template {wrong[0]!r} has no place for the name; write one such as 'a photo of a {{}}'")
    found = None if column == CLASSES else source.captions(column)
    if found is None and source.labels is not None and column in (None, CLASSES):
        names = [name.replace("_", " ") for name in source.class_names]
        of_class = [tuple(template.replace("{}", name) for template in templates) for name in names]
        found = Captions(of_class[label] for label in source.labels.tolist())
        found.of_classes = column is None
    if found is None or not found.texts:
        wanted = f"no {column!r}" if column is not None else "no captions"
        raise DataError(
            f"{source.name} has {wanted}: put a .txt of the same name beside each image, or a metadata.jsonl with "
            "file_name and text, or name a column or a table (data.captions)"
        )
    return found


def clean(value: Any, where: Callable[[], str]) -> tuple[str, ...]:
    """Return a value of a column or field as captions: a text, or a list of them; spaces are made single.

    Raises:
        DataError: it is neither, or longer than any caption is.
    """
    values = [] if value is None else value if isinstance(value, list | tuple) else [value]
    found = []
    for each in values:
        if not isinstance(each, str):
            raise DataError(f"{where()}: the caption {each!r:.100} is no text; correct or remove it")
        if len(each) > MOST_CHARACTERS:
            raise DataError(
                f"{where()}: the caption has {len(each)} characters, more than {MOST_CHARACTERS}; shorten or remove it"
            )
        if plain := plain_text(each):
            found.append(plain)
    return tuple(found)


def captions_beside(
    names: Sequence[str],
    files: Collection[str],
    read: Callable[[str], bytes],
    where: str | Path,
    column: str | None = None,
    *,
    stem: Callable[[str], str] = lambda name: posixpath.splitext(name)[0],
) -> Captions | None:
    """Read what lies beside images; None where nothing does.

    - NAME.txt and NAME.caption: a caption in each line;
    - NAME.json: an object, of which a field of `CAPTION_NAMES` counts; NAME_cap.json: an object of which all do;
    - metadata.csv and metadata.jsonl in the folder of the image or above, as `datasets` reads them: a column file_name
      and one of captions. Several rows of an image are several captions.

    Args:
        names: of the images, relative, with "/".
        files: all relative names.
        read: reads one of them.
        where: of all, for errors.
        column: the field or column that counts; or the path of a table.
        stem: NAME of an image.

    Raises:
        DataError: a file that cannot be read as captions; it is named.
    """
    table = column if column is not None and column.lower().endswith(TABLES) else None
    found: list[tuple[str, ...]] = [()] * len(names)
    tables = [name for name in files if posixpath.basename(name) in ("metadata.csv", "metadata.jsonl")]
    if table is None:
        texts = (
            (name, posixpath.dirname(name), _text(name, read(name), where, largest=None)) for name in sorted(tables)
        )
        told = _told(texts, column, where)
    else:
        told = _told([(table, "", _read_table(table))], None, where)
    by_base = {} if table is None else {posixpath.basename(name): texts for name, texts in told.items()}
    for row, name in enumerate(names):
        plain = unicodedata.normalize("NFC", name)
        found[row] = told.get(plain) or by_base.get(posixpath.basename(plain)) or ()
        if table is None and not found[row]:
            found[row] = _beside(stem(name), files, read, where, column)
    return Captions(found) if any(found) else None


def _beside(
    stem: str, files: Collection[str], read: Callable[[str], bytes], where: str | Path, column: str | None
) -> tuple[str, ...]:
    for suffix in (".txt", ".caption", _OBJECT, ".json"):
        name = stem + suffix
        if name not in files or (column is not None and not suffix.endswith(".json")):
            continue

        def place(name: str = name) -> str:
            return f"{where}: {printable(name)}"

        text = _text(name, read(name), where)
        if not suffix.endswith(".json"):
            return clean(text.splitlines(), place)
        try:
            fields = parse_json(text)
        except ValueError as error:
            raise DataError(f"{place()} is no JSON ({error}); correct or remove it") from error
        if not isinstance(fields, dict):
            raise DataError(f'{place()} is no object of captions; write one such as {{"caption": "..."}}')
        keys = _columns(fields, column)
        if suffix == _OBJECT and column is None:
            keys = [key for key, value in fields.items() if isinstance(value, str | list)]
        if texts := tuple(itertools.chain(*(clean(fields[key], place) for key in keys))):
            return texts
    return ()


def _told(tables: Iterable[tuple[str, str, str]], column: str | None, where: str | Path) -> dict[str, tuple[str, ...]]:
    """Return the captions that tables tell, by the names of images; of each table its name, its folder and its text."""
    told: dict[str, tuple[str, ...]] = {}
    for table, folder, text in tables:
        try:
            rows = table_rows(table, text, CAPTION_NAMES if column is None else (column.lower(),))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, csv.Error) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{where}: {table} cannot be read ({reason}); correct or remove it") from error
        for name, value in rows:
            plain = posixpath.normpath(posixpath.join(folder, str(name).replace("\\", "/")))
            key = unicodedata.normalize("NFC", plain)
            told[key] = told.get(key, ()) + clean(value, lambda name=name, table=table: f"{where}: {table}: {name}")  # type: ignore[misc]
    return told


def _columns(fields: Iterable[str], column: str | None) -> list[str]:
    """Return the name of the field of captions, as it is spelled; none where there is no such field."""
    spelled = {name.lower(): name for name in fields}
    wanted = CAPTION_NAMES if column is None else (column.lower(),)
    return [spelled[name] for name in wanted if name in spelled][:1]


def _text(name: str, data: bytes, where: str | Path, largest: int | None = _LARGEST) -> str:
    if largest is not None and len(data) > largest:
        raise DataError(
            f"{where}: {printable(name)} has {len(data)} bytes, more than a file of captions has; shorten or remove it"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where}: {printable(name)} is no UTF-8 text; save it as UTF-8") from None


def _read_table(path: str) -> str:
    try:
        return _text(path, Path(path).expanduser().read_bytes(), "captions", largest=None)
    except OSError as error:
        raise DataError(f"the table of captions {path} cannot be read ({error.strerror}); check the path") from error


def column_of_captions(names: Sequence[str], column: str | None, where: str) -> str | None:
    """Return the column of captions among those that a table has; None where it has none and none was named.

    Raises:
        DataError: the named one is not there.
    """
    found = _columns(names, column)
    if column is not None and not found:
        hint = did_you_mean(column, names)
        raise DataError(f"{where} has no column {column!r}{hint}; it has {', '.join(names)}")
    return found[0] if found else None


def are_file_names(texts: Sequence[Sequence[str]]) -> bool:
    """Return whether a column holds the names of image files, and so no captions."""
    some = [text for each in texts[:_SCRIPTS] for text in each]
    return bool(some) and 2 * sum(map(is_image_name, some)) > len(some)


# statistics -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CaptionStatistics:
    """What the captions of a source are like."""

    captions: int  # of all images together
    without: int  # images that have none
    most: int  # captions of one image, at most
    doubled: int  # captions that another image has too
    different: int  # texts
    shortest: int  # characters
    median: float
    longest: int
    scripts: Mapping[str, int]  # captions by the script of most of their letters, LATIN, CJK ..., most frequent first
    examples: tuple[str, ...]  # the first of some images, spread over all


def caption_statistics(captions: Captions) -> CaptionStatistics:
    """Count captions, their lengths, copies and scripts."""
    texts = [captions.text(number) for number in range(captions.texts)]
    counted, lengths = Counter(texts), np.array([*map(len, texts)] or [0])
    some = texts[:: max(1, len(texts) // _SCRIPTS)]
    scripts = Counter(map(_script, some))
    examples = [of[0] for of in captions if of]
    return CaptionStatistics(
        captions=len(texts),
        without=int((captions.counts == 0).sum()),
        most=int(captions.counts.max(initial=0)),
        doubled=sum(count for count in counted.values() if count > 1),
        different=len(counted),
        shortest=int(lengths.min()),
        median=float(np.median(lengths)),
        longest=int(lengths.max()),
        scripts={name: round(count * len(texts) / max(1, len(some))) for name, count in scripts.most_common()},
        examples=tuple(examples[:: max(1, len(examples) // 5)][:5]),
    )


def _script(text: str) -> str:
    """Return the script of most letters, the first word of their Unicode names."""
    names = Counter(unicodedata.name(letter, "OTHER").split(" ", 1)[0] for letter in text[:200] if letter.isalpha())
    return names.most_common(1)[0][0] if names else "none"
