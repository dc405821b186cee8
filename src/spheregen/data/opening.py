"""The one door that opens sources of images."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from spheregen.data.archives import TarSource, ZipSource
from spheregen.data.embedded import EMBEDDED, EmbeddedSource
from spheregen.data.files import Files, cause_of, find_files, retried
from spheregen.data.folder import FolderSource, all_files
from spheregen.data.names import (
    ARCHIVES,
    IgnoredFiles,
    check_class_names,
    choose_split,
    is_image_name,
    is_plain,
    printable,
    sift,
)
from spheregen.data.parquet import ParquetSource
from spheregen.data.source import ImageSource, renumbered
from spheregen.errors import DataError, did_you_mean
from spheregen.hub import HubError, find_downloaded, import_hub, request

_HUB = "hf://datasets/"
_REFERENCE = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<folder>.*))?"
)
_COMPANIONS = ("classes.txt", "dataset_info.json")  # they name the classes of shards
_KINDS = (
    "give 'digits' or 'letters', a folder of images, a .zip, .tar or .parquet, a URL of one, or a Hub data set "
    "(user/name)"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_source(
    source: str | Path, *, split: str = "train", class_names: Sequence[str] | None = None, stream: bool = False
) -> ImageSource:
    """Open a set of images.

    Args:
        source: one of

            - "digits" or "letters" (embedded; "./digits" is a folder of that name);
            - a folder of images (sub-folders are classes; train, test ... above them are splits), or a .zip of one;
            - a parquet file or a folder of them;
            - WebDataset shards: a .tar file, or a folder of them;
            - several such files by a pattern: "shards/train-{000000..000146}.tar", "shards/*.tar";
            - a URL of tar, zip or parquet files, patterns included: "https://...", "s3://...", "hf://datasets/...";
            - a data set of the Hugging Face Hub: "user/dataset", or
              "hf://datasets/user/dataset[@revision][/folder or configuration]".
        split: "train", "test", "val" ... as the source offers them, or "all". A source without splits is "train".
        class_names: number the classes as in this list (that of a trained model) instead of by the source's own.
        stream: read a Hub data set over the network while training runs, instead of downloading it first. Other URLs
            are always read over the network.

    Raises:
        DataError: there is no such source or split, it is empty, broken or out of reach, or it has a class that
            `class_names` lacks; or a package that it needs is not installed.
        ConfigError: `class_names` holds a name twice.
    """
    if not is_plain(str(source)):
        problem = "the path is no UTF-8 text of one line, so that no recipe can hold it"
        raise DataError(f"{printable(str(source))}: {problem}; rename the folder or file")
    opened = _open(source, split, stream)
    check_class_names(opened.class_names, opened.name)
    return opened if class_names is None else renumbered(opened, class_names)


def open_files(files: Files, split: str, name: str, *, chosen: bool = False) -> ImageSource:
    """Open archives or tables, which must be of one kind; `chosen`: the user named exactly these files, so that the
    default split does not leave any out."""
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
    raise DataError(f"{files.names[0]} is compressed or a file of an unknown kind; {_KINDS}")


def _open(source: str | Path, split: str, stream: bool) -> ImageSource:
    text = str(source)
    if text in EMBEDDED:
        if text != "digits" and Path(text).exists():  # which older versions meant by that name
            raise DataError(
                f"{text} is a data set of the package and a folder here; write ./{text} for the folder, or "
                "run the command elsewhere for the set"
            )
        return EmbeddedSource(text, split)
    if text == "":
        raise DataError(f"the name of the data is empty; {_KINDS}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return _open_url(re.sub(r":/(?!/)", "://", text, count=1), split, stream)  # pathlib makes one slash of two
    path = Path(source).expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # no permission on a folder above, a name that is too long
        reason = error.strerror or error
        raise DataError(f"{path} cannot be looked at ({reason}); check path and permissions") from error
    if is_file:
        return open_files(Files.local([path]), split, path.stem, chosen=True)
    if is_folder:
        return _open_folder(path, split)
    if set("*?[{") & set(text):
        return open_files(find_files(str(path)), split, path.stem, chosen=True)
    if _HUB_ID.fullmatch(text) and path.suffix.lower() not in ARCHIVES:
        return _open_hub(text, split, stream, path_too=True)
    hint = did_you_mean(text, EMBEDDED) or "; check the path for a typo"
    others = "an embedded set nor a Hub data set (user/name)"
    raise DataError(f"no data at {path}: neither a folder nor a file nor {others}{hint}")


def _open_url(url: str, split: str, stream: bool) -> ImageSource:
    if url.startswith("file://"):
        return _open(url.removeprefix("file://"), split, stream)
    if url.startswith(_HUB) and not url.lower().endswith(ARCHIVES):
        return _open_hub(url.removeprefix(_HUB), split, stream)
    files = find_files(url)
    name = re.sub(r"[?#].*", "", url).rstrip("/").rsplit("/", 1)[-1]
    return open_files(files, split, Path(name).stem or url, chosen=len(files) == 1 or url not in files.names)


def _open_folder(folder: Path, split: str) -> ImageSource:
    """Open the parquet files or else the tar files of a folder, or of its `data` sub-folder; else its images."""
    for suffix in (".parquet", ".tar"):
        for place in (folder, folder / "data"):
            found = sorted(path for path in place.glob(f"*{suffix}") if path.is_file() and path.name[0] != ".")
            if not found:
                continue
            names, ignored = list(all_files(folder)), IgnoredFiles()
            images = [names[row] for row in sift(names, ignored)]
            if stray := next((name for name in images if "/" in name), None):
                both = f"both {found[0].name} and images such as {printable(stray)}"
                raise DataError(f"{folder} holds {both}; name what is meant, or move one away")
            source = open_files(Files.local(found), split, folder.resolve().name)
            ignored.add_all(source.ignored)
            for name in images:
                ignored.add("image beside archives", name)
            source.ignored = tuple(one for one in ignored.listed() if not one.reason.startswith(suffix))
            return source
    return FolderSource(folder, split)


def _open_hub(reference: str, split: str, stream: bool, *, path_too: bool = False) -> ImageSource:
    """Open user/name[@revision][/folder or configuration], found by the package `datasets`.

    Its files are downloaded once, or read over the network while training runs, by the readers of this package: they
    know each image by its number, which a stream of `datasets` does not, so that a run continues exactly. Only files
    are read; the Python scripts that some repositories bring are never run.

    Args:
        path_too: the name could also have been meant as a path; the error says so.
    """
    from fsspec.core import url_to_fs

    match = _REFERENCE.fullmatch(reference.rstrip("/"))
    if match is None:
        raise DataError(f"{_HUB}{reference} is no Hub data set; write {_HUB}user/name[@revision][/folder]")
    repo, revision, folder = match["repo"], match["revision"], match["folder"] or None
    typo = f"there is no path {reference} here (a typo?); as a Hub data set: " if path_too else ""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as missing:
        cure = 'which needs a package: pip install "spheregen[data]"'
        raise DataError(f"{typo}{repo} is on the Hugging Face Hub, {cure}") from missing
    try:
        builder = _builder(datasets, repo, revision, folder)
    except ConnectionError as error:  # without a network what was downloaded before will do
        before = None if stream else find_downloaded(import_hub(repo, DataError), repo, "data set", revision)
        if before is None:
            raise DataError(
                f"{typo}{repo}: the Hub is out of reach; check the connection ({cause_of(error)})"
            ) from error
        builder = _builder(datasets, str(before), None, folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{typo}{repo} cannot be opened on the Hub ({cause_of(error)})") from error
    found: dict[str, list[str]] = {str(name): list(urls) for name, urls in builder.config.data_files.items()}
    name, every = repo.rpartition("/")[2], [url for urls in found.values() for url in urls]
    kind = next((suffix for suffix in ARCHIVES if any(url.lower().endswith(suffix) for url in every)), None)
    if kind is None and any(map(is_image_name, every)):
        if stream:
            raise DataError(f"{repo} holds single image files, too slow to stream; leave stream out")
        source: ImageSource = FolderSource(_download_folder(repo, revision, builder.config.data_dir or ""), split)
        source.name = name
        return source
    if kind is None:
        raise DataError(f"{typo}{repo} holds no parquet, tar, zip or image files; what only a script loads is not read")
    divided = list(found) != ["train"]  # otherwise `datasets` told no splits, and there may be some within the files
    chosen = split if not divided or split == "all" else choose_split(split, list(found), repo)
    urls = [url for part, urls in found.items() if part == chosen or not divided or chosen == "all" for url in urls]
    urls = [url for url in urls if url.lower().endswith(kind)]
    system = url_to_fs(urls[0])[0]
    files = Files(system, [system._strip_protocol(url) for url in urls], urls)
    files = files if stream else _download(datasets, files, name)
    inner = "all" if divided or (kind == ".parquet" and split == "train") else split
    source = open_files(files, inner, name, chosen=True)
    source.split = chosen if inner == "all" else source.split
    return source


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


def _download(datasets: Any, files: Files, name: str) -> Files:
    """Download the files, into the cache of the Hub."""
    folder = files.names[0].rpartition("/")[0]
    wanted = [*files.names, *(f"{folder}/{other}" for other in _COMPANIONS if files.beside(other) is not None)]
    local = retried(lambda: datasets.DownloadManager(dataset_name=name).download(wanted), name)
    return Files.local([Path(path) for path in local[: len(files)]])


def _download_folder(repo: str, revision: str | None, folder: str) -> Path:
    download = partial(import_hub(repo, DataError).snapshot_download, repo, repo_type="dataset", revision=revision)
    try:
        root = request(partial(download, allow_patterns=f"{folder}/*" if folder else "*"), "data set")
    except HubError as error:
        raise DataError(f"{repo}: {error}") from error
    return Path(root) / folder
