"""Data sets of the Hugging Face Hub: downloaded once, or read over the network while training runs.

Only files are read; the Python scripts that some repositories bring are never run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from spheregen.data.folders import FolderSource
from spheregen.data.names import is_image_name
from spheregen.data.patterns import choose_files
from spheregen.data.ranges import LocalFiles
from spheregen.data.remote import RemoteFiles, system_of
from spheregen.data.sources import ARCHIVES, ImageSource, open_files
from spheregen.errors import DataError
from spheregen.hub import HubError, find_downloaded, import_hub, request

HUB = "hf://datasets/"
_REFERENCE = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<folder>.*))?"
)
_COMPANIONS = ("classes.txt", "dataset_info.json")  # they name the classes of shards


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """What of a repository is read."""

    kind: str  # a suffix of ARCHIVES, or "images"
    files: list[str]  # paths in the repository
    split: str
    folder: str  # of the images


def open_hub(reference: str, split: str, *, stream: bool, path_too: bool = False) -> ImageSource:
    """Open a data set of the Hub.

    Args:
        reference: user/name[@revision][/folder].
        stream: leave the files where they are and read them when they are needed.
        path_too: the name could also have been meant as a path; the error says so.

    Raises:
        DataError: huggingface_hub is not installed, the repository cannot be reached, is private or does not exist, or
            holds nothing that can be read.
    """
    match = _REFERENCE.fullmatch(reference.rstrip("/"))
    if match is None:
        raise DataError(f"{HUB}{reference} is no Hub data set; write {HUB}user/name[@revision][/folder]")
    repo, revision, folder = match["repo"], match["revision"], match["folder"] or ""
    typo = f"there is no path {reference} here (a typo?); as a Hub data set: " if path_too else ""
    hub = import_hub(f"{typo}{repo}", DataError)
    try:
        listed: list[str] = request(
            lambda: hub.HfApi().list_repo_files(repo, repo_type="dataset", revision=revision), "data set"
        )
    except HubError as error:
        if error.permanent or stream:
            raise DataError(f"{typo}{error}") from error
        before = find_downloaded(hub, repo, "data set", revision)  # no network: what was downloaded before will do
        if before is None:
            raise DataError(f"{typo}{error}") from error
        listed = sorted(path.relative_to(before).as_posix() for path in before.rglob("*") if path.is_file())
        return _open_local(before, _choose(listed, folder, split, repo), split, repo)
    choice = _choose(sorted(listed), folder, split, repo)
    if stream:
        return _open_stream(repo, revision, choice, split)
    wanted = [*choice.files, *(name for name in listed if PurePosixPath(name).name in _COMPANIONS)]
    if choice.kind == "images":
        wanted = [f"{choice.folder}/*" if choice.folder else "*"]
    try:
        root = Path(
            request(
                lambda: hub.snapshot_download(
                    repo,
                    repo_type="dataset",
                    revision=revision,
                    allow_patterns=[_literal(name) for name in wanted] if choice.kind != "images" else wanted,
                ),
                "data set",
            )
        )
    except HubError as error:
        raise DataError(f"{error}") from error
    return _open_local(root, choice, split, repo)


def _open_local(root: Path, choice: _Choice, split: str, repo: str) -> ImageSource:
    name = repo.rpartition("/")[2]
    if choice.kind == "images":
        source: ImageSource = FolderSource(root / choice.folder, split)
    else:
        missing = [file for file in choice.files if not (root / file).is_file()]
        if missing:
            raise DataError(f"{repo}: {missing[0]} was not downloaded completely; connect to the network and try again")
        source = open_files(LocalFiles([root / file for file in choice.files]), split, name, chosen=True)
    source.name = name
    return source


def _open_stream(repo: str, revision: str | None, choice: _Choice, split: str) -> ImageSource:
    if choice.kind == "images":
        raise DataError(
            f"{repo} holds single image files, which are too slow to stream; download it (stream=False) instead"
        )
    base = f"{HUB}{repo}" + (f"@{revision.replace('/', '%2F')}" if revision else "")
    urls = [f"{base}/{file}" for file in choice.files]
    systems = [system_of(url) for url in urls]
    files = RemoteFiles(systems[0][0], [path for _, path in systems], urls)
    return open_files(files, split, repo.rpartition("/")[2], chosen=True)


def _choose(listed: Sequence[str], folder: str, split: str, repo: str) -> _Choice:
    """Which files of a repository make the data set: parquet, else tar, else zip, else image files."""
    visible = [name for name in listed if not any(part.startswith(".") for part in name.split("/"))]
    inside = [name for name in visible if not folder or name.startswith(f"{folder}/") or name == folder]
    if folder and not inside:
        raise DataError(f"{repo} has no folder {folder}; it has {', '.join(_folders(visible)) or 'no folders'}")
    for suffix in ARCHIVES:
        found = [name for name in inside if name.lower().endswith(suffix)]
        if not found:
            continue
        folders = sorted({str(PurePosixPath(name).parent) for name in found})
        usual = [place for place in (folder or ".", f"{folder}/data".lstrip("/")) if place in folders]
        if not usual and len(folders) > 1:
            raise DataError(
                f"{repo} holds several data sets; choose one: {HUB}{repo}/{folders[0]} (of {', '.join(folders)})"
            )
        place = (usual or folders)[0]
        found = [name for name in found if str(PurePosixPath(name).parent) == place]
        names = [PurePosixPath(name).name for name in found]
        if suffix == ".zip":
            return _Choice(kind=suffix, files=found, split=split, folder=place)
        proper, chosen = choose_files(names, split, repo, chosen=False, numbered_splits=suffix == ".parquet")
        return _Choice(kind=suffix, files=[found[i] for i in chosen], split=proper, folder=place)
    if any(is_image_name(name) for name in inside):
        return _Choice(kind="images", files=[], split=split, folder=folder)
    raise DataError(
        f"{repo} holds no parquet, tar, zip or image files{f' in {folder}' if folder else ''}; "
        "data sets that only a script can load are not supported"
    )


def _folders(names: Sequence[str]) -> list[str]:
    return sorted({name.split("/", 1)[0] for name in names if "/" in name})


def _literal(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)
