"""Weight files that others publish, found or fetched.

A file is searched for in the folder that the caller names, in $SPHEREGEN_WEIGHTS, and in torch.hub's folder of
checkpoints, where other programs may have left it already. Nothing is downloaded unless a function that says so is
called.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch

from spheregen.errors import ConfigError, ModelFileError
from spheregen.files import atomic_path

FOLDER_VARIABLE = "SPHEREGEN_WEIGHTS"


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A published file of weights."""

    name: str
    """File name, the same in every folder."""
    url: str
    """Public address."""
    sha256_start: str = ""
    """First hex digits of the SHA-256, where the publisher states them."""


def weight_folders(folder: Path | str | None = None) -> list[Path]:
    """Return the folders to search, first one first; a missing file is downloaded into the first.

    Args:
        folder: search here first.

    Raises:
        ConfigError: `folder` is a file.
    """
    named = [] if folder is None else [Path(folder).expanduser()]
    if any(each.is_file() for each in named):
        raise ConfigError(f"the weights {named[0]} are a file; give the folder that holds the files")
    variable = os.environ.get(FOLDER_VARIABLE)
    return [*named, *([Path(variable).expanduser()] if variable else []), Path(torch.hub.get_dir()) / "checkpoints"]


def find_files(files: Sequence[WeightFile], folders: Sequence[Path]) -> dict[WeightFile, Path]:
    """Return where each file lies, the first folder that has it; a file that is nowhere is left out."""
    places = {
        file: folder / file.name for folder in reversed(folders) for file in files if (folder / file.name).is_file()
    }
    return {file: places[file] for file in files if file in places}


def download_files(
    files: Sequence[WeightFile], folders: Sequence[Path], *, user: str, other_way: str
) -> dict[WeightFile, Path]:
    """Return where each file lies, after fetching those that were nowhere into the first folder.

    A file appears under its name only when it is complete and its hash, where known, is right. Processes that call
    this at once do no harm, but each fetches the file: let one go first.

    Args:
        user: who needs the files, the first words of the message.
        other_way: what else would do than putting the files there, the last words of the message.

    Raises:
        ModelFileError: a file cannot be fetched.
        SphereGenError: a file cannot be written.
    """
    found = find_files(files, folders)
    missing = [file for file in files if file not in found]
    for file in missing:
        target = folders[0] / file.name
        with atomic_path(target) as temporary:
            try:
                torch.hub.download_url_to_file(file.url, str(temporary), file.sha256_start or None, progress=False)
            except (URLError, HTTPException, TimeoutError, ConnectionError, RuntimeError) as error:
                cause = " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
                listed = ", ".join(f"{other.name} from {other.url}" for other in missing if other not in found)
                raise ModelFileError(
                    f"{user} lacks weights and {file.name} could not be downloaded ({cause}); put {listed} into "
                    f"{folders[0]}, or {other_way}"
                ) from error
        found[file] = target
    return {file: found[file] for file in files}


def locate_file(weights: Path | str | None, files: Sequence[WeightFile], *, user: str, other_way: str) -> Path:
    """Find one file that will do: the one that the user names, or any of `files`, the first of which can be fetched.

    Args:
        weights: a file, which is taken as it is; or a folder to search first; or None.
        files: those that serve, the best first; one that is found must have its hash, where that is known.
        user, other_way: see `download_files`.

    Raises:
        ModelFileError: `weights` is missing, a file that was found has another hash, or none was and none can be had.
        SphereGenError: a file cannot be written.
    """
    if weights is not None:
        named = Path(weights).expanduser()
        if named.is_file():
            return named
        if not named.is_dir():
            raise ModelFileError(f"the weights {named} of {user} are missing; check the path")
    folders = weight_folders(weights)
    found = find_files(files, folders)
    if not found:
        return download_files(files[:1], folders, user=user, other_way=other_way)[files[0]]
    file, path = next(iter(found.items()))
    digest = file_sha256(path)
    if not digest.startswith(file.sha256_start):
        raise ModelFileError(
            f"{path} has SHA-256 {digest[:8]}..., not {file.sha256_start}... of the published file; delete it, and it "
            "is fetched again"
        )
    return path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        ModelFileError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"cannot read the weight file {path} ({error.strerror or error}); check it") from error
