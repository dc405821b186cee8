"""Where pictures come from: the common face of all sources, and the one door that opens them."""

from __future__ import annotations

import copy
import hashlib
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from spheregen.data.images import decode_bytes
from spheregen.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from spheregen.data.ranges import RangeFiles

FITS_IN_MEMORY = 1 << 30  # encoded bytes: a set of up to this size is kept as it is
_HELD_BYTES = 128 << 20  # encoded bytes kept of a larger one
_KINDS = "give 'digits', a folder of images, a .zip, .tar or .parquet, a URL of one, or a Hub data set (user/name)"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

ARCHIVES = (".parquet", ".tar", ".zip")
"""Files that hold many pictures."""

_ALIASES = {"val": "validation", "validation": "val"}


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Runs of samples that are fast to read together."""

    starts: npt.NDArray[np.int64]  # (K,) first sample of each run, ascending from 0; a run ends where the next starts
    sizes: npt.NDArray[np.int64]  # (K,) encoded bytes of each run


class ImageSource(ABC):
    """A numbered, perhaps labelled, set of pictures. Opening one reads names and labels, not pixels."""

    name: str  # for people: "digits", or the name of the folder or file
    split: str  # the part that was opened: "train", "test", "all" ...
    class_names: tuple[str, ...]  # name of class i at place i; empty = unlabelled
    labels: torch.Tensor | None  # (N,) int64 in [0, len(class_names)); None = unlabelled
    fingerprint: (
        str  # sha256, in hexadecimal, of names, sizes and labels: changes when the data set does, not when it moves
    )
    encoded_bytes: int  # of all pictures together, as they are stored
    native_size: int | None = None  # side in pixels where all pictures are squares of one known size
    flips_allowed: bool = True  # False where a mirror image means something else (handwriting)
    central: bool = False  # True: the main process reads bytes, workers only decode; False: workers read by themselves
    remote: bool = False  # True: pictures come over a network each time they are read

    @abstractmethod
    def __len__(self) -> int:
        """N, the number of pictures."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """Picture `index` (0 .. N-1) in its file format, not checked.

        Raises:
            DataError: it is missing or cannot be read; the message names it as `describe` does.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """Where picture `index` is: a path, "file.zip name", or "file.parquet row 17" (rows count from 0)."""

    def read(self, index: int) -> Image.Image:
        """Picture `index` (0 .. N-1), completely decoded, in whatever mode it was stored.

        Raises:
            DataError: it is missing, empty, truncated or no picture; the message names it as `describe` does.
        """
        return decode_bytes(self.read_bytes(index), partial(self.describe, index))

    @property
    def random_access_is_slow(self) -> bool:
        """Whether training should read whole blocks: a property of the data alone, never of the machine."""
        return False

    def blocks(self) -> Blocks | None:
        """The runs of samples that are fast to read together; None = the source has no such structure."""
        return None

    def read_block(self, block: int) -> Sequence[bytes]:
        """The encoded pictures of a block, in order; safe to call from any one thread at a time.

        Raises:
            DataError: it cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} has no blocks")

    def release(self) -> None:
        """Give back memory held for reading; what is needed again is read again. Sources that hold none do nothing."""
        return


class BlockSource(ImageSource):
    """A source whose pictures are read block by block, with the blocks used last kept in memory.

    All stay in memory if they take at most 1 GiB together (then random access is fast after the first time); otherwise
    128 MiB, or one block if that is larger.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[int, Sequence[bytes]] = OrderedDict()
        self._held_bytes = 0

    @abstractmethod
    def blocks(self) -> Blocks: ...

    @abstractmethod
    def read_block(self, block: int) -> Sequence[bytes]: ...

    @property
    def random_access_is_slow(self) -> bool:
        return self.central and self.encoded_bytes > FITS_IN_MEMORY

    def read_bytes(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        blocks = self.blocks()
        block = int(np.searchsorted(blocks.starts, index, side="right")) - 1
        if block in self._held:
            self._held.move_to_end(block)
        else:
            limit = FITS_IN_MEMORY if self.encoded_bytes <= FITS_IN_MEMORY else _HELD_BYTES
            size = int(blocks.sizes[block])
            while self._held and self._held_bytes + size > limit:
                self._held_bytes -= int(blocks.sizes[self._held.popitem(last=False)[0]])
            self._held[block] = self.read_block(block)
            self._held_bytes += size
        return self._held[block][index - int(blocks.starts[block])]

    def release(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    def __getstate__(self) -> dict[str, Any]:  # a copy, and another process, reads for itself
        return self.__dict__ | {"_held": OrderedDict(), "_held_bytes": 0}


def open_source(
    source: str | Path, *, split: str = "train", class_names: Sequence[str] | None = None, stream: bool = False
) -> ImageSource:
    """Open a set of pictures.

    Args:
        source: one of

            - "digits" (embedded; "./digits" is a folder of that name);
            - a folder of images (sub-folders are classes; train, test ... above them are splits), or a .zip of one;
            - a parquet file or a folder of them;
            - WebDataset shards: a .tar file, or a folder of them;
            - several such files by a pattern: "shards/train-{000000..000146}.tar", "shards/*.tar";
            - a URL of tar, zip or parquet files, patterns included: "https://...", "s3://...", "hf://datasets/...";
            - a data set of the Hugging Face Hub: "user/dataset", or
              "hf://datasets/user/dataset[@revision][/folder]".
        split: "train", "test", "val" ... as the source offers them, or "all". A source without splits is "train".
        class_names: number the classes as in this list (that of a trained model) instead of by the source's own.
        stream: read a Hub data set over the network while training runs, instead of downloading it first. Other URLs
            are always read over the network.

    Raises:
        DataError: there is no such source or split, it is empty, broken or out of reach, or it has a class that
            `class_names` lacks; or a package that it needs is not installed.
    """
    opened = _open(source, split, stream)
    return opened if class_names is None else _renumbered(opened, tuple(class_names))


def open_files(files: RangeFiles, split: str, name: str, *, chosen: bool = False) -> ImageSource:
    """Open archives or tables, which must be of one kind.

    Args:
        name: of the whole, for people.
        chosen: the user named exactly these files, so that the default split does not leave any out.

    Raises:
        DataError: as `open_source`.
    """
    from spheregen.data.parquet import ParquetSource
    from spheregen.data.tars import TarSource
    from spheregen.data.zips import ZipSource

    kinds = sorted({Path(files.base_name(file)).suffix.lower() for file in range(len(files))})
    if len(kinds) > 1:
        raise DataError(f"{name} are files of several kinds ({', '.join(kinds)}); name one kind")
    if kinds == [".parquet"]:
        return ParquetSource(name, files, split, chosen=chosen)
    if kinds == [".tar"]:
        return TarSource(name, files, split, chosen=chosen)
    if kinds == [".zip"]:
        if len(files) > 1:
            raise DataError(f"{name} are {len(files)} zip files; give one, or WebDataset shards (.tar)")
        return ZipSource(files, split)
    where = files.names[0]
    if where.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".gz")):
        raise DataError(f"{where} is compressed, so pictures in it cannot be found; unpack it to a .tar first")
    raise DataError(f"{where} is a file of an unknown kind; {_KINDS}")


def _open(source: str | Path, split: str, stream: bool) -> ImageSource:
    from spheregen.data.digits import DigitsSource
    from spheregen.data.folders import FolderSource
    from spheregen.data.patterns import is_pattern, local_matches
    from spheregen.data.ranges import LocalFiles

    text = str(source)
    if text == "digits":
        return DigitsSource(split)
    if text == "":
        raise DataError(f"the name of the data is empty; {_KINDS}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return _open_url(text, split, stream)
    path = Path(source).expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # no permission on a folder above, a name that is too long
        raise DataError(
            f"{path} cannot be looked at ({error.strerror or error}); check path and permissions"
        ) from error
    if is_file:
        return open_files(LocalFiles([path]), split, path.stem, chosen=True)
    if is_folder:
        paths = _data_files(path)
        return open_files(LocalFiles(paths), split, path.resolve().name) if paths else FolderSource(path, split)
    if is_pattern(text):
        return open_files(LocalFiles(local_matches(text)), split, path.stem, chosen=True)
    if _HUB_ID.fullmatch(text) and path.suffix.lower() not in ARCHIVES:
        from spheregen.data.hub import open_hub

        return open_hub(text, split, stream=stream, path_too=True)
    hint = did_you_mean(text, ["digits"])
    raise DataError(
        f"no data at {path}: neither a folder nor a file nor 'digits' nor a Hub data set (user/name)"
        f"{hint or '; check the path for a typo'}"
    )


def _open_url(url: str, split: str, stream: bool) -> ImageSource:
    from spheregen.data.hub import HUB, open_hub
    from spheregen.data.remote import open_remote

    url = re.sub(r":/(?!/)", "://", url, count=1)  # pathlib makes one slash of two
    if url.startswith("file://"):
        return _open(url.removeprefix("file://"), split, stream)
    if url.startswith(HUB) and not url.lower().endswith(ARCHIVES):
        return open_hub(url.removeprefix(HUB), split, stream=stream)
    return open_remote(url, split)


def _data_files(folder: Path) -> list[Path]:
    """The parquet files or else the tar files of a folder, or of its `data` sub-folder (as in Hub repositories)."""
    for suffix in (".parquet", ".tar"):
        for place in (folder, folder / "data"):
            found = sorted(path for path in place.glob(f"*{suffix}") if path.is_file() and path.name[0] != ".")
            if found:
                return found
    return []


def choose_split(wanted: str, present: Sequence[str], where: str | Path) -> str:
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


def require_unsplit(wanted: str, where: str | Path) -> None:
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
