"""Data sets of the Hugging Face Hub, found by the package `datasets`: its configurations, splits and files.

The files are downloaded once, or read over the network while training runs, by the readers of this package: they know
each image by its number, which a stream of `datasets` does not, so that a run continues exactly. Only files are read;
the Python scripts that some repositories bring are never run.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spheregen.data.files import Files, cause_of, retried
from spheregen.data.names import ARCHIVES, choose_split, is_image_name
from spheregen.errors import DataError
from spheregen.hub import HubError, find_downloaded, import_hub, request

HUB = "hf://datasets/"
_REFERENCE = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<folder>.*))?"
)
_COMPANIONS = ("classes.txt", "dataset_info.json")  # they name the classes of shards


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """The files of a data set, found."""

    name: str  # for people
    files: Files | Path  # archives or tables, or the folder of image files
    inner_split: str  # the split to choose within them
    split: str | None  # what the files themselves are; None = as `inner_split` is answered


def find_hub_files(reference: str, split: str, *, stream: bool, path_too: bool = False) -> HubFiles:
    """Find the files of a data set of the Hub, and download them unless they are streamed.

    Args:
        reference: user/name[@revision][/folder or configuration].
        stream: leave the files where they are.
        path_too: the name could also have been meant as a path; the error says so.

    Raises:
        DataError: a package is not installed, the repository cannot be reached, is private or does not exist, or holds
            nothing that can be read.
    """
    match = _REFERENCE.fullmatch(reference.rstrip("/"))
    if match is None:
        raise DataError(f"{HUB}{reference} is no Hub data set; write {HUB}user/name[@revision][/folder]")
    repo, revision, folder = match["repo"], match["revision"], match["folder"] or None
    typo = f"there is no path {reference} here (a typo?); as a Hub data set: " if path_too else ""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as missing:
        raise DataError(
            f'{typo}{repo} is on the Hugging Face Hub, which needs a package: pip install "spheregen[data]"'
        ) from missing
    try:
        builder = _builder(datasets, repo, revision, folder)
    except ConnectionError as error:  # without a network what was downloaded before will do
        before = None if stream else find_downloaded(import_hub(repo, DataError), repo, "data set", revision)
        if before is None:
            raise DataError(
                f"{typo}{repo}: the Hugging Face Hub cannot be reached; check the connection ({cause_of(error)})"
            ) from error
        builder = _builder(datasets, str(before), None, folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{typo}{repo} cannot be opened on the Hub ({cause_of(error)})") from error
    found: dict[str, list[str]] = {str(name): list(urls) for name, urls in builder.config.data_files.items()}
    name, every = repo.rpartition("/")[2], [url for urls in found.values() for url in urls]
    kind = next((suffix for suffix in ARCHIVES if any(url.lower().endswith(suffix) for url in every)), None)
    if kind is None and any(map(is_image_name, every)):
        if stream:
            raise DataError(
                f"{repo} holds single image files, which are too slow to stream; download it (stream=False) instead"
            )
        root = _download_folder(repo, revision, builder.config.data_dir or "")
        return HubFiles(name=name, files=root, inner_split=split, split=None)
    if kind is None:
        raise DataError(
            f"{repo} holds no parquet, tar, zip or image files{f' in {folder}' if folder else ''}; "
            "data sets that only a script can load are not supported"
        )
    divided = list(found) != ["train"]  # otherwise `datasets` told no splits, and there may be some within the files
    chosen = split if not divided or split == "all" else choose_split(split, list(found), repo)
    urls = [url for part, urls in found.items() if part == chosen or not divided or chosen == "all" for url in urls]
    files = _files([url for url in urls if url.lower().endswith(kind)])
    if not stream:
        files = _download(datasets, files, name)
    inner = "all" if divided or (kind == ".parquet" and split == "train") else split
    return HubFiles(name=name, files=files, inner_split=inner, split=chosen if inner == "all" else None)


def _builder(datasets: Any, path: str, revision: str | None, folder: str | None) -> Any:
    """Return the builder of a data set; `folder` is the name of a configuration or a folder."""
    if folder is None:
        builder = datasets.load_dataset_builder(path, revision=revision)
    else:
        try:
            builder = datasets.load_dataset_builder(path, folder, revision=revision)
        except ValueError:
            builder = datasets.load_dataset_builder(path, revision=revision, data_dir=folder)
    if builder.name == "text":  # a README or classes.txt beside shards
        builder = datasets.load_dataset_builder(path, revision=revision, data_dir=folder, data_files="**/*.tar")
    return builder


def _files(urls: list[str]) -> Files:
    from fsspec.core import url_to_fs

    system = url_to_fs(urls[0])[0]
    return Files(system, [system._strip_protocol(url) for url in urls], urls)


def _download(datasets: Any, files: Files, name: str) -> Files:
    """Download the files, into the cache of the Hub."""
    folder = files.names[0].rpartition("/")[0]
    wanted = [*files.names, *(f"{folder}/{other}" for other in _COMPANIONS if files.beside(other) is not None)]
    local = retried(lambda: datasets.DownloadManager(dataset_name=name).download(wanted), name)
    return Files.local([Path(path) for path in local[: len(files)]])


def _download_folder(repo: str, revision: str | None, folder: str) -> Path:
    hub = import_hub(repo, DataError)
    pattern = f"{folder}/*" if folder else "*"
    try:
        root = request(
            lambda: hub.snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=pattern),
            "data set",
        )
    except HubError as error:
        raise DataError(f"{repo}: {error}") from error
    return Path(root) / folder
