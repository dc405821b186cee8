"""The Hugging Face Hub, for data sets and models alike: the optional package, and its errors in one line.

huggingface_hub 0.x, 1.x and 2.x raise errors of three HTTP libraries; here they are told apart by name and status.
"""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar

from spheregen.errors import ModelFileError, SphereGenError

Answer = TypeVar("Answer")
Kind = Literal["data set", "model"]
"""The content of a repository."""

_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
USER = re.compile(_WORD)
"""The name of a user or an organisation."""
REPO = re.compile(rf"(?!.*(?:--|\.\.)){_WORD}/{_WORD}")
"""A repository, user/name; no relative path such as ../folder."""
REVISION = re.compile(r"\w[\w.+-]*(?:/\w[\w.+-]*)*", re.ASCII)
"""A branch, tag or commit; it becomes a file name in the Hub's cache."""

_MISSING = ("RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class HubError(Exception):
    """A request that failed, as one line; who asked makes an error for the user of it."""

    def __init__(self, text: str, *, permanent: bool) -> None:
        super().__init__(text)
        self.permanent = permanent  # trying again, or without a network, does not help


def import_hub(what: str, error: type[SphereGenError]) -> ModuleType:
    """Import the package huggingface_hub.

    Args:
        what: what is on the Hub, the first words of the message.
        error: the error to raise.

    Raises:
        SphereGenError: an `error`, if the package is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as missing:
        raise error(
            f'{what} is on the Hugging Face Hub, which needs a package: pip install "spheregen[hub]"'
        ) from missing


def request(action: Callable[[], Answer], kind: Kind) -> Answer:
    """Return the answer of the Hub to `action`.

    Raises:
        HubError: anything that huggingface_hub raised.
    """
    try:
        return action()
    except Exception as error:  # what the HTTP library of the day raises has no common base
        text, permanent = _explain(error, kind)
        raise HubError(f"{text} ({_cause(error)})", permanent=permanent) from error


def download(repo: str, revision: str | None, patterns: Sequence[str], *, what: str) -> Path:
    """Fetch files of a model's repository into the Hub's usual cache; without a network, take what is there.

    Args:
        repo: user/name.
        revision: a branch, tag or commit.
        patterns: of the files, as in `allow_patterns` of huggingface_hub.
        what: what is on the Hub, for the message of a missing package.

    Returns:
        The folder of the snapshot; it may lack files.

    Raises:
        ModelFileError: the package is not installed.
        HubError: the repository cannot be had, and never was.
    """
    hub = import_hub(what, ModelFileError)
    try:
        return Path(
            request(
                lambda: hub.snapshot_download(repo, revision=revision, allow_patterns=list(patterns), etag_timeout=15),
                "model",
            )
        )
    except HubError as error:
        place = getattr(error.__cause__, "snapshot_path", None)  # version 2, without a network: some files are missing
        if place is None:
            raise
        return Path(place)


def find_downloaded(hub: ModuleType, repo: str, kind: Kind, revision: str | None) -> Path | None:
    """Return the folder of what was downloaded of a repository before, be it complete or not; None if that is nothing.

    Args:
        hub: the package huggingface_hub.
        repo: user/name.
    """
    repo_type = kind.replace(" ", "")
    try:
        return Path(hub.snapshot_download(repo, repo_type=repo_type, revision=revision, local_files_only=True))
    except Exception as error:
        # Version 2 says so where files of the repository are missing; but we never wanted all of them.
        place = getattr(error, "snapshot_path", None) if _is_named(error, "IncompleteSnapshotError") else None
        return Path(place) if place else None


def _is_named(error: BaseException, *names: str) -> bool:
    """Tell if `error` is of one of the classes of `huggingface_hub.errors`; each version lacks some of them."""
    from huggingface_hub import errors

    return any(isinstance(kind := getattr(errors, name, None), type) and isinstance(error, kind) for name in names)


def _explain(error: Exception, kind: Kind) -> tuple[str, bool]:
    """Return cause and cure, and if it is permanent."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if _is_named(error, "GatedRepoError"):
        return "access must be asked for on its web page; then log in with `hf auth login`", True
    if _is_named(error, *_MISSING) or status == 404:
        return f"the Hub has no such {kind} or revision, or it is private: check for a typo, or `hf auth login`", True
    if _is_named(error, "LocalTokenNotFoundError") or status == 401:
        return "nobody is logged in, or the token is wrong or has expired: log in with `hf auth login`", True
    if status == 403:
        return "the Hub denies this to the account or its token; use one that may, with `hf auth login`", True
    if status == 429:
        return "the Hub wants fewer requests; wait a few minutes and try again", False
    if isinstance(status, int) and 400 <= status < 500 and status != 408:
        return "the Hub refuses the request; correct what it names", True
    if isinstance(error, OSError) and (
        error.errno in _DISK or (isinstance(error, PermissionError) and error.filename is not None)
    ):
        return "the cache of the Hub cannot be written to; free space, or choose another place with HF_HOME", True
    return "the Hugging Face Hub cannot be reached; check the connection", False  # offline, time-outs, proxies


def _cause(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "server_message", None) or error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
