"""The three weight files of the published perceptual loss: where they may lie, and how to fetch them.

They are searched for in the folder that the caller names, in $SPHEREGEN_WEIGHTS, and in torch.hub's folder of
checkpoints, where other programs may have left them already. Nothing is downloaded unless `download_weights` is called.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.files import atomic_path

FOLDER_VARIABLE = "SPHEREGEN_WEIGHTS"
_TIMEOUT_SECONDS = 30.0
_BLOCK_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A published file of weights."""

    name: str  # file name, the same in every folder
    url: str  # public address
    sha256_start: str = ""  # first hex digits of the SHA-256, where the publisher states them


VGG16 = WeightFile(
    name="vgg16-397923af.pth",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    sha256_start="397923af",
)
CONVNEXT_SMALL = WeightFile(
    name="convnext_small-0c510722.pth",
    url="https://download.pytorch.org/models/convnext_small-0c510722.pth",
    sha256_start="0c510722",
)
LPIPS_VGG = WeightFile(
    name="vgg.pth",
    url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
)
PUBLISHED_FILES = (VGG16, CONVNEXT_SMALL, LPIPS_VGG)


class DownloadError(SphereGenError):
    """A file could not be fetched, or what came is not the file."""


def weight_folders(weights: Path | str | None = None) -> list[Path]:
    """The folders to search, first one first; a missing file is downloaded into the first.

    Raises:
        ConfigError: `weights` is a file.
    """
    folders = []
    if weights is not None:
        folder = Path(weights).expanduser()
        if folder.is_file():
            raise ConfigError(f"the perceptual weights {folder} are a file; give the folder that holds the files")
        folders.append(folder)
    if named := os.environ.get(FOLDER_VARIABLE):
        folders.append(Path(named).expanduser())
    folders.append(Path(torch.hub.get_dir()) / "checkpoints")
    return folders


def find_weights(weights: Path | str | None = None) -> dict[WeightFile, Path]:
    """Where each of the three files lies; a file that is nowhere is left out."""
    folders = weight_folders(weights)
    found = {}
    for file in PUBLISHED_FILES:
        places = [folder / file.name for folder in folders if (folder / file.name).is_file()]
        if places:
            found[file] = places[0]
    return found


def download_weights(weights: Path | str | None = None) -> dict[WeightFile, Path]:
    """Where each of the three files lies, after fetching those that were nowhere (about 730 MB in all).

    A file appears under its name only when it is complete and its hash, where known, is right. Processes that call
    this at once do no harm, but each fetches the file: let one go first.

    Raises:
        SphereGenError: a file cannot be fetched or written.
    """
    found = find_weights(weights)
    missing = [file for file in PUBLISHED_FILES if file not in found]
    folder = weight_folders(weights)[0]
    for file in missing:
        target = folder / file.name
        _log.info("downloading %s to %s", file.url, target)
        try:
            with atomic_path(target) as temporary:
                _fetch(file, temporary)
        except DownloadError as error:
            absent = [other for other in missing if other not in found]
            listed = ", ".join(f"{other.name} from {other.url}" for other in absent)
            raise ModelFileError(
                f"the published perceptual loss lacks weights and {error}; put {listed} into {folder}, "
                "or choose perceptual 'builtin'"
            ) from error
        found[file] = target
    return {file: found[file] for file in PUBLISHED_FILES}


def _fetch(file: WeightFile, target: Path) -> None:
    """Write the file at `file.url` to `target` and check it.

    Raises:
        DownloadError: the network failed, or what came is not the file.
        OSError: the disk failed.
    """
    digest = hashlib.sha256()
    received = 0
    try:
        response = urllib.request.urlopen(file.url, timeout=_TIMEOUT_SECONDS)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{file.name} could not be downloaded ({_reason(error)})") from error
    with response, target.open("wb") as out:
        announced = response.headers.get("Content-Length")
        while block := _read(file, response):
            digest.update(block)
            received += len(block)
            out.write(block)
    if announced is not None and received != int(announced):
        raise DownloadError(f"the download of {file.name} broke off after {received} of {announced} bytes")
    if not digest.hexdigest().startswith(file.sha256_start):
        raise DownloadError(f"the download of {file.name} has SHA-256 {digest.hexdigest()[:8]}..., not its own")


def _read(file: WeightFile, response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"the download of {file.name} broke off ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    cause = getattr(error, "reason", None) or error
    return " ".join(str(cause).split()) or type(error).__name__
