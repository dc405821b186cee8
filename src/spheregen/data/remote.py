"""Files behind a URL, read by ranges through fsspec: https, s3, gs, the Hub ...

fsspec comes with torch; what a protocol needs on top is named in the error. Every request is tried three times.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import numpy as np

from spheregen.data.names import PackedStrings
from spheregen.data.patterns import expand_braces
from spheregen.data.ranges import RangeFiles, RangeReader
from spheregen.data.sources import ARCHIVES, ImageSource, open_files
from spheregen.errors import DataError, SphereGenError
from spheregen.files import atomic_path

if TYPE_CHECKING:
    from spheregen.data.tars import ShardIndex

Answer = TypeVar("Answer")

_PAUSES = (0.5, 2.0)  # seconds before the second and the third try
_STEP = 4 << 20  # bytes of one request while a file is read through
_INDEX_VERSION = 1


class RemoteFiles(RangeFiles):
    """Files of one fsspec file system.

    Args:
        system: the fsspec file system.
        paths: as it names them.
        names: the URLs, for people.
    """

    remote = True

    def __init__(self, system: Any, paths: Sequence[str], names: Sequence[str]) -> None:
        self._system = system
        self._paths = list(paths)
        self.names = list(names)
        self._infos: dict[int, dict[str, Any]] = {}

    def size(self, file: int) -> int:
        size = self._info(file).get("size")
        if not isinstance(size, int):
            raise DataError(f"{self.names[file]}: the server does not tell its size; download it and give its path")
        return size

    def stamp(self, file: int) -> str:
        """What tells this version of the file from others: URL, size, and checksum or time where they are known."""
        info = self._info(file)
        known = [
            str(info[key]) for key in ("etag", "ETag", "blob_id", "mtime", "LastModified", "created") if key in info
        ]
        return "\0".join([self.names[file], str(self.size(file)), *known])

    def read(self, file: int, offset: int, length: int) -> bytes:
        def fetch() -> bytes:
            data = bytes(self._system.cat_file(self._paths[file], start=offset, end=offset + length))
            if len(data) != length:
                raise OSError(f"{len(data)} of {length} bytes came")
            return data

        return retried(fetch, self.names[file]) if length else b""

    def open(self, file: int) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(RangeReader(self, file), _STEP))

    def only(self, chosen: Sequence[int]) -> RemoteFiles:
        part = RemoteFiles(self._system, [self._paths[i] for i in chosen], [self.names[i] for i in chosen])
        part._infos = {new: self._infos[old] for new, old in enumerate(chosen) if old in self._infos}
        return part

    def beside(self, name: str) -> bytes | None:
        path = f"{self._paths[0].rpartition('/')[0]}/{name}"
        try:
            return bytes(self._system.cat_file(path))
        except Exception:  # most stores answer a missing file in their own way, and such a file is seldom there
            return None

    def _info(self, file: int) -> dict[str, Any]:
        if file not in self._infos:
            self._infos[file] = dict(retried(lambda: self._system.info(self._paths[file]), self.names[file]))
        return self._infos[file]


def open_remote(url: str, split: str) -> ImageSource:
    """Open the tar, zip or parquet files that a URL, a pattern or a folder's URL stands for.

    Raises:
        DataError: a package for the protocol is missing, nothing is there, or the network fails three times.
    """
    urls = [found for name in expand_braces(url) for found in _matches(name)]
    system = urls[0][0]
    files = RemoteFiles(system, [path for _, path in urls], [name for *_, name in _named(urls, url)])
    name = re.sub(r"[?#].*", "", url).rstrip("/").rsplit("/", 1)[-1]
    return open_files(files, split, Path(name).stem or url, chosen=len(urls) == 1 or url not in files.names)


def _matches(url: str) -> list[tuple[Any, str]]:
    """File systems and paths of one URL without braces."""
    system, path = system_of(url)
    if any(sign in path for sign in "*["):
        found = sorted(retried(lambda: list(system.glob(path)), url))
        if not found:
            raise DataError(f"no file matches {url}; check the pattern")
        return [(system, name) for name in found]
    if re.sub(r"[?#].*", "", path).lower().endswith(ARCHIVES):
        return [(system, path)]
    if retried(lambda: system.isdir(path), url):
        names = sorted(str(name) for name in retried(lambda: system.ls(path, detail=False), url))
        for suffix in ARCHIVES:
            chosen = [(system, name) for name in names if name.lower().endswith(suffix)]
            if chosen:
                return chosen
    raise DataError(f"nothing to read at {url}: give .tar, .zip or .parquet files, a pattern, or a folder of them")


def _named(found: Sequence[tuple[Any, str]], url: str) -> list[tuple[Any, str, str]]:
    """With the full URL of each file."""
    protocol = url.partition("://")[0]
    return [(system, path, path if "://" in path else f"{protocol}://{path.lstrip('/')}") for system, path in found]


def system_of(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise DataError(f"{url} needs the package fsspec: pip install fsspec") from error
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url} needs a package that is not installed: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise DataError(f"{url} cannot be opened ({error}); check the part before ://") from error
    except Exception as error:
        raise DataError(f"{url} cannot be opened ({cause_of(error)}); check address and access rights") from error
    return system, path


def retried(action: Callable[[], Answer], where: str) -> Answer:
    """What a request answers, tried again after a pause where the network fails.

    Raises:
        DataError: it failed for good. Names `where`.
    """
    for pause in (*_PAUSES, None):
        try:
            return action()
        except FileNotFoundError as error:
            raise DataError(f"{where} does not exist; check the address") from error
        except PermissionError as error:
            raise DataError(f"{where}: access is denied ({cause_of(error)}); log in or check the rights") from error
        except ImportError as error:
            raise DataError(f"{where} needs a package that is not installed: {' '.join(str(error).split())}") from error
        except SphereGenError:
            raise
        except Exception as error:  # each protocol has exceptions of its own
            if pause is None:
                tries = len(_PAUSES) + 1
                raise DataError(
                    f"{where}: cannot be read over the network, {tries} tries failed ({cause_of(error)}); check the "
                    "connection; the same command again continues"
                ) from error
            time.sleep(pause)
    raise AssertionError


def cache_folder() -> Path:
    """Where what is costly to find out again is kept: $SPHEREGEN_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("SPHEREGEN_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "spheregen"


def cached_index(files: RangeFiles, file: int, scan: Callable[[BinaryIO, int, str], ShardIndex]) -> ShardIndex:
    """The index of a remote shard: from the cache if this version of the shard was seen before, else by reading it."""
    from spheregen.data.tars import ShardIndex

    assert isinstance(files, RemoteFiles)
    key = hashlib.sha256(f"{_INDEX_VERSION}\0{files.stamp(file)}".encode()).hexdigest()
    path = cache_folder() / "shards" / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return ShardIndex(
                offsets=arrays["offsets"],
                sizes=arrays["sizes"],
                names=PackedStrings(arrays["names"], arrays["name_offsets"]),
                kinds=arrays["kinds"],
                labels=PackedStrings(arrays["labels"], arrays["label_offsets"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or damaged: it is made again
    with files.open(file) as opened:
        index = scan(opened, files.size(file), files.names[file])
    arrays = {
        "offsets": index.offsets,
        "sizes": index.sizes,
        "names": index.names.data,
        "name_offsets": index.names.offsets,
        "kinds": index.kinds,
        "labels": index.labels.data,
        "label_offsets": index.labels.offsets,
    }
    try:
        with atomic_path(path, durable=False) as temporary, temporary.open("wb") as out:
            np.savez(out, allow_pickle=False, **arrays)
    except SphereGenError:
        pass  # no place to keep it: the next start reads the shard again
    return index


def cause_of(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
