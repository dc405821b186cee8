"""The one door that opens sources of images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from spheregen.data.archives import TarSource, ZipSource
from spheregen.data.digits import DigitsSource
from spheregen.data.files import Files, find_files, is_pattern
from spheregen.data.folder import FolderSource, image_files
from spheregen.data.hub import HUB, find_hub_files
from spheregen.data.names import ARCHIVES
from spheregen.data.parquet import ParquetSource
from spheregen.data.source import ImageSource, renumbered
from spheregen.errors import DataError, did_you_mean

_KINDS = "give 'digits', a folder of images, a .zip, .tar or .parquet, a URL of one, or a Hub data set (user/name)"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".gz")


def open_source(
    source: str | Path, *, split: str = "train", class_names: Sequence[str] | None = None, stream: bool = False
) -> ImageSource:
    """Open a set of images.

    Args:
        source: one of

            - "digits" (embedded; "./digits" is a folder of that name);
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
    opened = _open(source, split, stream)
    return opened if class_names is None else renumbered(opened, class_names)


def open_files(files: Files, split: str, name: str, *, chosen: bool = False) -> ImageSource:
    """Open archives or tables, which must be of one kind.

    Args:
        name: of the whole, for people.
        chosen: the user named exactly these files, so that the default split does not leave any out.

    Raises:
        DataError: as `open_source`.
    """
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
    where = files.names[0]
    if where.lower().endswith(_COMPRESSED):
        raise DataError(f"{where} is compressed, so images in it cannot be found; unpack it to a .tar first")
    raise DataError(f"{where} is a file of an unknown kind; {_KINDS}")


def _open(source: str | Path, split: str, stream: bool) -> ImageSource:
    text = str(source)
    if text == "digits":
        return DigitsSource(split)
    if text == "":
        raise DataError(f"the name of the data is empty; {_KINDS}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return _open_url(re.sub(r":/(?!/)", "://", text, count=1), split, stream)  # pathlib makes one slash of two
    path = Path(source).expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # no permission on a folder above, a name that is too long
        raise DataError(
            f"{path} cannot be looked at ({error.strerror or error}); check path and permissions"
        ) from error
    if is_file:
        return open_files(Files.local([path]), split, path.stem, chosen=True)
    if is_folder:
        return _open_folder(path, split)
    if is_pattern(text):
        return open_files(find_files(str(path)), split, path.stem, chosen=True)
    if _HUB_ID.fullmatch(text) and path.suffix.lower() not in ARCHIVES:
        return _open_hub(text, split, stream, path_too=True)
    hint = did_you_mean(text, ["digits"])
    raise DataError(
        f"no data at {path}: neither a folder nor a file nor 'digits' nor a Hub data set (user/name)"
        f"{hint or '; check the path for a typo'}"
    )


def _open_url(url: str, split: str, stream: bool) -> ImageSource:
    if url.startswith("file://"):
        return _open(url.removeprefix("file://"), split, stream)
    if url.startswith(HUB) and not url.lower().endswith(ARCHIVES):
        return _open_hub(url.removeprefix(HUB), split, stream)
    files = find_files(url)
    name = re.sub(r"[?#].*", "", url).rstrip("/").rsplit("/", 1)[-1]
    return open_files(files, split, Path(name).stem or url, chosen=len(files) == 1 or url not in files.names)


def _open_hub(reference: str, split: str, stream: bool, *, path_too: bool = False) -> ImageSource:
    found = find_hub_files(reference, split, stream=stream, path_too=path_too)
    if isinstance(found.files, Path):
        source: ImageSource = FolderSource(found.files, found.inner_split)
    else:
        source = open_files(found.files, found.inner_split, found.name, chosen=True)
    source.name, source.split = found.name, found.split or source.split
    return source


def _open_folder(folder: Path, split: str) -> ImageSource:
    """Open the parquet files or else the tar files of a folder, or of its `data` sub-folder; else its images."""
    for suffix in (".parquet", ".tar"):
        for place in (folder, folder / "data"):
            found = sorted(path for path in place.glob(f"*{suffix}") if path.is_file() and path.name[0] != ".")
            if not found:
                continue
            if stray := next((name for name in image_files(folder) if "/" in name), None):
                raise DataError(
                    f"{folder} holds both {found[0].name} and images in folders, such as {stray}; name the one "
                    "that is meant, or move the other away"
                )
            return open_files(Files.local(found), split, folder.resolve().name)
    return FolderSource(folder, split)
