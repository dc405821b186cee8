"""Any number of images into a folder, a zip or WebDataset shards.

Archives have fixed time stamps, so that the same images give the same bytes, and our own sources read them back.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType

from PIL import Image

from spheregen.data.grids import encode_png, save_png
from spheregen.data.names import SPLITS, is_image_name
from spheregen.errors import ConfigError, SphereGenError
from spheregen.files import atomic_path, check_replaceable, write_text

Append = Callable[[str, bytes], None]  # a member's name and contents, to the end of an archive

_FIELD = re.compile(r"%0[1-9]\d*d")  # %06d
_NO_FOLDERS = frozenset({".parquet", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})


def open_writer(
    out: Path, *, class_names: Sequence[str] = (), shard_size: int = 10_000, overwrite: bool = True
) -> ImageWriter:
    """Return a writer of the kind that the name tells; it creates nothing before the first image comes.

    Args:
        out: one of

            - a folder: a PNG file for each image, `KEY.png`;
            - a .zip: stored members `KEY.png`, or `CLASS/KEY.png` for images with a label;
            - a .tar: one WebDataset shard with `KEY.png`, `KEY.json` (the metadata) and, for images with a label,
              `KEY.cls` (its number), and `classes.txt` beside it;
            - `samples-%06d.tar`: numbered shards, from 0 on.
        class_names: name of class i at place i. Without them the classes of a zip are called by their numbers. Folders
            in a zip are named safely: "a/b" becomes "a_b", ".x" becomes "_x", a name that occurs twice gets its number.
        shard_size: images in a numbered shard, at least 1.
        overwrite: whether files may be replaced that other programs wrote.

    Raises:
        ConfigError: `out` cannot be such a file or folder, its name is no pattern, numbered shards of this name are
            there already (old and new ones would mix), or `classes.txt` beside it names other classes.
    """
    if shard_size < 1:
        raise ConfigError(f"shard_size is {shard_size}; a shard holds at least 1 image")
    try:
        _check_place(out)
        if not overwrite and not out.is_dir():
            check_replaceable(out)
        return ImageWriter(out, class_names, shard_size, overwrite=overwrite)
    except OSError as error:  # no permission on a folder above, a name that is too long
        reason = error.strerror or error
        raise ConfigError(f"{out} cannot be looked at ({reason}); choose another place or name") from error


class ImageWriter(AbstractContextManager["ImageWriter"]):
    """Takes images one by one; made by `open_writer`, used in a `with` statement.

    What is complete appears under its final name: each PNG of a folder and each numbered shard as soon as it is full,
    a zip or single shard at the end. Left with an exception, the writer removes the file it was at, and what was there
    before stays; complete PNGs and shards stay too.
    """

    def __init__(self, out: Path, class_names: Sequence[str], shard_size: int, *, overwrite: bool = True) -> None:
        self.out, self.class_names, self.shard_size, self.overwrite = out, class_names, shard_size, overwrite
        self._kind = suffix if (suffix := out.suffix.lower()) in (".zip", ".tar") else "folder"
        self._numbered = self._kind == ".tar" and "%" in out.name
        self._folders = _folder_names(class_names) if self._kind == ".zip" else []
        self._classes = _check_shards(out, class_names) if self._kind == ".tar" else ""  # the text of classes.txt
        self._labelled: bool | None = None  # True or False from the first image on
        self._count = 0  # of images
        self._closed = False
        self._open = ExitStack()
        self._append: Append | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it writes a folder, not an archive."""
        return self._kind == "folder"

    def add(self, key: str, image: Image.Image, metadata: Mapping[str, str], label: int | None = None) -> None:
        """Write one image.

        Args:
            key: its name without a suffix. Keys of one writer must differ, which is not checked.
            image: of a mode that PNG knows: L, RGB ...
            metadata: text that goes into the PNG, and into the JSON member of a shard.
            label: its class, in [0, len(class_names)) if there are names. A folder ignores it; in an archive either
                all images have one or none has.

        Raises:
            ConfigError: the key cannot be the name of a file, the label or the name of a metadata entry is impossible.
                The writer goes on as if it had not been called.
            SphereGenError: the image cannot be written (the disk is full ...), or the writer is closed.
        """
        if self._closed:
            raise SphereGenError(f"the writer of {self.out} is closed; open a new one")
        if not key.isprintable() or not key or re.search(r"^\.|[/\\]", key) or ("." in key and self._kind == ".tar"):
            raise ConfigError(
                f"{key!r} cannot name an image; use printable characters without / and \\, no dot in front, and none "
                "in a WebDataset shard"
            )
        if label is not None and not 0 <= label < (len(self.class_names) or label + 1):
            known = f"from 0 to {len(self.class_names) - 1}" if self.class_names else "from 0"
            raise ConfigError(f"the label {label} of {key} is impossible; classes count {known}")
        if self._kind == "folder":
            path = self.out / f"{key}.png"
            if not self.overwrite:
                check_replaceable(path)
            save_png(image, path, metadata, durable=False)
            return
        if self._labelled not in (None, label is not None):
            raise ConfigError(f"{key} and those before it do not all have labels; label all images or none")
        members = self._members(key, encode_png(image, metadata), metadata, label)
        self._labelled = label is not None
        self._closed = True  # if writing fails, a member may be cut off: nothing can follow it
        try:
            if self._append is None:
                self._append = self._open.enter_context(self._next_archive())
            for name, data in members.items():
                self._append(name, data)
        except OSError as error:
            reason = error.strerror or error
            raise SphereGenError(f"cannot write {self.out}: {reason}; free space or choose another place") from error
        self._count += 1
        if self._numbered and self._count % self.shard_size == 0:
            self._append = None
            self._open.close()
        self._closed = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        complete = kind is None and not self._closed
        self._closed = True
        if complete:
            self._open.close()
        else:  # not the error itself: that may be an OSError which has nothing to do with this file
            with contextlib.suppress(SphereGenError):
                self._open.__exit__(SphereGenError, SphereGenError("given up"), None)

    def _members(self, key: str, png: bytes, metadata: Mapping[str, str], label: int | None) -> dict[str, bytes]:
        """Return what an archive stores for one image."""
        if self._kind == ".zip":
            folder = "" if label is None else f"{self._folders[label] if self._folders else label}/"
            return {f"{folder}{key}.png": png}
        text = json.dumps(dict(metadata), ensure_ascii=False)
        members = {f"{key}.png": png, f"{key}.json": text.encode("utf-8", "replace")}
        return members if label is None else {**members, f"{key}.cls": str(label).encode()}  # the last one counts

    @contextlib.contextmanager
    def _next_archive(self) -> Iterator[Append]:
        """Open the archive that the next image goes into; it appears when it is left without an error."""
        if self._kind == ".zip":
            with atomic_path(self.out) as temporary, zipfile.ZipFile(temporary, "w") as archive:

                def append_to_zip(name: str, data: bytes) -> None:
                    info = zipfile.ZipInfo(name)  # of 1980
                    info.external_attr = 0o100644 << 16
                    archive.writestr(info, data)

                yield append_to_zip
            return
        number = self._count // self.shard_size
        path = self.out.with_name(self.out.name % number) if self._numbered else self.out
        with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as shard:

            def append_to_tar(name: str, data: bytes) -> None:
                info = tarfile.TarInfo(name)  # of 1970, nobody's
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
                shard.members = []  # type: ignore[attr-defined]  # it would keep a record of each

            yield append_to_tar
            if self._classes and number == 0:  # no shard appears before the names of its classes
                write_text(self.out.with_name("classes.txt"), self._classes)


def _check_place(out: Path) -> None:
    suffix = out.suffix.lower()
    patterned = suffix == ".tar" and set("%{}*?[") & set(_FIELD.sub("", out.name, count=1))
    numbered = suffix != ".tar" and _FIELD.search(out.name)
    if patterned or numbered or ((suffix in _NO_FOLDERS or is_image_name(suffix)) and not out.is_dir()):
        raise ConfigError(f"{out} cannot take images; name a folder, a .zip, a .tar, or shards like samples-%06d.tar")
    above = next((part for part in out.parents if part.exists()), out)
    if above != out and not above.is_dir():
        raise ConfigError(f"{above} is a file, so that {out} cannot be made; choose another place")
    if out.exists() and out.is_dir() == (suffix in (".zip", ".tar")):
        raise ConfigError(f"{out} is a {'folder' if out.is_dir() else 'file'}; name a folder, a .zip or a .tar file")


def _check_shards(out: Path, class_names: Sequence[str]) -> str:
    """Complain of shards and classes that are there already and do not fit; return the text of `classes.txt`."""
    lines = (" ".join(_utf8(name).split()) or str(number) for number, name in enumerate(class_names))
    classes = "".join(f"{line}\n" for line in lines)
    listed = out.with_name("classes.txt")
    if classes and listed.exists() and listed.read_bytes() != classes.encode():
        raise ConfigError(f"{listed} names other classes than those given; choose another folder")
    shard = re.compile(r"\d+".join(map(re.escape, _FIELD.split(out.name))))
    if "%" in out.name and (there := [path for path in out.parent.glob("*") if shard.fullmatch(path.name)]):
        raise ConfigError(f"{min(there)} is there already, and old and new shards would mix; choose another name")
    return classes


def _folder_names(class_names: Sequence[str]) -> list[str]:
    """Name a folder for each class that is safe to unpack and that our own sources read as that class."""
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


def _utf8(text: str) -> str:
    """Replace what UTF-8 cannot say (names of files may have bytes that are no text)."""
    return text.encode("utf-8", "replace").decode()
