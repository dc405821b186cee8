"""Files that are read piece by piece, on this machine or behind a URL (https, s3, gs, the Hub ...), through fsspec.

fsspec comes with torch; what a protocol needs on top is named in the error. Requests over a network are tried three
times.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from spheregen.data.names import ARCHIVES
from spheregen.data.source import content_digest
from spheregen.errors import DataError, SphereGenError

Answer = TypeVar("Answer")

_PAUSES = (0.5, 2.0)  # seconds before the second and the third try
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_QUERY = re.compile(r"[?#].*")
_MOST = 1_000_000  # files that one pattern may stand for


class Files:
    """A numbered list of files of one file system. Nothing stays open, so processes and threads may share it."""

    def __init__(self, system: Any, paths: Sequence[str], names: Sequence[str] | None = None) -> None:
        from fsspec.implementations.local import LocalFileSystem

        self.system = system  # of fsspec
        self.paths = list(paths)  # as it names them
        self.names = list(names or paths)  # paths or URLs, for people
        self.remote = not isinstance(system, LocalFileSystem)

    @classmethod
    def local(cls, paths: Sequence[Path]) -> Files:
        import fsspec

        return cls(fsspec.filesystem("file"), [str(path) for path in paths])

    def __len__(self) -> int:
        return len(self.names)

    def base_name(self, file: int) -> str:
        """Return the last part of the name, without the query of a URL."""
        plain = _QUERY.sub("", self.names[file]) if self.remote else self.names[file]
        return plain.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]

    def size(self, file: int) -> int:
        """Return the length in bytes."""
        size = self._info(file).get("size")
        if not isinstance(size, int):
            raise DataError(f"{self.names[file]}: the server does not tell its size; download it and give its path")
        return size

    def stamp(self, file: int) -> str:
        """Return what tells this version of the file from others: name, size, checksum or time where they are known."""
        return f"{self.names[file]}\0{self._version(file)}"

    def content(self, file: int, pieces: int = 0) -> bytes:
        """Return what tells the contents of the file from others: here a hash of all, or of so many pieces of 4 KiB;
        of a remote one what its server says."""
        return self._version(file).encode() if self.remote else content_digest(self.paths[file], pieces)

    def _version(self, file: int) -> str:
        info = self._info(file)
        keys = ("etag", "ETag", "blob_id", "mtime", "LastModified", "created")
        return "\0".join([str(self.size(file)), *(str(info[key]) for key in keys if key in info)])

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes from `offset` on."""

        def fetch() -> bytes:
            if self.remote:
                data = bytes(self.system.cat_file(self.paths[file], start=offset, end=offset + length))
            else:
                with open(self.paths[file], "rb", buffering=0) as handle:  # noqa: PTH123 - fsspec takes six times as long
                    handle.seek(offset)
                    data = handle.read(length)
                    while data and len(data) < length and (more := handle.read(length - len(data))):
                        data += more  # the system may give less than was asked for
            if len(data) != length:
                raise EOFError(f"{len(data)} of {length} bytes came, it is shorter than it was")
            return data

        return self.retried(fetch, file) if length else b""

    def open(self, file: int, block: int = 1 << 15) -> BinaryIO:
        """Open a file that can seek; reading ahead by `block` bytes over a network."""
        options = {"block_size": block} if self.remote else {}
        return cast(BinaryIO, self.retried(lambda: self.system.open(self.paths[file], "rb", **options), file))

    def only(self, chosen: Sequence[int]) -> Files:
        """Return some of the files."""
        return Files(self.system, [self.paths[i] for i in chosen], [self.names[i] for i in chosen])

    def beside(self, name: str) -> bytes | None:
        """Return the contents of a small file in the folder of the first file; None if there is none."""
        with contextlib.suppress(Exception):  # stores answer a missing file each in their own way
            return bytes(self.system.cat_file(re.sub(r"[^/\\]*$", "", self.paths[0]) + name))
        return None

    def retried(self, action: Callable[[], Answer], file: int) -> Answer:
        """Return the answer to a request about a file; see the function `retried`."""
        return retried(action, self.names[file], remote=self.remote)

    def _info(self, file: int) -> dict[str, Any]:
        return dict(self.retried(lambda: self.system.info(self.paths[file]), file))


def retried(action: Callable[[], Answer], where: str, *, remote: bool = True) -> Answer:
    """Return what a request answers, tried again after a pause where a network fails; at last `where` is named."""
    for pause in (*_PAUSES, None) if remote else (None,):
        try:
            return action()
        except SphereGenError:
            raise
        except FileNotFoundError as error:
            raise DataError(f"{where} does not exist; check the address") from error
        except ImportError as error:
            raise DataError(f"{where} needs a package that is not installed: {cause_of(error)}") from error
        except Exception as error:  # each protocol has exceptions of its own
            if pause is None or isinstance(error, PermissionError):
                tries = f", {len(_PAUSES) + 1} tries failed" if pause is None and remote else ""
                cure = "connection and rights; the same command again continues" if remote else "path and permissions"
                raise DataError(f"{where}: cannot be read{tries} ({cause_of(error)}); check {cure}") from error
            time.sleep(pause)
    raise AssertionError


def cause_of(error: BaseException) -> str:
    """Return an error as one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def expand_braces(pattern: str) -> list[str]:
    """Write out `{000..146}` and `{a,b}`, in order; numbers keep their zeros."""
    match = _BRACES.search(pattern)
    if match is None and not set("{}") & set(pattern):
        return [pattern]
    choices: Sequence[str] = ()
    rest: Sequence[str] = ()
    if match is not None:
        choices, rest = match[1].split(","), expand_braces(pattern[match.end() :])
        if span := _RANGE.fullmatch(match[1]):
            numbers = range(int(span[1]), int(span[2]) + 1)[: _MOST + 1]
            choices = [str(number).zfill(len(span[1])) for number in numbers]
    if match is None or not 0 < len(choices) * len(rest) <= _MOST:
        raise DataError(
            f"{pattern} stands for no files, or for more than {_MOST}: close each brace, and write ranges like "
            "{000..146}, the smaller number first"
        )
    return [pattern[: match.start()] + choice + end for choice, end in itertools.product(choices, rest)]


def find_files(location: str) -> Files:
    """Return the files that a URL, a pattern of paths or URLs, or the URL of a folder stands for, in order."""
    from fsspec.core import url_to_fs

    system: Any = None
    paths: list[str] = []
    for name in expand_braces(location):
        system, path = retried(partial(url_to_fs, name), name, remote=False)
        paths += _matches(system, str(path), name)
    paths = list(dict.fromkeys(paths))
    protocol = location.partition("://")[0] if "://" in location else ""
    return Files(system, paths, [p if not protocol or "://" in p else f"{protocol}://{p.lstrip('/')}" for p in paths])


def _matches(system: Any, path: str, name: str) -> list[str]:
    """Return the paths that a name without braces stands for."""
    if any(sign in path for sign in "*["):
        found = sorted(str(match) for match in retried(lambda: list(system.glob(path)), name))
        if not found:
            raise DataError(f"no file matches {name}; check the pattern")
        return found
    if _QUERY.sub("", path).lower().endswith(ARCHIVES):
        return [path]
    if retried(lambda: system.isdir(path), name):
        listed = sorted(str(match) for match in retried(lambda: system.ls(path, detail=False), name))
        for suffix in ARCHIVES:
            if chosen := [match for match in listed if match.lower().endswith(suffix)]:
                return chosen
    raise DataError(f"nothing to read at {name}: give .tar, .zip or .parquet files, a pattern, or a folder of them")
