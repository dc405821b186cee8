"""Writing files so that nothing half-written is ever found under the final name; and reading YAML and JSON."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spheregen.errors import ConfigError, SphereGenError

_MOST_VALUES = 100_000  # of a YAML text


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`, on failure remove it.

    `durable=False` leaves the fsync out.

    Raises:
        SphereGenError: the folder cannot be written to or the disk is full. An older file at `path` stays as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        temporary.replace(path)
        if durable:
            _fsync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise SphereGenError(f"cannot write {path}: {reason}; free space or choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


_OURS = (b"Software\0spheregen", b"spheregen-reference", b"<dc:title>spheregen")
"""In a GIF and a PNG, alone or first in an archive; in statistics; in an SVG."""


def cache_folder() -> Path:
    """Return the folder of what can be made again, which the variable SPHEREGEN_CACHE names."""
    return Path(os.environ.get("SPHEREGEN_CACHE") or "~/.cache/spheregen").expanduser()


def is_ours(path: Path) -> bool:
    """Return whether a file says that we wrote it: then it can be made again."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(4096)
        return any(mark in head for mark in _OURS)
    return False


def check_replaceable(path: Path) -> None:
    """Refuse to replace a file that another program wrote.

    Raises:
        ConfigError: there is one.
    """
    if path.exists() and not is_ours(path):
        raise ConfigError(
            f"{path} is there already, and no image that we made; choose another --out, or replace it with --overwrite"
        )


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:  # names of files may be no text: those bytes are escaped, as JSON does it
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON that may come from anywhere.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_yaml(text: str, origin: str) -> Any:
    """Return what a YAML text says, as plain values.

    Raises:
        ConfigError: it is no YAML, a key is given twice, or aliases make it endless or huge.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        _check_node(root, origin, {})
        return None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{origin} is not valid YAML: {reason}") from error


def _check_node(node: Any, origin: str, sizes: dict[int, int]) -> int:
    """Return how many values a node of YAML stands for when its aliases are written out."""
    if id(node) in sizes:
        if sizes[id(node)]:
            return sizes[id(node)]
        raise ConfigError(f"{origin}: an alias holds itself; write the values out")
    sizes[id(node)], size = 0, 1
    if getattr(node, "id", "") == "mapping":
        seen: dict[str, str] = {}
        for key, value in node.value:
            where = f"line {key.start_mark.line + 1}"
            if key.id == "scalar" and key.value in seen:
                raise ConfigError(
                    f"{origin} gives {key.value} twice, in {seen[key.value]} and {where}; put the two together"
                )
            seen[str(key.value)] = where
            size += _check_node(key, origin, sizes) + _check_node(value, origin, sizes)
    elif getattr(node, "id", "") == "sequence":
        size += sum(_check_node(each, origin, sizes) for each in node.value)
    if size > _MOST_VALUES:
        raise ConfigError(f"{origin} stands for more than {_MOST_VALUES} values (by its aliases); write it shorter")
    sizes[id(node)] = size
    return size


def _fsync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets folders be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
