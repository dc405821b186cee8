"""The Hugging Face Hub, for data sets and models alike: the optional package, and its errors in one line.

huggingface_hub 0.x, 1.x and 2.x raise errors of three HTTP libraries; here they are told apart by name and status.
"""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar

from spheregen.errors import ModelFileError, SphereGenError

Answer = TypeVar("Answer")
Kind = Literal["data set", "model"]

_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
USER = re.compile(_WORD)  # the name of a user or an organisation
REPO = re.compile(rf"(?!.*(?:--|\.\.)){_WORD}/{_WORD}")  # user/name; no relative path such as ../folder
REVISION = re.compile(r"\w[\w.+-]*(?:/\w[\w.+-]*)*", re.ASCII)  # becomes a file name in the Hub's cache

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# classes of huggingface_hub.errors or an HTTP status; cause and cure
_EXPLAINED: tuple[tuple[set[object], str], ...] = (
    ({"GatedRepoError"}, "access must be asked for on its web page; then log in with `hf auth login`"),
    (
        {"RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError", 404},
        "the Hub has no such {} or revision, or it is private: check for a typo, or `hf auth login`",
    ),
    ({"LocalTokenNotFoundError", 401}, "nobody is logged in, or the token is wrong: log in with `hf auth login`"),
    ({403}, "the Hub denies this to the account or its token; use one that may, with `hf auth login`"),
    ({429}, "the Hub wants fewer requests; wait a few minutes and try again"),
    ({*range(400, 500)} - {408}, "the Hub refuses the request; correct what it names"),
)


class HubError(Exception):
    """A request that failed, as one line; who asked makes an error for the user of it."""


def import_hub(what: str, error: type[SphereGenError]) -> ModuleType:
    """Import the package huggingface_hub; if it is not installed, an `error` says so of `what` is on the Hub."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as missing:
        reason = f'{what} is on the Hugging Face Hub, which needs a package: pip install "spheregen[hub]"'
        raise error(reason) from missing


def request(action: Callable[[], Answer], kind: Kind) -> Answer:
    """Return the answer of the Hub to `action`; a HubError for anything that huggingface_hub raised."""
    try:
        return action()
    except Exception as error:  # what the HTTP library of the day raises has no common base
        cause = " ".join(str(getattr(error, "server_message", None) or error).split())
        raise HubError(f"{_explain(error, kind)} ({type(error).__name__}: {cause[:200]})") from error


def download(repo: str, revision: str | None, patterns: Sequence[str], *, what: str) -> Path:
    """Fetch files of a model's repository into the Hub's usual cache; without a network, take what is there.

    Args:
        patterns: of the files, as in `allow_patterns` of huggingface_hub.
        what: what is on the Hub, for the message of a missing package.

    Returns:
        The folder of the snapshot; it may lack files.

    Raises:
        ModelFileError: the package is not installed.
        HubError: the repository cannot be had, and never was.
    """
    fetch = partial(import_hub(what, ModelFileError).snapshot_download, repo, revision=revision, etag_timeout=15)
    try:
        return Path(request(lambda: fetch(allow_patterns=list(patterns)), "model"))
    except HubError as error:
        place = getattr(error.__cause__, "snapshot_path", None)  # version 2, without a network: some files are missing
        if place is None:
            raise
        return Path(place)


def find_downloaded(hub: ModuleType, repo: str, kind: Kind, revision: str | None) -> Path | None:
    """Return the folder of what was downloaded of a repository before, complete or not; None if that is nothing."""
    repo_type = kind.replace(" ", "")
    try:
        return Path(hub.snapshot_download(repo, repo_type=repo_type, revision=revision, local_files_only=True))
    except Exception as error:
        # Version 2 says so where files of the repository are missing; but we never wanted all of them.
        place = getattr(error, "snapshot_path", None)
        return Path(place) if place else None


def _explain(error: Exception, kind: Kind) -> str:
    """Return cause and cure."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    names = {status, *(base.__name__ for base in type(error).__mro__ if base.__module__.startswith("huggingface_hub"))}
    for wanted, text in _EXPLAINED:
        if wanted & names:
            return text.format(kind)
    denied = isinstance(error, PermissionError) and error.filename is not None
    if denied or (isinstance(error, OSError) and error.errno in _DISK):
        return "the cache of the Hub cannot be written to; free space, or choose another place with HF_HOME"
    return "the Hugging Face Hub cannot be reached; check the connection"  # offline, time-outs, proxies
