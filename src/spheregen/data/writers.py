"""Any number of pictures into a folder, a zip or WebDataset shards; memory does not grow with their number.

The archives are written here, not by `zipfile` and `tarfile`, which keep a record of each member until the end. They
have fixed time stamps, so that the same pictures give the same bytes, and our own sources read them back.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import tarfile
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from spheregen.data.grids import encode_png, save_png
from spheregen.data.names import SPLITS, SUFFIXES
from spheregen.errors import ConfigError, SphereGenError
from spheregen.files import atomic_path, write_text

Append = Callable[[str, bytes], None]  # a member's name and contents, to the end of an archive

_FIELD = re.compile(r"%0[1-9]\d*d")  # %06d
_NO_FOLDERS = frozenset({*SUFFIXES, ".parquet", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
_MARK_16, _MARK_32 = 0xFFFF, 0xFFFFFFFF  # in a zip: the number is in a 64-bit field instead
_LARGEST_16, _LARGEST_32 = _MARK_16, _MARK_32  # numbers from here on are


def open_writer(out: Path, *, class_names: Sequence[str] = (), shard_size: int = 10_000) -> PictureWriter:
    """A writer of the kind that the name tells; it creates nothing before the first picture comes.

    Args:
        out: one of

            - a folder: a PNG file for each picture, `KEY.png`;
            - a .zip: stored members `KEY.png`, or `CLASS/KEY.png` for pictures with a label;
            - a .tar: one WebDataset shard with `KEY.png`, `KEY.json` (the metadata) and, for pictures with a label,
              `KEY.cls` (its number), and `classes.txt` beside it;
            - `samples-%06d.tar`: numbered shards, from 0 on.
        class_names: name of class i at place i. Without them the classes of a zip are called by their numbers. Folders
            in a zip are named safely: "a/b" becomes "a_b", ".x" becomes "_x", a name that occurs twice gets its number.
        shard_size: pictures in a numbered shard, at least 1.

    Raises:
        ConfigError: `out` cannot be such a file or folder, its name is no pattern, numbered shards of this name are
            there already (old and new ones would mix), or `classes.txt` beside it names other classes.
    """
    if shard_size < 1:
        raise ConfigError(f"shard_size is {shard_size}; a shard holds at least 1 picture")
    try:
        _check_name(out)
        _check_place(out)
        if out.suffix.lower() == ".zip":
            return _ZipWriter(out, class_names)
        if out.suffix.lower() == ".tar":
            return _ShardWriter(out, class_names, shard_size)
    except OSError as error:  # no permission on a folder above, a name that is too long
        reason = error.strerror or error
        raise ConfigError(f"{out} cannot be looked at ({reason}); choose another place or name") from error
    return _FolderWriter(out, class_names)


class PictureWriter(AbstractContextManager["PictureWriter"], ABC):
    """Takes pictures one by one; made by `open_writer`, used in a `with` statement.

    What is complete appears under its final name: each PNG of a folder and each numbered shard as soon as it is full,
    a zip or single shard at the end. Left with an exception, the writer removes the file it was at, and what was there
    before stays; complete PNGs and shards stay too.
    """

    def __init__(self, out: Path, class_names: Sequence[str]) -> None:
        self.out = out
        self.class_names = tuple(class_names)
        self._closed = False

    def add(self, key: str, image: Image.Image, metadata: Mapping[str, str], label: int | None = None) -> None:
        """Write one picture.

        Args:
            key: its name without a suffix. Keys of one writer must differ, which is not checked.
            image: of a mode that PNG knows: L, RGB ...
            metadata: text that goes into the PNG, and into the JSON member of a shard.
            label: its class, in [0, len(class_names)) if there are names. A folder ignores it; in an archive either
                all pictures have one or none has.

        Raises:
            ConfigError: the key cannot be the name of a file, the label or the name of a metadata entry is impossible.
                The writer goes on as if it had not been called.
            SphereGenError: the picture cannot be written (the disk is full ...), or the writer is closed.
        """
        if self._closed:
            raise SphereGenError(f"the writer of {self.out} is closed; open a new one")
        self._check_key(key)
        if label is not None and not 0 <= label < (len(self.class_names) or label + 1):
            count = len(self.class_names)
            known = f"classes count from 0 to {count - 1}" if count else "classes count from 0"
            raise ConfigError(f"the label {label} of {key} is impossible; {known}")
        self._add(key, image, metadata, label)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        complete = kind is None and not self._closed
        self._closed = True
        self._close(complete=complete)

    def _check_key(self, key: str) -> None:
        if not key or key.startswith(".") or not key.isprintable() or "/" in key or "\\" in key:
            raise ConfigError(
                f"{key!r} cannot name a picture; use printable characters without / and \\, and no dot in front"
            )

    @abstractmethod
    def _add(self, key: str, image: Image.Image, metadata: Mapping[str, str], label: int | None) -> None:
        """Write a picture whose key and label are in order."""

    def _close(self, *, complete: bool) -> None:
        """Publish the file that is open, or remove it."""
        return


class _FolderWriter(PictureWriter):
    def _add(self, key: str, image: Image.Image, metadata: Mapping[str, str], label: int | None) -> None:
        save_png(image, self.out / f"{key}.png", metadata, durable=False)


class _ArchiveWriter(PictureWriter):
    """Pictures into one archive, or one after the other."""

    def __init__(self, out: Path, class_names: Sequence[str]) -> None:
        super().__init__(out, class_names)
        self._labelled: bool | None = None
        self._archive: AbstractContextManager[Append] | None = None
        self._append: Append

    def _add(self, key: str, image: Image.Image, metadata: Mapping[str, str], label: int | None) -> None:
        labelled = label is not None
        if self._labelled not in (None, labelled):
            raise ConfigError(
                f"{key} has {'a' if labelled else 'no'} label, unlike those before it in {self.out}; "
                "label all pictures or none"
            )
        members = self._members(key, encode_png(image, metadata), metadata, label)
        self._labelled = labelled
        self._closed = True  # if writing fails, a member may be cut off: nothing can follow it
        try:
            if self._archive is None:
                archive = self._next_archive()
                self._append = archive.__enter__()
                self._archive = archive
            for name, data in members.items():
                self._append(name, data)
        except OSError as error:
            reason = error.strerror or error
            raise SphereGenError(f"cannot write {self.out}: {reason}; free space or choose another place") from error
        if self._full():
            self._close(complete=True)
        self._closed = False

    def _close(self, *, complete: bool) -> None:
        archive, self._archive = self._archive, None
        if archive is None:
            return
        if complete:
            archive.__exit__(None, None, None)
        else:  # a mark, not the error itself: that may be an OSError which has nothing to do with this file
            archive.__exit__(_AbandonedError, _AbandonedError(), None)

    @abstractmethod
    def _members(self, key: str, png: bytes, metadata: Mapping[str, str], label: int | None) -> dict[str, bytes]:
        """What is stored for one picture."""

    @abstractmethod
    def _next_archive(self) -> AbstractContextManager[Append]:
        """The archive that the next picture goes into."""

    def _full(self) -> bool:
        """Called after each picture: whether the archive is complete with it."""
        return False


class _ZipWriter(_ArchiveWriter):
    def __init__(self, out: Path, class_names: Sequence[str]) -> None:
        super().__init__(out, class_names)
        self._folders = _folder_names(class_names)

    def _members(self, key: str, png: bytes, metadata: Mapping[str, str], label: int | None) -> dict[str, bytes]:
        if label is None:
            return {f"{key}.png": png}
        return {f"{self._folders[label] if self._folders else label}/{key}.png": png}

    def _next_archive(self) -> AbstractContextManager[Append]:
        return _zip_file(self.out)


class _ShardWriter(_ArchiveWriter):
    def __init__(self, out: Path, class_names: Sequence[str], shard_size: int) -> None:
        super().__init__(out, class_names)
        self._numbered = "%" in out.name
        self._shard_size = shard_size
        self._shards = 0  # begun
        self._pictures = 0  # in the one that is open
        self._classes = "".join(f"{_line(name) or number}\n" for number, name in enumerate(class_names))
        self._listed = out.with_name("classes.txt")
        if self._classes and self._listed.exists() and self._listed.read_bytes() != self._classes.encode():
            raise ConfigError(f"{self._listed} names other classes than those given; choose another folder")
        if self._numbered:
            before, after = (re.escape(part) for part in _FIELD.split(out.name))
            shard = re.compile(rf"{before}\d+{after}")
            there = [path.name for path in out.parent.glob("*") if shard.fullmatch(path.name)]
            if there:
                raise ConfigError(
                    f"{out.with_name(min(there))} is there already, and old and new shards would mix; remove the old "
                    "ones or choose another name"
                )

    def _check_key(self, key: str) -> None:
        super()._check_key(key)
        if "." in key:
            raise ConfigError(f"{key!r} cannot name a sample of a WebDataset shard, which ends at a dot; use no dots")

    def _members(self, key: str, png: bytes, metadata: Mapping[str, str], label: int | None) -> dict[str, bytes]:
        text = json.dumps(dict(metadata), ensure_ascii=False)
        members = {f"{key}.png": png, f"{key}.json": text.encode("utf-8", "replace")}
        return members if label is None else {**members, f"{key}.cls": str(label).encode()}  # the last one counts

    @contextmanager
    def _next_archive(self) -> Iterator[Append]:
        name = self.out.name % self._shards if self._numbered else self.out.name
        self._shards += 1
        self._pictures = 0
        with _tar_file(self.out.with_name(name)) as append:
            yield append
            if self._classes and self._shards == 1:  # no shard appears before the names of its classes
                write_text(self._listed, self._classes)

    def _full(self) -> bool:
        self._pictures += 1
        return self._numbered and self._pictures == self._shard_size


class _AbandonedError(Exception):
    """Tells an archive that it will not be completed."""


@contextmanager
def _tar_file(path: Path) -> Iterator[Append]:
    """A tar (POSIX.1-2001, pax headers where a name needs one); it appears when the block is left without an error."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:

        def append(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)  # of 1970, nobody's
            info.size = len(data)
            file.write(info.tobuf(tarfile.PAX_FORMAT))
            file.write(data)
            file.write(bytes(-len(data) % tarfile.BLOCKSIZE))

        yield append
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE))


@contextmanager
def _zip_file(path: Path) -> Iterator[Append]:
    """A zip of stored members (PKWARE's APPNOTE 6.3.10), with 64-bit fields where 32 bits do not suffice; it appears
    when the block is left without an error. Its directory waits in a temporary file."""
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        tempfile.TemporaryFile(dir=path.parent) as directory,
    ):
        count = 0

        def append(name: str, data: bytes) -> None:
            nonlocal count
            raw, offset = name.encode(), file.tell()
            far = offset >= _LARGEST_32
            extra = struct.pack("<HHQ", 1, 8, offset) if far else b""
            # version needed, flags (the name is UTF-8), stored, 1980-01-01 00:00, checksum, sizes
            common = struct.pack("<5H3L", 45 if far else 20, 0x800, 0, 0, 0x21, zlib.crc32(data), len(data), len(data))
            file.write(b"PK\3\4" + common + struct.pack("<2H", len(raw), 0) + raw)
            file.write(data)
            # made by version 4.5 on Unix ... no comment, first disk, binary, an ordinary file rw-r--r--, place
            sizes = struct.pack("<5H2L", len(raw), len(extra), 0, 0, 0, 0o100644 << 16, _MARK_32 if far else offset)
            directory.write(b"PK\1\2" + struct.pack("<H", 3 << 8 | 45) + common + sizes + raw + extra)
            count += 1

        yield append
        start, length = file.tell(), directory.tell()
        directory.seek(0)
        shutil.copyfileobj(directory, file)
        if count >= _LARGEST_16 or max(start, length) >= _LARGEST_32:
            end = file.tell()
            file.write(b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 3 << 8 | 45, 45, 0, 0, count, count, length, start))
            file.write(b"PK\6\7" + struct.pack("<LQL", 0, end, 1))
            count, length, start = _MARK_16, _MARK_32, _MARK_32
        file.write(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count, count, length, start, 0))


def _check_name(out: Path) -> None:
    """Complain of a name that is no folder, zip, shard or pattern of shards."""
    suffix = out.suffix.lower()
    field = _FIELD.search(out.name)
    if suffix in _NO_FOLDERS and not out.is_dir():
        raise ConfigError(f"{out} names neither a folder nor a .zip nor a .tar; pictures can be written to these")
    if field and suffix != ".tar":
        raise ConfigError(
            f"{out} is numbered, which only shards are; use a name like samples-%06d.tar, or no {field[0]}"
        )
    if suffix == ".tar" and ("%" in _FIELD.sub("", out.name, count=1) or any(sign in out.name for sign in "{}*?[")):
        raise ConfigError(f"{out} is no pattern for shards; use one field like %06d and no other sign of a pattern")


def _check_place(out: Path) -> None:
    """Complain of a file where a folder is needed, and the other way round."""
    above = next((part for part in out.parents if part.exists()), out)
    if above != out and not above.is_dir():
        raise ConfigError(f"{above} is a file, so that {out} cannot be made; choose another place")
    if not out.exists():
        return
    needs_folder = out.suffix.lower() not in (".zip", ".tar")
    if needs_folder and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder, a .zip or a .tar to write pictures to")
    if not needs_folder and out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file, or a folder without {out.suffix}")


def _folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder for each class that is safe to unpack and that our own sources read as that class."""
    folders: dict[str, None] = {}
    for number, name in enumerate(class_names):
        folder = re.sub(r"[/\\\0-\x1f\x7f]", "_", _utf8(name))
        if folder in ("", "__MACOSX") or folder.startswith("."):  # the sources skip hidden folders
            folder = f"_{folder.lstrip('.')}"
        while folder in folders:
            folder = f"{folder}-{number}"
        folders[folder] = None
    top = "" if SPLITS.isdisjoint(folders) else "train/"  # a split above all, so that no class is taken for one
    return [top + folder for folder in folders]


def _line(class_name: str) -> str:
    """A name on one line, without spaces around it."""
    return " ".join(_utf8(class_name).split())


def _utf8(text: str) -> str:
    """Text without what UTF-8 cannot say (names of files may have bytes that are no text)."""
    return text.encode("utf-8", "replace").decode()
