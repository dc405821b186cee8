"""The common face of all sources of images."""

from __future__ import annotations

import copy
import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from spheregen.data.names import Ignored, without_captions
from spheregen.errors import ConfigError, DataError, did_you_mean
from spheregen.pixels import decode_bytes

if TYPE_CHECKING:
    from spheregen.data.captions import Captions
    from spheregen.data.files import Files

FITS_IN_MEMORY = 1 << 30  # encoded bytes: a set of up to this size is kept as it is
_HELD_BYTES = 128 << 20  # encoded bytes kept of a larger one
_PIECES = 256  # of 4 KiB, that tell the contents of a file of a larger set
_PIECE = 4 << 10  # bytes


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Runs of samples that are fast to read together."""

    starts: npt.NDArray[np.int64]  # (K,) first sample of each run, ascending from 0; a run ends where the next starts
    sizes: npt.NDArray[np.int64]  # (K,) encoded bytes of each run


class ImageSource(ABC):
    """A numbered, perhaps labelled, set of images. Opening one reads names and labels, not pixels."""

    name: str  # for people: "digits", or the name of the folder or file
    split: str  # the part that was opened: "train", "test", "all" ...
    class_names: tuple[str, ...]  # name of class i at place i; empty = unlabelled
    labels: torch.Tensor | None  # (N,) int64 in [0, len(class_names)); None = unlabelled
    encoded_bytes: int  # of all images together, as they are stored
    native_size: int | None = None  # side in pixels where all images are squares of one known size
    flips_allowed: bool = True  # False where a mirror image means something else (handwriting)
    central: bool = False  # True: the main process reads bytes, workers only decode; False: workers read by themselves
    remote: bool = False  # True: images come over a network each time they are read
    ignored: tuple[Ignored, ...] = ()  # files beside the images that are not read, by reason

    @cached_property
    def fingerprint(self) -> str:
        """The sha256, hexadecimal, of names, contents and labels: changes with the data, not when they move.

        Of a set above 1 GiB, parts of each file stand for its contents; of a remote one, what its server tells of it.
        """
        raise NotImplementedError

    @cached_property
    def earlier_fingerprint(self) -> str | None:
        """The fingerprint that versions before 0.2 gave to these data, with their classes numbered as they are here."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """N, the number of images."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """Return image `index` (0 .. N-1) in its file format, not checked.

        Raises:
            DataError: it is missing or cannot be read; the message names it as `describe` does.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """Say where image `index` is: a path, "file.zip name", or "file.parquet row 17" (rows count from 0)."""

    def read(self, index: int) -> Image.Image:
        """Return image `index` (0 .. N-1), completely decoded, in whatever mode it was stored.

        Raises:
            DataError: it is missing, empty, truncated or no image; the message names it as `describe` does.
        """
        return decode_bytes(self.read_bytes(index), partial(self.describe, index))

    @property
    def random_access_is_slow(self) -> bool:
        """True if training should read whole blocks: a property of the data alone, never of the machine."""
        return self.blocks() is not None and self.central and self.encoded_bytes > FITS_IN_MEMORY

    def blocks(self) -> Blocks | None:
        """Return the runs of samples that are fast to read together; None = the source has no such structure."""
        return None

    def read_block(self, block: int) -> Sequence[bytes]:
        """Return the encoded images of a block, in order; safe to call from several threads."""
        raise NotImplementedError(f"{type(self).__name__} has no blocks")

    def captions(self, column: str | None = None) -> Captions | None:
        """Read the captions of all images; None where there are none.

        Args:
            column: the name of a column or field of captions, or the path of a table, see `data.captions`.

        Raises:
            DataError: there is no such column, or what is there cannot be read.
        """
        if column is not None:
            raise DataError(f"{self.name} has no captions, and so no {column!r}; use data.captions=classes")
        return None

    def release(self) -> None:
        """Give back memory held for reading; what is needed again is read again."""
        return

    def check_index(self, index: int) -> None:
        """Raise IndexError unless 0 <= index < N."""
        if not 0 <= index < len(self):
            raise IndexError(index)


class BlockSource(ImageSource):
    """A source whose images are read block by block, with the blocks used last kept in memory.

    All stay in memory if they take at most 1 GiB together (then random access is fast after the first time); otherwise
    128 MiB, or one block if that is larger.
    """

    _files: Files
    _identity: Sequence[bytes]  # what tells these images from others, without their contents

    def __init__(self) -> None:
        self._held: OrderedDict[int, Sequence[bytes]] = OrderedDict()

    @abstractmethod
    def blocks(self) -> Blocks: ...

    @cached_property
    def fingerprint(self) -> str:
        pieces = 0 if self.encoded_bytes <= FITS_IN_MEMORY else _PIECES
        contents = (self._files.content(file, pieces) for file in range(len(self._files)))
        return digest(self.earlier_fingerprint.encode(), *contents)

    @cached_property
    def earlier_fingerprint(self) -> str:
        return digest(*self._identity, label_bytes(self.labels), *(name.encode() for name in self.class_names))

    def read_bytes(self, index: int) -> bytes:
        self.check_index(index)
        blocks = self.blocks()
        block = int(np.searchsorted(blocks.starts, index, side="right")) - 1
        if block not in self._held:
            limit = FITS_IN_MEMORY if self.encoded_bytes <= FITS_IN_MEMORY else _HELD_BYTES
            while self._held and int(blocks.sizes[[*self._held, block]].sum()) > limit:
                self._held.popitem(last=False)
            self._held[block] = self.read_block(block)
        self._held.move_to_end(block)
        return self._held[block][index - int(blocks.starts[block])]

    def release(self) -> None:
        self._held.clear()

    def __getstate__(self) -> dict[str, Any]:  # a copy, and another process, reads for itself
        return self.__dict__ | {"_held": OrderedDict()}


def digest(*parts: bytes) -> str:
    """Return the sha256 of the parts, each preceded by its length so that no two lists of parts run together."""
    result = hashlib.sha256()
    for part in parts:
        result.update(len(part).to_bytes(8, "little"))
        result.update(part)
    return result.hexdigest()


def content_digest(path: str | Path, pieces: int = 0) -> bytes:
    """Return a hash of what is in a file on this machine: of all of it, or of so many pieces of 4 KiB, and its size.

    Of a file that cannot be read it is empty; reading it says so.
    """
    result = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - called for each of many files
            size = os.fstat(file.fileno()).st_size
            if size <= _PIECE * (pieces or size):
                while data := file.read(1 << 20):
                    result.update(data)
            else:
                for place in range(pieces):
                    file.seek((size - _PIECE) * place // (pieces - 1))
                    result.update(file.read(_PIECE))
    except OSError:
        return b""
    return result.digest() + size.to_bytes(8, "little")


def label_bytes(labels: torch.Tensor | None) -> bytes:
    """Return labels as a fingerprint takes them."""
    return b"" if labels is None else labels.numpy().astype("<i8").tobytes()


def notes(source: ImageSource, *, captions: bool = False) -> list[str]:
    """Return what a user should know of an opened source: what is not read, and numbers that name other classes.

    Args:
        captions: they are read.
    """
    found = [f"ignored: {one}" for one in (without_captions(source.ignored) if captions else source.ignored)]
    names = source.class_names
    for number, name in enumerate(names):
        if name.isdecimal() and int(name) != number:
            found.append(f"warning: label {number} is class {name!r}: numbers count classes from 0, names are text")
            break
    return found


def renumbered(source: ImageSource, class_names: Sequence[str]) -> ImageSource:
    """Return the source with its classes numbered as in `class_names`, which may hold more of them."""
    class_names = tuple(class_names)
    if source.labels is None or source.class_names == class_names:
        return source
    if len(set(class_names)) != len(class_names):
        raise ConfigError("class_names holds a name twice; names of classes must differ")
    plain = [unicodedata.normalize("NFC", name) for name in class_names]  # models of before may have others
    missing = [name for name in source.class_names if name not in class_names and name not in plain]
    if missing:
        hint = did_you_mean(missing[0], class_names) or "; rename or remove it"
        raise DataError(f"{source.name} has the class {missing[0]!r}, none of the {len(class_names)} asked for{hint}")
    known = [(class_names if name in class_names else plain).index(name) for name in source.class_names]
    table = torch.tensor(known, dtype=torch.int64, device="cpu")
    result = copy.copy(source)
    result.class_names = class_names
    result.labels = table[source.labels]
    result.__dict__.pop("earlier_fingerprint", None)
    result.fingerprint = digest(source.fingerprint.encode(), "\0".join(class_names).encode())
    return result
